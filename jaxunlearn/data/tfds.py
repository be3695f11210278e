"""Any image-classification set of TensorFlow Datasets that is already prepared on this machine."""

from typing import Any

import numpy as np

from jaxunlearn.data import common
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError, one_line


def load(config: Any) -> Dataset:
    """A prepared set of TensorFlow Datasets (https://www.tensorflow.org/datasets), read without TF.

    Splits `train`, `validation` and `test`; without `validation`, a random tenth of `train`,
    seeded by `config.seed`, takes its place. Images must have one size.

    Args:
      config: the `data` config; `tfds_name` as TFDS writes it ("name/config:version"), `root` the
        folder of prepared sets (~/tensorflow_datasets).

    Raises:
      UserError: TFDS is not installed, the set is not prepared, has no `test`, or does not hold
        one image of one size and one label per example.
    """
    name = config.tfds_name
    if not name:
        raise UserError("data.name='tfds' needs data.tfds_name, such as 'colorectal_histology'")
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "data.name='tfds' needs TensorFlow Datasets; pip install 'jaxunlearn[tfds]'"
        ) from error
    folder = config.root or None
    try:
        splits = tensorflow_datasets.data_source(name, data_dir=folder, download=False)
    # What TFDS raises for: no such folder; no TensorFlow; records without random access; no name.
    except (AssertionError, ImportError, NotImplementedError, OSError, ValueError) as error:
        raise UserError(
            f"TFDS set {name!r} is not prepared in {folder or '~/tensorflow_datasets'}: TFDS needs "
            f"TensorFlow, only to prepare images; where it is installed, run `tfds build {name} "
            f"--file_format=array_record` and copy the folder ({one_line(error)})"
        ) from error
    if "train" not in splits or "test" not in splits:
        raise UserError(
            f"TFDS set {name!r} has the splits {', '.join(sorted(splits))}; needed: train and test"
        )
    features = splits["train"].dataset_info.features
    if not ("image" in features and "label" in features and hasattr(features["label"], "names")):
        raise UserError(
            f"TFDS set {name!r} has the features {', '.join(sorted(features))}; "
            "needed: image, and label as a class label"
        )
    train, test = _examples(name, splits["train"]), _examples(name, splits["test"])
    if "validation" in splits:
        val = _examples(name, splits["validation"])
    else:
        train, val = common.hold_out(train, config.seed)
    return Dataset(name, train, val, test, tuple(features["label"].names))


def _examples(name: str, source: Any) -> Examples:
    """Every example of one split, in TFDS's order."""
    pairs = [(example["image"], example["label"]) for example in source]
    shapes = sorted({np.shape(image) for image, _ in pairs})
    if len(shapes) != 1:
        raise UserError(
            f"TFDS set {name!r} has images of {len(shapes)} sizes, such as {shapes[:2]}; they need "
            "one size: resize them into a .npz and use data.name='npz'"
        )
    images, labels = zip(*pairs, strict=True)
    return Examples(np.stack(images), np.asarray(labels, np.int32))
