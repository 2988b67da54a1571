"""Pulse and invariance: training by several processes, one of which is killed, or told to leave, or differs."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pod
import pytest
from finished_run import locked_by, results

KILLS = int(os.environ["TTRL_KILLS"]) if "TTRL_KILLS" in os.environ else 1  # of one process after the other in turn
PROCESSES = int(os.environ["TTRL_PROCESSES"]) if "TTRL_PROCESSES" in os.environ else 2
DEVICES = 4 // PROCESSES  # of each
STEPS = 4 + 2 * KILLS
ARGUMENTS = [
    "-m", "ttrl_jax.train", "--config=configs/quickstart_sums.py", "--config.eval.tasks=()",
    f"--config.episodes={STEPS}",
    "--config.rollout.prompts=2", "--config.data.limit=2", "--config.rollout.votes=8", "--config.train.samples=8",
    "--config.train.micro_tokens=384", "--config.train.minibatch_prompts=1", "--config.train.kl_coef=0.001",
    "--config.train.learning_rate=4e-5", "--config.eval.samples=2", "--config.eval.every=2",
    "--config.prime.minibatch_rows=8",
    "--config.log.generations_every=1",
]  # fmt: skip
SECONDS_TO_END = 60  # of the others, after one has gone
LEFT_BEHIND = "as a rule because another one has gone"


def start(workdir: Path, *changes: str, processes: int = PROCESSES, devices: int = DEVICES) -> list[subprocess.Popen]:
    return pod.start([*ARGUMENTS, f"--workdir={workdir}", *changes], processes=processes, devices=devices)


def finish(workdir: Path, *changes: str, processes: int = PROCESSES, devices: int = DEVICES) -> list[str]:
    codes, said = pod.finish(start(workdir, *changes, processes=processes, devices=devices))
    assert codes == [0] * processes, "\n".join(said)
    return said


def steps_saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def wait_for_step(workdir: Path, step: int, processes: list[subprocess.Popen]) -> None:
    while max(steps_saved(workdir), default=0) < step:
        assert all(process.poll() is None for process in processes), pod.finish(processes)
        time.sleep(0.01)


def wait_for_lock(workdir: Path, processes: list[subprocess.Popen]) -> None:
    """Until they have met, and process 0 has the folder."""
    while not locked_by(workdir, processes[0].pid):
        assert all(process.poll() is None for process in processes), pod.finish(processes)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all processes."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    said = finish(workdir)
    assert f"process 0 of {PROCESSES}" in said[0] and "sampling  by each host for its own questions" in said[0]
    for i, words in enumerate(said[1:], start=1):
        assert f"process {i} of {PROCESSES}: process 0 speaks for all" in words and "evaluation after" not in words
    assert [row["step"] for row in results(workdir)["metrics"]] == list(range(STEPS + 1))
    assert len(list((workdir / "tensorboard").iterdir())) == 1, "more than one process wrote"
    return workdir


@pytest.mark.slow
@pytest.mark.timeout(900)  # two runs, several processes on few cores
@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("--config.lora.rank=4", "--config.mesh.tensor=2", "--config.algorithm=prime"),
        ("--config.lora.rank=4", "--config.lora.base=int8", "--config.algorithm=ppo"),
    ],
    ids=lambda changes: " ".join(changes) or "none",
)
def test_one_process_learns_the_same(undisturbed: Path, tmp_path: Path, changes: tuple[str, ...]):
    """Invariance: as many devices in one process draw the same tokens, and their numbers differ by rounding alone."""
    finish(tmp_path / "run", *changes, processes=1, devices=4)
    if changes:
        finish(tmp_path / "several", *changes)
    got, want = results(tmp_path / "run"), results(tmp_path / "several" if changes else undisturbed)
    for name in ("eval_data_000000.jsonl", "train_000000.jsonl"):
        pairs = [[json.loads(line) for line in run["generations"][name].splitlines()] for run in (got, want)]
        for one, other in zip(*pairs, strict=True):
            for sample, twin in zip(one.pop("samples"), other.pop("samples"), strict=True):
                assert sample.pop("mean_logp") == pytest.approx(twin.pop("mean_logp"), abs=1e-5)
                assert sample == twin  # text, answer, class and reward
            assert one == other
    for name in ("update/loss", "update/grad_norm", "update/entropy", "vote/majority_ratio"):
        assert got["metrics"][0][name] == pytest.approx(want["metrics"][0][name], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * KILLS)
@pytest.mark.parametrize(
    ("changes", "first"),
    [(("--config.algorithm=prime",), 1)]
    + [(("--config.algorithm=ppo",), 0), (("--config.lora.rank=4",), 1), ((), 1)] * ("TTRL_KILLS" in os.environ),
    ids=str,
)
def test_killed_processes_end_all_and_nothing_is_lost(tmp_path: Path, changes: tuple[str, ...], first: int):
    """Invariance: SIGKILL to one at random times ends the others with 75 and a sentence; started again and again, the
    run agrees bit by bit with one on the same mesh that was left alone."""
    workdir, alone, rng = tmp_path / "run", tmp_path / "alone", random.Random(0)
    finish(alone, *changes)
    for kill in range(KILLS):
        victim = (first + kill) % PROCESSES
        started = start(workdir, *changes)
        if kill % 2 == 0:
            wait_for_step(workdir, max(steps_saved(workdir), default=0) + 1, started)
            time.sleep(rng.uniform(0, 0.5))
        else:  # while they restore, compile, evaluate or learn
            wait_for_lock(workdir, started)
            time.sleep(rng.uniform(0, 15))
        assert started[victim].poll() is None, "the kill came too late"
        started[victim].kill()
        killed = time.monotonic()
        codes, said = pod.finish(started, seconds=SECONDS_TO_END)
        seconds = time.monotonic() - killed
        step = max(steps_saved(workdir), default=0)
        print(f"process {victim} killed after step {step}; all had ended {seconds:.1f} s later")
        assert seconds < SECONDS_TO_END and codes[victim] == -signal.SIGKILL
        for code, words in zip(codes[:victim] + codes[victim + 1 :], said[:victim] + said[victim + 1 :], strict=True):
            assert code == 75 and LEFT_BEHIND in words.splitlines()[-1], "\n".join(said)
    assert not (workdir / "summary.json").exists()
    saved = max(steps_saved(workdir))
    assert f"resumed after step {saved}" in finish(workdir, *changes)[0]
    assert results(workdir) == results(alone)


@pytest.mark.slow
def test_all_stop_early_after_the_same_step_and_go_on(undisturbed: Path, tmp_path: Path):
    """Invariance: a run that its patience ended goes on bit by bit as one that was never to stop."""
    workdir = tmp_path / "run"
    said = finish(workdir, "--config.stop.patience=1")
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["steps"] == summary["stopped"]["best"] + 2 < STEPS == results(undisturbed)["summary"]["steps"]
    assert "stopped early" in said[0] and max(steps_saved(workdir)) == summary["steps"]
    assert f"resumed after step {summary['steps']}" in finish(workdir)[0]
    assert results(workdir) == results(undisturbed)


@pytest.mark.slow
def test_a_signal_to_one_makes_all_save_the_same_step_and_another_shape_goes_on(undisturbed: Path, tmp_path: Path):
    """Semantics: SIGTERM to process 1 alone; then one process goes on, on devices of another number."""
    workdir = tmp_path / "run"
    started = start(workdir)
    wait_for_step(workdir, 2, started)
    started[1].send_signal(signal.SIGTERM)
    codes, said = pod.finish(started)
    assert codes == [128 + signal.SIGTERM] * PROCESSES, "\n".join(said)
    saved = max(steps_saved(workdir))
    assert f"interrupted after {saved} of {STEPS} steps" in said[0] and 2 <= saved < STEPS
    assert f"resumed after step {saved}" in finish(workdir, processes=1, devices=1)[0]
    got, want = results(workdir)["metrics"], results(undisturbed)["metrics"]
    assert got[:saved] == want[:saved] and len(got) == len(want)
    assert np.isfinite(got[-2]["update/grad_norm"])


@pytest.mark.slow
def test_they_evaluate_what_they_have_trained(undisturbed: Path, tmp_path: Path):
    """Invariance: the numbers of the last checkpoint are those that the run itself wrote down."""
    changes = [each for each in ARGUMENTS if each.startswith("--config")]
    out = tmp_path / "out"
    command = ["-m", "ttrl_jax.evaluate", *changes, f"--checkpoint={undisturbed}", f"--out={out}"]
    codes, said = pod.finish(pod.start(command, processes=PROCESSES, devices=DEVICES))
    assert codes == [0] * PROCESSES, "\n".join(said)
    found, summary = (
        json.loads((out / "results.json").read_text()),
        json.loads((undisturbed / "summary.json").read_text()),
    )
    assert found["params_sha256"] == summary["params_sha256"] and found["results"]["data"] == summary["after"]
    assert "wrote results.json" in said[0] and not any("wrote" in each for each in said[1:])


@pytest.mark.slow
def test_processes_that_differ_are_refused(tmp_path: Path):
    """Semantics: another setting in one process, and a file that one cannot read; nothing is written."""
    command = [*ARGUMENTS, f"--workdir={tmp_path / 'run'}"]
    port = pod.free_port()
    for change, words in [
        ("--config.seed=3", "process 1 differs from process 0 in --config.seed; start all processes"),
        ("--config.data.path=missing.json", "missing.json"),
    ]:
        started = [pod.start_one([*command, *more], index=i, processes=2, devices=1, port=port)
                   for i, more in enumerate([[], [change]])]  # fmt: skip
        codes, said = pod.finish(started)
        assert codes == [2, 2], "\n".join(said)
        for each in said:
            assert words in each and "error: " in each and "Traceback" not in each
        assert not (tmp_path / "run").exists()
        port = pod.free_port()
