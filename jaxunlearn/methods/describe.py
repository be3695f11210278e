"""The page of all methods, made from their modules: what each does, reads, takes, where it fails.

python -m jaxunlearn.methods.describe > docs/methods.md
"""

import inspect
import sys
from typing import Any

from jaxunlearn.methods.method import Method
from jaxunlearn.methods.table import METHODS
from jaxunlearn.training.step import OPTIMIZER

HEAD = """# Methods

Made from the code by `python -m jaxunlearn.methods.describe`; the tests hold it to that.

**Reads**: the images of the forget, retain and validation sets, and the true labels of those; a
test gives every method other images or labels in place of what it does not read, and asks for the
same result to the bit. **For**: random requests take examples of classes that go on to exist, class
requests whole classes; a method that is not for what is asked says so before anything is trained.
**Cost**: passes over all of train; retraining's are its epochs times 1 − f. E are the method's
epochs, f the share of train that is to be forgotten.

**Tuning**: what [`config.tune`](tuning.md) chooses; of a rate without values, half decades around
the entry's.

Any but noisy_finetune and retrain can be put under a saliency mask (`mask.ratio` below 1), and most
behind another: `method: ("ssd", "finetune")`; what edits the original or starts anew can only come
first. Your own are `method: "mymethods:passes"`, see [CONTRIBUTING](../CONTRIBUTING.md).
"""


def page() -> str:
    """The page, in Markdown."""
    rows = ["| method | what it does | reads | for | cost |", "| --- | --- | --- | --- | --- |"]
    sections = []
    for name, method in METHODS.items():
        first, _, rest = text(method).partition("\n")
        what = (first.partition(": ")[2] or first).rstrip(".")
        needs = ", ".join(method.needs) or "nothing"
        requests = ", ".join(method.requests)
        rows.append(f"| [{name}](#{name}) | {what} | {needs} | {requests} | {method.cost} |")
        sections.append(f"## {name}\n\n{first}\n\n{rest.strip()}\n\n{_defaults(method)}")
    return "\n".join([HEAD, *rows, "", "\n\n".join(sections)]) + "\n"


def text(method: Method) -> str:
    """What a method's module says of it."""
    return inspect.cleandoc(sys.modules[method.modules[0]].__doc__ or "")


def _defaults(method: Method) -> str:
    """Its settings, those of the optimizer that it changes among them."""
    shown = {**OPTIMIZER, **method.defaults}
    if "optimizer" in method.reads:
        shown = {field: value for field, value in shown.items() if field in method.defaults}
    if shown["mask"]["ratio"] == 1:
        del shown["mask"]
    return f"Defaults: {', '.join(_flat(shown))}.\n\n{_tuned(method)}"


def _tuned(method: Method) -> str:
    """What tuning tries."""
    if not method.tune:
        return "Tuning leaves it as it is."
    tried = [
        f"`{path}`" if values is None else f"`{path}` of {', '.join(map(str, values))}"
        for path, values in method.tune.items()
    ]
    return f"Tuning tries {'; '.join(tried)}{'; `epochs`' * ('epochs' in method.defaults)}."


def _flat(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """`name=value` of each setting, by dotted names."""
    found: list[str] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append(f"`{prefix}{name}={value!r}`")
    return found


if __name__ == "__main__":
    sys.stdout.write(page())
