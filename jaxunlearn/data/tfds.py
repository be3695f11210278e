"""Any image-classification set of TensorFlow Datasets that is already prepared on this machine."""

from typing import Any

import numpy as np

from jaxunlearn.data import common
from jaxunlearn.data.dataset import Dataset, Examples
from jaxunlearn.errors import UserError, one_line, shown
from jaxunlearn.files import local


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
        raise UserError("data.name='tfds' needs data.tfds_name, such as 'patch_camelyon'")
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "data.name='tfds' needs TensorFlow Datasets; pip install 'jaxunlearn[tfds]'"
        ) from error
    folder = str(local(config.root, "data.root")) if config.root else None
    try:
        splits = tensorflow_datasets.data_source(name, data_dir=folder, download=False)
    # Exception: TFDS has one of its own or Python's for each of no such folder, no name, records
    # without random access, no TensorFlow, damaged metadata.
    except Exception as error:
        raise UserError(
            f"TFDS set {shown(name, 40)} is not prepared in "
            f"{shown(folder or '~/tensorflow_datasets', 60)} ({one_line(error)[:60]}): TFDS needs "
            "TensorFlow, only to prepare images; where it is installed, run `tfds build NAME "
            "--file_format=array_record` and copy the folder"
        ) from error
    try:
        return _read(name, splits, config.seed)
    except UserError:
        raise
    except Exception as error:  # records or metadata that are damaged or of another kind
        raise UserError(
            f"TFDS set {shown(name, 40)} cannot be read: {one_line(error)}; prepare it again"
        ) from error


def _read(name: str, splits: Any, seed: int) -> Dataset:
    """The data set of the prepared splits."""
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
        train, val = common.hold_out(train, seed)
    return Dataset(name, train, val, test, tuple(features["label"].names))


def _examples(name: str, source: Any) -> Examples:
    """Every example of one split, in TFDS's order."""
    pairs = [(example["image"], example["label"]) for example in source]
    if not pairs:
        raise UserError(f"TFDS set {name!r} has a split without an example; prepare it again")
    shapes = sorted({np.shape(image) for image, _ in pairs})
    if len(shapes) != 1:
        raise UserError(
            f"TFDS set {name!r} has images of {len(shapes)} sizes, such as {shapes[:2]}; they need "
            "one size: resize them into a .npz and use data.name='npz'"
        )
    images, labels = zip(*pairs, strict=True)
    return Examples(np.stack(images), np.asarray(labels, np.int32))
