import functools
import io
import json
import os
import signal
import tarfile
import time

import numpy as np
import pytest
import toy
from process import finish, start
from rich.console import Console

from jaxunlearn import config as config_lib
from jaxunlearn import experiment, grid, prepared, trained
from jaxunlearn.augment import policies
from jaxunlearn.augment.build import POLICIES, build_chain
from jaxunlearn.errors import UserError
from jaxunlearn.metrics import results, statistics, verdicts
from jaxunlearn.report import figures, sheets, terminal
from jaxunlearn.training import programs

FAST = {"epochs": 1, "batch_size": 16}
AXES = (("augment", ("none", "crop_flip")), ("forget.fraction", (0.2, 0.5)))


def make_config(path, axes=AXES):
    config = toy.experiment_config(path, finetune=FAST, salun=FAST)
    config.seeds = (0, 1)
    config.axes = axes
    return config


def run(config, workdir):
    console = Console(width=150, record=True, file=io.StringIO())
    return experiment.run(config, workdir, console), console.export_text()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid of two scenarios × two fractions; its programs, and each time crop_flip is traced."""
    root = tmp_path_factory.mktemp("grid")
    traces, made = [], []
    draw, apply = policies.crop_flip()

    def counted(*args):
        traces.append(1)
        return apply(*args)

    class Programs(programs.Programs):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        policy = functools.wraps(policies.crop_flip)(lambda **_: (draw, counted))
        patch.setitem(POLICIES, "crop_flip", policy)
        patch.setattr(prepared, "Programs", Programs)
        build_chain.cache_clear()
        report, text = run(make_config(toy.write_npz(root / "data.npz")), root / "run")
    build_chain.cache_clear()
    return root, report, text, traces, made


def test_cells_are_every_combination_and_the_config_is_left_alone(tmp_path):
    config = make_config("x.npz", (*AXES, ("methods.salun.mask.ratio", (0.1, 0.9))))
    cells = grid.cells(config)
    assert [list(cell.point.values()) for cell in cells[:3]] == [
        ["none", 0.2, 0.1],
        ["none", 0.2, 0.9],
        ["none", 0.5, 0.1],
    ]
    assert len(cells) == 8 and len({cell.label for cell in cells}) == 8
    assert cells[7].config.augment == "crop_flip" and cells[7].config.axes == ()
    assert cells[7].config.methods.salun.mask.ratio == 0.9
    assert config.augment == "none" and config.methods.salun.mask.ratio == 0.5
    config.methods = config_lib.methods(salun_cra=FAST, salun=FAST, finetune=FAST)
    assert list(grid.cells(config)[0].config.methods) == ["salun_cra", "salun", "finetune"]
    one = make_config("x.npz", ())
    assert grid.cells(one)[0].config is one


def test_tuples_are_values_of_augment():
    axes = (("augment", ("none", ("crop_flip", "mixup"))),)
    first, second = grid.cells(make_config("x.npz", axes))
    assert first.label == "augment=none" and second.label == "augment=crop_flip+mixup"
    assert second.config.augment == ("crop_flip", "mixup")


@pytest.mark.parametrize(
    "axes, message",
    [
        ((("augment", "none"),), r"config\.axes holds \('augment', 'none'\); allowed: pairs"),
        (("augment", ("none",)), r"config\.axes holds 'augment'; allowed: pairs of a field"),
        ((("augment", ()),), r"allowed: pairs of a field and its values"),
        ((("augmnt", ("none",)),), r"config\.axes, augmnt='none': .*Did you mean \"augment\""),
        ((("forget.fractoin", (0.1,)),), r"forget\.fractoin=0\.1: .*Did you mean \"fraction\""),
        ((("forget.fraction", ("x",)),), r"forget\.fraction='x': .*cannot be casted to type"),
        ((("forget.fraction", (0.1, 1.5)),), r"config\.forget\.fraction must be .*, got 1\.5"),
        ((("augment", ("none", "crop_flop")),), r"unknown augmentation 'crop_flop'"),
        ((("forget", ({"fraction": 0.1},)),), r"it is a section; name one of its fields"),
        ((("seeds", ((0,), (1,))),), r"varies 'seeds', which is fixed across the grid"),
        ((("tune.chosen", ("a", "b")),), r"varies 'tune.chosen', which is fixed across the grid"),
        ((("convolution", ("xla", "auto")),), r"varies 'convolution', which is fixed"),
        ((("augment", ("none",)), ("augment", ("none",))), r"names a field twice"),
        (
            (("augment", ("none", "none")),),
            r"gives two cells one name; axis values must have distinct names",
        ),
    ],
)
def test_wrong_axes_are_one_line_before_anything_is_made(tmp_path, axes, message):
    config = make_config(toy.write_npz(tmp_path / "data.npz"), axes)
    with pytest.raises(UserError, match=message) as caught:
        run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "store").exists()


def test_a_grid_without_methods_is_told_at_once(tmp_path):
    config = make_config(toy.write_npz(tmp_path / "data.npz"))
    config.methods = {}
    with pytest.raises(UserError, match=r"compares methods, and config\.methods is empty"):
        run(config, tmp_path / "run")


def test_a_policy_alone_is_named_apart_from_the_scenario_and_long_labels_are_cut():
    axes = (("augment", ("trivialaugment", ("trivialaugment",))), ("data.path", ("李" * 100, "b")))
    cells = grid.cells(make_config("x.npz", axes))
    assert len({cell.label for cell in cells}) == 4
    for cell in cells:  # as names of files, which take 255 bytes with what is added
        assert all(len(name.encode()) <= 150 for name in (cell.label, cell.config.name))
    names = [grid.value_name(value) for value in axes[0][1]]
    assert names == ["trivialaugment", "(trivialaugment)"]


def test_titles_say_only_what_is_true_of_every_row(tmp_path):
    axes = (("forget.fraction", (0.2, 0.5)), ("eval.attack", ("threshold",)))
    config = make_config(toy.write_npz(tmp_path / "data.npz"), axes)
    config.seeds = (0,)
    _, text = run(config, tmp_path / "run")
    assert "toy: data, eval.attack=threshold" in text and "training images to forget" not in text


def test_a_grid_writes_its_cells_and_one_report(finished):
    root, report, text, _, _ = finished
    written = json.loads((root / "run" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert written["schema"] == results.SCHEMA
    assert written["axes"] == json.loads(json.dumps(AXES)) and len(written["cells"]) == 4
    assert written["cells"][3]["labels"] == {"augment": "crop_flip", "forget.fraction": "0.5"}
    for number, (comparison, fraction) in enumerate(
        zip(written["comparisons"], ("0.2", "0.5"), strict=True)
    ):
        assert comparison["labels"] == {"forget.fraction": fraction}
        assert comparison["cells"] == [number, number + 2]
        verdict = comparison["verdicts"]["salun"]
        changed = written["cells"][number + 2]["models"]["salun"]
        assert verdict["by"] == changed["mean"]["avg_gap_change"]
        assert verdict["interval"] == changed["interval"]["avg_gap_change"]
        assert (verdict["reference"], verdict["at"]) == ("none", "crop_flip")
    for entry in written["cells"]:
        alone = json.loads((root / "run" / entry["folder"] / "metrics.json").read_text())
        for name, model in alone["models"].items():
            assert entry["models"][name]["per_seed"] == model["per_seed"]
        assert (root / "run" / entry["folder"] / "predictions" / "salun-seed1.npz").exists()
    assert {path.name for path in (root / "run").iterdir()} == {
        *("cells", "config.json", "figure.png", "metrics.json", "table.md"),
    }
    assert (root / "run" / "figure.png").read_bytes().startswith(b"\x89PNG")
    table = (root / "run" / "table.md").read_text()
    for row in ("none · retrained", "crop_flip · salun"):
        assert table.count(f"| {row} |") == 2 and row in text
    assert "Change %" in text and "forget.fraction=0.5" in text


def test_the_change_is_against_the_first_value_within_the_same_fraction(finished):
    _, report, _, _, _ = finished
    by_point = {tuple(entry["point"].values()): entry["models"] for entry in report["cells"]}

    def gaps(*point):
        return np.array([values["avg_gap"] for values in by_point[point]["salun"]["per_seed"]])

    for fraction in (0.2, 0.5):
        change = by_point["crop_flip", fraction]["salun"]["mean"]["avg_gap_change"]
        before, after = gaps("none", fraction), gaps("crop_flip", fraction)
        assert change == pytest.approx(100 * (after.mean() / before.mean() - 1))
        assert by_point["none", fraction]["salun"]["mean"]["avg_gap_change"] is None
        assert by_point["crop_flip", fraction]["retrained"]["mean"]["avg_gap_change"] is None


def test_a_cell_is_the_experiment_of_its_own_config(finished, tmp_path):
    root, report, _, _, _ = finished
    config = make_config(str(root / "data.npz"), ())
    config.augment, config.forget.fraction = ("crop_flip",), 0.5  # the scenario, spelt otherwise
    config.store = str(root / "store")
    alone, text = run(config, tmp_path / "run")
    assert text.count("in the store") == 2 * 4  # every model of both seeds
    entry = report["cells"][3]
    for name, model in alone["models"].items():
        assert entry["models"][name]["per_seed"] == model["per_seed"]


def test_the_original_is_trained_once_for_all_fractions(finished):
    _, _, text, _, _ = finished
    assert text.count("original: in the store") == 2 * 2  # at the second fraction, by seed


def test_nothing_is_compiled_twice_in_a_grid(finished):
    """Nor traced: not between epochs, seeds, fractions or methods."""
    _, _, _, traces, made = finished
    assert len(traces) == 2  # of crop_flip: without a mask, and with one
    (compiled,) = made
    # Two steps a scenario; init; the forget gradient by fraction; logits.
    assert len(compiled) == 2 * 2 + 1 + 2 + 1


def test_a_second_run_of_a_grid_trains_nothing(finished, monkeypatch):
    root, report, _, _, _ = finished

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(trained, "run", never)
    again, _ = run(make_config(str(root / "data.npz")), root / "run")
    assert json.dumps(again) == json.dumps(report)


def test_percent_change_worked_by_hand():
    change, (low, high) = statistics.percent_change([3.0, 5.2, 3.8], [4.0, 6.0, 5.0])
    assert change == pytest.approx(-20.0)
    # Differences −1, −0.8, −1.2; over x̄ = 5 in percent: −20, −16, −24; sd 4, sem 4/√3, t 4.3027
    half = 4.302653 * 4 / np.sqrt(3)
    assert (low, high) == pytest.approx((-20 - half, -20 + half), rel=1e-5)
    # A seed with a gap near 0 does not blow it up, as it would a mean of ratios.
    assert statistics.percent_change([2.0, 1.0], [3.0, 1e-9])[0] == pytest.approx(0.0, abs=1e-6)
    assert statistics.percent_change([2.0], [4.0]) == (-50.0, None)
    assert statistics.percent_change([2.0], [0.0]) == (None, None)
    # The same change in all seeds: no spread.
    assert statistics.percent_change([2.0, 6.0], [4.0, 8.0])[1] == pytest.approx((-100 / 3,) * 2)


def test_findings_claim_no_more_than_the_intervals():
    def say(*others, reference=(4.0, 6.0, 5.0)):
        gaps = {"none": reference, **dict(others)}
        return sheets._gap_finding("salun", "augment", verdicts.lowest_gap(gaps))

    lower = ("augmix", (1.8, 3.2, 2.5))
    text = say(lower)
    assert text.startswith("salun: Avg Gap changes by -50.0% from none to augment=augmix (95%")
    assert text.endswith("): reliably lower.")
    # The choice of the best of many widens it: t at 1 - 0.05 / 40 with 2 degrees of freedom.
    _, (low, high) = statistics.percent_change((1.8, 3.2, 2.5), (4, 6, 5), level=1 - 0.05 / 40)
    text = say(*[(f"crop_{i}", (4.0, 5.0, 5.0)) for i in range(39)], lower)
    assert f"{low:+.1f} to {high:+.1f}, corrected for 40 comparisons)" in text
    assert ", the lowest of 40 values" in text
    assert say(("augmix", (1.0, 6.0, 2.0))).endswith("no reliable difference.")
    assert say(("augmix", (8.0, 12.1, 10.0))).endswith("reliably higher.")
    # The same change in all seeds but for rounding has no spread to judge it by.
    assert say(("augmix", (2.9, 4.9, 3.9))).endswith("no reliable difference.")
    one = say(("augmix", (2.0,)), reference=(4.0,))
    assert one.endswith("with one seed there is no interval.")
    zero = (0.0, 0.0, 0.0)
    assert say(("augmix", (2.0, 3.0, 2.5)), reference=zero) == (
        "salun: the change of Avg Gap is undefined because Avg Gap is 0 at none."
    )


def test_the_verdict_on_the_lowest_gap_is_data():
    verdict = verdicts.lowest_gap(
        {"none": (4.0, 6.0, 5.0), "cutout": (4.0, 5.0, 5.0), "augmix": (0.0, 0.9, 0.1)}
    )
    _, (low, high) = statistics.percent_change((0.0, 0.9, 0.1), (4, 6, 5), level=1 - 0.05 / 2)
    assert verdict == {
        "verdict": "lower",
        "by": pytest.approx(-280 / 3),
        "at": "augmix",
        "over": "seeds",
        "interval": pytest.approx((low, high)),
        "corrected_for": 2,
        "reference": "none",
        "too_few": {},
    }
    one = verdicts.lowest_gap({"none": (4.0,), "augmix": (2.0,)})
    assert (one["verdict"], one["by"], one["interval"]) == ("unknown", -50.0, None)
    undefined = verdicts.lowest_gap({"none": (0.0, 0.0), "augmix": (2.0, 1.0)})
    assert (undefined["verdict"], undefined["by"], undefined["at"]) == ("unknown", None, None)


def test_a_finished_grid_can_be_shown_again_from_its_file(finished, tmp_path):
    root, _, _, _, _ = finished
    report = results.load(root / "run")
    assert terminal.markdown_table(report) == (root / "run" / "table.md").read_text()
    figures.draw(report, str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes() == (root / "run" / "figure.png").read_bytes()


def cifar_archive(path, counts=(60, 24)):
    """A few hundred images in the published binary layout, brighter by label."""
    with tarfile.open(path, "w:gz") as tar:
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
        for seed, name in enumerate(names):
            count = counts[name == "test_batch.bin"]
            images, _ = toy.images_and_labels(count, 32, 3, num_classes=1, seed=seed)
            labels = np.arange(count) % 10
            images = images // 2 + 12 * labels[:, None, None, None].astype(np.uint8)
            records = np.concatenate(
                [labels[:, None], images.transpose(0, 3, 1, 2).reshape(count, -1)], axis=1
            ).astype(np.uint8)
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = records.size
            tar.addfile(info, io.BytesIO(records.tobytes()))
    return path


@pytest.mark.slow
def test_the_cifar10_grid_killed_in_the_middle_repeats_no_model(tmp_path):
    """The published config on an archive in CIFAR's format, by the command line."""
    workdir = tmp_path / "run"
    flags = [
        "--config=configs/cifar10_augmentation.py",
        f"--config.data.path={cifar_archive(tmp_path / 'cifar.tar.gz')}",
        f"--workdir={workdir}",
        "--config.model.name=cnn",
        "--config.model.width=4",
        "--config.train.epochs=2",
        "--config.train.batch_size=64",
        *(
            f"--config.methods.{name}.{field}"
            for name in ("finetune", "random_label", "salun")
            for field in ("epochs=1", "batch_size=64")
        ),
        "--config.axes=(('augment', ('none', 'trivialaugment')), ('forget.fraction', (0.1, 0.5)))",
    ]
    process = start(*flags)
    deadline = time.monotonic() + 240
    while len(kept := models(tmp_path)) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    code, out, err = finish(*flags)
    assert code == 0, err
    assert kept == {name: time for name, time in models(tmp_path).items() if name in kept}
    # 2 scenarios × (original + 2 fractions × (retrained + 3 methods)), each trained once
    assert len(models(tmp_path)) == 2 * (1 + 2 * 4)
    trained = [line for line in out.splitlines() if "seed 0 · " in line and "100%" in line]
    assert len(trained) <= 18 - len(kept)
    assert out.count("Change %") >= 2 and (workdir / "metrics.json").exists()


def models(tmp_path):
    """When each whole model was put into the store."""
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in (tmp_path / "store").glob("*/meta.json")
        if not path.parent.name.startswith(".") and "pass" not in path.parent.name
    }
