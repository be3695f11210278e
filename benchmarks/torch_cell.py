"""The experiment of `cell.py` in plain PyTorch: `python benchmarks/torch_cell.py SETTINGS`.

SETTINGS are JSON, as `cell.py` gives them. Prints UA, RA, TA and MIA of every model as JSON.
"""

import copy
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_resnet
from torch import Tensor, nn

PREDICT_BATCH = 512


def read(path: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 [N, H, W, C] and labels int64 [N] of train and test."""
    sets = {}
    with np.load(path) as arrays:
        for name in ("train", "test"):
            images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
            images = images[..., None] if images.ndim == 3 else images
            sets[name] = (torch.from_numpy(images), torch.from_numpy(labels.ravel().astype("i8")))
    return sets


def crop_flip(images: Tensor) -> Tensor:
    """Zero-padded by an eighth of the size, cropped at random, mirrored with p .5."""
    count, height, width, _ = images.shape
    pad = round(4 / 32 * max(height, width))
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    padded = nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    example = torch.arange(count)[:, None, None]
    cropped = padded[example, rows[:, :, None], columns[:, None]]
    return torch.where(torch.rand(count, 1, 1, 1) < 0.5, cropped.flip(2), cropped)


def seen(images: Tensor) -> Tensor:
    """The images as the model sees them, [N, C, H, W], channels last in memory."""
    images = images.permute(0, 3, 1, 2)
    return images.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def train(
    model: nn.Module,
    images: Tensor,
    labels: Callable[[], Tensor],
    indices: Tensor,
    rates: list[float],
    settings: dict[str, Any],
    mask: list[Tensor] | None = None,
) -> nn.Module:
    """Cross-entropy over the examples, an epoch a rate; `labels` are asked for in each epoch."""
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, rates[0], 0.9, weight_decay=5e-4)
    model.train()
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        targets = labels()
        for rows in indices[torch.randperm(len(indices))].split(settings["batch"]):
            batch = images[rows]
            if settings["augment"] == "crop_flip":
                batch = crop_flip(batch)
            loss = nn.functional.cross_entropy(model(seen(batch)), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if mask is not None:
                with torch.no_grad():
                    for parameter, old, may in zip(parameters, start, mask, strict=True):
                        parameter.copy_(torch.where(may, parameter, old))
    return model


def saliency_mask(
    model: nn.Module, images: Tensor, labels: Tensor, forget: Tensor, batch: int
) -> list[Tensor]:
    """The half of the weights with the largest gradient of the loss on the forget set."""
    model.eval()
    model.zero_grad()
    for rows in forget.split(batch):
        nn.functional.cross_entropy(model(seen(images[rows])), labels[rows]).backward()
    gradients = [p.grad.abs() for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.ravel() for gradient in gradients])
    threshold = flat.kthvalue(len(flat) - round(0.5 * len(flat)) + 1).values
    return [gradient >= threshold for gradient in gradients]


def predict(model: nn.Module, images: Tensor) -> np.ndarray:
    """Probabilities float32 [N, num_classes]."""
    model.eval()
    with torch.no_grad():
        parts = [model(seen(part)).softmax(1) for part in images.split(PREDICT_BATCH)]
    return torch.cat(parts).numpy()


def mia(members: np.ndarray, others: np.ndarray, targets: np.ndarray) -> float:
    """Share of the targets below the threshold on confidence that tells members from others."""
    scores = np.concatenate([members, others])
    weight = np.repeat([1 / len(members), -1 / len(others)], [len(members), len(others)])
    best = (-1.0, np.zeros(0, bool))
    for sign in (1, -1):
        order = np.argsort(-sign * scores)
        gains, ordered = np.cumsum(weight[order]), sign * scores[order]
        last = np.append(np.diff(ordered) != 0, True)  # of equal scores
        at = int(np.argmax(np.where(last, gains, -1)))
        if gains[at] > best[0]:
            best = (float(gains[at]), sign * targets < ordered[at])
    return float(np.mean(best[1]))


def main(settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Trains and judges every model."""
    torch.manual_seed(0)
    sets = read(settings["path"])
    (images, labels), (test_images, test_labels) = sets["train"], sets["test"]
    classes = int(labels.max()) + 1
    parts = [torch.where(labels == label)[0] for label in range(classes)]
    shuffled = [part[torch.randperm(len(part))] for part in parts]
    forget = torch.cat([part[: round(settings["fraction"] * len(part))] for part in shuffled])
    forgotten = torch.zeros(len(labels), dtype=torch.bool)
    forgotten[forget] = True
    retain, everything = torch.where(~forgotten)[0], torch.arange(len(labels))

    def relabelled() -> Tensor:
        return labels.index_put((forget,), torch.randint(0, classes, (len(forget),)))

    def trained(indices: Tensor) -> nn.Module:
        model = torch_resnet.build(images.shape[-1], settings["width"], classes)
        model = model.to(memory_format=torch.channels_last)
        epochs = settings["epochs"]
        drops = [int(0.5 * epochs), int(0.75 * epochs)]
        rates = [settings["lr"] * 0.1 ** sum(e >= drop for drop in drops) for e in range(epochs)]
        return train(model, images, lambda: labels, indices, rates, settings)

    def unlearned(lr: float, *how: Any) -> nn.Module:
        rates = [lr] * settings["unlearn_epochs"]
        model = copy.deepcopy(models["original"])
        return train(model, images, how[0], how[1], rates, settings, *how[2:])

    models = {"original": trained(everything), "retrained": trained(retain)}
    models["finetune"] = unlearned(settings["finetune_lr"], lambda: labels, retain)
    models["random_label"] = unlearned(settings["relabel_lr"], relabelled, everything)
    original = models["original"]
    mask = saliency_mask(original, images, labels, forget, settings["batch"])
    models["salun"] = unlearned(settings["relabel_lr"], relabelled, everything, mask)

    found = {}
    for name, model in models.items():
        on_train, on_test = predict(model, images), predict(model, test_images)
        right = on_train.argmax(1) == labels.numpy()
        known = on_train[everything, labels]
        values = {
            "UA": 1 - right[forget].mean(),
            "RA": right[retain].mean(),
            "TA": (on_test.argmax(1) == test_labels.numpy()).mean(),
            "MIA": mia(
                known[retain], on_test[torch.arange(len(test_labels)), test_labels], known[forget]
            ),
        }
        found[name] = {metric: 100 * float(value) for metric, value in values.items()}
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
