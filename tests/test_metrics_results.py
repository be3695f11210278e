import copy
import json

import numpy as np
import pytest
from test_report import example, grid

from jaxunlearn import metrics
from jaxunlearn.errors import UserError
from jaxunlearn.metrics import Point, clinical, results, verdicts


def found(missed, reference=4, p=1.0, n=42):
    return clinical.FalseNegatives(
        missed=missed,
        missed_reference=reference,
        newly_missed=max(missed - reference, 0),
        newly_found=max(reference - missed, 0),
        p_value=p,
        n_malignant=n,
    )


def test_one_seed_is_judged_by_mcnemar_corrected_over_the_methods():
    verdict = verdicts.false_negatives(
        {"a": [found(24, p=0.01)], "b": [found(2, p=0.02)], "c": [found(6, p=0.04)]}, "retrained"
    )
    assert verdict["a"] == {
        "verdict": "more",
        "by": 20,
        "over": "test images",
        "p": 0.01,
        "p_corrected": pytest.approx(0.03),
        "interval": None,
        "corrected_for": 3,
        "reference": "retrained",
    }
    assert verdict["b"]["verdict"] == "fewer" and verdict["b"]["by"] == -2
    assert verdict["b"]["p_corrected"] == pytest.approx(0.04)
    # 0.04 · 1, and no less than the one before: reliable, for c too
    assert verdict["c"]["verdict"] == "more" and verdict["c"]["p_corrected"] == pytest.approx(0.04)
    # One more method, and b is no longer reliable: 3 · 0.02.
    verdict = verdicts.false_negatives(
        {
            "a": [found(24, p=0.01)],
            "b": [found(2, p=0.02)],
            "c": [found(4)],
            "d": [found(5)],
        },
        "retrained",
    )
    assert verdict["a"]["verdict"] == "more"
    assert verdict["b"]["verdict"] == "no reliable difference"
    assert verdict["b"]["p_corrected"] == pytest.approx(0.06)


def test_several_seeds_are_judged_by_the_t_test_over_seeds():
    verdict = verdicts.false_negatives(
        {"a": [found(6), found(7), found(8)], "b": [found(3), found(4), found(5)]}, "original"
    )
    # changes 2, 3, 4: p = 1 − t/√(2 + t²) at t = 3√3
    assert verdict["a"]["p"] == pytest.approx(1 - 27**0.5 / 29**0.5)
    assert verdict["a"]["p_corrected"] == pytest.approx(2 * verdict["a"]["p"])
    assert verdict["a"]["interval"] == pytest.approx((3 - 2.48414, 3 + 2.48414), abs=1e-4)
    assert verdict["a"]["verdict"] == "no reliable difference"  # alone it would be reliable
    assert (verdict["a"]["by"], verdict["a"]["over"]) == (3, "seeds")
    assert verdict["b"]["by"] == 0 and verdict["b"]["p_corrected"] == 1
    assert verdict["a"]["reference"] == "original"
    alone = verdicts.false_negatives({"a": [found(6), found(7), found(8)]}, "original")["a"]
    assert alone["verdict"] == "more" and alone["p_corrected"] == alone["p"]


def test_no_spread_and_no_malignant_image_are_no_evidence():
    level, sure = [found(9)] * 3, [found(23), found(24), found(25)]
    verdict = verdicts.false_negatives({"level": level, "sure": sure}, "retrained")
    assert verdict["level"]["p"] is verdict["level"]["p_corrected"] is None
    assert verdict["level"]["verdict"] == "no reliable difference"
    # It still counts among the methods compared.
    assert verdict["sure"]["corrected_for"] == 2
    assert verdict["sure"]["p_corrected"] == pytest.approx(2 * verdict["sure"]["p"])
    (verdict,) = verdicts.false_negatives({"m": [found(0, 0, n=0)]}, "retrained").values()
    assert verdict["verdict"] == "unknown" and verdict["by"] is verdict["p"] is None
    assert verdicts.false_negatives({}, "retrained") == {}


def test_the_trivial_answers_are_judged_by_scenario():
    def mean(risk):
        return {
            "risk": risk,
            "risk_ratio": {"1:1": risk["1:1"] / 0.2, "20:1": risk["20:1"] / 0.8},
            "risk_treat_none": {"1:1": 0.2, "20:1": 4.0},
            "risk_treat_all": {"1:1": 0.8, "20:1": 0.8},
        }

    means = {"a": mean({"1:1": 0.1, "20:1": 1.5}), "b": mean({"1:1": 0.2, "20:1": 0.7})}
    assert verdicts.trivial(means) == {
        "1:1": {"answer": "always benign", "risk": 0.2, "worse": []},
        "20:1": {"answer": "always malignant", "risk": 0.8, "worse": ["a"]},
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_report_says_what_it_is_and_judges_every_method(seeds):
    report = example(seeds)
    assert report["schema"] == metrics.SCHEMA and report["reference"] == "retrained"
    assert set(report) == set(results.Report.__annotations__)
    assert set(report["worse_than_trivial"]) == {"1:1", "20:1"}
    for name, model in report["models"].items():
        assert ("verdicts" in model) == (name not in results.REFERENCES)
        assert set(model) <= set(results.Model.__annotations__)
        if "verdicts" not in model:
            continue
        verdict = model["verdicts"]["false_negatives"]
        assert set(verdict) == set(verdicts.FalseNegativesVerdict.__annotations__)
        assert verdict["by"] == pytest.approx(model["mean"]["fn_change"])
        assert verdict["corrected_for"] == 3
        if seeds > 1:
            assert verdict["interval"] == pytest.approx(model["interval"]["fn_change"])
    assert example(malignant=())["worse_than_trivial"] == {}
    assert example(malignant=())["models"]["salun"]["verdicts"] == {}


def test_a_grid_says_what_it_is():
    whole = grid(seeds=2)
    assert set(whole) == set(results.Grid.__annotations__)
    assert all(set(cell) == set(results.Cell.__annotations__) for cell in whole["cells"])
    for comparison in whole["comparisons"]:
        assert set(comparison) == set(results.Comparison.__annotations__)
        for verdict in comparison["verdicts"].values():
            assert set(verdict) == set(verdicts.GapVerdict.__annotations__)
    assert whole["notes"] == ["the first note"]  # each of its cells' notes once


def test_merging_leaves_the_cells_reports_as_they_are():
    report = example(seeds=2)
    before = copy.deepcopy(report)
    points = [Point({"a": i}, {"a": str(i)}, f"cells/{i}") for i in range(2)]
    merged = results.merge("grid", [("a", (0, 1))], points, [report, report])
    assert report == before
    model = merged["cells"][1]["models"]["salun"]
    assert model["mean"]["avg_gap_change"] == pytest.approx(0)
    with pytest.raises(ValueError):
        results.merge("grid", [("a", (0, 1))], points, [report])


def test_a_change_is_never_below_minus_100_percent():
    def report(gaps):
        made = example(seeds=3)
        for values, gap in zip(made["models"]["salun"]["per_seed"], gaps, strict=True):
            values["avg_gap"] = gap
        return made

    points = [Point({"a": i}, {"a": str(i)}, f"cells/{i}") for i in range(2)]
    merged = results.merge(
        "grid", [("a", (0, 1))], points, [report((4, 6, 5)), report((0.0, 0.9, 0.1))]
    )
    low, high = merged["cells"][1]["models"]["salun"]["interval"]["avg_gap_change"]
    assert low == -100 < high
    assert merged["comparisons"][0]["verdicts"]["salun"]["interval"][0] == -100


def test_results_are_read_back(tmp_path):
    for made in (example(), grid()):
        (tmp_path / "metrics.json").write_text(json.dumps(made))
        assert results.load(tmp_path) == results.load(str(tmp_path)) == made


@pytest.mark.parametrize(
    "text, message",
    [
        (None, r"no results at .*metrics\.json \(No such file or directory\); give the --workdir"),
        ("{", r"metrics\.json is damaged; rerun the command"),
        ("[]", r"metrics\.json is damaged; rerun the command"),
        ('{"name": "before there were versions"}', r"has schema 1; allowed: 2; rerun"),
        ('{"schema": 3}', r"has schema 3; allowed: 2; rerun"),
        ('{"schema": "2"}', r"has schema '2'; allowed: 2; rerun"),
    ],
)
def test_unknown_results_are_a_users_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        results.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_models_on_different_test_sets_are_a_users_error():
    rng = np.random.default_rng(0)

    def judged(labels):
        logits = rng.normal(size=(4, 2)).astype(np.float32)
        values = {"UA": 1.0, "RA": 1.0, "TA": 1.0, "MIA": 1.0}
        values["n"] = {"forget": 4, "retain": 4, "val": 4, "test": 4}
        return [metrics.Judged(values, metrics.Predictions(logits, np.asarray(labels)))]

    with pytest.raises(UserError, match="different labels"):
        metrics.assemble(
            {},
            ["retrained", "salun"],
            {"retrained": judged([0, 1, 0, 1]), "salun": judged([1, 0, 0, 1])},
            malignant=(1,),
            malignant_rule="argmax",
        )
