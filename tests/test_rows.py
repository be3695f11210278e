"""Requests as hospitals have them: a CSV of whose images are whose."""

import dataclasses

import numpy as np
import pytest
import toy

from jaxunlearn import config, experiment
from jaxunlearn.data import Dataset, Examples, forget, load, rows
from jaxunlearn.errors import UserError


def dataset(counts=(6, 2, 3), groups=(None, None, None)):
    sets = [
        Examples(
            np.arange(count * 4, dtype=np.uint8).reshape(-1, 2, 2, 1),
            np.arange(count) % 2,
            None if ids is None else np.array(ids),
        )
        for count, ids in zip(counts, groups, strict=True)
    ]
    return Dataset("toy", *sets, ("a", "b"))


LINES = [
    "index,set,patient,site,consent",
    "0,train,P17,Graz,yes",
    "1,train,P17,Graz,no",
    '2,train,P42,"Graz, West",yes',
    "3,train,P43,Wien,no",
    "5,train,P44,Wien,yes",
    "1,val,P17,Graz,yes",
    "2,test,P43,Wien,yes",
]


@pytest.fixture
def write(tmp_path):
    def to_file(lines=LINES, end="\n", encoding="utf-8"):
        path = tmp_path / "images.csv"
        path.write_bytes(end.join([*lines, ""]).encode(encoding))
        return str(path)

    return to_file


def request(path, column, *ids):
    settings = config.default().forget
    settings.update(kind="table", path=path, column=column, ids=ids)
    return settings


def test_a_patient_is_found_and_what_stays_is_told(write):
    split, notes = forget.resolve(request(write(), "patient", "P17"), dataset())
    assert split.forget.tolist() == [0, 1] and split.retain.tolist() == [2, 3, 4, 5]
    assert notes == [
        "1 of 1 forgotten patients still have 1 images in val: val is not of unseen patients.",
        "Images without patient in the table: 1 of 6 of train, 1 of 2 of val, 2 of 3 of test. "
        "Whether some are of those to forget is not known.",
    ]


def test_by_another_column_the_notes_are_about_patients(write):
    split, notes = forget.resolve(request(write(), "consent", "no"), dataset())
    assert split.forget.tolist() == [1, 3]
    assert notes[0] == (
        "1 of 2 forgotten patients still have 1 images in retain: name them by "
        "forget.column='patient'."
    )
    assert "1 of 2 forgotten patients still have 1 images in test" in notes[2]


def test_what_a_table_leaves_open_is_told(write):
    lines = [
        "index,patient,consent",
        "0,P1,no",
        "1,P1,",
        "2,P2,yes",
        "3,P3,No",
        "4,,yes",
        "5,P4,no ",
    ]
    groups = [0, 0, 1, 1, 2, 2], [3, 1], [0, 4, 5]
    _, notes = forget.resolve(request(write(lines), "consent", "no"), dataset(groups=groups))
    assert notes[-3:] == [  # val and test have groups of the data, by which they are told
        "Images without patient in the table: 1 of 6 of train. Whether some are of those to forget "
        "is not known.",
        "Images without consent in the table: 1 of 6 of train. Whether some are of those to forget "
        "is not known.",
        "1 images have ['No'], written almost as what is to be forgotten: name these too, if they "
        "are the same.",
    ]
    for ids in (["P7", "p 7", "P8"], ["7", "007", "8"]):
        lines = ["index,patient", *(f"{i},{ids[i % 3]}" for i in range(6))]
        _, notes = forget.resolve(request(write(lines), "patient", ids[0]), dataset())
        assert f"2 images have ['{ids[1]}'], written almost as" in notes[-1]


def test_a_patient_may_have_all_images_of_a_class(write):
    data = dataset((6, 2, 3))
    data = dataclasses.replace(data, class_names=("a", "b", "c"))
    data.train.labels[:] = [2, 0, 1, 0, 1, 2]
    lines = ["index,patient", *(f"{i},{p}" for i, p in enumerate("ABBBBA"))]
    split, notes = forget.resolve(request(write(lines), "patient", "A"), data)
    assert split.forget.tolist() == [0, 5]
    assert notes[0] == (
        "the request takes every training image of 'c', so that this class is forgotten whole."
    )


@pytest.mark.parametrize("name", ["Patient", "PatientID", "patient_id"])
def test_the_column_of_patients_may_be_written_otherwise(write, name):
    path = write([LINES[0].replace("patient", name), *LINES[1:]])
    _, notes = forget.resolve(request(path, "consent", "no"), dataset())
    assert notes[0] == (
        f"1 of 2 forgotten {name}s still have 1 images in retain: name them by "
        f"forget.column={name!r}."
    )


def test_the_data_sets_groups_tell_what_a_table_does_not(write):
    groups = [0, 0, 1, 1, 2, 2], [3, 1], [0, 4, 5]
    known = dataset(groups=groups)
    path = write([line.replace("patient", "who") for line in LINES])
    _, notes = forget.resolve(request(path, "consent", "no"), known)
    assert notes[:3] == [
        "2 of 2 forgotten groups still have 2 images in retain: forget.kind='groups' forgets whole "
        "groups.",
        "1 of 2 forgotten groups still have 1 images in val: val is not of unseen groups.",
        "1 of 2 forgotten groups still have 1 images in test: test is not of unseen groups.",
    ]
    # Of train alone the table knows the patients: val and test stay the groups' matter.
    of_train = [line for line in LINES if ",val," not in line and ",test," not in line]
    _, notes = forget.resolve(request(write(of_train), "consent", "no"), known)
    assert [note.split(":")[0] for note in notes[:3]] == [
        "1 of 2 forgotten patients still have 1 images in retain",
        "1 of 2 forgotten groups still have 1 images in val",
        "1 of 2 forgotten groups still have 1 images in test",
    ]


def test_several_ids_and_quoted_cells(write):
    split, _ = forget.resolve(request(write(), "site", "Graz, West", "Wien"), dataset())
    assert split.forget.tolist() == [2, 3, 5]


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_spreadsheets_write_is_read(write, separator, end, encoding):
    lines = [line.replace('"Graz, West"', "West").replace(",", separator) for line in LINES]
    path = write([*lines, separator * 4], end, encoding)
    split, _ = forget.resolve(request(path, "patient", "P42", "P44"), dataset())
    assert split.forget.tolist() == [2, 5]


@pytest.mark.parametrize(
    "header", [",index,patient", 'index;"patient, first, last";', "index\tpatient, first", "index,"]
)
def test_columns_without_a_name_and_commas_in_names(write, header):
    separator = next(one for one in ";\t," if one in header)
    cells = [["3"] * header.count(separator) for _ in range(2)]
    place = 1 if header.startswith(separator) else 0
    lines = [separator.join([*row[:place], str(i), *row[place:]]) for i, row in enumerate(cells)]
    table = rows.read(write([header, *lines]), "path", dataset())
    assert len(table.columns) == header.count(separator)
    assert all(text == "3" for text in table.cells["train"][:2].ravel())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_every_cell_may_be_quoted(write, separator):
    lines = [separator.join(f'"{cell}"' for cell in row) for row in (("index", "who"), ("1", "A"))]
    assert rows.read(write(lines), "path", dataset()).cells["train"][1].tolist() == ["A"]


def test_numbers_are_ids_as_they_are_written(write):
    lines = ["patient,index", "007,0", "7,1", "8,2"]
    split, _ = forget.resolve(request(write(lines), "patient", 7), dataset())
    assert split.forget.tolist() == [1]


def test_without_a_column_set_all_rows_are_of_train(write):
    table = rows.read(write(["index,patient", "5,A"]), "path", dataset())
    assert table.column("patient")["train"].tolist() == [""] * 5 + ["A"]
    assert set(table.column("patient")["test"]) == {""}


def test_the_case_of_index_and_set_is_free(write):
    lines = ["Index,SET,Patient", "0,train,A", "5,test,A", "1,train,B"]
    for wrong in (lines, [lines[0].replace("SET", "Split"), *lines[1:]]):
        with pytest.raises(UserError, match="index '5' is not in test"):
            rows.read(write(wrong), "path", dataset())
    lines[2] = "2,test,A"
    table = rows.read(write(lines), "path", dataset())
    assert table.columns == ("Patient",)
    assert table.column("Patient")["train"].tolist() == ["A", "B", "", "", "", ""]
    assert table.column("Patient")["test"].tolist() == ["", "", "A"]


@pytest.mark.parametrize("words", ["train,test", "Test,", "training,Validation"])
def test_a_column_of_sets_under_another_name_is_refused(write, words):
    first, second = words.split(",")
    lines = ["index,fold,patient", f"0,{first},A", f"0,{second},B"]
    with pytest.raises(UserError, match="its column 'fold' looks like it; name it 'set'"):
        rows.read(write(lines), "path", dataset())
    lines = ["index,set,fold,patient", f"0,train,{first},A", f"0,test,{second},B"]
    assert rows.read(write(lines), "path", dataset()).columns == ("fold", "patient")
    for word in ("3", ""):  # as a column "use" of "training" and nothing else may have
        others = ["index,fold,patient", f"0,{first if word else 'training'},A", f"1,{word},B"]
        assert rows.read(write(others), "path", dataset()).columns == ("fold", "patient")


def test_several_ids_in_one_text_are_told_how_to_be_given(write):
    for given in ("P17,P42", "P17, P42"):
        with pytest.raises(UserError, match=r"--config.forget.ids=\"\('P17', 'P42'\)\"$"):
            forget.resolve(request(write(), "patient", given), dataset())
    with pytest.raises(UserError, match="did you mean"):
        forget.resolve(request(write(), "patient", "P17,P99"), dataset())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,patient", "0,A"], "its columns are .*one of them 'index'"),
        (["index,index", "0,1"], "none twice"),
        (["index,patient", "0,A", "0,B"], "line 3: image 0 of train has a row above"),
        (["index,patient", "6,A"], "line 2: the index '6' is not in train; allowed: 0 to 5"),
        (["index,patient", "-1,A"], "the index '-1' is not in train"),
        (["index,patient", "1.0,A"], "the index '1.0' is not in train"),
        (["index,set,patient", "0,trian,A"], "the set is 'trian'; allowed: train, val, test"),
        (['"index'], "line 1: the first line has an open or misplaced quotation mark"),
        (["index,patient", "0,A,B"], "line 2 has 3 cells, and the first 2"),
        (["index,patient", '0,"A'], "unexpected end of data"),
        (["index,patient", "0,P18"], "has patient 'P17', among 1 values; did you mean 'P18'"),
        (["index,patients", "0,P17"], "unknown column of .* 'patient': did you mean 'patients'"),
    ],
)
def test_wrong_tables_are_one_line(write, lines, message):
    with pytest.raises(UserError, match=message) as caught:
        forget.resolve(request(write(lines), "patient", "P17"), dataset())
    assert "\n" not in str(caught.value)


def test_a_request_needs_ids_a_column_and_a_file(write, tmp_path):
    for asked, message in (
        (request(write(), "patient"), "forget.ids is empty"),
        (request(write(), "patient", "P17", " "), r"forget.ids is \['P17', ''\]; .* none is empty"),
        (request(write(), "", "P17"), "needs forget.path.*forget.column"),
        (request(str(tmp_path / "none.csv"), "patient", "P17"), "no file of that name"),
    ):
        with pytest.raises(UserError, match=message):
            forget.resolve(asked, dataset())


def by_groups(tmp_path, lines, **changes):
    """The data set of a file without groups, with those of a table."""
    settings = config.default().data
    settings.name, settings.path = "npz", toy.write_npz(tmp_path / "data.npz", groups=False)
    (tmp_path / "groups.csv").write_text("\n".join(lines))
    settings.groups = str(tmp_path / "groups.csv")
    settings.update(changes)
    return load(settings)


COUNTS = {"train": 48, "val": 20, "test": 24}


def test_groups_of_a_table(tmp_path):
    """As Abhishek et al. list DermaMNIST: split, index, image_id, and the lesion."""
    lines = ["split,index,image_id,lesion"]
    for which, count in COUNTS.items():
        lines += [f"{which},{i},ISIC_{i},{which[1]}{i // 4:02}" for i in reversed(range(count))]
    lines[-1] = "test,0,ISIC_0,r03"  # of train, whose lesions are r00 to r11
    found = by_groups(tmp_path, lines, groups_column="lesion")
    # In the order of their texts: a (val) 5, e (test) 6, r (train) 12.
    assert found.val.groups.tolist() == [i // 4 for i in range(20)]
    assert found.train.groups.tolist() == [11 + i // 4 for i in range(48)]
    assert found.test.groups.tolist() == [14, *(5 + i // 4 for i in range(1, 24))]
    assert found.train.groups.dtype == np.int32
    assert (
        "1 groups of train have 1 of 24 test images: test is not of unseen groups." in found.notes
    )


def test_groups_that_are_numbers_stay_and_sets_may_have_none(tmp_path):
    lines = ["index,patient", *(f"{i},{100 + i // 2}" for i in range(48))]
    found = by_groups(tmp_path, lines)
    assert found.train.groups.tolist() == [100 + i // 2 for i in range(48)]
    assert found.val.groups is None and found.test.groups is None
    for wrong, message in (
        (lines[:-3], "3 of 48 train images have no patient"),
        ([*lines, "0,x"], "image 0 of train has a row above"),
        (["index,set,patient", "0,val,3"], "48 of 48 train images have no patient"),
        ([*lines[:-2], "46,NA", "47,nan"], "2 of 48 train images have no patient"),
        (["index,lesion", "0,3"], "unknown column of .* 'patient'"),
    ):
        with pytest.raises(UserError, match=message):
            by_groups(tmp_path, wrong)


def test_padded_numbers_are_numbers_and_texts_are_named_by_their_table(tmp_path):
    def lines(name):
        return ["index,patient", *(f"{i},{name(i // 8)}" for i in range(48))]

    found = by_groups(tmp_path, lines(lambda patient: f"{patient + 5:03}"))
    assert sorted(set(found.train.groups.tolist())) == [5, 6, 7, 8, 9, 10]
    asked = config.default().forget
    asked.kind, asked.groups = "groups", (7,)
    split, _ = forget.resolve(asked, found)
    assert split.forget.tolist() == list(range(16, 24))  # patient "007"
    with pytest.raises(
        UserError, match=r"patient is both '.*7' and '.*7'; write one id in one way"
    ):
        by_groups(tmp_path, lines(lambda patient: "0" * (patient % 3) + f"{patient // 3 + 7}"))
    found = by_groups(tmp_path, lines(lambda patient: f"P{patient}"))
    assert [found.group_names[i] for i in found.train.groups[::8]] == [f"P{i}" for i in range(6)]
    with pytest.raises(UserError, match=r"texts, such as 'P0'; name them by forget.kind='table'"):
        forget.resolve(asked, found)
    asked.kind = "random_groups"
    assert len(forget.resolve(asked, found)[0].forget)  # these need no names


def test_dermamnist_warns_unless_its_lesions_are_given(tmp_path):
    settings = config.default().data
    settings.name = "dermamnist"
    settings.path = toy.write_npz(tmp_path / "data.npz", num_classes=7, groups=False, channels=3)
    known = "images of one lesion in train and in val or test"
    assert any(known in note for note in load(settings).notes)
    (tmp_path / "groups.csv").write_text(
        "\n".join(["index,lesion", *(f"{i},HAM_{i}" for i in range(48))])
    )
    settings.groups, settings.groups_column = str(tmp_path / "groups.csv"), "lesion"
    assert not any(known in note for note in load(settings).notes)


def test_an_experiment_by_a_table(tmp_path, write):
    changed = toy.experiment_config(toy.write_npz(tmp_path / "data.npz"), finetune={"epochs": 1})
    lines = ["index,patient", *(f"{i},P{i // 4}" for i in range(48))]
    changed.forget = config.default().forget
    changed.forget.update(kind="table", path=write(lines), column="patient", ids=("P3", "P7"))
    report = experiment.run(changed, tmp_path / "run")
    assert report["split"]["forget"] == 8
    with np.load(tmp_path / "run" / "split.npz") as split:
        assert split["forget"].tolist() == [*range(12, 16), *range(28, 32)]
