"""From PyTorch's names and layouts to ours: a ResNet's `state_dict`, saved as safetensors."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

FIRST = "conv1.weight"
MOMENTS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def is_resnet(arrays: Mapping[str, Any]) -> bool:
    """Whether these are named as torchvision names a ResNet's."""
    names = _plain(arrays)
    return {FIRST, "layer1.0.conv1.weight", "fc.weight"} <= set(names)


def resnet(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The variables of our ResNet by path, from those of torchvision's.

    He et al., 2016, as in https://github.com/pytorch/vision, models/resnet.py: with its stem for
    large images, or with a 3x3 one under the same names.

    Args:
      arrays: of the `state_dict`, by name; "module." before each, as DataParallel puts it, is cut.
    """
    given = _plain(arrays)
    made: dict[str, np.ndarray] = {}
    layers = [("conv1", "bn1")]
    blocks = {found[0] for name in given if (found := re.match(r"layer\d+\.\d+", name))}
    for block in sorted(blocks, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        inner = sorted(
            name[: -len(".weight")] for name in given if re.match(rf"{block}\.conv\d\.weight", name)
        )
        layers += [(conv, conv.replace("conv", "bn")) for conv in inner]
        if f"{block}.downsample.0.weight" in given:
            layers.append((f"{block}.downsample.0", f"{block}.downsample.1"))
    for i, (conv, norm) in enumerate(layers):
        # [D, C, k, k] there, [k, k, C, D] here.
        made[f"params/Conv_{i}/kernel"] = given.pop(f"{conv}.weight").transpose(2, 3, 1, 0)
        for theirs, ours in MOMENTS.items():
            collection = "params" if theirs in ("weight", "bias") else "batch_stats"
            if f"{norm}.{theirs}" in given:
                made[f"{collection}/BatchNorm_{i}/{ours}"] = given.pop(f"{norm}.{theirs}")
    made["params/Dense_0/kernel"] = given.pop("fc.weight").T
    made["params/Dense_0/bias"] = given.pop("fc.bias")
    return {**made, **given}  # what is left over has no place in the model, which is told


def _plain(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Without what wrappers put before the names, and without counts of batches."""
    names = {name: name.removeprefix("module.") for name in arrays}
    kept = {ours: arrays[name] for name, ours in names.items()}
    return {name: kept[name] for name in kept if not name.endswith("num_batches_tracked")}
