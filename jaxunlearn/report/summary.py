"""What was removed from which model, how, and what was checked: one page in plain words."""

import json
from typing import Any

from jaxunlearn.metrics.results import ORIGINAL, REFERENCES, RETRAINED, Experiment
from jaxunlearn.report.sheets import cautions, claims, data_name, make_sheets

RETRAIN = "retrain"  # the method that starts from nothing


def summary(report: Experiment) -> str:
    """The page, as markdown; it words what the results hold and decides nothing.

    Args:
      report: see `metrics.results`.
    """
    models, sheet = report["models"], make_sheets(report)[0]
    parts = {
        "To be forgotten": _asked(report),
        "From": [_made(ORIGINAL, values) for values in models[ORIGINAL]["per_seed"]],
        "By": [
            _made(name, values)
            for name, model in models.items()
            if name not in REFERENCES
            for values in model["per_seed"]
        ],
        "Checked": [*_checked(report), *sheet.findings],
        "Not checked": _unchecked(report),
        "To be known": [*report["notes"], *cautions(report), *claims(models)],
    }
    lines = [f"# {sheet.title}"]
    for heading, items in parts.items():
        lines += ["", f"## {heading}", "", *(f"- {item}" for item in items or ["Nothing."])]
    return "\n".join(lines) + "\n"


def _asked(report: Experiment) -> list[str]:
    """What was to be forgotten, and of which data."""
    dataset, split = report["dataset"], report["split"]
    request = ", ".join(f"{field}={_text(value)}" for field, value in report["request"].items())
    earlier = split["forget"] - split["asked"]
    more = f"; earlier requests took {earlier} more" if earlier else ""
    return [
        f"{split['asked']} of {dataset['train']} training images of {data_name(dataset)}, by the "
        f"request {request}{more}. split.npz lists them; SHA-256 of the list: "
        f"`{split['fingerprint']}`.",
        f"SHA-256 of the data: `{dataset['fingerprint']}`.",
    ]


def _made(name: str, values: dict[str, Any]) -> str:
    """How a model of one seed was made."""
    settings = dict(values["made_by"])
    method, where = settings.pop("method"), f"{name} (seed {values['seed']})"
    if method == "brought":
        return f"{where}: made elsewhere, and read from a file of SHA-256 `{settings['path']}`."
    how = ", ".join(f"{field}={_text(value)}" for field, value in settings.items())
    steps = method if isinstance(method, str) else ", then ".join(method)
    by = f"made by {steps} from `{values['parent']}`"
    if name == ORIGINAL:
        by = "trained from fresh parameters"
    elif _is_anew(name, values):
        by = "trained from fresh parameters without these images"
    return f"{where}: {by} with {how}; its key in the store: `{values['key']}`."


def _is_anew(name: str, values: dict[str, Any]) -> bool:
    """Whether a model of one seed has nothing of the original."""
    made_by, curve = values["made_by"], values.get("watch")
    if made_by["method"] != RETRAIN or name in REFERENCES:
        return made_by["method"] == RETRAIN
    # As a method it starts from the original, and keeps that where it has, or is left, no epoch.
    return made_by["epochs"] > 0 and not (curve and curve["result"] == 0)


def _text(value: Any) -> str:
    """A setting as JSON has it."""
    return json.dumps(value, ensure_ascii=False)


def _checked(report: Experiment) -> list[str]:
    """Which comparisons there are, and where they stand."""
    sizes = next(iter(report["models"].values()))["per_seed"][0]["n"]
    images = ", ".join(f"{count} of {which}" for which, count in sizes.items())
    return [
        f"Every model on images ({images}); values in table.md and metrics.json, answers in "
        "predictions/.",
        f"A membership attack ({report['attack']}).",
        "Which test images are answered otherwise than by the original: changed/.",
        *(
            f"Differences from {_made(RETRAINED, values)}"
            for values in report["models"].get(RETRAINED, {"per_seed": []})["per_seed"]
        ),
    ]


def _unchecked(report: Experiment) -> list[str]:
    """What the results say nothing of."""
    models, missing = report["models"], []
    if report["reference"] != RETRAINED:
        missing.append("Differences from a model that never saw these images: there is none here.")
    if not report["dataset"]["malignant"]:
        missing.append("Clinical safety: no class is named malignant.")
    elif any(
        model.get("verdicts", {}).get("false_negatives", {}).get("verdict") == "unknown"
        for model in models.values()
    ):
        missing.append("Clinical safety: no test image judged on is malignant.")
    silent = [
        name
        for name, model in models.items()
        if name not in REFERENCES
        and not all(values.get("claims") or _is_anew(name, values) for values in model["per_seed"])
    ]
    if silent:
        missing.append(
            f"Proof that the images' influence is gone: {', '.join(silent)} cannot claim one."
        )
    return [
        *missing,
        f"Attacks other than {report['attack']}.",
        "Copies of the images, or of the original, elsewhere.",
    ]
