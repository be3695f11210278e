import hashlib
import io
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import toy
from ml_collections import ConfigDict

from jaxunlearn import data, plan
from jaxunlearn.data import common, medmnist
from jaxunlearn.data.common import hold_out
from jaxunlearn.data.dataset import Examples
from jaxunlearn.data.load import DEFAULTS, READS
from jaxunlearn.errors import UserError


def config(name, **fields):
    defaults = dict(
        path="", root="", size=28, malignant=(), binary=False, seed=0, count=60, tfds_name=""
    )
    defaults["allow_empty_classes"] = False
    return ConfigDict(defaults | fields | {"name": name})


def arrays(num_classes=2, grey=True, **changes):
    """A file's content in MedMNIST's layout: 12, 6 and 8 examples."""
    rng = np.random.default_rng(0)
    made = {}
    for name, n in (("train", 12), ("val", 6), ("test", 8)):
        shape = (n, 28, 28) if grey else (n, 28, 28, 3)
        made[f"{name}_images"] = rng.integers(0, 256, shape, np.uint8)
        made[f"{name}_labels"] = (np.arange(n) % num_classes).astype(np.uint8)[:, None]
    made |= changes
    return {name: array for name, array in made.items() if array is not None}


def saved(path, **content):
    np.savez(path, **content)
    return str(path)


def error_of(asked):
    with pytest.raises(UserError) as error:
        data.load(asked)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300
    return str(error.value)


# The table.


def test_an_unknown_name_lists_the_near_ones():
    assert "got 'pathmist'; did you mean 'pathmnist'" in error_of(config("pathmist"))


def test_every_2d_set_of_medmnist_has_a_row():
    assert len(medmnist.FLAGS) == 11 and set(medmnist.FLAGS) < set(data.SOURCES)
    sums = [md5 for info in medmnist.FLAGS.values() for md5 in info.md5]
    assert len(set(sums)) == 44 and all(len(md5) == 32 for md5 in sums)


# MedMNIST.


def test_medmnist_brings_grey_images_and_label_columns_to_the_contract(tmp_path):
    content = arrays()
    dataset = data.load(config("breastmnist", path=saved(tmp_path / "mine.npz", **content)))
    assert dataset.train.images.shape == (12, 28, 28, 1)
    assert np.array_equal(dataset.val.images[..., 0], content["val_images"])
    assert dataset.train.labels.shape == (12,) and dataset.train.labels.dtype == np.int32
    assert dataset.class_names == ("malignant", "normal, benign")
    assert dataset.malignant == (0,) and dataset.licence == "CC BY 4.0" and not dataset.synthetic


def test_binary_breastmnist_turns_its_labels_round(tmp_path):
    path = saved(tmp_path / "mine.npz", **arrays())
    plain = data.load(config("breastmnist", path=path))
    binary = data.load(config("breastmnist", path=path, binary=True))
    assert np.array_equal(binary.train.labels, 1 - plain.train.labels)
    assert binary.class_names == ("benign", "malignant") and binary.malignant == (1,)
    assert binary.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("name", "malignant", "expected"),
    [("dermamnist", (), {0, 1, 4}), ("pathmnist", (), {7, 8}), ("octmnist", (1,), {1})],
)
def test_binary_marks_the_default_or_the_given_classes(name, malignant, expected, tmp_path):
    num_classes = len(medmnist.FLAGS[name].class_names)
    path = saved(tmp_path / "mine.npz", **arrays(num_classes, grey=False))
    plain = data.load(config(name, path=path))
    binary = data.load(config(name, path=path, malignant=malignant, binary=True))
    assert set(plain.train.labels[binary.train.labels == 1]) == expected
    assert not set(plain.train.labels[binary.train.labels == 0]) & expected


def test_binary_needs_malignant_classes(tmp_path):
    path = saved(tmp_path / "mine.npz", **arrays())
    asked = config("pneumoniamnist", path=path, binary=True)
    assert "counts 0 of 2 as malignant; set data.malignant" in error_of(asked)
    asked = config("pneumoniamnist", path=path, binary=True, malignant=(0, 1))
    assert "counts 2 of 2 as malignant" in error_of(asked)
    asked = config("pneumoniamnist", path=path, malignant=(2,))
    assert "data.malignant must be labels from 0 to 1 of pneumoniamnist, got 2" in error_of(asked)


def test_chestmnist_is_refused_as_multi_label():
    assert "'chestmnist' is multi-label" in error_of(config("chestmnist"))


def test_an_unpublished_size_is_refused():
    message = error_of(config("pathmnist", size=32))
    assert message == "data.size must be one of 28, 64, 128, 224 for pathmnist, got 32"


def test_labels_beyond_the_sets_classes_are_refused(tmp_path):
    path = saved(tmp_path / "mine.npz", **arrays(num_classes=3))
    assert "train labels run from 0 to 2; allowed: 0 to 1" in error_of(
        config("breastmnist", path=path)
    )


def published(monkeypatch, flag, content, size=28):
    """Makes `content` the published file of a flag; returns its bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    info, sums = medmnist.FLAGS[flag], list(medmnist.FLAGS[flag].md5)
    sums[medmnist.SIZES.index(size)] = hashlib.md5(buffer.getvalue()).hexdigest()
    monkeypatch.setitem(medmnist.FLAGS, flag, info._replace(md5=tuple(sums)))
    return buffer.getvalue()


def test_a_missing_file_is_fetched_once_from_the_published_address(monkeypatch, tmp_path):
    content = published(monkeypatch, "bloodmnist", arrays(8, grey=False), size=64)
    asked_for = []

    def retrieve(url, known_hash, fname, path):
        asked_for.append((url, known_hash))
        path.mkdir(parents=True)
        (path / fname).write_bytes(content)

    monkeypatch.setattr(common.pooch, "retrieve", retrieve)
    root = tmp_path / "new"
    for _ in range(2):
        dataset = data.load(config("bloodmnist", size=64, root=str(root)))
        assert dataset.name == "bloodmnist_64" and len(dataset.train) == 12
    assert (root / "bloodmnist_64.npz").exists()
    url = "https://zenodo.org/records/10519652/files/bloodmnist_64.npz?download=1"
    assert asked_for == [(url, "md5:" + hashlib.md5(content).hexdigest())]


@pytest.mark.parametrize("error", [ConnectionError("no\nnetwork"), ValueError("hash differs")])
def test_a_failed_download_says_how_to_do_it_by_hand(error, monkeypatch, tmp_path):
    def retrieve(*_, **__):
        raise error

    monkeypatch.setattr(common.pooch, "retrieve", retrieve)
    message = error_of(config("dermamnist", root=str(tmp_path)))
    for part in (
        "https://zenodo.org/records/10519652/files/dermamnist.npz?download=1",
        "0744692d530f8e62ec473284d019b0c7",
        str(tmp_path),
    ):
        assert part in message
    message = error_of(config("cifar10", root=str(tmp_path)))
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in message


def test_a_file_with_another_checksum_is_never_used(tmp_path):
    path = saved(tmp_path / "dermamnist.npz", **arrays(7, grey=False))
    given = hashlib.md5((tmp_path / "dermamnist.npz").read_bytes()).hexdigest()
    message = error_of(config("dermamnist", root=str(tmp_path)))
    assert f"{path} has the MD5 {given}" in message
    assert "published: 0744692d530f8e62ec473284d019b0c7; delete it" in message


# A user's own .npz.


def test_npz_keeps_groups_and_names_the_classes_by_number(tmp_path):
    content = arrays(3, grey=False, train_groups=np.arange(12), test_groups=np.arange(8) + 12)
    dataset = data.load(config("npz", path=saved(tmp_path / "ward7.npz", **content)))
    assert dataset.name == "ward7" and dataset.class_names == ("0", "1", "2")
    assert dataset.train.groups.dtype == np.int32 and dataset.val.groups is None
    assert dataset.test.groups.tolist() == list(range(12, 20))


def test_npz_may_name_its_classes(tmp_path):
    content = arrays(3, class_names=np.array(["naevus", "melanoma", "other"]))
    dataset = data.load(config("npz", path=saved(tmp_path / "a.npz", **content), malignant=(1,)))
    assert dataset.class_names == ("naevus", "melanoma", "other") and dataset.malignant == (1,)


def test_the_fingerprint_follows_the_arrays_not_the_file(tmp_path):
    first = data.load(config("npz", path=saved(tmp_path / "a.npz", **arrays())))
    again = data.load(config("npz", path=saved(tmp_path / "b.npz", **arrays())))
    labels = np.zeros((8, 1), np.uint8)
    other = data.load(config("npz", path=saved(tmp_path / "c.npz", **arrays(test_labels=labels))))
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(val_labels=None, test_images=None),
            "lacks val_labels, test_images; save plain arrays train_",
        ),
        (
            dict(train_labels=np.array([None] * 12)),
            "train_labels holds pickled Python objects, which are never loaded",
        ),
        (dict(train_images=np.zeros((12, 28, 28))), "train_images are float64 [12, 28, 28]"),
        (dict(val_images=np.zeros((6, 28), np.uint8)), "val_images are uint8 [6, 28]; allowed"),
        (dict(val_images=np.zeros((0, 28, 28), np.uint8)), "at least one image"),
        (dict(val_images=np.zeros((6, 28, 28, 2), np.uint8)), "1 or 3"),
        (dict(val_images=np.zeros((6, 32, 32), np.uint8)), "all three sets need one shape"),
        (
            dict(val_images=np.zeros((5, 28, 28), np.uint8)),
            "val_labels has 6 numbers for the 5 images of",
        ),
        (dict(val_labels=np.zeros((6, 14), int)), "val_labels are int64 [6, 14]; allowed: int"),
        (dict(val_labels=np.array(1)), "val_labels are int64 []; allowed: integers [N]"),
        (dict(val_labels=np.zeros(6)), "val_labels are float64 [6]"),
        (dict(val_labels=np.arange(6) - 1), "val labels run from -1 to 4"),
        (dict(val_labels=np.full(6, 2**40)), "val_labels do not fit in 32 bits; renumber"),
        (dict(test_labels=np.full(8, 10**9)), "the highest label is 1000000000"),
        (dict(class_names=np.array(["only"])), "1 class; at least 2 are needed"),
        (
            {f"{s}_labels": np.full(n, -1) for s, n in (("train", 12), ("val", 6), ("test", 8))},
            "0 class; at least 2 are needed: the lowest label is -1; number the classes from 0",
        ),
        (
            dict(test_groups=np.arange(8) - 1),
            "test has the group -1; allowed: whole numbers from 0",
        ),
        (dict(class_names=np.array([1, 2])), "class_names are int64 [2]; allowed: a unicode"),
        (
            dict(train_groups=np.arange(11)),
            "train_groups has 11 numbers for the 12 images",
        ),
        (dict(train_groups=np.array(["p"] * 12)), "train_groups are <U1 [12]"),
        (
            dict(train_groups=np.arange(12) // 4, about_group_names=np.array(["P1", "P2"])),
            "there are 2 names of groups (about_group_names), and train has others; number groups",
        ),
        (dict(about_licence=np.array(["a", "b"])), "about_licence are <U1 [2]; allowed: one short"),
    ],
)
def test_each_wrong_npz_says_what_to_do(changes, message, tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(**changes))
    assert message in error_of(config("npz", path=path))


def test_one_class_alone_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(num_classes=1))
    assert "1 class; at least 2 are needed" in error_of(config("npz", path=path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x80\x04pickle", b"\x93NUMPY"])
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    (tmp_path / "a.npz").write_bytes(content)
    assert "cannot be read as a .npz" in error_of(config("npz", path=str(tmp_path / "a.npz")))


def test_a_truncated_npz_and_a_lone_npy_are_refused(tmp_path):
    whole = Path(saved(tmp_path / "a.npz", **arrays())).read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a .npz" in error_of(config("npz", path=str(tmp_path / "b.npz")))
    np.save(tmp_path / "c.npy", np.arange(3))
    assert "cannot be read as a .npz" in error_of(config("npz", path=str(tmp_path / "c.npy")))


def test_npz_needs_a_file_that_exists(tmp_path):
    assert "needs data.path" in error_of(config("npz"))
    assert "no file" in error_of(config("npz", path=str(tmp_path / "none.npz")))
    assert "no file" in error_of(config("pathmnist", path=str(tmp_path / "none.npz")))


# Labels that mean something else than the user thinks.


def labels(train, val=None, test=None):
    """Labels of the 12, 6 and 8 images, repeated from a few."""
    given = {"train": (train, 12), "val": (val or train, 6), "test": (test or train, 8)}
    return {f"{name}_labels": np.resize(few, n) for name, (few, n) in given.items()}


NAMES = np.array(["naevus", "melanoma", "other"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (labels([1, 2]), "1 of 3 classes have no training image: 0 (0); the labels start at 1"),
        (
            labels([1, 2]) | dict(class_names=NAMES),
            "0 (naevus); the labels start at 1: subtract 1, or set data.allow_empty_classes=True",
        ),
        (
            labels([1, 2]) | dict(class_names=NAMES[:2]),
            "train labels run from 1 to 2; allowed: 0 to 1; number the classes from 0",
        ),
        (labels([0, 1, 2, 9]), "6 of 10 classes have no training image: 3 (3), 4 (4), 5 (5), …; f"),
        (labels([0, 1, 99]), "the highest label is 99 and train has 12 images"),
        (labels([0, 1], test=[0, 1, 2]), "1 of 3 classes have no training image: 2 (2); fix the"),
        (labels([0, 1], val=[2]) | dict(class_names=NAMES), "no training image: 2 (other)"),
        (labels([0, 1]) | dict(class_names=NAMES), "no training image: 2 (other); fix the labels"),
        (labels([0]) | dict(class_names=NAMES), "no training image: 1 (melanoma), 2 (other)"),
        (dict(class_names=NAMES[[0, 0]]), "2 classes have the name 'naevus'; give each"),
        (dict(class_names=np.array(["", "a"])), "class 0 has the name ''; allowed: 1 to 100 print"),
        (dict(class_names=np.array(["a\n", "b"])), r"class 0 has the name 'a\n'"),
        (
            dict(train_labels=np.arange(12) % 2 == 0),
            "are bool [12]; allowed: integers [N]",
        ),
        (dict(train_labels=np.arange(12) % 2 == 0), "convert them with .astype(int)"),
        (dict(train_labels=np.eye(2)[np.arange(12) % 2]), "of one-hot labels take .argmax(1)"),
        (dict(train_labels=np.arange(12) % 2 * 1.0), "convert them with .astype(int)"),
        (dict(train_labels=NAMES[np.arange(12) % 2]), "number them from 0 and name them in class_"),
        (dict(train_images=np.zeros((12, 7, 28), np.uint8)), "[7, 28]; allowed: 8 pixels or more"),
    ],
)
def test_labels_that_do_not_fit_the_classes_are_refused(changes, message, tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(**changes))
    assert message in error_of(config("npz", path=path))


def test_classes_without_training_images_may_be_allowed(tmp_path):
    content = arrays(**labels([1, 2]), class_names=NAMES)
    asked = config("npz", path=saved(tmp_path / "a.npz", **content), allow_empty_classes=True)
    dataset = data.load(asked)
    assert dataset.num_classes == 3
    assert dataset.notes == [
        "Train has no image of 1 of 3 classes: 0 (naevus) (data.allow_empty_classes)."
    ]


def test_one_class_in_train_is_refused_even_where_classes_may_be_empty(tmp_path):
    content = arrays(**labels([1], test=[0, 1]), class_names=NAMES)
    asked = config("npz", path=saved(tmp_path / "a.npz", **content), allow_empty_classes=True)
    assert "all 12 training images are of class 1 (melanoma); give images" in error_of(asked)


def test_published_sets_need_training_images_of_every_class_too(tmp_path, tfds):
    path = saved(tmp_path / "a.npz", **arrays(7, grey=False, **labels([0, 1, 2, 3, 5, 6])))
    message = error_of(config("dermamnist", path=path))
    assert "1 of 7 classes have no training image: 4 (melanoma); fix" in message
    asked = config("dermamnist", path=path, allow_empty_classes=True, binary=True)
    assert data.load(asked).class_names == ("benign", "malignant")
    files = {"data_batch_1.bin": records([[c] for c in range(9)] * 5)}
    path = archive(tmp_path / "a.tar.gz", files | {"test_batch.bin": records([[9]])})
    assert "no training image: 9 (truck)" in error_of(config("cifar10", path=path))
    one_kind = [example for example in examples(9) if example["label"]]
    tfds.splits = {"train": Source(one_kind), "validation": Source(examples(4))}
    tfds.splits["test"] = Source(examples(4))
    assert "no training image: 0 (no)" in error_of(config("tfds", tfds_name="cells"))


def test_binary_needs_training_images_of_both_kinds(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(**labels([0, 1], test=[2]), class_names=NAMES))
    asked = config("npz", path=path, allow_empty_classes=True, malignant=(2,))
    note = "Train has no image of a malignant class: no model can learn to find one."
    assert note in data.load(asked).notes
    asked.binary = True
    assert "of the 12 of a 0 are malignant; set data.malignant" in error_of(asked)
    asked.malignant = (0, 1)
    assert "of the 12 of a 12 are malignant" in error_of(asked)


def test_class_names_of_another_set_in_a_medmnist_file_are_refused(tmp_path):
    names = np.array(["normal", "malignant"])  # the other way round than breastmnist
    path = saved(tmp_path / "a.npz", **arrays(class_names=names))
    assert "class_names are not those of breastmnist" in error_of(config("breastmnist", path=path))


# Notes.


def test_images_that_were_made_uint8_the_wrong_way_are_noted(tmp_path):
    content = arrays()
    content["train_images"] //= 128
    (note,) = data.load(config("npz", path=saved(tmp_path / "a.npz", **content))).notes
    assert note.startswith("The highest level of train is 1, where 255 is white")
    content = arrays()
    content["train_images"][:2] = [[[255]], [[0]]]
    (note,) = data.load(config("npz", path=saved(tmp_path / "a.npz", **content))).notes
    assert note.startswith("2 of 12 training images have one level in every pixel")


def test_names_of_groups_may_be_many(tmp_path):
    names = np.array([f"{i:01000}" for i in range(5000)])  # 20 MB
    content = arrays(train_groups=np.arange(12), about_group_names=names)
    loaded = data.load(config("npz", path=saved(tmp_path / "a.npz", **content)))
    assert loaded.group_names == tuple(names.tolist())


def test_classes_that_val_or_test_lack_are_noted(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(3, **labels([0, 1, 2], val=[0, 2], test=[1])))
    assert data.load(config("npz", path=path)).notes == [
        "Val has no image of 1 of the 3 classes of train: 1 (1); its numbers say nothing of them.",
        "Test has no image of 2 of the 3 classes of train: 0 (0), 2 (2); "
        "its numbers say nothing of them.",
    ]


def test_images_and_groups_of_train_in_test_are_noted(tmp_path):
    content = arrays(train_groups=np.arange(12) // 2, test_groups=np.arange(8) // 2 + 4)
    content["test_images"][:3] = content["train_images"][[5, 0, 0]]
    dataset = data.load(config("npz", path=saved(tmp_path / "a.npz", **content)))
    assert dataset.notes == [
        "3 of 8 test images are exact copies of training images: test is not of unseen images.",
        "2 groups of train have 4 of 8 test images: test is not of unseen groups.",
    ]


def test_images_and_groups_of_val_in_test_are_noted(tmp_path):
    content = arrays(val_groups=np.arange(6), test_groups=np.arange(8) + 5)
    content["test_images"][:3] = content["val_images"][[5, 0, 0]]
    dataset = data.load(config("npz", path=saved(tmp_path / "a.npz", **content)))
    assert dataset.notes == [
        "3 of 8 test images are exact copies of val images: what is chosen on val is judged on the "
        "same images.",
        "1 groups of val have 1 of 8 test images: what is chosen on val is judged on the same "
        "groups.",
    ]


def test_where_all_classes_are_malignant_it_is_noted(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays())
    classes = range(len(data.load(config("npz", path=path)).class_names))
    (note,) = data.load(config("npz", path=path, malignant=tuple(classes))).notes
    assert note.startswith("Every class of train is malignant")


def test_a_size_that_a_given_file_has_not_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz", **arrays(7, grey=False))
    assert data.load(config("dermamnist", path=path)).train.images.shape[1] == 28
    message = error_of(config("dermamnist", path=path, size=64))
    assert "data.size=64" in message and "28 pixels a side" in message


def test_a_plain_data_set_has_no_notes(tmp_path):
    assert data.load(config("npz", path=saved(tmp_path / "a.npz", **arrays()))).notes == []
    assert data.load(config("lesions")).notes == []


def test_notes_of_the_data_stand_before_those_of_the_request(tmp_path):
    path = toy.write_npz(tmp_path / "a.npz", groups=False)
    with np.load(path) as file:
        content = dict(file)
    content["val_images"][0] = content["train_images"][0]
    asked = toy.experiment_config(saved(path, **content))
    (one,) = plan.make(asked, 1)
    assert one.notes[0].startswith("1 of 20 val images are exact copies of training images")


# Values.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(count=10**12),
            "data.count must be a whole number, 10 or more and at most 1000000000",
        ),
        (dict(count=True), "data.count must be a whole number"),
        (
            dict(size=10**6),
            "data.size must be a whole number, 8 or more and at most 16384, got 1000000",
        ),
        (dict(count=10**9, size=16384), "images of data.size=16384 need about 1.15e+09 GiB; this"),
        (
            dict(seed=2**32),
            "data.seed must be a whole number, 0 or more and at most 4294967295, got",
        ),
        (dict(mean=(1e300,)), "data.mean must be 1 or 3 numbers from 0 to 1, as images are, got"),
        (dict(mean=(float("nan"),)), "data.mean must be"),
        (dict(mean=(127.5,)), "data.mean must be"),
        (dict(std=(1e-300,)), "data.std must be 1 or 3 numbers from 0.001 to 10, got"),
        (dict(std=(float("inf"),)), "data.std must be"),
        (dict(std=(float("nan"),)), "data.std must be"),
        (dict(std=(True,)), "data.std must be"),
        (dict(malignant=(True,)), "data.malignant must be labels"),
        (dict(binary=1), "data.binary must be True or False, got 1"),
        (dict(allow_empty_classes="no"), "data.allow_empty_classes must be True or False"),
    ],
)
def test_a_value_that_nothing_can_be_made_of_is_refused(fields, message):
    assert message in error_of(config("lesions", **fields))


def test_numpys_numbers_and_lists_are_whole_numbers_too():
    plain = data.load(config("lesions", count=60, size=28, malignant=(1,)))
    for one in ([1], np.array([1]), (np.int8(1),)):
        given = dict(count=np.uint8(60), size=np.uint8(28), seed=np.int64(0), malignant=one)
        dataset = data.load(config("lesions", **given))
        assert dataset.malignant == (1,) and dataset.fingerprint == plain.fingerprint


def test_every_source_says_which_settings_it_reads():
    every = {"name", "malignant", "binary", "mean", "std", "allow_empty_classes"}
    every |= {"groups", "groups_column"}
    assert READS.keys() == data.SOURCES.keys()
    assert set().union(every, *READS.values()) == DEFAULTS.keys()


# CIFAR.


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def records(label_rows):
    """Records whose pixels tell channel, row and label apart."""
    chw = np.zeros((3, 32, 32), np.uint8)
    chw[0, 0, :], chw[2, :, 31] = 200, 100
    return b"".join(bytes(row) + (chw + row[-1]).astype(np.uint8).tobytes() for row in label_rows)


def cifar10(path):
    files = {f"data_batch_{i}.bin": records([[c] for c in range(10)]) for i in range(1, 6)}
    return archive(path, files | {"test_batch.bin": records([[3], [9]]), "readme.html": b"x"})


def test_cifar10_is_read_from_the_archive(tmp_path):
    dataset = data.load(config("cifar10", path=cifar10(tmp_path / "a.tar.gz")))
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [40, 10, 2]
    assert dataset.class_names[3] == "cat" and dataset.test.labels.tolist() == [3, 9]
    image = dataset.test.images[0].astype(int) - 3  # [H, W, C]
    assert image.shape == (32, 32, 3)
    assert (image[0, :, 0] == 200).all() and (image[1:, :, 0] == 0).all()
    assert (image[:, 31, 2] == 100).all() and (image[:, :31, 2] == 0).all()
    # The pixel in the middle tells the label, so images and labels stayed together.
    for examples in (dataset.train, dataset.val):
        assert np.array_equal(examples.images[:, 16, 16, 1], examples.labels)


def test_the_validation_split_follows_the_seed(tmp_path):
    path = cifar10(tmp_path / "a.tar.gz")
    seeds = (0, 0, 1)
    first, again, other = (data.load(config("cifar10", path=path, seed=s)) for s in seeds)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_cifar100_takes_the_fine_label_and_its_name(tmp_path):
    rows = [[19, c] for c in range(100)]
    files = {"train.bin": records(rows), "test.bin": records(rows[:7])}
    named = {"fine_label_names.txt": "\n".join(f"kind{c}" for c in range(100)).encode()}
    # Of one image a class val has one, which leaves its class without a training image.
    every = archive(tmp_path / "a.tar.gz", files | named)
    dataset = data.load(config("cifar100", path=every, allow_empty_classes=True))
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [99, 1, 7]
    assert dataset.test.labels.tolist() == list(range(7)) and dataset.class_names[42] == "kind42"
    unnamed = archive(tmp_path / "b.tar.gz", files)
    plain = data.load(config("cifar100", path=unnamed, allow_empty_classes=True))
    assert plain.class_names[42] == "42"


def test_each_wrong_archive_says_what_to_do(tmp_path):
    path = archive(tmp_path / "a.tar.gz", {"test_batch.bin": records([[1]])})
    assert "0 bytes in files named data_batch" in error_of(config("cifar10", path=path))
    files = {"data_batch_1.bin": records([[1]])[:-1], "test_batch.bin": records([[1]])}
    path = archive(tmp_path / "b.tar.gz", files)
    assert "records of 3073 bytes" in error_of(config("cifar10", path=path))
    whole = Path(cifar10(tmp_path / "c.tar.gz")).read_bytes()
    for content in (b"no archive", whole[: len(whole) // 2]):
        (tmp_path / "d.tar.gz").write_bytes(content)
        message = error_of(config("cifar10", path=str(tmp_path / "d.tar.gz")))
        assert "cannot be read as a CIFAR archive" in message
    assert "cannot be read" in error_of(config("cifar10", path=str(tmp_path / "none.tar.gz")))
    files = {"data_batch_1.bin": records([[1], [77]]), "test_batch.bin": records([[1]])}
    path = archive(tmp_path / "e.tar.gz", files)
    assert "labels run from" in error_of(config("cifar10", path=path))


# TensorFlow Datasets, by a module that mimics what the source uses of it.


class Features:
    """`tfds.features.FeaturesDict`: it can be asked and listed, but is no dict."""

    def __init__(self, features):
        self.features = features

    def __contains__(self, name):
        return name in self.features

    def __getitem__(self, name):
        return self.features[name]

    def __iter__(self):
        return iter(self.features)


class Source(list):
    """What `tfds.data_source` gives for one split: a sequence that knows its data set."""

    def __init__(self, examples):
        super().__init__(examples)
        features = {"image": object(), "label": SimpleNamespace(names=["no", "yes"])}
        self.dataset_info = SimpleNamespace(features=Features(features))


def examples(n, size=8):
    return [{"image": np.full((size, size, 3), i, np.uint8), "label": i % 2} for i in range(n)]


@pytest.fixture
def tfds(monkeypatch):
    """The fake module: set `splits` to a dict of sources or to an exception."""
    module = SimpleNamespace(splits={}, calls=[])

    def data_source(name, *, split=None, data_dir=None, download=True):
        module.calls.append((name, split, data_dir, download))
        if isinstance(module.splits, Exception):
            raise module.splits
        return module.splits

    module.data_source = data_source
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def test_tfds_reads_the_prepared_splits(tfds):
    tfds.splits = {"train": Source(examples(9)), "validation": Source(examples(4))}
    tfds.splits["test"] = Source(examples(5))
    dataset = data.load(config("tfds", tfds_name="cells/v2", root="/sets"))
    assert tfds.calls == [("cells/v2", None, "/sets", False)]
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [9, 4, 5]
    assert dataset.name == "cells/v2" and dataset.class_names == ("no", "yes")
    assert np.array_equal(dataset.train.images[:, 0, 0, 0], np.arange(9))


def test_tfds_without_validation_holds_out_a_tenth(tfds):
    tfds.splits = {"train": Source(examples(40)), "test": Source(examples(5))}
    dataset = data.load(config("tfds", tfds_name="cells"))
    assert [len(dataset.train), len(dataset.val)] == [36, 4]
    assert not set(dataset.train.images[:, 0, 0, 0]) & set(dataset.val.images[:, 0, 0, 0])


def test_a_tenth_of_each_class_is_held_out():
    labels = np.repeat(np.arange(4), [40, 30, 9, 1]).astype(np.int32)
    images = np.arange(80, dtype=np.uint8).reshape(-1, 1, 1, 1)
    train, val = hold_out(Examples(images, labels), 0)
    assert np.bincount(val.labels).tolist() == [4, 3, 1] and len(train) == 72
    assert sorted([*train.images.ravel(), *val.images.ravel()]) == list(range(80))
    assert not np.array_equal(hold_out(Examples(images, labels), 1)[1].images, val.images)


def test_each_wrong_tfds_set_says_what_to_do(tfds, monkeypatch):
    asked = config("tfds", tfds_name="cells")
    tfds.splits = {"train": Source(examples(9))}
    assert "has the splits train; needed: train and test" in error_of(asked)
    tfds.splits = {"train": Source(examples(9)), "test": Source(examples(2) + examples(2, size=9))}
    assert "images of 2 sizes" in error_of(asked)
    tfds.splits["train"].dataset_info.features = Features({"image": object()})
    assert "has the features image; needed: image, and label" in error_of(asked)
    tfds.splits = AssertionError("could not find data;\nplease prepare")
    message = error_of(asked)
    assert "TFDS needs TensorFlow, only to prepare images" in message and "tfds build" in message
    assert "needs data.tfds_name" in error_of(config("tfds"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # as if not installed
    assert "pip install 'jaxunlearn[tfds]'" in error_of(asked)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tfds)
    tfds.splits = KeyError("features.json\nis damaged")
    assert "is not prepared in '~/tensorflow_datasets' (features.json is dama" in error_of(asked)
    broken = [{"image": np.zeros((8, 8, 3), np.uint8)}] * 4
    tfds.splits = {"train": Source(broken), "test": Source(broken)}
    assert "TFDS set 'cells' cannot be read: label; prepare it again" in error_of(asked)
    tfds.splits = {"train": Source([]), "test": Source([])}
    assert "has a split without an example" in error_of(asked)
