import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from jaxunlearn import workdir
from jaxunlearn.data import Dataset, Examples
from jaxunlearn.data.forget import DEFAULTS, READS, REQUESTS, Split, check_named, reads, resolve
from jaxunlearn.errors import UserError


def request(**fields):
    defaults = dict(
        kind="fraction",
        fraction=0.2,
        balanced=True,
        fractions=(),
        classes=(),
        groups=(),
        path="",
        seed=0,
    )
    return ConfigDict(defaults | fields)


def dataset(labels, groups=None, val_groups=None, num_classes=3):
    labels = np.asarray(labels, np.int32)
    groups = None if groups is None else np.asarray(groups, np.int32)
    val_groups = None if val_groups is None else np.asarray(val_groups, np.int32)
    images = np.zeros((len(labels), 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    others = Examples(images[:4], labels[:4], val_groups)
    names = tuple("abc"[:num_classes])
    return Dataset("toy", Examples(images, labels, groups), others, others, names)


SIXTY = dataset([0] * 30 + [1] * 20 + [2] * 10, groups=np.arange(60) // 4)


@st.composite
def cases(draw):
    labels = draw(st.lists(st.integers(0, 2), min_size=10, max_size=80))
    groups = draw(st.lists(st.integers(0, 9), min_size=len(labels), max_size=len(labels)))
    data = dataset(labels, groups)
    kind = draw(st.sampled_from(["fraction", "per_class", "class", "groups", "random_groups"]))
    share = st.floats(0.01, 0.99)
    return data, request(
        kind=kind,
        fraction=draw(share),
        balanced=draw(st.booleans()),
        fractions=tuple(draw(st.lists(share, min_size=3, max_size=3))),
        classes=tuple(draw(st.sets(st.integers(0, 2), min_size=1))),
        groups=tuple(draw(st.sets(st.sampled_from(groups), min_size=1, max_size=3))),
        seed=draw(st.integers(0, 2**31)),
    )


@given(cases())
def test_every_split_is_a_partition_of_train_and_deterministic(case):
    data, asked = case
    try:
        split, _ = resolve(asked, data)
    except UserError as error:
        assert "\n" not in str(error)
        return
    for indices in (split.forget, split.retain):
        assert indices.dtype == np.int64 and len(indices) > 0
        assert (np.diff(indices) > 0).all()
    both = np.sort(np.concatenate([split.forget, split.retain]))
    assert np.array_equal(both, np.arange(len(data.train)))
    again, _ = resolve(asked, data)
    assert again.fingerprint == split.fingerprint

    labels, groups = data.train.labels, data.train.groups
    taken = np.bincount(labels[split.forget], minlength=3)
    sizes = np.bincount(labels, minlength=3)
    if asked.kind == "fraction" and asked.balanced:
        assert taken.tolist() == [round(asked.fraction * n) for n in sizes.tolist()]
    elif asked.kind == "fraction":
        assert len(split.forget) == round(asked.fraction * len(labels))
    elif asked.kind == "per_class":
        pairs = zip(asked.fractions, sizes.tolist(), strict=True)
        assert taken.tolist() == [round(f * n) for f, n in pairs]
    elif asked.kind == "class":
        assert set(labels[split.forget]) <= set(asked.classes)
        assert not np.isin(labels[split.retain], asked.classes).any()
    else:
        assert not np.isin(groups[split.retain], groups[split.forget]).any()
        if asked.kind == "groups":
            assert set(groups[split.forget]) == set(asked.groups)
        else:
            assert len(split.forget) <= round(asked.fraction * len(labels))


@pytest.mark.parametrize("balanced", [True, False])
def test_a_smaller_fraction_lies_in_a_larger_one(balanced):
    small, _ = resolve(request(fraction=0.1, balanced=balanced), SIXTY)
    large, _ = resolve(request(fraction=0.5, balanced=balanced), SIXTY)
    assert set(small.forget) < set(large.forget)


def test_the_seed_changes_what_is_forgotten():
    splits = [resolve(request(seed=seed), SIXTY)[0] for seed in (0, 1)]
    assert splits[0].fingerprint != splits[1].fingerprint


def test_per_class_leaves_a_class_of_fraction_0_whole():
    split, _ = resolve(request(kind="per_class", fractions=(0.1, 0.5, 0)), SIXTY)
    assert np.bincount(SIXTY.train.labels[split.forget], minlength=3).tolist() == [3, 10, 0]


def test_random_groups_come_near_the_fraction():
    split, warnings = resolve(request(kind="random_groups", fraction=0.2), SIXTY)
    assert len(split.forget) == 12
    assert warnings == []


@pytest.mark.parametrize("name", ["list.txt", "list.npy", "list.npz"])
def test_indices_are_read_from_every_kind_of_file(name, tmp_path):
    path, indices = tmp_path / name, np.array([7, 0, 31])
    if name.endswith("txt"):
        path.write_text("7\n0\n\n 31\n")
    elif name.endswith("npy"):
        np.save(path, indices)
    else:
        np.savez(path, forget=indices)
    split, _ = resolve(request(kind="indices", path=str(path)), SIXTY)
    assert split.forget.tolist() == [0, 7, 31]


def test_a_saved_split_comes_back_and_can_be_asked_for_again(tmp_path):
    split, _ = resolve(request(), SIXTY)
    workdir.write_split(tmp_path, split)
    with np.load(tmp_path / "split.npz") as file:
        assert Split(file["forget"], file["retain"]).fingerprint == split.fingerprint
    again, _ = resolve(request(kind="indices", path=str(tmp_path / "split.npz")), SIXTY)
    assert again.fingerprint == split.fingerprint


def test_fingerprint_tells_forget_from_retain():
    a, b = np.array([0, 1]), np.array([2, 3])
    assert Split(a, b).fingerprint != Split(b, a).fingerprint


def test_warns_of_a_forgotten_groups_other_images(tmp_path):
    groups = np.arange(60) // 4
    data = dataset(SIXTY.train.labels, groups, val_groups=[0, 0, 99, 98])
    (tmp_path / "list.txt").write_text("0\n1\n4\n5\n6\n7\n")
    _, warnings = resolve(request(kind="indices", path=str(tmp_path / "list.txt")), data)
    assert warnings == [
        "1 of 2 forgotten groups still have 2 images in retain: "
        "forget.kind='groups' forgets whole groups.",
        "1 of 2 forgotten groups still have 2 images in val: val is not of unseen groups.",
        "1 of 2 forgotten groups still have 2 images in test: test is not of unseen groups.",
    ]


def test_warns_of_copies_of_forgotten_images_that_stay():
    data = dataset([0, 1, 2] * 20)
    data.train.images[[0, 1, 2]] = data.train.images[[30, 30, 1]]
    (warning,) = resolve(request(kind="class", classes=(0,)), data)[1]
    assert warning == (
        "2 of 20 forgotten images have exact copies in retain, which teach the same: forget those "
        "too."
    )


@pytest.mark.parametrize("wrong", [{}, {"groups": ()}, {"kind": "groups", "groups": np.array([])}])
def test_changes_that_name_nothing_are_no_random_share(wrong):
    with pytest.raises(UserError, match=r"step 2 is .* which names nothing to forget; name groups"):
        check_named(wrong, "step 2")
    check_named({"kind": "random_groups", "fraction": 0.1}, "step 2")
    check_named({"groups": (7,)}, "step 2")


def test_no_groups_no_warnings():
    assert resolve(request(), dataset([0, 1, 2] * 20))[1] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(kind="fractoin"),
            r"forget\.kind must be one of .*, got 'fractoin'; did you mean 'fraction'\?",
        ),
        (dict(fraction=0), r"forget\.fraction must be more than 0 and less than 1, .* got 0$"),
        (dict(fraction=1.0), r"forget\.fraction must be .*, got 1\.0$"),
        (dict(fraction=float("nan")), r"forget\.fraction must be .*, got nan$"),
        (dict(fraction=20), r"a share rather than a count, got 20"),
        (dict(fraction=0.001), r"selects none of 60 training examples; forget more"),
        (dict(fraction=0.96), r"takes every example of class 2 \(c\)"),
        (
            dict(kind="per_class", fractions=(0.1,)),
            r"must be one number .* of the 3 classes, .* got 1$",
        ),
        (
            dict(kind="per_class", fractions=(0.1, 1, 0)),
            r"forget\.fractions must be .* one per class, got \(0\.1, 1, 0\)",
        ),
        (dict(kind="per_class", fractions=(0, 0, 0)), r"selects none"),
        (dict(kind="class"), r"forget.classes is empty; name a label"),
        (
            dict(kind="class", classes=(3,)),
            r"classes must be among 3 ids from 0 to 2, got 3",
        ),
        (dict(kind="class", classes=(0, 1, 2)), r"selects all 60 training examples"),
        (
            dict(kind="groups", groups=(99,)),
            r"groups must be among 15 ids from 0 to 14, got 99",
        ),
        (dict(kind="random_groups", fraction=0.01), r"selects none"),
        (dict(kind="random_groups", fraction=2), r"forget\.fraction must be .*, got 2$"),
        (dict(kind="indices"), r"needs forget.path"),
        (
            dict(kind="indices", path="/no/such.txt"),
            r"/no/such.txt cannot be read as a list of indices: there is no file",
        ),
        (dict(kind="indices", path="/no/such.npy"), r"/no/such.npy cannot be read"),
    ],
)
def test_each_wrong_request_says_what_to_do(fields, message):
    with pytest.raises(UserError, match=message) as error:
        resolve(request(**fields), SIXTY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "1\n60\n", r"the index 60 is not in train; allowed: 0 to 59"),
        ("a.txt", "-1\n", r"the index -1 is not in train"),
        ("a.txt", "1\n2\n1\n", r"the index 1 is listed 2 times"),
        ("a.txt", "1\n2.5\n", r"line 2: '2.5' is not an index"),
        ("a.txt", "", r"cannot be read as a list of indices: the file is empty"),
        ("a.txt", "9" * 30, r"line 1: '9+' is not an index"),
        ("a.npy", np.array([0.0, 1.0]), r"float64 \[2\]; allowed: integers"),
        ("a.npy", np.arange(61), r"lists 61 indices and train has 60 images; list each once"),
        ("a.npy", np.zeros(60, bool), r"bool \[60\]; allowed: integers"),
        ("a.npy", np.zeros((1, 2), int), r"int64 \[1, 2\]; allowed: integers"),
        (
            "a.npy",
            np.array([1, None]),
            r"the list holds pickled Python objects, which are never loaded",
        ),
    ],
)
def test_each_wrong_index_file_says_what_to_do(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content) if isinstance(content, str) else np.save(path, content)
    with pytest.raises(UserError, match=message):
        resolve(request(kind="indices", path=str(path)), SIXTY)


def test_an_npz_without_forget_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, other=np.arange(3))
    with pytest.raises(UserError, match=r"cannot be read as a \.npz with forget: it lacks forget"):
        resolve(request(kind="indices", path=str(path)), SIXTY)


def test_groups_are_needed_to_forget_groups():
    for kind in ("groups", "random_groups"):
        with pytest.raises(UserError, match=f"kind='{kind}': toy has no groups; use another kind"):
            resolve(request(kind=kind, groups=(1,)), dataset([0, 1, 2] * 20))


def test_an_empty_list_of_groups_is_no_random_share():
    with pytest.raises(
        UserError, match=r"needs forget\.groups, .*set forget\.kind='random_groups'"
    ):
        resolve(request(kind="groups", groups=(), fraction=0.2), SIXTY)


def test_a_class_that_train_never_had_is_not_missed():
    split, _ = resolve(request(), dataclasses.replace(SIXTY, class_names=("a", "b", "c", "d")))
    assert len(split.forget) == 12


def test_every_kind_has_a_test_of_its_own():
    # A table's are in test_rows.py.
    found = {"fraction", "per_class", "class", "groups", "random_groups", "indices", "table"}
    assert set(REQUESTS) == found


def test_every_kind_says_which_settings_it_reads():
    assert READS.keys() == REQUESTS.keys()
    assert set().union({"kind"}, *READS.values()) == DEFAULTS.keys()
    assert reads(request(kind="random_groups")) == ("fraction", "seed")
    assert reads(request(kind="groups", groups=(1,))) == ("groups",)
    assert reads(request()) == ("fraction", "balanced", "seed")


@pytest.mark.parametrize("given", [[2], np.array([2]), (np.uint8(2),)])
def test_numpys_numbers_and_lists_are_labels_and_groups_too(given):
    split, _ = resolve(request(kind="class", classes=given), SIXTY)
    assert split.forget.tolist() == list(range(50, 60))
    split, _ = resolve(request(kind="groups", groups=given), SIXTY)
    assert split.forget.tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(seed=2**32), "seed must be a whole number, 0 or more and at most 4294967295, got"),
        (dict(seed=True), "seed must be a whole number"),
        (dict(balanced=1), "balanced must be True or False, got 1"),
        (dict(fraction=True), "fraction must be more than 0"),
        (dict(kind="class", classes=(True,)), "classes must be labels"),
        (dict(kind="class", classes=(10**30,)), "must be labels, whole numbers from 0, got"),
        (dict(kind="groups", groups=(2.0,)), "groups must be whole numbers"),
    ],
)
def test_a_value_of_another_kind_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        resolve(request(**fields), SIXTY)


def test_a_mask_in_place_of_indices_is_told_what_to_do(tmp_path):
    np.save(tmp_path / "a.NPY.npy", np.arange(60) < 5)
    with pytest.raises(UserError, match=r"bool \[60\]; .* of a mask take numpy.flatnonzero"):
        resolve(request(kind="indices", path=str(tmp_path / "a.NPY.npy")), SIXTY)
