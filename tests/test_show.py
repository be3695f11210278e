import numpy as np
import pytest
import toy
from process import ROOT, finish

from jaxunlearn import augment, data, show


@pytest.fixture
def config(tmp_path):
    return toy.experiment_config(toy.write_npz(tmp_path / "data.npz", num_classes=3, channels=3))


def test_rows_are_the_papers_seven_where_the_config_names_none(config):
    assert list(show.scenarios(config)) == list(augment.SCENARIOS)
    assert config.axes == ()
    config.methods = {}
    config.augment_params.randaugment.num_ops = 1
    rows = show.scenarios(config)
    assert rows["none"] == () and rows["randaugment"][1] == ("randaugment", (("num_ops", 1),))


def test_rows_are_those_of_the_config_under_none(config):
    config.augment = ("crop_flip", "mixup")
    assert show.scenarios(config) == {
        "none": (),
        "crop_flip+mixup": (("crop_flip", ()), ("mixup", ())),
    }
    config.axes = (("augment", ("augmix", "none")), ("forget.fraction", (0.1, 0.5)))
    assert list(show.scenarios(config)) == ["none", "augmix"]


def test_rows_with_other_parameters_of_the_same_policy_are_told_apart(config):
    config.augment = "crop_flip"
    pixels = "augment_params.crop_flip.pixels"
    config.axes = ((pixels, (1, 2)), ("forget.fraction", (0.1, 0.5)))
    assert show.scenarios(config) == {
        "none": (),
        f"{pixels}=1,forget.fraction=0.1": (("crop_flip", (("pixels", 1),)),),
        f"{pixels}=2,forget.fraction=0.1": (("crop_flip", (("pixels", 2),)),),
    }


def test_columns_are_training_images_of_all_classes_in_turn(config):
    config.augment = "rotate90_flip"
    dataset = data.load(config.data)
    rows = show.draw(config, dataset, 9, seed=1)
    assert list(rows) == ["none", "rotate90_flip"]
    train = dataset.train
    labels = []
    for plain, turned in zip(*rows.values(), strict=True):
        (index,) = np.flatnonzero((train.images == plain).all((1, 2, 3)))
        labels.append(train.labels[index])
        assert np.array_equal(np.sort(plain, None), np.sort(turned, None))
    assert [sorted(labels[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert not np.array_equal(rows["none"], rows["rotate90_flip"])
    again = show.draw(config, dataset, 9, seed=1)
    assert all(np.array_equal(again[name], rows[name]) for name in rows)


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (["--out=sheet.png", "--config.augment=crop_flip"], 0, "sheet.png: none, crop_flip"),
        (["--out=no/where.png", "--config.augment=crop_flip"], 2, "--out=no/where.png cannot be"),
        (["--out=sheet.xyz", "--config.augment=crop_flip"], 2, "Format 'xyz' is not supported"),
        (["--config.augment=crop_flop"], 2, "did you mean 'crop_flip'"),
        (["--draws=0"], 2, "--draws must be a positive integer, got '0'"),
    ],
)
def test_the_command(tmp_path, flags, code, message):
    flags = [f"--config={ROOT}/configs/quickstart.py", "--config.data.count=20", *flags]
    status, out, err = finish(*flags, module="jaxunlearn.show", cwd=tmp_path)
    assert status == code, err
    assert message in (err if code else out)
    assert len((err or out).splitlines()) == 1
    if code == 0:
        assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert not list(tmp_path.iterdir())
