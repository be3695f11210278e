"""The notebook runs as a new user runs it: from the top, in a kernel of its own."""

import ast
import copy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from process import environment

NOTEBOOK = Path(__file__).parents[1] / "launch/colab.ipynb"
TINY = {
    "MODEL": "cnn",
    "COUNT": 200,
    "WIDTH": 8,
    "EPOCHS": 2,
    "METHOD_EPOCHS": 1,
    "CHECKPOINT_EVERY": 1,
}
TABLES = {
    "run": ("original", "retrained", "finetune", "random_label", "salun", "salun_cra"),
    "data": ("original", "retrained", "finetune", "salun"),
    "model": ("original", "retrained", "finetune", "salun"),
}
TABLES["run-again"] = TABLES["run"]


def read():
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def by_id(notebook):
    return {cell.id: cell for cell in notebook.cells}


def parameters(cell):
    """The names that a cell gives values to, each a plain one."""
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell).body}


def code(cell):
    """A cell's Python; of one that writes a file, what it writes."""
    return cell.source.partition("\n")[2] if cell.source.startswith("%%") else cell.source


def test_the_notebook_is_valid_and_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert TINY.keys() <= parameters(tagged[0].source).keys() and len(tagged) == 1
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 8
    for cell in cells:
        assert cell.outputs == [] and cell.execution_count is None
        compile(code(cell), cell.id, "exec")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The outputs of the executed notebook by cell, and the folder that it ran in."""
    folder = tmp_path_factory.mktemp("colab")
    notebook = read()
    cells = by_id(notebook)
    values = {**parameters(cells["parameters"].source), **TINY}
    cells["parameters"].source = "\n".join(f"{name} = {values[name]!r}" for name in values)
    again = copy.deepcopy(cells["run"])
    again.id = "run-again"
    wrong = nbformat.v4.new_code_cell(f"EPOCHS = 3\n{again.source}", id="wrong")
    wrong.metadata["tags"] = ["raises-exception"]
    notebook.cells += [again, wrong]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment(IPYTHONDIR=str(folder / "ipython")))
    return {name: cell.get("outputs", []) for name, cell in by_id(notebook).items()}, folder


def text(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def shown(outputs, kind):
    """What the outputs show of a MIME type."""
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def test_nothing_fails_or_complains(finished):
    cells, _ = finished
    for name, outputs in cells.items():
        if name != "wrong":
            assert all(output.output_type != "error" for output in outputs), name
            assert all(output.get("name") != "stderr" for output in outputs), name
    assert "JAX finds 1 × cpu" in text(cells["runtime"])
    assert "[CpuDevice(id=0)]" in text(cells["devices"])


@pytest.mark.parametrize("cell", TABLES)
def test_a_run_shows_its_table_and_its_figure(cell, finished):
    cells, folder = finished
    (table,) = shown(cells[cell], "text/markdown")
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == [*TABLES[cell], "always benign", "always malignant"]
    assert len(shown(cells[cell], "image/png")) == 1
    where = folder / "runs" / {"run-again": "first", "run": "first"}.get(cell, f"first-{cell}")
    assert (where / "metrics.json").is_file() and f"Results: {where}" in text(cells[cell])


def test_numbers_are_of_every_model(finished):
    cells, _ = finished
    lines = text(cells["numbers"]).splitlines()
    assert tuple(line.split()[0] for line in lines) == TABLES["run"]
    assert all("%" in line for line in lines)


def test_patients_of_the_own_data_are_forgotten(finished):
    cells, _ = finished
    (table,) = shown(cells["data"], "text/markdown")
    assert "20 of 200 training images to forget" in table  # ten patients with two images each


def test_the_second_time_all_is_in_the_store(finished):
    cells, _ = finished
    assert "in the store" not in text(cells["run"])
    for name in TABLES["run"]:
        assert f"seed 0 · {name}: in the store" in text(cells["run-again"])
    assert "images/s" not in text(cells["run-again"])


def test_an_error_of_the_user_is_one_line(finished):
    cells, folder = finished
    (error,) = [output for output in cells["wrong"] if output.output_type == "error"]
    (line,) = error.traceback
    assert line.startswith(f"jaxunlearn: {folder / 'runs/first'} holds a run with another config")
