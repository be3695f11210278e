import itertools
import json
import re
import subprocess
import sys

import matplotlib.figure
import matplotlib.text
import numpy as np
import pytest
from rich.console import Console

from jaxunlearn import metrics
from jaxunlearn.metrics import Predictions, clinical
from jaxunlearn.report import figures, sheets, terminal

METHODS = ("finetune", "salun", "random_label_with_a_long_name")
SIZES = {"forget": 40, "retain": 160, "val": 50, "test": 80}


def example(seeds=1, methods=METHODS, malignant=(0,), num_classes=2, synthetic=True):
    """What an experiment writes, of random predictions that get worse from model to model."""
    models = {name: {"per_seed": []} for name in ("original", "retrained", *methods)}
    for seed in range(seeds):
        predictions = {}
        for i, name in enumerate(models):
            rng = np.random.default_rng([seed, i])
            predictions[name] = {}
            for which, n in SIZES.items():
                labels = np.arange(n, dtype=np.int32) % num_classes
                skill = np.eye(num_classes)[labels] * (3 - 0.3 * i)
                logits = rng.normal(size=(n, num_classes)) + skill
                predictions[name][which] = Predictions(logits.astype(np.float32), labels)
        values = {
            name: metrics.evaluate(
                predictions[name],
                malignant=malignant,
                scenarios=((1.0, 1.0), (20.0, 1.0)),
                attack="threshold",
                members="all",
                malignant_rule="argmax",
                seed=seed,
            )
            for name in models
        }
        for i, (name, model) in enumerate(models.items()):
            entry = metrics.compare(values[name], values["retrained"])
            entry |= {"seed": seed, "RTE": 10.0 + i + seed}
            if malignant and name != "retrained":
                tests = predictions[name]["test"], predictions["retrained"]["test"]
                entry["false_negatives"] = clinical.compare_false_negatives(
                    *tests, malignant, "argmax"
                )
            model["per_seed"].append(entry)
    for model in models.values():
        model["mean"], model["interval"] = metrics.summarise(model["per_seed"])
    report = {
        "name": "example",
        "dataset": {"name": "spots", "synthetic": synthetic, "train": 200},
        "split": {"forget": 40, "retain": 160},
        "seeds": list(range(seeds)),
        "attack": "threshold",
        "notes": ["the first note"],
        "models": models,
    }
    return json.loads(json.dumps(report, allow_nan=False))


def by_hand(seeds=1):
    """SalUn's row against retrained's, of Fan et al. 2024 (CIFAR-10, 10%), with risks made up."""

    def model(ua, ra, ta, mia, fn, rte):
        entry = {"UA": ua, "RA": ra, "TA": ta, "MIA": mia, "RTE": rte, "fnr": fn / 40, "fpr": 0.125}
        entry["counts"] = {"tp": 40 - fn, "fn": fn, "fp": 5, "tn": 35}
        entry["n"] = {"forget": 1000, "retain": 1000, "test": 1000}
        entry["risk"] = {"20:1": fn / 10}
        entry["risk_ratio"] = {"20:1": fn / 10 / 0.8}
        entry["risk_treat_none"], entry["risk_treat_all"] = {"20:1": 4.0}, {"20:1": 0.8}
        return entry

    retrained = model(5.24, 100, 94.26, 12.88, 7, 43.0)
    entries = {"original": model(0, 100, 94.5, 2, 7, 43.0), "retrained": retrained}
    entries["RL"] = model(7.61, 99.67, 92.83, 37.36, 9, 2.64)
    entries["SalUn"] = model(2.85, 99.62, 93.93, 14.39, 9, 2.66)
    models = {}
    for name, entry in entries.items():
        per_seed = []
        for seed in range(seeds):
            found = {"missed": 9 + seed, "missed_reference": 7, "newly_missed": 3}
            found |= {"newly_found": 1, "p_value": 0.625, "n_malignant": 40}
            moved = {**entry, "UA": entry["UA"] + seed}
            compared = metrics.compare(moved, {**retrained, "UA": retrained["UA"] + seed})
            compared["fn_change"] += seed
            per_seed.append({**compared, "false_negatives": found})
        mean, interval = metrics.summarise(per_seed)
        models[name] = {"per_seed": per_seed, "mean": mean, "interval": interval}
    return {**example(), "models": models, "seeds": list(range(seeds))}


def printed(report, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    terminal.print_table(report, console)
    return console.export_text()


def test_markdown_by_hand():
    lines = terminal.markdown_table(by_hand()).splitlines()
    assert lines[0] == "**example: spots (synthetic data), 40 of 200 training images to forget**"
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "|  | UA | RA | TA | MIA | Avg Gap | FNR | FPR | Risk 20:1 | RTE |"
    assert table[2].startswith("| original | 0.00 (5.24) | 100.00 (0.00) | ")
    assert table[3] == (
        "| retrained | 5.24 | 100.00 | 94.26 | 12.88 | 0.00 | 17.50 | 12.50 | 0.700 | 43.0 |"
    )
    # gaps 2.37, 0.33, 1.43 and 24.48: on average 7.15; 2.39, 0.38, 0.33 and 1.51: 1.15
    assert table[4] == (
        "| RL | **7.61 (2.37)** | **99.67 (0.33)** | 92.83 (1.43) | 37.36 (24.48) | 7.15 | "
        "**22.50** | **12.50** | **0.900** | **2.6** |"
    )
    assert table[5] == (
        "| SalUn | 2.85 (2.39) | 99.62 (0.38) | **93.93 (0.33)** | **14.39 (1.51)** | **1.15** | "
        "**22.50** | **12.50** | **0.900** | 2.7 |"
    )
    assert table[6:] == [
        "| treat none |  |  |  |  |  | 100.00 | 0.00 | 4.000 |  |",
        "| treat all |  |  |  |  |  | 0.00 | 100.00 | 0.800 |  |",
    ]
    text = "\n".join(lines)
    assert "calling every image malignant has risk 0.800, less than RL, SalUn." in text
    assert (
        "SalUn misses 9 of 40 malignant test images, 2 more than retrained (3 newly missed, 1 "
        "newly found; exact McNemar p = 0.62): no reliable difference." in text
    )
    assert "One seed" in text and "±0" not in text
    assert "Note: the first note" in text


def test_several_seeds_by_hand():
    report = by_hand(seeds=3)
    text = terminal.markdown_table(report)
    # UA 2.85, 3.85, 4.85: half the t interval is 4.3027 / √3 = 2.48; the others have no spread
    assert "3.85±2.48 (2.39)" in text and "99.62±0.00 (0.38)" in text
    assert "3 seeds: mean ± half the 95% t interval" in text
    # 9, 10 and 11 missed; changes 2, 3 and 4
    assert (
        "SalUn misses 10.0 of 40 malignant test images, mean of 3 seeds, 3.0 more than retrained "
        "(95% t interval over seeds +0.5 to +5.5): reliably more." in text
    )
    assert "p =" not in text


def finding(seeds=1, interval=(0, 0), change=0, **found):
    found = {"newly_missed": 0, "newly_found": 0, "n_malignant": 42, "p_value": 1.0, **found}
    mean = {"fn_change": change, "fp_change": 3.0, "false_negatives": {"missed": 4.0}}
    per_seed = [{"false_negatives": found}] * seeds
    return sheets._finding(
        "m", {"per_seed": per_seed, "mean": mean, "interval": {"fn_change": list(interval)}}
    )


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"missed": 4, "missed_reference": 4}, r"4 of 42 .* as many as retrained .* no reliable"),
        ({"missed": 4, "missed_reference": 5}, "1 fewer than retrained .* no reliable difference"),
        ({"missed": 9, "missed_reference": 1, "p_value": 0.01}, "8 more .*: reliably more"),
        ({"missed": 1, "missed_reference": 9, "p_value": 0.01}, "8 fewer .*: reliably fewer"),
        ({"n_malignant": 0}, "no test image is malignant"),
        ({"seeds": 3, "change": -2, "interval": (-3, -1)}, "2.0 fewer than .*: reliably fewer"),
        (
            {"seeds": 3, "change": 1, "interval": (-1, 3)},
            "1.0 more than .*: no reliable difference",
        ),
        # The same in every seed: no spread is no evidence.
        ({"seeds": 3, "change": 1, "interval": (1, 1)}, "1.0 more than .*: no reliable difference"),
    ],
)
def test_findings_claim_no_more_than_the_data(settings, expected):
    text = finding(**settings)
    assert re.search(expected, text)
    # Fewer missed may only be more called malignant.
    assert settings.get("n_malignant") == 0 or re.search(r"False alarms: \+3(\.0)?\.$", text)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("malignant", [(0,), ()])
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_fits_the_terminal_and_breaks_no_number(seeds, malignant, width):
    report = example(seeds, malignant=malignant)
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    words = set(text.replace("*", "").split())
    for row in sheets._experiment_sheet(report).rows:
        assert set(" ".join(row).split()) <= words
    for header in sheets._experiment_sheet(report).header:
        assert set(header.split()) <= words
    assert ("FNR" in text) == ("Risk" in text) == ("misses" in text) == bool(malignant)


def test_one_seed_is_one_table_on_120_columns():
    for malignant in ((0,), ()):
        text = printed(example(malignant=malignant), 120)
        assert sum(line.split()[:1] == ["retrained"] for line in text.splitlines()) == 1


def test_names_are_not_markup(capsys):
    terminal.print_table(example(methods=("[red]", "[/]")))
    assert "[red]" in capsys.readouterr().out


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_data_is_called_so(synthetic):
    report = example(synthetic=synthetic)
    for text in (printed(report, 120), terminal.markdown_table(report), sheets.title(report)):
        assert text.splitlines()[0].count("synthetic") == synthetic
    report["dataset"]["name"] = "spots (synthetic)"
    assert sheets.title(report).count("synthetic") == 1


def test_best_marks_need_a_choice():
    assert "*" not in printed(example(methods=("salun",)), 120)
    assert "treat all" in printed(example(methods=()), 120)
    # Equal to the decimals shown: both are marked.
    sheet = sheets._experiment_sheet(by_hand())
    fnr = sheet.header.index("FNR")
    assert {(2, fnr), (3, fnr)} <= sheet.best and all(i > 1 for i, _ in sheet.best)


def test_undefined_values_are_shown_as_absent():
    text = terminal.markdown_table(example(malignant=(0, 1)))  # nothing benign
    assert "| – |" in text and not re.search(r"\b(None|nan)\b", text)


def drawn_texts(figure):
    """All texts but the labels of ticks beyond the axes, which are not drawn."""
    beyond = set()
    for axes in figure.axes:
        for axis, k in ((axes.xaxis, 0), (axes.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            for label in axis.get_ticklabels():
                if not low <= label.get_position()[k] <= high:
                    beyond.add(label)
    texts = set(figure.findobj(matplotlib.text.Text)) - beyond
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seeds": 3},
        {"malignant": ()},
        {"seeds": 2, "malignant": (), "num_classes": 5},
        {"malignant": (0, 1)},  # nothing benign: rates undefined
        {"methods": ()},
        {"methods": tuple(f"method_{i}" for i in range(12))},
    ],
)
def test_figure_has_no_overlapping_text(settings, tmp_path, monkeypatch):
    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)),
    )
    path = tmp_path / "figure.png"
    report = example(**settings)
    figures.draw(report, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert "synthetic" in figure.get_suptitle()
    boxes = [text.get_window_extent() for text in drawn_texts(figure)]
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    clashes = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert not clashes


def test_figure_of_rates_at_their_ends(tmp_path):
    report = example(seeds=2)
    for name, fnr in (("original", 0.0), ("retrained", 1.0)):
        # as rounding may leave the interval
        report["models"][name]["mean"]["fnr"] = fnr
        report["models"][name]["interval"]["fnr"] = [1e-17, 1 - 1e-16]
    figures.draw(report, str(tmp_path / "figure.png"))


def test_start_up_loads_neither_matplotlib_nor_scikit_learn():
    code = (
        "import sys; from jaxunlearn import metrics; "
        "from jaxunlearn.report import figures, terminal; "
        "print([m for m in ('matplotlib', 'sklearn', 'jax') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
