import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxunlearn import data
from jaxunlearn.data import lesions
from jaxunlearn.errors import UserError


def load(**fields):
    defaults = dict(path="", root="", size=16, malignant=(), binary=False, seed=0, count=90)
    return data.load(ConfigDict(defaults | dict(name="lesions", tfds_name="") | fields))


@pytest.fixture(scope="module")
def dataset():
    """As large as by default."""
    return load(size=28, count=2000)


def test_shapes_and_meaning(dataset):
    assert dataset.train.images.shape == (2000, 28, 28, 3)
    assert [len(dataset.val), len(dataset.test)] == [400, 666]
    assert dataset.class_names == ("benign", "malignant") and dataset.malignant == (1,)
    assert dataset.synthetic and dataset.licence == "CC0 1.0 (synthetic)"
    assert dataset.name == "lesions (synthetic)"
    assert 0.25 < dataset.train.labels.mean() < 0.38


def test_the_bits_follow_from_the_seed():
    first, again, other = load(), load(), load(seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_the_bits_are_the_same_on_every_machine():
    """What is measured on one machine is compared with another's; a change breaks that silently."""
    digest = "11d83d14d9bd0d44de79808e6fdea2ed9ad2be10d4c634d114b05cecf629c977"
    assert load().fingerprint == digest


def test_nothing_touches_the_global_random_state():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    load()
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_patients_have_several_images_and_stay_in_one_set(dataset):
    sets = [set(e.groups.tolist()) for e in (dataset.train, dataset.val, dataset.test)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    sizes = np.unique(dataset.train.groups, return_counts=True)[1]
    assert sizes.min() == 1 and sizes.max() == 6


def test_some_patients_have_both_kinds_of_lesion(dataset):
    labels, groups = dataset.test.labels, dataset.test.groups
    means = np.array([labels[groups == g].mean() for g in np.unique(groups)])
    assert (means == 0).any() and (means == 1).any() and ((means > 0) & (means < 1)).any()


def test_a_twentieth_of_the_train_labels_is_wrong_and_none_else(dataset, monkeypatch):
    monkeypatch.setattr(lesions, "WRONG_LABELS", 0.0)
    clean = load(size=28, count=2000)
    assert np.array_equal(clean.train.images, dataset.train.images)
    assert (clean.train.labels != dataset.train.labels).sum() == 100
    assert np.array_equal(clean.val.labels, dataset.val.labels)
    assert np.array_equal(clean.test.labels, dataset.test.labels)


def test_order_tells_nothing(dataset):
    """Neither labels nor patients come in runs."""
    groups = dataset.train.groups
    assert (groups[1:] == groups[:-1]).mean() < 0.01
    assert abs(dataset.train.labels[:1000].mean() - dataset.train.labels[1000:].mean()) < 0.06


def test_the_classes_differ_but_overlap(dataset):
    """A linear rule on the spread of the colours beats the majority, and is far from perfect."""

    def features(examples):
        images = examples.images.astype(np.float64) / 255
        flat = images.reshape(len(images), -1, 3)
        spread = np.concatenate([flat.mean(1), flat.std(1), flat.min(1)], axis=1)
        return np.concatenate([spread, np.ones((len(images), 1))], axis=1)

    rule, *_ = np.linalg.lstsq(features(dataset.train), dataset.train.labels, rcond=None)
    right = ((features(dataset.test) @ rule > 0.5) == dataset.test.labels).mean()
    majority = 1 - dataset.test.labels.mean()
    assert majority + 0.02 < right < 0.93


def test_the_same_lesions_at_every_size():
    small, large = load(size=16).train, load(size=64).train
    assert np.array_equal(small.labels, large.labels)
    pooled = large.images.reshape(90, 16, 4, 16, 4, 3).mean((2, 4))
    # Means of each image's channels; single pixels differ by their grain.
    gap = pooled.mean((1, 2)) - small.images.mean((1, 2))
    assert np.abs(gap).max() < 3


def test_images_use_the_range_without_clipping(dataset):
    images = dataset.train.images
    assert images.min() < 40 and images.max() > 200
    assert ((images == 0) | (images == 255)).mean() < 0.06
    assert (images.std((1, 2, 3)) > 8).all()


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(count=9), r"data\.count must be a whole number, 10 or more, got 9"),
        (dict(count=10, seed=10), r"data\.count=10 gave lesions of one class alone; ask for more"),
        (dict(size=7), r"data\.size must be a whole number, 8 or more, got 7"),
    ],
)
def test_too_few_images_or_pixels_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        load(**fields)
