import io
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
from jaxunlearn.metrics import Judged, Metric, Point, Predictions, unlearning
from jaxunlearn.metrics.predictions import apart
from jaxunlearn.report import figures, sheets, summary, terminal

METHODS = ("finetune", "salun", "random_label_with_a_long_name")
REFERENCES = ("original", "retrained")
SIZES = {"forget": 40, "retain": 160, "val": 50, "test": 80}


def header(seeds=1, synthetic=True, num_classes=2, malignant=(), forgotten=()):
    """The parts of a report that are not of its models."""
    class_names = [f"kind {label}" for label in range(num_classes)]
    return {
        "name": "example",
        "dataset": {
            "name": "spots",
            "synthetic": synthetic,
            "class_names": class_names,
            "malignant": list(malignant),
            "train": 200,
            "test": SIZES["test"],
        },
        "split": {
            "forget": 40,
            "retain": 160,
            "forgotten_classes": [class_names[label] for label in forgotten],
        },
        "request": {"kind": "fraction"},
        "batch_size": 32,
        "seeds": list(range(seeds)),
        "versions": {"python": "3"},
        "convolution": "XLA",
        "device": "1 × cpu",
        "cores": 2,
        "attack": "threshold",
        "notes": ["the first note"],
    }


def read_back(report):
    return json.loads(json.dumps(report, allow_nan=False))


def example(
    seeds=1,
    methods=METHODS,
    malignant=(0,),
    num_classes=2,
    synthetic=True,
    references=REFERENCES,
    claims=None,
    skill=3,
    forgotten=(),
):
    """What an experiment writes, of random predictions that get worse from model to model."""
    names = [*references, *methods]
    judged = {name: [] for name in names}
    for seed, (i, name) in itertools.product(range(seeds), enumerate(names)):
        rng = np.random.default_rng([seed, i])
        predictions = {}
        for which, n in SIZES.items():
            labels = np.arange(n, dtype=np.int32) % num_classes
            if forgotten and which in ("forget", "retain"):
                others = [label for label in range(num_classes) if label not in forgotten]
                labels = np.resize(forgotten if which == "forget" else others, n)
            logits = rng.normal(size=(n, num_classes))
            logits += np.eye(num_classes)[labels] * (skill - 0.3 * i)
            predictions[which] = Predictions(logits.astype(np.float32), labels)
        values = metrics.evaluate(
            predictions,
            malignant=malignant,
            scenarios=((1.0, 1.0), (20.0, 1.0)),
            attack="threshold",
            members="all",
            malignant_rule="argmax",
            seed=seed,
        )
        values |= {"seed": seed, "RTE": 10.0 + i + seed}
        if claims and name in methods:
            values["claims"] = claims[seed]
        judged[name].append(Judged(values, apart(predictions["test"], forgotten)[0]))
    report = metrics.assemble(
        header(seeds, synthetic, num_classes, malignant, forgotten),
        names,
        judged,
        malignant=malignant,
        malignant_rule="argmax",
    )
    return read_back(report)


def grid(values=("none", ("augmix",)), **settings):
    """What a grid of examples writes, along one axis, or two with a second of one value."""
    axes = (("augment", values), ("forget.fraction", (0.2, 0.5)))
    points, reports = [], []
    for value, fraction in itertools.product(*(options for _, options in axes)):
        labels = {"augment": str(value), "forget.fraction": str(fraction)}
        point = {"augment": value, "forget.fraction": fraction}
        points.append(Point(point, labels, f"cells/{len(points)}"))
        reports.append(example(skill=3 - 0.1 * len(points), **settings))
    return read_back(metrics.merge("grid", axes, points, reports))


def by_hand(seeds=1, missed=9):
    """SalUn's row against retrained's, of Fan et al. 2024 (CIFAR-10, 10%), with risks made up.

    Of 40 malignant test images retrained misses the first 7, and each method in the first seed
    all of these but the first, and 3 more.
    """
    labels = np.repeat([1, 0], 40)

    def model(ua, ra, ta, mia, fn, rte):
        entry = {"UA": ua, "RA": ra, "TA": ta, "MIA": mia, "RTE": rte, "fnr": fn / 40, "fpr": 0.125}
        entry["counts"] = {"tp": 40 - fn, "fn": fn, "fp": 5, "tn": 35}
        entry["n"] = {"forget": 1000, "retain": 1000, "test": 1000}
        entry["risk"] = entry["risk_at_threshold"] = {"20:1": fn / 10}
        entry["risk_ratio"] = {"20:1": fn / 10 / 0.8}
        entry["risk_treat_none"], entry["risk_treat_all"] = {"20:1": 4.0}, {"20:1": 0.8}
        called = labels.copy()
        called[:fn] = 0
        if fn != 7:
            called[0], called[fn] = 1, 0
        return Judged(entry, Predictions(np.eye(2, dtype=np.float32)[called], labels))

    rows = {
        "original": (0, 100, 94.5, 2, 7, 43.0),
        "retrained": (5.24, 100, 94.26, 12.88, 7, 43.0),
        "RL": (7.61, 99.67, 92.83, 37.36, missed, 2.64),
        "SalUn": (2.85, 99.62, 93.93, 14.39, missed, 2.66),
    }
    judged = {}
    for name, (ua, ra, ta, mia, fn, rte) in rows.items():
        moves = [0] * seeds if name in REFERENCES else range(seeds)
        judged[name] = [
            model(ua + seed, ra, ta, mia, fn + move, rte) for seed, move in enumerate(moves)
        ]
    report = metrics.assemble(
        header(seeds), list(rows), judged, malignant=(1,), malignant_rule="argmax"
    )
    return read_back(report)


def printed(report, width):
    console = Console(width=width, record=True, file=io.StringIO())
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
        "| always benign |  |  |  |  |  | 100.00 | 0.00 | 4.000 |  |",
        "| always malignant |  |  |  |  |  | 0.00 | 100.00 | 0.800 |  |",
    ]
    text = "\n".join(lines)
    assert 'At 20:1, the answer "always malignant" has risk 0.800, less than RL, SalUn.' in text
    assert (
        "SalUn misses 9 of 40 malignant test images, 2 more than retrained (3 newly missed, 1 "
        "newly found; exact McNemar p = 0.62, Holm-corrected 1): no reliable difference." in text
    )
    assert "One seed" in text and "±0" not in text
    assert "Note: the first note" in text


def test_the_notes_by_hand():
    lines = terminal.markdown_table(by_hand()).splitlines()
    for note in (
        "UA, RA, TA, FNR, FPR in %; MIA in % (threshold attack); in parentheses, the absolute "
        "difference from retrained; Avg Gap is their mean over UA, RA, TA, MIA; Risk: cost per "
        "test image at costs C_FN:C_FP; RTE in seconds, excluding compilation.",
        "Bold marks the best method per column: closest to retrained for UA, RA, TA, MIA; lowest "
        "for the rest.",
        "One seed: no ± over seeds; metrics.json has Wilson intervals of proportions.",
        '"Reliably" means significant at the 5% level across test images, for this one training '
        "per model, with p-values Holm-corrected over the 2 methods. No reliable difference is "
        "not evidence of no difference.",
    ):
        assert note in lines
    several = terminal.markdown_table(example(seeds=2, methods=("salun",)))
    assert (
        '"Reliably" means significant at the 5% level across seeds. No reliable difference'
    ) in several
    assert (
        "MIA depends on which examples the attack learns from: over resamples of these its "
        "standard deviation is "
    ) in several


def test_several_seeds_by_hand():
    text = terminal.markdown_table(by_hand(seeds=3))
    # UA 2.85, 3.85, 4.85: half the t interval is 4.3027 / √3 = 2.48; the others have no spread
    assert "3.85±2.48 (2.39)" in text and "99.62±0.00 (0.38)" in text
    assert "3 seeds: mean ± half the 95% t interval" in text
    # 9, 10 and 11 missed, so 2, 3 and 4 more: t = 3 / (1/√3) with 2 degrees of freedom, p = 0.035;
    # of two methods the smaller p counts twice.
    assert (
        "SalUn misses 10.0 of 40 malignant test images, mean of 3 seeds, 3.0 more than retrained "
        "(95% t interval over seeds +0.5 to +5.5; p = 0.039, Holm-corrected 0.078): no reliable "
        "difference." in text
    )
    assert "McNemar" not in text
    # 4, 5 and 6 more: t = 8.66, p = 0.0131, and twice that is below 5%.
    text = terminal.markdown_table(by_hand(seeds=3, missed=11))
    assert (
        "SalUn misses 12.0 of 40 malignant test images, mean of 3 seeds, 5.0 more than retrained "
        "(95% t interval over seeds +2.5 to +7.5; p = 0.015, Holm-corrected 0.029): reliably more."
    ) in text


def finding(missed=(4,), reference=(4,), newly=0, p=1.0, n=42, others=(), retain=400):
    """The sentence on a method, with the p-values of other methods compared besides."""
    pairs = list(zip(missed, reference, strict=True))
    found = [
        metrics.clinical.FalseNegatives(
            missed=a,
            missed_reference=b,
            newly_missed=newly,
            newly_found=newly,
            p_value=p,
            n_malignant=n,
        )
        for a, b in pairs
    ]
    besides = {str(i): [{**found[0], "p_value": other}] for i, other in enumerate(others)}
    sizes = {"retain": retain}
    verdict = metrics.verdicts.false_negatives({"m": found, **besides}, "retrained", sizes)["m"]
    mean = {"fp_change": 3.0, "false_negatives": {"missed": float(np.mean(missed))}}
    model = {"per_seed": [{"false_negatives": each} for each in found], "mean": mean}
    return sheets._finding("m", model, verdict)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, r"4 of 42 .* as many as retrained .* no reliable"),
        ({"reference": (5,)}, "1 fewer than retrained .* no reliable difference"),
        ({"missed": (9,), "reference": (1,), "p": 0.01}, "8 more .* p = 0.01\\): reliably more"),
        ({"missed": (1,), "reference": (9,), "p": 0.01}, "8 fewer .*: reliably fewer"),
        # 3 · 0.02 is above 5%, and 3 · 0.01 is not.
        (
            {"missed": (9,), "reference": (1,), "p": 0.02, "others": (0.4, 0.3)},
            r"8 more .* p = 0.02, Holm-corrected 0.06\): no reliable difference",
        ),
        (
            {"missed": (9,), "reference": (1,), "p": 0.01, "others": (0.4, 0.3)},
            r"8 more .* Holm-corrected 0.03\): reliably more",
        ),
        ({"n": 0}, "no test image is malignant"),
        # −1.9, −2, −2.1 in tens: t = 20 / (1/√3)
        ({"missed": (19, 20, 21), "reference": (40,) * 3}, "20.0 fewer than .*: reliably fewer"),
        (
            {"missed": (4, 5, 6), "reference": (4,) * 3},
            "1.0 more than .*: no reliable difference",
        ),
        # The same in every seed: no spread is no evidence.
        (
            {"missed": (5, 5, 5), "reference": (4,) * 3},
            r"5.0 of 42 malignant test images, mean of 3 seeds, 1.0 more than retrained \(the same "
            r"difference in every seed; p = 1\): no reliable difference",
        ),
        # Significant, and yet from too little to decide by.
        (
            {"missed": (9,), "reference": (1,), "p": 0.01, "retain": 3},
            r"p = 0.01\): too few to decide by \(3 images to retain\), so no reliable difference",
        ),
        (
            {"missed": (1,) * 9 + (0,), "reference": (0,) * 10, "n": 1},
            r"too few to decide by \(1 malignant test image\), so no reliable difference",
        ),
        (
            {"missed": (30, 31), "reference": (1, 1)},
            r"p = 0.012\): too few to decide by \(2 seeds\), so no reliable difference",
        ),
    ],
)
def test_findings_claim_no_more_than_the_data(settings, expected):
    text = finding(**settings)
    assert re.search(expected, text)
    # Fewer missed may only be more called malignant.
    assert settings.get("n") == 0 or re.search(r"False alarms: \+3(\.0)?\.$", text)


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


def test_names_are_not_markdown():
    lines = terminal.markdown_table(grid(values=("a|b", "c"), methods=("a*b*", "d_e"))).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert any(row.startswith(r"| a\|b · a\*b\* |") for row in rows)
    assert any(row.startswith("| c · d_e |") for row in rows)
    cells = {len(re.split(r"(?<!\\)\|", row)) for row in rows}
    assert len(cells) == 1  # two tables of the same columns


def test_no_value_is_minus_zero():
    column = sheets.Column("TA lost", ("TA_lost",), sheets.METRICS["TA_lost"])
    assert column.show(-1e-9) == column.show(0) and column.show(-1).startswith("-")


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_data_is_called_so(synthetic):
    report = example(synthetic=synthetic)
    for text in (printed(report, 120), terminal.markdown_table(report), sheets.title(report)):
        assert text.splitlines()[0].count("synthetic") == synthetic
    report["dataset"]["name"] = "spots (synthetic)"
    assert sheets.title(report).count("synthetic") == 1


def test_best_marks_need_a_choice():
    assert "*" not in printed(example(methods=("salun",)), 120)
    assert "always malignant" in printed(example(methods=()), 120)
    # Equal to the decimals shown: both are marked.
    sheet = sheets._experiment_sheet(by_hand())
    fnr = sheet.header.index("FNR")
    assert {(2, fnr), (3, fnr)} <= sheet.best and all(i > 1 for i, _ in sheet.best)


def test_undefined_values_are_shown_as_absent():
    text = terminal.markdown_table(example(malignant=(0, 1)))  # nothing benign
    assert "| – |" in text and not re.search(r"\b(None|nan)\b", text)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("malignant", [(0,), ()])
def test_a_new_metric_is_one_row_of_the_table(monkeypatch, seeds, malignant):
    row = Metric(
        lambda case: unlearning.error(case.val),
        "VE",
        better="lower",
        wilson_over="val",
        note="VE: error on validation in %",
    )
    monkeypatch.setitem(metrics.METRICS, "val_error", row)
    report = example(seeds, malignant=malignant)
    for name, model in report["models"].items():
        values = [entry["val_error"] for entry in model["per_seed"]]
        assert model["mean"]["val_error"] == pytest.approx(np.mean(values)), name
        low, high = model["interval"]["val_error"]
        assert low < high and low <= model["mean"]["val_error"] <= high
    text = terminal.markdown_table(report)
    assert "| Avg Gap | VE |" in text and "VE: error on validation in %" in text
    errors = {name: report["models"][name]["mean"]["val_error"] for name in METHODS}
    (row,) = re.findall(rf"^\| {min(errors, key=errors.get)} \|.*$", text, re.M)
    assert re.search(rf"\*\*{min(errors.values()):.2f}(±|\*\*)", row)


def test_a_metric_may_be_better_high_or_closest_to_retrained(monkeypatch):
    accuracy = Metric(lambda case: unlearning.accuracy(case.val), "VA", better="higher")
    monkeypatch.setitem(metrics.METRICS, "VA", accuracy)
    report = example()
    best = max(METHODS, key=lambda name: report["models"][name]["mean"]["VA"])
    sheet = sheets._experiment_sheet(report)
    column, names = sheet.header.index("VA"), list(report["models"])
    assert (names.index(best), column) in sheet.best
    text = terminal.markdown_table(report)
    assert "closest to retrained for UA, RA, TA, MIA; highest for VA; lowest for the rest." in text
    monkeypatch.setitem(
        metrics.METRICS, "VA", Metric(accuracy.fn, "VA", better="closest to retrained")
    )
    report = example()
    reference = report["models"]["retrained"]["mean"]
    mean = report["models"]["salun"]["mean"]
    assert mean["gaps"]["VA"] == pytest.approx(abs(mean["VA"] - reference["VA"]))
    # Avg Gap is the published mean of four.
    assert mean["avg_gap"] == pytest.approx(
        np.mean([mean["gaps"][each] for each in ("UA", "RA", "TA", "MIA")])
    )
    assert f"{mean['VA']:.2f} ({mean['gaps']['VA']:.2f})" in terminal.markdown_table(report)


@pytest.mark.parametrize("malignant", [(0,), ()])
@pytest.mark.parametrize("seeds", [1, 3])
def test_without_retrained_there_are_no_gaps_and_original_is_the_reference(seeds, malignant):
    report = example(seeds, malignant=malignant, references=("original",))
    assert report["reference"] == "original"
    for model in report["models"].values():
        for values in (*model["per_seed"], model["mean"], model["interval"]):
            assert not {"gaps", "avg_gap"} & set(values)
    text = terminal.markdown_table(report)
    assert "Avg Gap |" not in text and "(0." not in text.split("\n\n")[1]
    note = "Without a retrained model there are no gaps and no Avg Gap"
    if malignant:
        note += "; false negatives are compared with the original's instead"
        verdict = report["models"]["salun"]["verdicts"]["false_negatives"]
        assert verdict["reference"] == "original" and verdict["corrected_for"] == len(METHODS)
        changes = [
            values["counts"]["fn"] - reference["counts"]["fn"]
            for values, reference in zip(
                report["models"]["salun"]["per_seed"],
                report["models"]["original"]["per_seed"],
                strict=True,
            )
        ]
        assert verdict["by"] == pytest.approx(np.mean(changes))
        assert text.count("than original (") == len(METHODS)
    assert f"{note}." in text and "than retrained" not in text
    assert "closest to retrained" not in text and "best method per column: lowest for" in text
    assert "| Δ accuracy | Δ confidence | Δ entropy |" in text
    values = report["models"]["salun"]["mean"]
    assert f" {values['entropy_over_unseen']:.3f}" in text
    assert max(map(len, printed(report, 80).splitlines())) <= 80


def test_without_any_reference_there_is_nothing_to_compare_with():
    report = example(references=())
    assert report["reference"] is None and "verdicts" in report["models"]["salun"]
    text = terminal.markdown_table(report)
    assert "misses" not in text and "there are no gaps and no Avg Gap." in text
    assert "Δ" not in terminal.markdown_table(example())  # gaps say more


def test_a_grid_without_retrained():
    report = grid(references=("original",), seeds=2)
    assert all(each["verdicts"] == {} for each in report["comparisons"])
    text = terminal.markdown_table(report)
    assert "Change %" not in text and "Avg Gap |" not in text
    assert text.count("Without a retrained model there are no gaps and no Avg Gap") == 2


def test_a_class_request_says_what_was_taken_and_on_what_it_is_judged():
    report = example(malignant=(0, 2), num_classes=4, forgotten=(0, 3))
    assert report["split"]["forgotten_classes"] == ["kind 0", "kind 3"]
    text = terminal.markdown_table(report)
    (head,) = (line for line in text.splitlines() if line.startswith("|  |"))
    assert "| TA | TA forgotten | MIA |" in head
    assert (
        "Forgotten whole: kind 0, kind 3. TA, MIA (its non-members) and the clinical values are "
        "over the 40 of 80 test images of other classes; TA forgotten is the accuracy on the other "
        "40."
    ) in text
    assert (
        "A forgotten malignant class can be neither missed nor found: images of kind 0 enter no "
        "clinical value."
    ) in text
    assert "closest to retrained for UA, RA, TA, TA forgotten, MIA" in text
    assert "of 20 malignant test images" in text  # kind 2's
    gap = report["models"]["salun"]["mean"]["gaps"]["TA_forgotten"]
    value = report["models"]["salun"]["mean"]["TA_forgotten"]
    assert f"{value:.2f} ({gap:.2f})" in text
    text = terminal.markdown_table(example(malignant=(), num_classes=4, forgotten=(3,)))
    assert "TA, MIA (its non-members) are over the 60 of 80 test images of other classes" in text
    assert "malignant" not in text


def test_other_requests_have_no_column_and_no_word_on_forgotten_classes():
    report = example()
    for model in report["models"].values():
        assert model["mean"]["TA_forgotten"] is None and model["interval"]["TA_forgotten"] is None
    for text in (terminal.markdown_table(report), terminal.markdown_table(grid())):
        assert "TA forgotten" not in text and "Forgotten whole" not in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_forgetting_all_malignant_or_all_benign_classes_leaves_values_undefined(seeds):
    text = terminal.markdown_table(example(seeds, forgotten=(0,)))
    assert "No malignant image is left to judge on: FNR is undefined" in text
    row = next(line for line in text.splitlines() if line.startswith("| always benign |"))
    assert "| – | 0.00 | 0.000 | 0.000 |" in row  # FNR, FPR and the two risks
    assert text.count("no test image judged on is malignant, so nothing is known") == len(METHODS)
    assert "reliably" not in text
    report = example(seeds, forgotten=(1,))
    text = terminal.markdown_table(report)
    assert "No benign image is left to judge on: FPR is undefined" in text
    assert "enter no clinical value" not in text
    for shown in (text, printed(report, 80)):
        assert "–" in shown and not re.search(r"\b(None|nan)\b", shown)
        assert "All test images judged on are of one class, kind 0" in " ".join(shown.split())


def test_a_grid_says_for_which_values_a_caution_is():
    plain, whole = (example(forgotten=classes, malignant=()) for classes in ((), (0,)))
    points = [
        Point({"forget.kind": kind}, {"forget.kind": kind}, kind) for kind in ("fraction", "class")
    ]
    report = metrics.merge("grid", [("forget.kind", ("fraction", "class"))], points, [plain, whole])
    text = terminal.markdown_table(read_back(report))
    assert "At forget.kind=class: Forgotten whole: kind 0. TA, MIA" in text
    assert "TA forgotten" in text and "| – |" in text
    report = metrics.merge("grid", [("forget.kind", ("fraction", "class"))], points, [whole, whole])
    text = terminal.markdown_table(read_back(report))
    assert text.count("Forgotten whole: kind 0") == 1 and "At forget.kind" not in text


@pytest.mark.parametrize("with_retrained", [(False, True), (True, False)])
def test_a_grid_says_where_there_is_no_retrained_model(with_retrained):
    reports = [example(references=REFERENCES if each else ("original",)) for each in with_retrained]
    points = [Point({"retrained": each}, {"retrained": str(each)}, "c") for each in with_retrained]
    report = metrics.merge("grid", [("retrained", with_retrained)], points, reports)
    text = terminal.markdown_table(read_back(report))
    assert "At retrained=False: " in text and text.count("no gaps and no Avg Gap") == 1


def test_a_reference_that_learned_nothing_is_called_so():
    report = example(references=("original", "retrained"))
    assert report["majority"] == {"answer": 0, "share": 50.0, "no_better": {}}
    assert "learned nothing" not in terminal.markdown_table(report)
    report["majority"]["no_better"] = {"original": [0], "retrained": [0]}
    text = terminal.markdown_table(report)
    learned = "its accuracy cannot be told from that of a model that learned nothing"
    assert (
        "original answers no more test images rightly than always answering kind 0 would "
        f"(50.00%): {learned}, so there may be nothing to forget."
    ) in text
    assert f"(50.00%): {learned}, and differences from such a model mean nothing." in text
    report = example(seeds=3)
    report["majority"]["no_better"] = {"retrained": [0, 2]}
    assert "retrained (seed 0, 2) answers no more" in terminal.markdown_table(report)


def test_few_images_are_called_few():
    report = example()
    assert report["evidence"] == {"small": {}, "least": 21, "one_step": False}
    assert "Few images" not in terminal.markdown_table(report)
    report["evidence"] |= {"small": {"forget": 3, "malignant": 1}, "one_step": True}
    report["batch_size"] = 256
    for text in (terminal.markdown_table(report), " ".join(printed(report, 100).split())):
        assert (
            "Few images: 3 images to forget, 1 malignant test image. A rate over fewer than 21 may "
            "be off by more than 20 points either way."
        ) in text
        assert (
            "The 160 images to retain fit in one batch of 256: an epoch of training on them is a "
            "single step."
        ) in text


def test_intervals_over_images_of_few_groups_are_called_too_narrow():
    report = example()
    assert "too narrow" not in terminal.markdown_table(report)
    values = next(iter(report["models"].values()))["per_seed"][0]
    values["groups"] = {"test": values["n"]["test"], "malignant": 1}
    assert "too narrow" not in terminal.markdown_table(report)
    values["groups"]["test"] -= 1
    assert "Wilson intervals take images of one group for independent" in terminal.markdown_table(
        report
    )
    values["groups"] = {"forget": values["n"]["forget"] - 1}  # of one patient, say
    assert "Wilson intervals take images of one group" in terminal.markdown_table(report)


def test_claims_are_kept_by_seed_and_worded():
    claims = {"epsilon": 1.0, "delta": 1e-5}
    report = example(seeds=2, methods=("noisy",), claims=[claims, claims])
    assert [v["claims"] for v in report["models"]["noisy"]["per_seed"]] == [claims, claims]
    assert "claims" not in report["models"]["noisy"]["mean"]
    assert "noisy claims epsilon 1, delta 1e-05." in terminal.markdown_table(report)
    assert "noisy claims epsilon 1, delta 1e-05." in printed(report, 200)
    report = example(seeds=2, methods=("noisy",), claims=[claims, {"certified": False}])
    text = terminal.markdown_table(report)
    assert "noisy (seed 0) claims epsilon 1, delta 1e-05." in text
    assert "noisy (seed 1) claims certified false." in text
    text = terminal.markdown_table(grid(methods=("noisy",), claims=[claims]))
    assert "none · noisy claims epsilon 1, delta 1e-05." in text


def test_a_claims_caveat_is_a_sentence_and_its_sections_are_left_to_the_file():
    claims = {"epsilon": 1.0, "trail": {"mu": 0.25}, "caveat": "Not against the curious."}
    report = example(methods=("noisy",), claims=[claims])
    assert report["models"]["noisy"]["per_seed"][0]["claims"] == claims
    text = terminal.markdown_table(report)
    assert "noisy claims epsilon 1. Not against the curious." in text and "0.25." not in text
    report = example(methods=("noisy",), claims=[{"trail": {"mu": 0.25}}])
    assert "claims" not in terminal.markdown_table(report)


def test_a_narrow_terminal_breaks_at_a_change_of_group():
    sheet = sheets._experiment_sheet(example(seeds=3, methods=("salun",)))
    for width, first in ((90, ["UA", "FNR"]), (70, ["UA", "FNR", "RTE"])):
        parts, narrow = terminal._parts(sheet, Console(width=width, file=io.StringIO()))
        shown = sorted({j for part in parts for j in part})
        assert narrow and shown == list(range(len(sheet.header)))
        assert [sheet.header[part[1]] for part in parts] == first


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
        {"forgotten": (0,)},  # nothing malignant left
        {"forgotten": (1,), "seeds": 2},  # nothing benign left
        {"malignant": (), "num_classes": 4, "forgotten": (1, 2)},
        {"grid": True, "forgotten": (0,), "references": ("original",)},
        {"methods": ()},
        {"methods": tuple(f"method_{i}" for i in range(12))},
        {"references": ("original",)},
        {"references": ("original",), "seeds": 2, "malignant": (), "num_classes": 3},
        {"references": ()},
        {"methods": ("a$_$", "cost $x^$ y")},  # no formulae
        {"name": "a name of an experiment that is longer than its figure " * 3},
        {"grid": True, "methods": ("salun",), "name": "a name that is longer than its figure"},
        {"grid": True},
        {"grid": True, "seeds": 2, "malignant": ()},
        {"grid": True, "references": ("original",)},
        {"grid": True, "references": ("original",), "seeds": 2, "malignant": ()},
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
    settings = dict(settings)
    name = settings.pop("name", "")
    make = grid if settings.pop("grid", False) else example
    report = make(**settings)
    if name:
        report["name"] = name
    figures.draw(report, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert "synthetic" in figure.get_suptitle().replace("\n", " ")
    boxes = [text.get_window_extent() for text in drawn_texts(figure)]
    frame = figure.bbox
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    clashes = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert not clashes


def test_panels_of_a_grid_have_one_range_and_do_not_ask_each_other(tmp_path, monkeypatch):
    """Those that share an axis ask all others for theirs: as long as the square of their number."""
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *_: drawn.append(self))
    figures.draw(grid(), str(tmp_path / "figure.png"))
    (figure,) = drawn
    above, below = np.reshape(figure.axes, (2, -1))
    for upper, lower in zip(above, below, strict=True):
        assert upper.get_xlim() == lower.get_xlim()
        numbers = [axis.xaxis.get_major_ticks()[0].label1 for axis in (upper, lower)]
        assert [number.get_visible() for number in numbers] == [False, True]
        for axis in (upper, lower):
            assert axis.get_shared_x_axes().get_siblings(axis) == [axis]
            ends = [x for line in axis.lines for x in line.get_xdata() if x > 1]
            assert max(ends) <= axis.get_xlim()[1]


def test_figure_of_rates_at_their_ends(tmp_path):
    report = example(seeds=2)
    for name, fnr in (("original", 0.0), ("retrained", 1.0)):
        # as rounding may leave the interval
        report["models"][name]["mean"]["fnr"] = fnr
        report["models"][name]["interval"]["fnr"] = [1e-17, 1 - 1e-16]
    figures.draw(report, str(tmp_path / "figure.png"))


def test_start_up_loads_no_plotting_and_no_statistics():
    code = (
        "import sys; from jaxunlearn import metrics; "
        "from jaxunlearn.report import figures, terminal; "
        "print([m for m in ('matplotlib', 'scipy', 'sklearn', 'jax') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_summary_names_what_there_is_nothing_to_judge_by():
    text = " ".join(summary._unchecked(example(methods=(), malignant=(), references=("original",))))
    assert "Clinical safety: no class is named malignant." in text
    assert "Differences from a model that never saw these images: there is none here." in text
    whole = " ".join(summary._unchecked(example(methods=())))
    assert "Clinical safety" not in whole and "there is none here" not in whole
    forgotten = example(forgotten=(0,))
    for model in forgotten["models"].values():
        model["per_seed"][0]["made_by"] = {"method": "finetune"}
    missing = summary._unchecked(forgotten)
    assert "Clinical safety: no test image judged on is malignant." in missing
    report = by_hand()
    report["evidence"]["small"] = {"forget": 3}
    text = " ".join(sheets.cautions(report))
    assert "Few images: 3 images to forget." in text and sheets.NO_EVIDENCE in text


@pytest.mark.parametrize(
    ("changes", "watched", "anew"),
    [({}, None, True), ({}, 2, True), ({}, 0, False), ({"epochs": 0}, None, False)],
)
def test_the_summary_calls_only_a_model_that_was_trained_anew_so(changes, watched, anew):
    report = example(methods=("again",), references=("original",))
    for name in ("original", "again"):
        values = report["models"][name]["per_seed"][0]
        values |= {"made_by": {"method": "retrain", "epochs": 9}, "parent": "p", "key": "k"}
    values["made_by"] |= changes
    if watched is not None:
        values["watch"] = {"looks": [], "result": watched}
    made = summary._made("again", values)
    assert ("trained from fresh parameters without these images" in made) == anew
    assert ("made by retrain from `p`" in made) != anew
    assert ("again cannot claim one" in " ".join(summary._unchecked(report))) != anew
    values = report["models"]["original"]["per_seed"][0]
    assert ": trained from fresh parameters with" in summary._made("original", values)


def test_what_reliably_is_over_with_one_seed_and_with_several():
    one, several = (" ".join(printed(example(seeds=n), 200).split()) for n in (1, 3))
    assert "across test images, for this one training per model" in one
    assert "for this one training per model" not in several
    grouped = example()
    for model in grouped["models"].values():
        for values in model["per_seed"]:
            values["groups"] = {"test": 40, "malignant": 20}
    text = " ".join(printed(grouped, 200).split())
    assert "across groups of test images, for this one" in text and "McNemar by group p" in text
    assert "by group" not in one


def test_without_unseen_images_nothing_stands_in_the_gaps_place():
    report = example(references=("original",))
    for model in report["models"].values():
        for values in (model["mean"], *model["per_seed"]):
            values |= {name: None for name in values if name.endswith("_over_unseen")}
    text = terminal.markdown_table(report)
    assert "Δ" not in text and "so that nothing stands in their place" in text


def test_the_figures_rates_stand_under_their_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *_: drawn.append(self))
    report = example()
    figures.draw(report, str(tmp_path / "figure.png"))
    (axis,) = [axis for axis in drawn[0].axes if "FNR" in axis.get_ylabel()]
    assert "FPR" in axis.get_xlabel()
    points = [line.get_xydata()[0] for line in axis.lines if len(line.get_xdata()) == 1]
    for model in report["models"].values():
        expected = (model["mean"]["fpr"], model["mean"]["fnr"])
        assert any(np.allclose(point, expected) for point in points)
