"""Pulse: the notebooks of colab/ run from top to bottom, on CPUs, with a few steps of the quickstart's model."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "colab"
QUICK = ["--config.episodes=1", "--config.data.limit=8", "--config.rollout.votes=8", "--config.train.samples=8"]
QUICK += ["--config.eval.samples=4", "--config.eval.tasks=()", "--config.log.tensorboard=false"]


def run(name: str, folder: Path, parameters: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Execute a notebook in `folder`, with other values behind its parameters -> the text of each code cell."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += f"\n{parameters}"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # The kernel of this very environment, whatever others this machine knows.
    kernels = folder / "kernels" / "python3"
    kernels.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "tests", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute()
    return [
        "".join(str(output.get("text", output.get("data", ""))) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
def test_the_quickstart_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install, _, _, train, report, shown = run("quickstart", tmp_path, f"SETTINGS = {QUICK}", monkeypatch)
    assert install == ""  # the package is there
    assert "avg@4" in train and "1 steps in" in train and "wrote runs/quickstart.html" in report
    summary = json.loads((tmp_path / "runs" / "quickstart" / "summary.json").read_text())
    assert "<iframe" in shown and summary["verdict"] in shown
    assert not (tmp_path / "checkout").exists()
    _, _, results, votes, report, shown = run("report", tmp_path, "", monkeypatch)
    assert f"{summary['before']['avg@4']:8.3f} -> {summary['after']['avg@4']:.3f}" in results
    assert "majority_ratio" in votes and "wrote report.html" in report and "iframe" in shown


@pytest.mark.slow
def test_math500_with_the_quickstarts_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What it takes from the hub is not here: the parameters name the quickstart's questions and model."""
    parameters = f'CONFIG, SETTINGS, QUESTIONS = "configs/quickstart.py", {QUICK}, "8"'
    _, _, _, plan, train, report, shown = run("math500_level1", tmp_path, parameters, monkeypatch)
    assert "update gradient" in plan and "GB of a chip" in plan and "does not fit" not in plan
    assert "1 steps in" in train and "wrote runs/math500_level1.html" in report and "iframe" in shown


def test_a_mistake_stops_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CellExecutionError, match="what to change"):
        run("quickstart", tmp_path, 'SETTINGS = ["--config.seed=-1"]', monkeypatch)
