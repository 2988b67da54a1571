"""Pulse: the notebooks of colab/ run from top to bottom, on CPUs, with a few steps of the quickstart's model.

They run in one folder, which is empty at first. The first notebook clones this checkout, and installs it from the
package index into an environment of its own; the others find that there.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ttrl_jax.data.problems import steps_of
from ttrl_jax.run.diagnosis import LIMITS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "colab"
QUICK = ["--config.episodes=1", "--config.data.limit=8", "--config.rollout.votes=8", "--config.train.samples=8"]
QUICK += ["--config.eval.samples=4", "--config.eval.tasks=()", "--config.log.tensorboard=false"]


def read(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def repository(folder: Path) -> Path:
    """A repository that can be cloned, with this checkout as it is now, committed or not."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for words in (["init", "-q"], ["add", "--all", "--force"], [*author, "commit", "-q", "-m", "this checkout"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def run(name: str, folder: Path, source: Path, parameters: str) -> list[str]:
    """Execute a notebook in `folder`, with `source` as the project's address and with other values behind its
    parameters -> the text of each code cell."""
    notebook = read(name)
    tagged(notebook, "address").source = f'ADDRESS, INSTALL = "{source}", "checkout"'
    tagged(notebook, "parameters").source += f"\n{parameters}"
    resources = {"metadata": {"path": folder}}
    client = NotebookClient(notebook, timeout=900, startup_timeout=300, kernel_name="python3", resources=resources)
    client.execute()
    return [
        "".join(str(output.get("text", output.get("data", ""))) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def the_quickstart_and_its_report(folder: Path, source: Path) -> None:
    steps = 16
    *_, train, report, shown = run("quickstart", folder, source, f"SETTINGS = {[*QUICK, f'--config.episodes={steps}']}")
    assert "avg@4" in train and f"{steps} steps in" in train
    # A notebook keeps every line: cursors do not go up there.
    lines = train.splitlines()
    at = [i for i, line in enumerate(lines) if line.startswith("quickstart ") and f"/{steps} | " in line]
    assert len(at) == steps and len(lines) <= 120 and "\x1b" not in train
    assert max(b - a - 1 for a, b in zip(at, at[1:], strict=False)) <= 2, train
    assert "wrote runs/quickstart.html" in report
    summary = json.loads((folder / "runs" / "quickstart" / "summary.json").read_text())
    assert "<iframe" in shown and summary["verdict"] in shown
    where = [str(folder / "env" / "bin" / "python"), "-c", "import ttrl_jax; print(*ttrl_jax.__path__)"]
    found = subprocess.run(where, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(folder / "checkout" / "ttrl_jax")
    *_, results, votes, report, shown = run("report", folder, source, "")
    assert f"{summary['before']['avg@4']:8.3f} -> {summary['after']['avg@4']:.3f}" in results
    assert "majority_ratio" in votes and "wrote report.html" in report and "iframe" in shown


def math500_with_the_quickstarts_model(folder: Path, source: Path) -> None:
    """What it takes from the hub is not here: the parameters name the quickstart's questions and model."""
    few = [*QUICK, "--config.lora.rank=4"]
    parameters = f'CONFIG, SETTINGS, QUESTIONS = "configs/quickstart.py", {few}, "8"'
    *_, plan, train, report, shown = run("math500_level1", folder, source, parameters)
    assert "update gradient" in plan and "GB of a chip" in plan and "does not fit" not in plan
    assert "1 steps in" in train and "wrote runs/math500_level1.html" in report and "iframe" in shown
    (kept,) = (folder / "runs" / "math500_level1" / "checkpoints").glob("[0-9]*")
    model = ROOT / "configs" / "quickstart_model" / "model.safetensors"
    assert sum(file.stat().st_size for file in kept.rglob("*") if file.is_file()) < model.stat().st_size


def a_mistake_stops_a_notebook(folder: Path, source: Path) -> None:
    with pytest.raises(CellExecutionError, match="what to change"):
        run("quickstart", folder, source, 'SETTINGS = ["--config.seed=-1"]')
    (folder / "other").mkdir()
    with pytest.raises(CellExecutionError, match="could not be cloned"):
        run("quickstart", folder / "other", source / "none", "")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One after the other, as the first makes the environment that the others find."""
    monkeypatch.delenv("PYTHONPATH", raising=False)  # nothing but what the notebook installs
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # The kernel of this very environment, whatever others this machine knows.
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "tests", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    folder, source = tmp_path / "notebooks", tmp_path / "source"
    folder.mkdir()
    source.mkdir()
    repository(source)
    the_quickstart_and_its_report(folder, source)
    math500_with_the_quickstarts_model(folder, source)
    a_mistake_stops_a_notebook(folder, source)


def test_math500_has_steps_enough_for_a_verdict():
    """Semantics: 43 questions, and more than twice the steps without which there is no diagnosis."""
    names: dict[str, object] = {"RUNS": Path("runs")}
    exec(tagged(read("math500_level1"), "parameters").source, names)
    given = dict(setting.removeprefix("--config.").split("=") for setting in names["SETTINGS"])
    steps = steps_of(
        int(names["QUESTIONS"]), int(given["rollout.prompts"]), drop_last=given["data.drop_last"] == "True"
    )
    assert steps * int(given["episodes"]) >= 30 > LIMITS.few


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_each_notebook_opens_with_its_badge_and_is_stored_without_outputs(path: Path):
    notebook = read(path.stem)
    assert notebook.cells[0].source.startswith("[![Open in Colab](https://colab.research.google.com/assets/")
    assert f"/blob/main/colab/{path.name})" in notebook.cells[0].source.splitlines()[0]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for cell in code:  # each command is followed by a look at its exit code
        lines = [line.strip() for line in cell.source.splitlines()]
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            assert not line.startswith("!") or after.startswith("assert _exit_code == 0"), line
