"""The tutorial: its code runs as it stands, and what it shows was made by that code."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_tutorial_is_executed_from_top_to_bottom_without_an_error() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    shown = json.dumps([cell["outputs"] for cell in cells])
    assert "tutorial-index" not in shown or "/tmp" not in shown, "no path of a machine"
    assert "<table>" in shown and "simulation, correlation" in shown


@pytest.mark.slow
def test_the_tutorials_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in code_cells():
        exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert names["latent"] >= 0
