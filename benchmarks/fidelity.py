"""Puts our ResNet-18 beside the same network in PyTorch: `python benchmarks/fidelity.py`.

Needs PyTorch (`pip install -e '.[bench]'`). Both start from the same weights, see the same batches
of the embedded lesions and train by the same recipe; ours does so by the compiled step that every
training uses. Prints how far apart they are, ‖a − b‖ / ‖b‖, in float32 and in float64. In float64
only what is computed differently is left (but for logits, which ours always gives in float32). In
float32 there is rounding too: a ReLU's input near 0 may have either sign, which changes a gradient,
and training multiplies the change; PyTorch's own distance from float64 is the yardstick for that.

`python benchmarks/fidelity.py --results=PATH/metrics.json` needs no PyTorch: it prints a run's UA,
RA, TA and MIA beside those of SalUn's published code.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch_resnet
from absl import app, flags, logging

from jaxunlearn import augment, config, data, devices, models, training
from jaxunlearn.data import forget
from jaxunlearn.keys import stage_rng
from jaxunlearn.methods import Task, saliency
from jaxunlearn.models import layers
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.training.loop import make_epoch
from jaxunlearn.training.step import Kind, make_step, start_state

WIDTH = flags.DEFINE_integer("width", 16, "Width of the ResNet-18.", lower_bound=1)
# Ours has another stem for larger images.
SIZE = flags.DEFINE_integer("size", 28, "Image size in pixels.", lower_bound=8, upper_bound=127)
BATCH = flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "Draws weights, images and batches.", lower_bound=0)
RESULTS = flags.DEFINE_string("results", "", "A run's metrics.json to put beside published values.")
EPOCHS = 2  # that the weights which both start from are trained for
TEST = 256  # images
STEPS = 20
LR = 0.013
MOMENTUM = 0.9
DECAY = 5e-4
RATIO = 0.5

Arrays = list[np.ndarray]

METRICS = ("UA", "RA", "TA", "MIA")
# (mean, standard deviation over the originals or None) of each metric, in percent: what
# https://github.com/OPTML-Group/Unlearn-Saliency at a6e89fd gives on BreastMNIST, ResNet-18 of
# width 16, 109 images forgotten, attack svc.
PUBLISHED: dict[str, tuple[tuple[float, float | None], ...]] = {
    "random_label": ((34.6, 3.2), (99.2, None), (80.8, None), (87.5, 1.9)),
    "salun": ((31.5, 2.9), (99.3, None), (79.7, None), (85.9, 6.8)),
    "random_label_first": ((23.9, 3.3), (100, None), (82.9, None), (61.8, 5.8)),
    "salun_first": ((21.7, 2.8), (100, None), (82.7, None), (60.6, 8.2)),
    "finetune": ((0, None), (100, None), (85.0, None), (0, None)),
}
ORIGINALS = 3  # behind a published value


def problem() -> tuple[Task, np.ndarray, np.ndarray]:
    """The task, the order of its batches `[STEPS, batch]`, and test images."""
    values = config.default()
    values.data.size, values.data.seed = SIZE.value, SEED.value
    dataset = data.load(values.data)
    setup = training.Setup(
        model=models.build("resnet18", num_classes=dataset.num_classes, width=WIDTH.value),
        augment=augment.build(()),
        mean=(0.5,),
        std=(0.5,),
        batch_size=BATCH.value,
        momentum=MOMENTUM,
        weight_decay=DECAY,
    )
    programs = training.Programs(devices.make_mesh(1))
    images = devices.replicate(training.Images.of(dataset.train.images), programs.mesh)
    bench = training.Bench(setup, images, programs)
    labels = dataset.train.labels
    passes = [training.Pass(training.cross_entropy, np.arange(len(images)), labels, 0.05)] * EPOCHS
    original = training.run(
        passes, training.fresh(bench, SEED.value), bench, stage="original", seed=SEED.value
    )
    split, _ = forget.resolve(values.forget, dataset)
    task = Task(
        forget=split.forget,
        retain=split.retain,
        labels=labels,
        num_classes=dataset.num_classes,
        malignant=dataset.malignant,
        val=dataset.val,
        seed=SEED.value,
        original=jax.device_get(original.variables),
        bench=bench,
    )
    order = stage_rng("batches", SEED.value).permutation(len(images)).astype(np.int32)
    return task, np.resize(order, (STEPS, BATCH.value)), dataset.test.images[:TEST]


def parameters_of(tree: Any) -> Arrays:
    """Flax parameters, or a pytree shaped like them, as PyTorch orders its own and lays them out.

    A convolution goes from HWIO to OIHW, a dense layer from IO to OI.
    """
    arrays = []
    for i in range(sum(name.startswith("Conv_") for name in tree)):
        arrays.append(tree[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1))
        arrays += [tree[f"BatchNorm_{i}"][name] for name in ("scale", "bias")]
    dense = tree["Dense_0"]
    return [np.asarray(array) for array in (*arrays, dense["kernel"].T, dense["bias"])]


def moments_of(tree: Any) -> tuple[Arrays, Arrays]:
    """The running means and variances of Flax's `batch_stats`, in PyTorch's order."""
    norms = [tree[f"BatchNorm_{i}"] for i in range(len(tree))]
    return [np.asarray(n["mean"]) for n in norms], [np.asarray(n["var"]) for n in norms]


def biased(variances: Arrays, before: Arrays, steps: int) -> Arrays:
    """PyTorch's running variances after some steps, as they were had it not put in n / (n − 1)."""
    kept = layers.MOMENTUM**steps
    corrected = []
    for variance, start in zip(variances, before, strict=True):
        start = start.astype(np.float64)
        side = -(-SIZE.value // (len(variance) // WIDTH.value))
        count = BATCH.value * side**2
        corrected.append((variance - kept * start) * (count - 1) / count + kept * start)
    return corrected


def in_float64(task: Task) -> Task:
    """The same task for computing in float64."""
    fields = {"blocks": (2, 2, 2, 2), "bottleneck": False, "width": WIDTH.value}
    model = models.shipped(
        ResNet, **fields, num_classes=task.num_classes, dtype=jnp.dtype("float64")
    )
    setup = dataclasses.replace(task.bench.setup, model=model)
    return dataclasses.replace(
        task,
        original=jax.tree.map(np.float64, task.original),
        bench=task.bench._replace(setup=setup),
    )


def ours(task: Task, order: np.ndarray, test: np.ndarray) -> dict[str, Arrays]:
    """What our network gives, by name."""
    setup, images, programs = task.bench
    start = task.original

    def predict(variables):
        return [training.predict(variables, test, task.bench, BATCH.value)]

    def loss_fn(params, images, labels):
        batch = training.Batch(
            training.normalise(images, setup.mean, setup.std),
            jax.nn.one_hot(labels, task.num_classes),
            jnp.ones(len(labels)),
            {},
        )
        logits, state = setup.model.apply({**start, "params": params}, batch.images, True, None)
        return training.cross_entropy(params, logits, batch, ()), state

    (loss, stats), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        start["params"], images[order[0]], task.labels[order[0]]
    )
    means, variances = moments_of(stats["batch_stats"])
    found = {
        "logits": predict(start),
        "loss": [np.asarray(loss)],
        "gradient": parameters_of(gradient),
        "means": means,
        "variances": variances,
        "biased variances": variances,
    }

    action = training.Pass(training.cross_entropy, np.arange(len(images)), task.labels, LR)
    epoch = make_epoch(task.bench, action, stage="fidelity", seed=SEED.value, number=0)
    weight = np.ones_like(order, np.float32)
    epoch = epoch._replace(
        order=devices.shard_batches(order[:, None], programs.mesh),
        weight=devices.shard_batches(weight[:, None], programs.mesh),
    )
    state = start_state(start, setup, programs.mesh)
    step = programs(make_step(setup, Kind.of(action)), state, images, epoch, donate=(0,))
    for number in range(1, STEPS + 1):
        state, metrics = step(state, images, epoch)
        found[f"loss {number}"] = [np.asarray(metrics["loss"] / metrics["count"])]
        if number in (1, STEPS):  # a copy, as the next step takes the state's memory
            trained = jax.tree.map(lambda leaf: np.array(leaf), state.variables)
            found[f"parameters {number}"] = parameters_of(trained["params"])
    found["trained logits"] = found["biased trained logits"] = predict(trained)
    found["forget gradient"] = parameters_of(saliency.forget_gradient(task))
    return found


def theirs(task: Task, order: np.ndarray, test: np.ndarray, dtype: Any) -> dict[str, Arrays]:
    """The same of the network in PyTorch, computed in `dtype`."""
    import torch
    from torch.nn import BatchNorm2d, functional

    images, labels = np.asarray(task.bench.images), torch.from_numpy(task.labels.astype(np.int64))
    model = torch_resnet.build(images.shape[-1], WIDTH.value, task.num_classes).to(dtype)
    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d)]

    def copy(arrays, tensors):
        with torch.no_grad():
            for array, tensor in zip(arrays, tensors, strict=True):
                assert array.shape == tensor.shape  # or `copy_` would broadcast
                tensor.copy_(torch.from_numpy(np.array(array)))

    def prepared(images):
        return (torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) / 255 - 0.5) / 0.5

    def loss_of(rows):
        return functional.cross_entropy(model(prepared(images[rows])), labels[rows])

    def predict():
        model.eval()
        with torch.no_grad():
            return [model(prepared(test)).numpy()]

    def numpy(tensors):
        return [tensor.detach().numpy().copy() for tensor in tensors]

    means, variances = moments_of(task.original["batch_stats"])

    def load():
        copy(parameters_of(task.original["params"]), model.parameters())
        copy(means, [norm.running_mean for norm in norms])
        copy(variances, [norm.running_var for norm in norms])

    load()
    found = {"logits": predict()}
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), float(np.float32(LR)), MOMENTUM, weight_decay=DECAY
    )
    for number, rows in enumerate(order, start=1):
        loss = loss_of(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found[f"loss {number}"] = numpy([loss])
        if number == 1:
            found["loss"] = found["loss 1"]
            found["gradient"] = numpy(parameter.grad for parameter in model.parameters())
            found["means"] = numpy(norm.running_mean for norm in norms)
            found["variances"] = numpy(norm.running_var for norm in norms)
            found["biased variances"] = biased(found["variances"], variances, 1)
        if number in (1, STEPS):
            found[f"parameters {number}"] = numpy(model.parameters())
    found["trained logits"] = predict()
    running = [norm.running_var for norm in norms]
    copy(biased(numpy(running), variances, STEPS), running)
    found["biased trained logits"] = predict()

    load()  # `predict` left the model in evaluation mode
    model.zero_grad()
    for rows in np.split(task.forget, range(BATCH.value, len(task.forget), BATCH.value)):
        loss_of(rows).backward()  # adds to the gradient
    found["forget gradient"] = numpy(parameter.grad.abs() for parameter in model.parameters())
    return found


def flat(arrays: Arrays) -> np.ndarray:
    """All arrays as one of float64."""
    return np.concatenate([array.ravel().astype(np.float64) for array in arrays])


def apart(a: Arrays, b: Arrays) -> str:
    """‖a − b‖ / ‖b‖ over all arrays."""
    return f"{np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)):.1e}"


def worst(a: Arrays, b: Arrays) -> str:
    """The same of the array where it is largest."""
    return max((apart([x], [y]) for x, y in zip(a, b, strict=True)), key=float)


def largest(a: Arrays, b: Arrays) -> str:
    """The largest absolute difference."""
    return f"{np.abs(flat(a) - flat(b)).max():.1e}"


def agreement(a: Arrays, b: Arrays) -> str:
    """Share of the entries at which the masks of two gradients agree."""
    masks = [saliency.top(np.concatenate([g.ravel() for g in each]), RATIO) for each in (a, b)]
    return f"{100 * np.mean(masks[0] == masks[1]):.4f} %"


ROWS = (
    ("logits of the test set, evaluation mode", "logits", apart),
    ("… largest absolute difference", "logits", largest),
    ("loss of a training batch", "loss", apart),
    ("its gradient", "gradient", apart),
    ("… of the worst array", "gradient", worst),
    ("running means after it", "means", apart),
    ("running variances after it", "variances", apart),
    ("… without PyTorch's n / (n − 1)", "biased variances", apart),
    ("parameters after step 1", "parameters 1", apart),
    (f"parameters after step {STEPS}", f"parameters {STEPS}", apart),
    (f"… how far {STEPS} steps moved them", "movement", apart),
    ("loss of step 1", "loss 1", apart),
    (f"loss of step {STEPS}", f"loss {STEPS}", apart),
    (f"logits after step {STEPS}, evaluation mode", "trained logits", apart),
    ("… without PyTorch's n / (n − 1)", "biased trained logits", apart),
    ("forget gradient", "forget gradient", apart),
    (f"its mask of ratio {RATIO}: entries that agree", "forget gradient", agreement),
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned."""
    cells = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(map(str.ljust, row, widths)) for row in cells]
    return "\n".join(f"| {line} |" for line in lines)


def compare() -> None:
    """Prints how far our network and PyTorch's are apart."""
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not installed: pip install -e '.[bench]'")
    task, order, test = problem()
    mine = ours(task, order, test)
    torch.set_num_threads(1)  # on busy cores its threads wait for each other
    single, double = (theirs(task, order, test, dtype) for dtype in (torch.float32, torch.float64))
    jax.config.update("jax_enable_x64", True)
    with mock.patch.object(jnp, "float32", jnp.float64):  # the one type that ours computes in
        exact = ours(in_float64(task), order, test)
    start = parameters_of(task.original["params"])
    for found in (mine, single, double, exact):
        end = found[f"parameters {STEPS}"]
        found["movement"] = [a.astype(np.float64) - b for a, b in zip(end, start, strict=True)]
    print(
        f"ResNet-18 of width {WIDTH.value}, {SIZE.value} px, batch {BATCH.value}, seed "
        f"{SEED.value}, {len(task.forget)} of {len(task.labels)} images forgotten; "
        f"jax {jax.__version__} on {jax.devices()[0].platform}, PyTorch {torch.__version__}\n"
    )
    pairs = {
        "ours to PyTorch, float32": (mine, single),
        "PyTorch float32 to float64": (single, double),
        "ours to PyTorch, float64": (exact, double),
    }
    rows = [(what, *(of(a[name], b[name]) for a, b in pairs.values())) for what, name, of in ROWS]
    print(table(("difference", *pairs), rows))


def spread(mean: float, deviation: float | None) -> str:
    """Mean ± standard deviation, where there is one."""
    return f"{mean:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def beside_published(path: str) -> None:
    """Prints a run's values beside the published code's, with p of Welch's t test."""
    report = json.loads(Path(path).read_text())
    rows = []
    for name, published in PUBLISHED.items():
        if name not in report.get("models", {}):
            continue
        per_seed = report["models"][name]["per_seed"]
        for metric, (mean, deviation) in zip(METRICS, published, strict=True):
            values = [entry[metric] for entry in per_seed]
            own = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
            p = ""
            if own[1] is not None and deviation is not None:
                test = scipy.stats.ttest_ind_from_stats(
                    *(*own, len(values)), *(mean, deviation, ORIGINALS), equal_var=False
                )
                p = f"{test.pvalue:.2g}"
            rows.append((name, str(len(values)), metric, spread(*own), spread(mean, deviation), p))
    if not rows:
        sys.exit(f"{path} has none of {', '.join(PUBLISHED)}")
    print(table(("method", "seeds", "%", "ours", "published code", "p"), rows))


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if RESULTS.value:
        beside_published(RESULTS.value)
    else:
        compare()


if __name__ == "__main__":
    app.run(main)
