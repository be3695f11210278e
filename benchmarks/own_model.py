"""A request on a model that was trained without this library: `python benchmarks/own_model.py`.

Some patients of a file in MedMNIST's layout withdraw. The model is a small vision transformer with
dropout, trained by a plain loop of optax; or, with --net=resnet, a ResNet-18 of PyTorch (extras
`'.[bench,safetensors]'`), converted from safetensors. A second one is trained the same way without
these patients, which a hospital would spare itself: it shows what the request comes down to.

    python benchmarks/own_model.py --data=pneumoniamnist.npz --patients=37
    python benchmarks/own_model.py --data=malaria.npz --patients=3 --net=resnet --width=8 --epochs=1
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from jaxunlearn import default, methods, run, unlearn

DATA = flags.DEFINE_string("data", None, "A .npz in MedMNIST's layout, with groups.", required=True)
PATIENTS = flags.DEFINE_integer("patients", 37, "How many withdraw, drawn from train.")
NET = flags.DEFINE_enum("net", "vit", ["vit", "resnet"], "What was trained, and by what.")
EPOCHS = flags.DEFINE_integer("epochs", 20, "Of its training.")
WIDTH = flags.DEFINE_integer("width", 16, "Of the ResNet.")
METHOD = flags.DEFINE_string("method", "salun", "How to unlearn.")
SETTINGS: dict[str, Any] = {"epochs": 5, "batch_size": 128, "lr": 0.01}
BATCH, SEED = 128, 0


class ViT(nn.Module):
    """Patches of 4 pixels, two blocks of attention, dropout."""

    classes: int = 2
    width: int = 64

    @nn.compact
    def __call__(self, images, *, deterministic=True):
        """Logits of images `[N, 28, 28, C]`."""
        x = nn.Conv(self.width, (4, 4), strides=4)(images)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            y = nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x))))
            x = x + nn.Dropout(0.1, deterministic=deterministic)(y)
        return nn.Dense(self.classes)(nn.LayerNorm()(x).mean(1))


def batches(count: int, rng: np.random.Generator):
    """Indices of every epoch's whole batches."""
    for _ in range(EPOCHS.value):
        order = rng.permutation(count)
        yield from order[: count - count % BATCH].reshape(-1, BATCH)


def train_vit(images: np.ndarray, labels: np.ndarray) -> Any:
    """Variables of a ViT, by a loop as anyone writes it."""
    net, tx = ViT(), optax.adam(1e-3)
    variables = net.init(jax.random.key(SEED), images[:1])

    @jax.jit
    def step(variables, state, images, labels, key):
        def loss(variables):
            logits = net.apply(variables, images, deterministic=False, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        update, state = tx.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, update), state

    state = tx.init(variables)
    for i, chosen in enumerate(batches(len(labels), np.random.default_rng(SEED))):
        key = jax.random.fold_in(jax.random.key(SEED), i)
        variables, state = step(variables, state, images[chosen], jnp.array(labels[chosen]), key)
    return variables


def train_resnet(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The state of a ResNet-18 of PyTorch, under torchvision's names."""
    import torch
    import torch_resnet

    torch.manual_seed(SEED)
    net = torch_resnet.build(images.shape[-1], WIDTH.value, 2)
    tx = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    x, y = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels).long()
    for chosen in batches(len(labels), np.random.default_rng(SEED)):
        tx.zero_grad()
        torch.nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        tx.step()
    named = {"0": "conv1", "1": "bn1", "13": "fc"}
    named |= {str(3 + i): f"layer{1 + i // 2}.{i % 2}" for i in range(8)}
    state = {}
    for name, value in net.state_dict().items():
        first, _, rest = name.partition(".")
        rest = rest.replace("norm", "bn").replace("shortcut", "downsample")
        state[f"{named[first]}.{rest}"] = value.numpy()
    return state


def main(argv: list[str]) -> None:
    """Trains both models, carries out the request, and prints what came of it."""
    del argv
    logging.set_verbosity(logging.ERROR)
    with np.load(DATA.value) as archive:
        data = dict(archive)
    groups, labels = data["train_groups"], data["train_labels"].ravel().astype(np.int32)
    images = (data["train_images"].reshape(len(labels), 28, 28, -1) / np.float32(255) - 0.5) / 0.5
    patients = np.random.default_rng(SEED).choice(np.unique(groups), PATIENTS.value, replace=False)
    stay = ~np.isin(groups, patients)
    request = {"kind": "groups", "groups": tuple(sorted(patients.tolist()))}
    print(f"{(~stay).sum()} of {len(stay)} images are of the {len(patients)} patients.")

    train = train_vit if NET.value == "vit" else train_resnet
    start = time.perf_counter()
    original = train(images, labels)
    between = time.perf_counter()
    retrained = train(images[stay], labels[stay])
    print(f"Trained elsewhere in {between - start:.0f} s; without the patients the same again.")

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        if NET.value == "vit":
            done = unlearn(
                *(ViT(), original, DATA.value, request, METHOD.value),
                retrained=retrained,
                malignant=(1,),
                folder=folder,
                **SETTINGS,
            )
            print(done.report())
        else:
            from safetensors.numpy import save_file

            config = default()
            config.name, config.data.name, config.data.path = "own", "npz", DATA.value
            config.data.malignant, config.model.width = (1,), WIDTH.value
            config.forget.update(request)
            config.original.path = f"{folder}/original.safetensors"
            config.retrained_path = f"{folder}/retrained.safetensors"
            save_file(original, config.original.path)
            save_file(retrained, config.retrained_path)
            config.methods = methods(**{METHOD.value: SETTINGS})
            run(config, root)
            print((root / "table.md").read_text())
        print(f"The request took {time.perf_counter() - start:.0f} s in all.")
        rows = (root / "changed" / f"{METHOD.value}-seed0.csv").read_text().splitlines()
        print(f"{len(rows) - 1} test images are answered otherwise:", *rows[:6], sep="\n")


if __name__ == "__main__":
    app.run(main)
