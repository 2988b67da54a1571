"""Invariance: a run that is killed and started again ends bit by bit as one that was left alone. Semantics: signals."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from finished_run import locked_by, results
from ml_collections import ConfigDict

from ttrl_jax.inputs import read_inputs
from ttrl_jax.resume import Past, resume
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.compiled import lines
from ttrl_jax.run.diagnosis import diagnose
from ttrl_jax.session import open_session, restore

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("TTRL_KILLS", "3"))
STEPS = 24  # far more than the kills below let pass, also on a fast machine
ARGUMENTS = [
    "--config=configs/quickstart_sums.py", "--config.eval.tasks=()", f"--config.episodes={STEPS}",
    "--config.rollout.prompts=4", "--config.data.limit=4", "--config.rollout.votes=8", "--config.train.samples=8",
    "--config.train.micro_tokens=384", "--config.train.minibatch_prompts=2", "--config.train.kl_coef=0.001",
    "--config.train.learning_rate=4e-5", "--config.eval.samples=2", "--config.eval.every=3",
    "--config.log.generations_every=1",
]  # fmt: skip


def start(workdir: Path, *changes: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen:
    command = [sys.executable, "-m", "ttrl_jax.train", *ARGUMENTS, f"--workdir={workdir}", *changes]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.STDOUT, text=True)


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
@pytest.mark.timeout(600 + 60 * KILLS)
def test_killed_again_and_again(tmp_path: Path):
    """SIGKILL after a random time of a start, which may restore, compile, evaluate, sample, vote, update or save then;
    at every third one after a step that was saved, and once in the middle of a save."""
    change, alone, workdir = f"--config.episodes={24 + 8 * KILLS}", tmp_path / "alone", tmp_path / "run"
    finish(alone, change)
    rng, while_saving, output = random.Random(0), False, tmp_path / "output"
    for kill in range(KILLS):
        output.write_text("")
        with output.open("w") as file:
            process = start(workdir, change, stdout=file)
        if kill == 1:  # orbax writes into a folder whose name has more than the step, and renames it
            while_saving = wait_for(lambda: any(not name.isdigit() for name in saved(workdir)), process)
        elif kill % 3 == 2:
            newest = max((int(name) for name in saved(workdir) if name.isdigit()), default=0)
            assert wait_for(lambda newest=newest: str(newest + 1) in saved(workdir), process)
            time.sleep(rng.uniform(0, 0.5))
        else:
            assert wait_for(functools.partial(locked_by, workdir, process.pid), process)
            time.sleep(rng.uniform(0, 5))
        assert process.poll() is None, "the kill came too late"
        process.kill()
        process.communicate()
        last = (output.read_text().splitlines() or ["nothing yet"])[-1]
        print(f"killed after {len(saved(workdir))} checkpoints and the line {last[:100]!r}")
    assert while_saving or KILLS < 2
    assert not (workdir / "summary.json").exists(), "all kills came too late"
    finish(workdir, change)
    assert results(workdir) == results(alone)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_whose_votes_stop_goes_on_bit_by_bit(tmp_path: Path):
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    change = ("--config.rollout.stop_votes=0.7", "--config.train.samples=4", "--config.rollout.temperature=0.5")
    finish(alone, *change)
    process = start(workdir, *change)
    wait_for(lambda: "2" in saved(workdir), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    finish(workdir, *change)
    found = results(workdir)
    assert found == results(alone)
    shares = [row["vote/drawn_share"] for row in found["metrics"] if "vote/drawn_share" in row]
    assert min(shares) < 1 and len(shares) == STEPS


def make_old(workdir: Path) -> None:
    """Turn a run into one that was begun when a state was one model, and neither judges nor histories were known."""
    made = json.loads((workdir / "config.json").read_text())
    session = open_session(read_inputs(ConfigDict(made["config"])), begin=False)
    assert made["config"].pop("judge")["rule"] == "majority" and made["config"].pop("task") == ""
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


def cut_back(ended: tuple[Path, str], workdir: Path) -> None:
    """A run as it was when the last but one of its steps had been saved."""
    shutil.copytree(ended[0], workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))


@pytest.mark.slow
def test_the_newest_checkpoint_is_damaged(ended: tuple[Path, str], undisturbed: dict[str, object], tmp_path: Path):
    """It is named and moved away, and the one before is used. A damaged summary is made again."""
    workdir = tmp_path / "run"
    shutil.copytree(ended[0], workdir)
    (workdir / "summary.json").write_text("")
    largest = max((workdir / "checkpoints" / str(STEPS) / "state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    output = finish(workdir)
    assert "summary.json is damaged" in output and f"checkpoints/{STEPS} is damaged" in output
    assert f"resumed after step {STEPS - 1}" in output and (workdir / "damaged" / str(STEPS)).is_dir()
    assert results(workdir) == undisturbed


@pytest.mark.slow
def test_what_moves_memory_or_bookkeeping_may_change(ended: tuple[Path, str], tmp_path: Path):
    """A run goes on with other micro-batches, another folder's view of its files, and more episodes; and says so."""
    workdir, new = tmp_path / "run", STEPS + 1
    cut_back(ended, workdir)
    model = shutil.copytree(ROOT / "configs" / "quickstart_model", tmp_path / "moved")
    output = finish(
        workdir, f"--config.model.path={model}", "--config.train.micro_tokens=192", "--config.checkpoint.keep=1",
        f"--config.episodes={new}",
    )  # fmt: skip
    step = STEPS - 1
    for words in (
        f"resumed after step {step}",
        "changed   train.micro_tokens: 192 from here on, 384 before",
        f"changed   from step {step} on numbers are rounded otherwise, by train.micro_tokens",
        f"changed   from step {step} on the learning rate follows the schedule of {new} steps",
    ):
        assert words in output
    found, before = results(workdir), results(ended[0])
    assert [row["step"] for row in found["metrics"]] == list(range(new + 1)) and found["summary"]["steps"] == new
    assert found["metrics"][:step] == before["metrics"][:step]
    assert found["metrics"][step]["update/learning_rate"] > before["metrics"][step]["update/learning_rate"]
    assert saved(workdir) == [str(new)]
    assert f"episodes ({new} there, {STEPS} now), which may only grow" in refused(workdir)


def refused(workdir: Path, *changes: str) -> str:
    process = start(workdir, *changes)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in output
    return output


@pytest.mark.slow
def test_questions_that_changed_are_refused(tmp_path: Path):
    data, workdir = tmp_path / "questions.json", tmp_path / "run"
    rows = [{"prompt": f"Tom has 3{i} apples and buys 48 more. How many now?", "answer": f"{8 + i}1"} for i in range(4)]
    data.write_text(json.dumps(rows))
    given = [f"--config.data.path={data}", "--config.episodes=0"]
    finish(workdir, *given)
    for changed in (rows[::-1], [*rows[:3], rows[3] | {"answer": "5"}]):
        data.write_text(json.dumps(changed))
        words = refused(workdir, *given)
        assert f"the questions of data.path have changed since {workdir} was made (4 then, 4 now" in words


@pytest.mark.slow
def test_weights_alone_are_saved_to_be_evaluated(tmp_path: Path):
    workdir, changes = tmp_path / "run", ["--config.checkpoint.weights_only=True", "--config.episodes=2"]
    output = finish(workdir, *changes)
    assert "from which no run can go on" in output
    (workdir / "summary.json").unlink()
    words = refused(workdir, *changes)
    assert "checkpoint 2 has weights alone" in words and "cannot go on from any of its checkpoints (2, 1)" in words
    config = ConfigDict(json.loads((workdir / "config.json").read_text())["config"])
    session = open_session(read_inputs(config, training=False), begin=False)
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        assert restore(session, checkpoints, 2).state.policy.params["embed"].shape[0] > 0


@pytest.mark.slow
def test_minutes_after_which_a_checkpoint_is_saved(tmp_path: Path):
    """Within an episode, of two steps here."""
    workdir = tmp_path / "run"
    changes = ["--config.rollout.prompts=2", "--config.episodes=2", "--config.checkpoint.keep=9"]
    finish(workdir, *changes, "--config.checkpoint.every=1e-6")
    assert sorted(saved(workdir)) == ["1", "2", "3", "4"]
    finish(tmp_path / "other", *changes)
    assert sorted(saved(tmp_path / "other")) == ["2", "4"]
    assert results(tmp_path / "other") == results(workdir)


@pytest.mark.slow
def test_two_writers_are_one_too_many(tmp_path: Path):
    workdir = tmp_path / "run"
    process = start(workdir)
    assert wait_for(lambda: (workdir / "config.json").is_file(), process)
    assert f"is being written by process {process.pid} on " in refused(workdir)
    process.kill()
    process.communicate()
    output = finish(workdir, "--config.episodes=24")
    assert f"process {process.pid} on " in output and "has ended without letting go" in output


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "prime"])
def test_a_state_is_restored_whole_or_the_one_before(tmp_path: Path, algorithm: str):
    """Each file of the newest checkpoint is cut in half, in turn."""
    workdir = tmp_path / "run"
    finish(workdir, f"--config.algorithm={algorithm}", "--config.episodes=3", "--config.prime.minibatch_rows=16")
    inputs = read_inputs(ConfigDict(json.loads((workdir / "config.json").read_text())["config"]))
    want, used = {}, []
    session = open_session(inputs, begin=False)
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        for step in (2, 3):
            state = restore(session, checkpoints, step).state
            want[step] = jax.tree.map(np.asarray, state), checkpoints.meta(step)
    newest = workdir / "checkpoints" / "3"
    for name in sorted(str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()):
        copy = tmp_path / "copy"
        shutil.copytree(workdir / "checkpoints", copy / "checkpoints")
        content = (newest / name).read_bytes()
        (copy / "checkpoints" / "3" / name).write_bytes(content[: len(content) // 2])
        with Checkpoints(copy / "checkpoints", keep=2) as checkpoints:
            session, past = resume(inputs, checkpoints, say=print, compiling=lines(print))
        state, meta = want[session.step]
        assert jax.tree.structure(session.state) == jax.tree.structure(state)
        assert all(
            np.array_equal(one, other)
            for one, other in zip(jax.tree.leaves(session.state), jax.tree.leaves(state), strict=True)
        )
        assert past == Past.of(meta)
        used.append(session.step)
        shutil.rmtree(copy)
    assert set(used) == {2, 3}


@pytest.mark.slow
def test_a_finished_run_prints_its_table_again(ended: tuple[Path, str]):
    workdir, first = ended
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    output = finish(workdir)
    assert "is finished" in output and "avg@2" in output
    assert "diagnosis: " in output and output[output.index("diagnosis: ") :].rstrip() in first
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.slow
def test_a_smaller_last_step(tmp_path: Path):
    """Of 7 questions a step of 4 is followed by one of 3, in minibatches of 2; with some truths only those are
    measured. A run from before the key, which left the 3 out, goes on doing so."""
    data, workdir = tmp_path / "questions.jsonl", tmp_path / "run"
    rows = [
        {"question": [{"role": "user", "content": f"Tom has {i} apples and buys 48 more. How many apples does Tom have"
                       " now?"}], "reward_model": {"ground_truth": str(i + 48) if i < 15 else None}}
        for i in range(11, 18)
    ]  # fmt: skip
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [f"--config.data.path={data}", "--config.data.limit=0", "--config.log.generations_every=1"]
    output = finish(workdir, *changes, "--config.episodes=2")
    for line in (
        "the last step of each episode has 3 questions", "7 questions; 4 of them have a truth",
        "the question is the column 'question', as there is no 'prompt' (data.question_column)",
        "the truth is the column 'reward_model.ground_truth', as there is no 'answer' (data.truth_column)",
    ):  # fmt: skip
        assert line in output, output
    found = results(workdir)
    assert [row["step"] for row in found["metrics"]] == [0, 1, 2, 3, 4]
    assert found["summary"]["after"]["truths"] == 4 and "avg@2" in found["summary"]["after"]
    assert [len(rows) for name, rows in sorted(generated(workdir).items())] == [4, 3, 4, 3]
    for name, rows in generated(workdir).items():
        assert {row["id"] for row in rows if "truth" in row} <= {"0", "1", "2", "3"}, name
    made = json.loads((workdir / "config.json").read_text())
    del made["config"]["data"]["drop_last"]
    made["config"]["episodes"] = 1
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(made))
    output = finish(old, *changes, "--config.episodes=2")
    assert "another 3 questions are left out of each episode (data.drop_last)" in output
    assert [len(rows) for rows in generated(old).values()] == [4, 4]


def generated(workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the generations of each training step, by file."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (workdir / "rollouts").glob("train_*.jsonl")
    }


@pytest.mark.slow
def test_questions_without_truths(tmp_path: Path):
    """Everything label-free works, and nothing is measured against a truth."""
    data = tmp_path / "questions.jsonl"
    question = "Tom has 37 apples and buys 48 more. How many apples does Tom have now?"
    data.write_text((json.dumps({"prompt": question}) + "\n") * 4)
    workdir = tmp_path / "run"
    output = finish(workdir, f"--config.data.path={data}", "--config.episodes=1")
    assert "no truth (data.truth_column='answer'): no accuracy is measured" in output
    first, last = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert 0 < first["vote/majority_ratio"] <= 1 and first["update/grad_norm"] >= 0
    assert not [name for name in first | last if name.startswith("audit/") or "@" in name]
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["verdict"] == "too short" and "Training steps so far: 1;" in output
    assert set(summary["after"]) == {
        "majority_ratio", "truncation_rate", "no_answer_rate", "undecided", "response_length",
    }  # fmt: skip


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


@pytest.mark.slow
def test_easy_questions_come_first_also_after_a_resume(tmp_path: Path):
    """Semantics of data.order="vote_share": by the shares in labels.jsonl, which no later model changes."""
    changes = ["--config.data.order=vote_share", "--config.rollout.prompts=1", "--config.train.minibatch_prompts=1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(whole, *changes, "--config.episodes=3")
    voted = [json.loads(line) for line in (whole / "labels.jsonl").read_text().splitlines()]
    shares = [max(row["counts"]) / 8 for row in voted]
    easy = sorted(range(4), key=lambda i: (-shares[i], i))
    assert len(set(shares)) > 1 and easy != [0, 1, 2, 3]
    visits = [json.loads(line)["question"] for line in (whole / "votes.jsonl").read_text().splitlines()]
    assert visits == easy * 3
    process = start(stopped, *changes, "--config.episodes=3")
    wait_for(lambda: "4" in saved(stopped), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert "resumed after step" in finish(stopped, *changes, "--config.episodes=3")
    assert results(stopped) == results(whole)
    process = start(stopped, "--config.data.order=given", *changes[1:], "--config.episodes=3")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "data.order ('vote_share' there, 'given' now)" in output


def test_no_episodes_measure_the_model_as_it_is(tmp_path: Path):
    workdir = tmp_path / "run"
    finish(workdir, "--config.episodes=0")
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["before"] == summary["after"] and summary["steps"] == 0
    assert 0 < summary["before"]["avg@2"] < 1 and "maj@2" in summary["before"]
    [row] = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert row["step"] == 0 and row["eval/data/avg@2"] == summary["before"]["avg@2"]
