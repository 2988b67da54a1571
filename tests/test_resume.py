"""Invariance: a run that is killed and started again ends bit by bit as one that was left alone. Semantics: signals."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = 8
ARGUMENTS = [
    "--config=configs/quickstart.py", "--config.eval.held_out_path=", "--config.episodes=8",
    "--config.rollout.prompts=4", "--config.data.limit=4", "--config.rollout.votes=8", "--config.train.samples=8",
    "--config.train.micro_rows=8", "--config.train.kl_coef=0.001", "--config.eval.samples=2", "--config.eval.every=3",
    "--config.log.generations_every=1",
]  # fmt: skip


def start(workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ttrl_jax.train", *ARGUMENTS, f"--workdir={workdir}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(workdir: Path) -> str:
    process = start(workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(condition, process: subprocess.Popen) -> None:
    """Wait until `condition` holds, or the process ends."""
    while not condition() and process.poll() is None:
        time.sleep(0.005)


def saved(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def results(workdir: Path) -> dict[str, object]:
    """All that a run leaves, but for what depends on the clock or the machine's memory."""
    timed = ("time/", "speed/", "memory/")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["seconds"]
    return {
        "metrics": [{name: x for name, x in row.items() if not name.startswith(timed)} for row in rows],
        "summary": summary,  # with the SHA-256 of the parameters
        "generations": {path.name: path.read_text() for path in (workdir / "rollouts").iterdir()},
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(workdir)
    found = results(workdir)
    assert [row["step"] for row in found["metrics"]] == list(range(STEPS + 1))
    assert len(found["generations"]) == STEPS + 2
    return found


def test_killed_at_five_moments(undisturbed: dict[str, object], tmp_path: Path):
    """SIGKILL after a random time in four episodes, and once in the middle of a save."""
    workdir, rng, while_saving = tmp_path / "run", random.Random(0), 0
    for kill in range(5):
        process = start(workdir)
        if kill == 2:  # orbax writes into a folder whose name has more than the step, and renames it
            wait_for(lambda: any(not name.isdigit() for name in saved(workdir)), process)
            while_saving = any(not name.isdigit() for name in saved(workdir))
        else:
            newest = max((int(name) for name in saved(workdir) if name.isdigit()), default=0)
            wait_for(lambda newest=newest: str(newest + 1) in saved(workdir), process)
            time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
    assert while_saving
    assert not (workdir / "summary.json").exists(), "all kills came too late"
    assert "resumed after step" in finish(workdir)
    assert results(workdir) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(undisturbed: dict[str, object], tmp_path: Path, number: signal.Signals):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(lambda: "2" in saved(workdir), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert "the same command goes on from there" in output
    finish(workdir)
    assert results(workdir) == undisturbed


def test_a_finished_run_prints_its_table_again(tmp_path: Path):
    workdir = tmp_path / "run"
    finish(workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    output = finish(workdir)
    assert "is finished" in output and "avg@2" in output
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
