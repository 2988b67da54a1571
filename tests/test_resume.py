"""Invariance: a run that is killed and started again ends bit by bit as one that was left alone. Semantics: signals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished_run import results
from ml_collections import ConfigDict

from ttrl_jax.inputs import read_inputs
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.diagnosis import diagnose
from ttrl_jax.session import open_session, restore

ROOT = Path(__file__).parent.parent
STEPS = 24  # far more than the kills below let pass, also on a fast machine
ARGUMENTS = [
    "--config=configs/quickstart.py", "--config.eval.tasks=()", f"--config.episodes={STEPS}",
    "--config.rollout.prompts=4", "--config.data.limit=4", "--config.rollout.votes=8", "--config.train.samples=8",
    "--config.train.micro_tokens=384", "--config.train.minibatch_prompts=2", "--config.train.kl_coef=0.001",
    "--config.train.learning_rate=4e-5", "--config.eval.samples=2", "--config.eval.every=3",
    "--config.log.generations_every=1",
]  # fmt: skip


def start(workdir: Path, *changes: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ttrl_jax.train", *ARGUMENTS, f"--workdir={workdir}", *changes]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(workdir: Path, *changes: str) -> str:
    process = start(workdir, *changes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for(condition, process: subprocess.Popen) -> bool:
    """Wait until `condition` holds (true), or the process ends (false)."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def saved(workdir: Path) -> list[str]:
    folder = workdir / "checkpoints"
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that was left alone, and what it printed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    return workdir, finish(workdir)


@pytest.fixture(scope="module")
def undisturbed(ended: tuple[Path, str]) -> dict[str, object]:
    found = results(ended[0])
    assert [row["step"] for row in found["metrics"]] == list(range(STEPS + 1))
    assert len(found["generations"]) == STEPS + 2
    assert found["summary"]["verdict"] == diagnose(found["metrics"]).verdict != "too short"
    return found


@pytest.mark.slow
def test_killed_at_five_moments(undisturbed: dict[str, object], tmp_path: Path):
    """SIGKILL after a random time in four episodes, and once in the middle of a save."""
    workdir, rng, while_saving = tmp_path / "run", random.Random(0), False
    for kill in range(5):
        process = start(workdir)
        if kill == 2:  # orbax writes into a folder whose name has more than the step, and renames it
            while_saving = wait_for(lambda: any(not name.isdigit() for name in saved(workdir)), process)
        else:
            newest = max((int(name) for name in saved(workdir) if name.isdigit()), default=0)
            wait_for(lambda newest=newest: str(newest + 1) in saved(workdir), process)
            time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()
    assert while_saving
    assert not (workdir / "summary.json").exists(), "all kills came too late"
    assert "resumed after step" in finish(workdir)
    assert results(workdir) == undisturbed


def test_a_signal_saves_and_leaves(undisturbed: dict[str, object], tmp_path: Path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(lambda: "2" in saved(workdir), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "the same command goes on from there" in output
    finish(workdir)
    assert results(workdir) == undisturbed


def make_old(workdir: Path) -> None:
    """Turn a run into one that was begun when a state was one model, and neither judges nor histories were known."""
    made = json.loads((workdir / "config.json").read_text())
    session = open_session(read_inputs(ConfigDict(made["config"])), begin=False)
    assert made["config"].pop("judge") == {"rule": "majority"} and made["config"].pop("task") == ""
    assert made["config"]["reward"]["kind"] is None and made["config"]["train"].pop("advantage") == "std"
    del made["config"]["critic"], made["config"]["prime"]
    made["config"]["reward"]["kind"] = "agreement"
    (workdir / "config.json").write_text(json.dumps(made))
    (workdir / "votes.jsonl").unlink()
    folder = workdir / "checkpoints"
    with Checkpoints(folder, keep=None) as checkpoints:
        step = checkpoints.latest()
        session, meta = restore(session, checkpoints, step), checkpoints.meta(step)
    shutil.rmtree(folder)
    labels = {str(visit["question"]): f"n:{visit['label']}" for visit in meta.pop("history")}
    policy = session.state.policy
    state = {"step": session.state.step, "params": policy.params, "optimizer": policy.optimizer}
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(step, state, {"labels": labels, **meta})


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(undisturbed: dict[str, object], tmp_path: Path):
    """Invariance: bit by bit, but for the flips of each question's first visit from there, which nobody remembers."""
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(lambda: "9" in saved(workdir), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    make_old(workdir)
    [step] = map(int, saved(workdir))
    assert f"resumed after step {step}" in finish(workdir)
    found = results(workdir)
    assert [json.loads(line)["step"] for line in found.pop("votes").splitlines()][0] == step
    want = dict(undisturbed, metrics=[dict(row) for row in undisturbed["metrics"]])
    del want["votes"], want["metrics"][step]["vote/flip_rate"]  # all questions are in each step
    assert found == want


def test_a_finished_run_prints_its_table_again(ended: tuple[Path, str]):
    workdir, first = ended
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    output = finish(workdir)
    assert "is finished" in output and "avg@2" in output
    assert "diagnosis: " in output and output[output.index("diagnosis: ") :].rstrip() in first
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_questions_without_truths(tmp_path: Path):
    """Everything label-free works, and nothing is measured against a truth."""
    data = tmp_path / "questions.jsonl"
    question = "Tom has 37 apples and buys 48 more. How many apples does Tom have now?"
    data.write_text((json.dumps({"prompt": question}) + "\n") * 4)
    workdir = tmp_path / "run"
    output = finish(workdir, f"--config.data.path={data}", "--config.episodes=1")
    assert "no column 'answer': no accuracy is measured" in output
    first, last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert 0 < first["vote/majority_ratio"] <= 1 and first["update/grad_norm"] >= 0
    assert not [name for name in first | last if name.startswith("audit/") or "@" in name]
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["verdict"] == "too short" and "Training steps so far: 1;" in output
    assert set(summary["after"]) == {"majority_ratio", "truncation_rate", "no_answer_rate", "response_length"}


@pytest.mark.slow
def test_offline_labels_are_voted_once_and_kept(tmp_path: Path):
    """Semantics of reward.label="offline": the start model's labels make the rewards, also after a resume."""
    changes = ["--config.reward.label=offline", "--config.episodes=6", "--config.rollout.prompts=2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(whole, *changes)
    labels = {row["id"]: row["label"] for row in map(json.loads, (whole / "labels.jsonl").read_text().splitlines())}
    assert len(labels) == 4
    votes = 0
    for path in sorted((whole / "rollouts").glob("train_*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            assert row["label"] in (labels[row["id"]], None)  # nobody gave it
            votes += row["majority"] == labels[row["id"]]
            for sample in row["samples"]:
                assert sample["reward"] == (sample["answer"] is not None and sample["answer"] == labels[row["id"]])
    assert votes < 24, "the votes never disagreed with the labels: rewards of either would be the same"
    process = start(stopped, *changes)
    wait_for(lambda: "4" in saved(stopped), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "resumed after step" in finish(stopped, *changes)
    assert results(stopped) == results(whole)
    assert (stopped / "labels.jsonl").read_text() == (whole / "labels.jsonl").read_text()
    (stopped / "summary.json").unlink()
    (stopped / "labels.jsonl").unlink()
    process = start(stopped, *changes)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "labels.jsonl is missing" in output


def test_no_episodes_measure_the_model_as_it_is(tmp_path: Path):
    workdir = tmp_path / "run"
    finish(workdir, "--config.episodes=0")
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["before"] == summary["after"] and summary["steps"] == 0
    assert 0 < summary["before"]["avg@2"] < 1 and "maj@2" in summary["before"]
    [row] = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert row["step"] == 0 and row["eval/data/avg@2"] == summary["before"]["avg@2"]
