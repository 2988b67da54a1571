"""Semantics: solve answers a stream in order, whatever comes, and goes on where it stopped; it learns as train does."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from refusals import assert_one_sentence

from configs import quickstart_sums
from ttrl_jax import cli, commands, library, solve
from ttrl_jax.data.generate import TASKS
from ttrl_jax.data.problems import Problem
from ttrl_jax.inputs import read_inputs
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.measure.evaluation import measure
from ttrl_jax.model.weights import sha256
from ttrl_jax.reward.history import History
from ttrl_jax.stream.learning import Memory, remember, replayed
from ttrl_jax.stream.log import Log

ROOT = Path(__file__).parent.parent
CONFIG = f"--config={ROOT / 'configs' / 'quickstart_sums.py'}"
QUESTIONS = [question for question, _ in TASKS["sums.train"]()]
FEW = {"rollout.prompts": 4, "rollout.votes": 8, "rollout.rows": 32, "train.samples": 8, "train.minibatch_prompts": 2,
       "train.micro_tokens": 384, "train.learning_rate": 1e-3, "log.tensorboard": False}  # fmt: skip
KILLS = int(os.environ.get("TTRL_KILLS", "3"))
Call = Callable[..., tuple[int, str, list[dict]]]

pytestmark = pytest.mark.usefixtures("fresh_flags")


@pytest.fixture
def call(fresh_flags, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Solve in an empty folder -> exit code, stderr, and the rows of --out FILE or else of stdout."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, config: str = CONFIG, **changes) -> tuple[int, str, list[dict]]:
        fresh_flags()
        given = [f"--config.{key}={value}" for key, value in (FEW | changes).items()]
        monkeypatch.setattr(sys, "argv", [each for each in ("solve", config, *given, *arguments) if each])
        code = cli.run(solve.main, commands.SOLVE)
        out, err = capfd.readouterr()
        file = next((each.removeprefix("--out=") for each in arguments if each.startswith("--out=")), None)
        assert file is None or not out, "stdout is not for what goes to a file"
        text = Path(file).read_text() if file and Path(file).is_file() else out
        return code, err, rows_of(text) if code in (0, 143) else []

    return run


def rows_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def timeless(rows: list[dict]) -> list[dict]:
    return [{key: x for key, x in row.items() if key != "seconds"} for row in rows]


def write(path: Path, lines: list) -> Path:
    path.write_text("".join((line if line == "{broken" else json.dumps(line)) + "\n" for line in lines))
    return path


def config_of(**changes) -> ConfigDict:
    config = quickstart_sums.get_config()
    config.eval.tasks = ()
    for key, value in (FEW | changes).items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    return config


def test_answers_are_the_votes_of_an_evaluation(call: Call, tmp_path: Path):
    """Slow twin: `measure` asks the same questions with the same keys. Invariance: so do batches of another size."""
    path = write(tmp_path / "q.jsonl", QUESTIONS[:8])
    code, err, rows = call(str(path))
    assert code == 0 and [row["number"] for row in rows] == list(range(8)), err
    way = {"eval.samples": 8, "eval.temperature": 1.0, "data.path": "builtin:sums.train", "data.limit": 8}
    way["eval.greedy"] = False
    session = library.open_session(read_inputs(config_of(**way), training=False))
    (key,) = library.task_keys(session)
    found = measure(session, session.inputs.sets[0], key, progress=lambda *done: None)
    twins = found.rows()
    assert [row["label"] for row in rows] == [twin["label"] for twin in twins]
    for row, twin in zip(rows, twins, strict=True):
        assert row["share"] == max(twin["counts"], default=0) / 8 and row["votes"] == 8
        assert row["tokens"] == sum(sample["tokens"] for sample in twin["samples"])
        assert list(row) == ["id", "number", "label", "share", "votes", "certificate", "tokens", "seconds", "sha256"]
        assert row["certificate"] is None and row["seconds"] > 0 and row["id"] == row["number"]
    _, _, others = call(str(path), **{"rollout.prompts": 2})
    assert timeless(others) == timeless(rows)
    assert "8 answered" in err.splitlines()[-1] and "answers/s" in err.splitlines()[-1]


def test_votes_stop_once_their_winner_is_certain(call: Call, tmp_path: Path):
    """Slow twin: `measure` draws all votes, of which those that count are the first. Semantics: a certificate is of
    fewer votes than were allowed."""
    path, votes = write(tmp_path / "q.jsonl", QUESTIONS[:8]), 64
    _, _, whole = call(str(path), **{"rollout.votes": votes})
    code, err, rows = call(str(path), **{"rollout.votes": votes, "rollout.stop_votes": 0.5})
    assert code == 0, err
    early = [row["votes"] < votes for row in rows]
    assert 0 < sum(early) < len(rows)
    assert [row["certificate"] for row in rows] == [{"error": 0.5} if each else None for each in early]
    way = {"eval.samples": votes, "eval.temperature": 1.0, "data.path": "builtin:sums.train", "data.limit": 8}
    session = library.open_session(read_inputs(config_of(**way, **{"eval.greedy": False}), training=False))
    (key,) = library.task_keys(session)
    twins = measure(session, session.inputs.sets[0], key, progress=lambda *done: None).rows()
    for row, twin, every in zip(rows, twins, whole, strict=True):
        first = [sample["answer"] for sample in twin["samples"][: row["votes"]]]
        assert row["share"] == pytest.approx(first.count(row["label"]) / row["votes"], abs=1e-6)
        assert row["tokens"] == sum(sample["tokens"] for sample in twin["samples"][: row["votes"]]) <= every["tokens"]
    assert [row for row, each in zip(timeless(rows), early, strict=True) if not each] == [
        row for row, each in zip(timeless(whole), early, strict=True) if not each
    ]


def test_what_cannot_be_asked_has_its_error_in_its_place(call: Call, tmp_path: Path):
    long = "apples " * 200
    lines = [{"prompt": QUESTIONS[0], "id": "first", "answer": "17"}, "{broken", long, QUESTIONS[1], {"id": "none"}]
    code, err, rows = call(str(write(tmp_path / "q.jsonl", lines)))
    assert code == 0 and [row["number"] for row in rows] == [0, 1, 2, 3, 4], err
    assert [row["id"] for row in rows] == ["first", 1, 2, 3, "none"]
    assert ["error" in row for row in rows] == [False, True, True, False, True]
    assert "not JSON" in rows[1]["error"] and "1 to 32 tokens" in rows[2]["error"] and "no question" in rows[4]["error"]
    assert set(rows[1]) == {"id", "number", "error", "sha256"} and "2 answered, 3 errors" in err


def test_a_batch_of_errors_alone_and_an_empty_stream(call: Call, tmp_path: Path):
    code, _, rows = call(str(write(tmp_path / "q.jsonl", ["{broken"] * 5)))
    assert code == 0 and ["error" in row for row in rows] == [True] * 5
    assert call(str(write(tmp_path / "empty.jsonl", [])))[::2] == (0, [])


def test_it_goes_on_where_it_stopped(call: Call, tmp_path: Path):
    lines = [*QUESTIONS[:4], "{broken", "{broken", *QUESTIONS[4:6], *QUESTIONS[6:8]]
    path, out = write(tmp_path / "q.jsonl", lines), tmp_path / "a.jsonl"
    _, _, whole = call(str(path), f"--out={out}")
    lines = out.read_bytes().splitlines(keepends=True)
    for there in (b"".join(lines[:6]) + lines[6][:20], lines[0][:3], b"".join(lines)):
        out.write_bytes(there)
        code, err, rows = call(str(path), f"--out={out}")
        assert code == 0 and timeless(rows) == timeless(whole), err
        assert out.read_bytes().startswith(there[: there.rfind(b"\n") + 1])
        assert ("half a line" in err) == (not there.endswith(b"\n"))
        done = there.count(b"\n")
        assert f"{10 - done - 2 * (done < 4)} answered" in err.splitlines()[-1]  # errors are the fifth and the sixth


def test_a_file_of_something_else_is_left_as_it_is(call: Call, tmp_path: Path):
    path, out = write(tmp_path / "q.jsonl", QUESTIONS[:4]), tmp_path / "a.jsonl"
    call(str(path), f"--out={out}")
    before = out.read_bytes()
    for text in ("my notes, without an end", '{"id": 3}\nmy notes', "{}\n"):
        out.write_text(text)
        code, err, _ = call(str(path), f"--out={out}")
        assert_one_sentence((code, err[err.index("error: ") :]), "no file that this command has begun")
        assert out.read_text() == text
    out.write_bytes(before)
    for other in (QUESTIONS[1:5], QUESTIONS[:3], [QUESTIONS[0], {"prompt": QUESTIONS[1], "id": "x"}, *QUESTIONS[2:4]]):
        code, err, _ = call(str(write(tmp_path / "other.jsonl", other)), f"--out={out}")
        assert code == 2 and "give th" in err.splitlines()[-1], err
        assert out.read_bytes() == before


def test_a_file_has_one_writer(call: Call, tmp_path: Path):
    path, out = write(tmp_path / "q.jsonl", QUESTIONS[:4]), tmp_path / "a.jsonl"
    with Log(out, begins=solve.ANSWER, flag="--out", say=print):
        code, err, _ = call(str(path), f"--out={out}")
    assert code == 2 and "being written by another process" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mode=guess"], ["--mode must be one of vote, learn, adapt", "'guess'"]),
        (["--mode=learn", "--checkpoint=x"], ["export"]),
        (["--mode=adapt", "--checkpoint=x"], ["--mode=adapt begins with a model", "export"]),
        (["--workdir=x"], ["--mode=learn"]),
        (["--mode=adapt", "--workdir=x"], ["--mode=learn"]),
        (["--mode=adapt", "--config.lora.rank=0"], ["lora.rank=0", "leave it out for 16"]),
        (["--mode=adapt", "--config.rollout.stop_votes=0.1", "--config.rollout.votes=16"], ["rollout.stop_votes=0.1"]),
        (["--mode=adapt", "--config.solve.replay=0"], ["solve.replay is for --mode=learn"]),
        (["--mode=adapt", "--config.solve.steps=0"], ["solve.steps must be at least 1"]),
        (["--mode=adapt", "--config.reward.label=truth"], ["reward.label='truth'", "beforehand"]),
        (["--out=q.jsonl"], ["would be read as questions"]),
        (["--out=."], ["is a folder"]),
        (["--checkpoint=x"], ["--checkpoint x does not exist"]),
        (["--config.data.limit=3"], ["data.limit"]),
        (["--mode=learn", "--config.reward.label=truth"], ["reward.label='truth'", "beforehand"]),
        (["--mode=learn", "--config.checkpoint.weights_only=true"], ["checkpoint.weights_only"]),
        (["--mode=learn", "--config.solve.replay=4"], ["solve.replay=4", "rollout.prompts=4"]),
        (["--mode=learn", "--config.solve.replay=2", "--config.solve.window=1"], ["solve.window=1"]),
        (["--config.model.path="], ["no model given; add --model"]),
        (["--model=nowhere/at/all"], ["nowhere/at/all"]),
        (["--workdr=x"], ["did you mean --workdir"]),
    ],
)
def test_what_is_refused(arguments: list[str], words: list[str], call: Call, tmp_path: Path):
    write(tmp_path / "q.jsonl", QUESTIONS[:2])
    code, err, _ = call("q.jsonl", *arguments)
    assert_one_sentence((code, err), *words)
    assert os.listdir(tmp_path) == ["q.jsonl"]


def test_one_of_several_processes_is_refused(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "a,b")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    code, err, _ = call(str(write(tmp_path / "q.jsonl", QUESTIONS[:2])))
    assert_one_sentence((code, err), "solve works in one process")


@pytest.mark.parametrize("mode", ["vote", "adapt"])
def test_a_model_alone_is_enough(mode: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without --config: the answer in a box, or else the last number, by configs/solve.py. What adapting needs besides
    is set, and said."""
    model = shutil.copytree(ROOT / "configs" / "quickstart_model", tmp_path / "model")
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"max_position_embeddings": 4096}))
    path = tmp_path / "q.txt"
    path.write_text("\n".join(QUESTIONS[:2]))
    monkeypatch.setattr(sys.modules[__name__], "FEW", {"rollout.max_tokens": 8})
    code, err, rows = call(f"--model={model}", str(path), f"--mode={mode}", config="")
    assert code == 0 and [row["votes"] for row in rows] == [16, 16], err
    for line in ("lora.rank=16, 0 before, for --mode=adapt", "train.learning_rate=5e-05, 5e-07 before, for --mode"):
        assert (f"setting   {line}" in err) == (mode == "adapt")
    assert ("learning rate 0.0005" in err) == (mode == "adapt")
    assert solve.commands.config().reward.extract == ("boxed", "last_number")


# ---------------------------------------------------------------------- learning


def session_of(config: ConfigDict) -> library.Session:
    return library.open_session(read_inputs(config, stream=True))


def final(workdir: Path, session: library.Session) -> tuple[library.Session, dict]:
    """The session at the newest checkpoint, and what is beside it."""
    with library.Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        step = checkpoints.latest()
        return library.restore(session, checkpoints, step), checkpoints.meta(step)


def test_the_first_step_is_that_of_the_usual_verbs(call: Call, tmp_path: Path):
    """Slow twin: the loop of docs/library.md on the same questions. The rate is the peak: a stream has no end."""
    path = write(tmp_path / "q.jsonl", QUESTIONS[:4])
    code, err, rows = call(str(path), "--mode=learn", "--workdir=run", "--out=a.jsonl")
    assert code == 0 and [row["step"] for row in rows] == [0] * 4, err

    session = session_of(config_of(**{"data.path": str(path)}))
    start = sha256(session.state.policy.params)
    config, task, history = session.config, session.task, History()
    batch = [Problem(i, str(i), question, None) for i, question in enumerate(QUESTIONS[:4])]
    judge, prompts = library.judge_of(config, task), library.encode(session, batch)
    drawn = {"votes": config.rollout.votes, "sampling": session.sampling}
    rollouts = library.sample(session, prompts, library.step_key(session, 0), **drawn)
    ballots = library.cast_votes(task, rollouts.texts)
    verdict = judge(
        ballots, library.evidence_of(session, prompts, rollouts, judge), history, library.Draw(0, 0, range(4))
    )
    chosen = library.select(verdict.rewards, samples=8)
    trained = train_batch(prompts, rollouts, chosen)
    session, advantages, _ = library.credit(session, trained, verdict.take(chosen))
    session, metrics = library.update(session, trained, {"advantages": advantages})
    assert [row["label"] for row in rows] == [ballot.answers[ballot.label].text for ballot in ballots]
    assert metrics["learning_rate"] == 1e-3 and metrics["grad_norm"] > 0
    want = sha256(session.state.policy.params)
    got, meta = final(tmp_path / "run", session)
    assert got.step == 1 and sha256(got.state.policy.params) == want != start
    assert meta["stream"] == {"taken": 4, "window": [[i, str(i), q] for i, q in enumerate(QUESTIONS[:4])]}
    assert [visit["question"] for visit in meta["history"]] == [0, 1, 2, 3]


LEARN = {"solve.replay": 2, "solve.window": 5}


@pytest.mark.slow
def test_what_is_learned_again_after_a_kill_is_the_same(call: Call, tmp_path: Path):
    """Invariance: with any checkpoints and answers that a kill can leave, all ends bit by bit as without it."""
    path = write(tmp_path / "q.jsonl", [*QUESTIONS[:2], "{broken", "{broken", *QUESTIONS[2:8]])
    every = LEARN | {"checkpoint.every": 1e-9, "checkpoint.keep": 9}
    asked = (str(path), "--mode=learn", "--workdir=run", "--out=a.jsonl")
    code, err, whole = call(*asked, **every)
    assert code == 0 and len(whole) == 10, err
    assert [row.get("step") for row in whole] == [0, 0, None, None, 1, 1, 2, 2, 3, 3]
    assert rows_of(Path("run/batches.jsonl").read_text()) == [{"count": 2}] * 5
    votes, metrics = (rows_of(Path("run", name).read_text()) for name in ("votes.jsonl", "metrics.jsonl"))
    assert [sum(vote["step"] == step for vote in votes) for step in range(4)] == [2, 4, 4, 4]  # two again
    assert all(row["update/learning_rate"] == 1e-3 for row in metrics) and len(metrics) == 4
    session = session_of(config_of(**every, **{"data.path": str(path)}))
    session, meta = final(tmp_path / "run", session)
    want = sha256(session.state.policy.params)
    assert [number for number, _, _ in meta["stream"]["window"]] == [5, 6, 7, 8, 9] and len(meta["history"]) == 5
    lines = Path("a.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree("run", "whole")
    for saved, there in ((0, 5), (2, 10), (1, 4)):
        shutil.rmtree("run")
        shutil.copytree("whole", "run")
        for step in range(saved + 1, 5):
            shutil.rmtree(Path("run/checkpoints", str(step)), ignore_errors=True)
        Path("a.jsonl").write_bytes(b"".join(lines[:there]) + b'{"id": 4' * (there < 10))
        kept = Path("run/batches.jsonl").read_text().splitlines(keepends=True)
        Path("run/batches.jsonl").write_text("".join(kept[: -(-there // 2)]) + '{"cou')
        code, err, rows = call(*asked, **every)
        assert code == 0 and timeless(rows) == timeless(whole), err
        assert b"".join(lines[:there]) == Path("a.jsonl").read_bytes()[: sum(map(len, lines[:there]))]
        assert "would be answered otherwise" not in err
        session, again = final(tmp_path / "run", session)
        assert sha256(session.state.policy.params) == want and again["stream"] == meta["stream"]
        assert rows_of(Path("run/votes.jsonl").read_text()) == votes


def test_a_run_and_its_answers_go_together(call: Call, tmp_path: Path):
    path = write(tmp_path / "q.jsonl", QUESTIONS[:4])
    learn = (str(path), "--mode=learn", "--workdir=run")
    assert call(*learn, "--out=a.jsonl")[0] == 0
    before = Path("a.jsonl").read_bytes()
    for arguments, words in [
        ((*learn,), "give --out with the file of its answers"),
        ((*learn, "--out=new.jsonl"), "put the former file back"),
        ((str(path), "--mode=learn", "--workdir=other", "--out=a.jsonl"), "is not their run"),
        ((*learn, "--out=a.jsonl", "--config.train.learning_rate=1e-4"), "train.learning_rate"),
    ]:
        code, err, _ = call(*arguments)
        assert code == 2 and words in err.splitlines()[-1], err
    assert Path("a.jsonl").read_bytes() == before
    code, err, rows = call(str(path), "--checkpoint=run")
    assert code == 0 and len(rows) == 4 and "step" not in rows[0], err


def test_adapters_learn_too(call: Call, tmp_path: Path):
    path = write(tmp_path / "q.jsonl", QUESTIONS[:8])
    code, err, rows = call(str(path), "--mode=learn", "--workdir=run", **{"lora.rank": 2})
    assert code == 0 and [row["step"] for row in rows] == [0] * 4 + [1] * 4, err
    assert "rank 2" in err and Path("run/checkpoints/2").is_dir()


def test_replayed_questions_are_drawn_by_seed_and_step():
    problems = [Problem(i, str(i), f"q{i}", None) for i in range(20)]
    memory = Memory()
    for i in range(0, 20, 4):
        memory = remember(memory, 5, problems[i : i + 4], window=10)
    assert memory.taken == 25 and list(memory.window) == problems[10:]
    draw = {(seed, step): [p.index for p in replayed(memory, seed=seed, step=step, count=4)]
            for seed in (0, 1) for step in range(30)}  # fmt: skip
    assert draw == {
        (seed, step): [p.index for p in replayed(memory, seed=seed, step=step, count=4)] for seed, step in draw
    }
    assert all(len(set(found)) == 4 and set(found) <= set(range(10, 20)) for found in draw.values())
    assert len({tuple(found) for found in draw.values()}) > 40
    assert {i for found in draw.values() for i in found} == set(range(10, 20))
    assert replayed(memory, seed=0, step=0, count=0) == [] and len(replayed(memory, seed=0, step=0, count=99)) == 10
    assert remember(memory, 1, problems[:1], window=0).window == ()
    assert Memory.of(json.loads(json.dumps(memory.meta())), History()) == memory


# ---------------------------------------------------------------------- adapting

ADAPT = {"lora.rank": 2, "solve.steps": 1}


def test_each_question_is_adapted_to_alone(call: Call, tmp_path: Path):
    """Semantics: every answer has both its ballots, and one that is taken back is that of --mode=vote. Invariance: what
    stood before a question changes nothing; nor does a stop in the middle, or what cannot be asked."""
    path, out = write(tmp_path / "q.jsonl", [QUESTIONS[0], "{broken", *QUESTIONS[1:3]]), tmp_path / "a.jsonl"
    _, _, votes = call(str(path))
    code, err, rows = call(str(path), "--mode=adapt", f"--out={out}", **ADAPT)
    assert code == 0 and ["error" in row for row in rows] == [False, True, False, False], err
    assert set(os.listdir(tmp_path)) == {"q.jsonl", "a.jsonl"}
    names = ["id", "number", "label", "share", "votes", "certificate", "tokens", "adapted", "seconds", "sha256"]
    for row, vote in zip(rows, votes, strict=True):
        if "error" in row:
            assert row == vote
            continue
        said = row["adapted"]
        assert list(row) == names and list(said) == ["steps", "kept", "why", "before", "after"]
        assert said["before"]["label"] == vote["label"] and said["before"]["share"] == vote["share"]
        chosen = said["after"] if said["kept"] else said["before"]
        assert row["label"] == chosen["label"] and row["share"] == chosen["share"]
        assert row["votes"] == 8 and row["tokens"] > vote["tokens"] and said["steps"] == 1
    kept = sum(row["adapted"]["kept"] for row in rows if "adapted" in row)
    last = err.splitlines()[-1]
    assert f"3 answered, 1 errors, 3 adapted to, of which {kept} are kept" in last
    assert f"{sum(row.get('tokens', 0) for row in rows):,} tokens" in last

    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:9])
    code, err, again = call(str(path), "--mode=adapt", f"--out={out}", **ADAPT)
    assert code == 0 and timeless(again) == timeless(rows) and "1 answered, 1 adapted to" in err, err
    other = write(tmp_path / "other.jsonl", ["{broken", QUESTIONS[5], QUESTIONS[1]])
    code, err, moved = call(str(other), "--mode=adapt", **ADAPT)
    assert code == 0 and timeless(moved)[2] == timeless(rows)[2], err


# ---------------------------------------------------------------------- what grows, and signals


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def in_background(steps: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=steps, daemon=True)
    thread.start()
    return thread


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("mode", ["vote", "learn", "adapt"])
def test_a_folder_is_followed_until_a_signal(mode: str, call: Call, tmp_path: Path):
    """Questions are answered when they are there, not when a batch is full; SIGTERM ends the wait, exit code 143."""
    folder, out = tmp_path / "in", tmp_path / "a.jsonl"
    folder.mkdir()
    write(folder / "1.jsonl", QUESTIONS[:2])
    asked = (str(folder), "--follow", f"--mode={mode}", f"--out={out}", *(["--workdir=run"] if mode == "learn" else []))

    def steps(name: str, lines: list[str], answered: int) -> Callable[[], None]:
        def run() -> None:
            wait_until(lambda: lines_in(out) == answered - len(lines))
            write(tmp_path / name, lines).rename(folder / name)
            wait_until(lambda: lines_in(out) == answered)
            os.kill(os.getpid(), signal.SIGTERM)

        return run

    thread = in_background(steps("0.jsonl", QUESTIONS[2:3], 3))
    changes = ADAPT if mode == "adapt" else {}
    code, err, rows = call(*asked, **changes)
    thread.join()
    assert code == 143 and [row["source"] for row in rows] == ["1.jsonl", "1.jsonl", "0.jsonl"], err
    assert "stopped" in err and "3 answered" in err
    thread = in_background(steps("2.jsonl", QUESTIONS[3:4], 4))
    code, err, rows = call(*asked, **changes)
    thread.join()
    assert code == 143 and [row["source"] for row in rows] == ["1.jsonl", "1.jsonl", "0.jsonl", "2.jsonl"], err
    if mode == "learn":
        last = rows[-1]["step"]  # whether the first two came together is a matter of time
        assert [row["number"] for row in rows] == [0, 1, 2, 3] and f"resumed   after step {last};" in err
        assert last in (2, 3) and Path("run/checkpoints", str(last + 1)).is_dir()


@pytest.mark.parametrize(("mode", "answered"), [("vote", 8), ("adapt", 1)])
def test_a_signal_while_it_answers_lets_it_finish_the_batch(
    mode: str, answered: int, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SIGTERM while it samples for the second time: the answers of the batch in hand, the second or with --mode=adapt
    the first question, are written, and no other."""
    path, drawn, sample = write(tmp_path / "q.jsonl", QUESTIONS[:12]), [], library.sample

    def signalled(*args, **kwargs):
        drawn.append(1)
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        return sample(*args, **kwargs)

    monkeypatch.setattr("ttrl_jax.stream.votes.sample", signalled)
    code, err, rows = call(str(path), "--out=a.jsonl", f"--mode={mode}", **(ADAPT if mode == "adapt" else {}))
    assert code == 143 and [row["number"] for row in rows] == list(range(answered)) and f"{answered} answered" in err


@pytest.fixture
def stdin() -> Iterator[int]:
    """The end to write to of a pipe that is standard input meanwhile."""
    read, end = os.pipe()
    former = os.dup(0)
    os.dup2(read, 0)
    os.close(read)
    yield end
    os.dup2(former, 0)
    os.close(former)


def test_standard_input_is_answered_while_it_comes(stdin: int, call: Call, tmp_path: Path):
    out = tmp_path / "a.jsonl"

    def steps() -> None:
        os.write(stdin, json.dumps({"question": QUESTIONS[0]}).encode() + b"\n" + json.dumps(QUESTIONS[1])[:9].encode())
        wait_until(lambda: lines_in(out) == 1)
        os.write(stdin, json.dumps(QUESTIONS[1])[9:].encode())
        os.close(stdin)

    thread = in_background(steps)
    code, err, rows = call("-", f"--out={out}")
    thread.join()
    assert code == 0 and [row["number"] for row in rows] == [0, 1] and all("label" in row for row in rows), err


def test_arrays_on_the_devices_do_not_grow(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, counts, save_all = write(tmp_path / "q.jsonl", QUESTIONS[:32]), [], solve.answer_all.__globals__["save_all"]

    def counted(*args, **kwargs):
        counts.append(sum(each.nbytes for each in jax.live_arrays()))
        return save_all(*args, **kwargs)

    monkeypatch.setattr("ttrl_jax.stream.loop.save_all", counted)
    code, err, _ = call(str(path), "--mode=learn", "--workdir=run", **LEARN)
    assert code == 0 and len(counts) == 17, err
    assert len(set(counts[3:-1])) == 1 and np.ptp(counts) < 1e6, counts


# ---------------------------------------------------------------------- real processes


def start(*arguments: str, **changes) -> subprocess.Popen:
    given = [f"--config.{key}={value}" for key, value in (FEW | changes).items()]
    command = [sys.executable, "-m", "ttrl_jax.solve", CONFIG, *given, *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return err


@pytest.mark.slow
@pytest.mark.timeout(600 + 120 * KILLS)
@pytest.mark.parametrize("mode", ["vote", "learn", "adapt"])
def test_killed_again_and_again(mode: str, tmp_path: Path):
    """Invariance: SIGKILL after a random number of answers, or while it starts; in the end each question has one
    answer, and all is as without a kill."""
    rng, every = random.Random(0), ADAPT if mode == "adapt" else LEARN | {"checkpoint.every": 0.01}
    lines = [rng.choice(QUESTIONS) if rng.random() < 0.9 else "{broken" for _ in range(100 + 60 * KILLS)]
    path = write(tmp_path / "q.jsonl", lines)

    def asked(name: str) -> tuple[str, ...]:
        learn = (f"--workdir={tmp_path / name}",) if mode == "learn" else ()
        return (str(path), f"--mode={mode}", f"--out={tmp_path / name}.jsonl", *learn)

    finish(start(*asked("whole"), **every))
    out = tmp_path / "killed.jsonl"
    for kill in range(KILLS):
        process, there = start(*asked("killed"), **every), lines_in(out)
        if kill % 3 == 2:
            time.sleep(rng.uniform(1, 8))
        else:
            wanted = there + rng.randint(1, 40)
            wait_until(lambda wanted=wanted, process=process: lines_in(out) >= wanted or process.poll() is not None)
            time.sleep(rng.uniform(0, 0.2))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
        print(f"killed after {lines_in(out)} of {len(lines)} lines")
    assert lines_in(out) < len(lines), "all kills came too late"
    said = finish(start(*asked("killed"), **every))
    found, want = (timeless(rows_of((tmp_path / f"{name}.jsonl").read_text())) for name in ("killed", "whole"))
    assert found == want and len(found) == len(lines) and "would be answered otherwise" not in said
    if mode == "learn":
        session = session_of(config_of(**every, **{"data.path": str(path)}))
        shas = []
        for name in ("killed", "whole"):
            session, meta = final(tmp_path / name, session)
            shas.append((session.step, sha256(session.state.policy.params), meta["stream"], meta["history"]))
        assert shas[0] == shas[1]
        votes = [(tmp_path / name / "votes.jsonl").read_text() for name in ("killed", "whole")]
        assert votes[0] == votes[1]


def resident(process: subprocess.Popen) -> int:
    """Bytes of memory that a process holds."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("mode", "count"), [("vote", 5000), ("learn", 5000), ("adapt", 1000)])
def test_thousands_of_questions_hold_memory_level(mode: str, count: int, tmp_path: Path):
    path, out = write(tmp_path / "q.jsonl", [QUESTIONS[i % 64] for i in range(count)]), tmp_path / "a.jsonl"
    small = {"rollout.prompts": 8, "rollout.votes": 2, "train.samples": 2, "train.minibatch_prompts": 8,
             "rollout.max_tokens": 4, "solve.window": 32, "log.tensorboard": mode == "learn"}  # fmt: skip
    if mode == "adapt":  # with room for answers, and with votes that can rise
        small |= ADAPT | {"rollout.votes": 8, "train.samples": 8, "rollout.max_tokens": 12}
    learn = (f"--mode={mode}", *([f"--workdir={tmp_path / 'run'}"] if mode == "learn" else []))
    process, held = start(str(path), f"--out={out}", *learn, **small), {}
    reader = in_background(lambda: held.setdefault("err", process.stderr.read()))
    for share in (1 / 5, 2 / 5, 19 / 20):
        while lines_in(out) < share * count and process.poll() is None:
            time.sleep(0.2)
        assert process.poll() is None, held.get("err")
        held[share] = resident(process)
    process.wait(timeout=600)
    reader.join()
    print({share: f"{size / 1e6:.0f} MB" for share, size in held.items() if share != "err"})
    assert process.returncode == 0 and lines_in(out) == count, held["err"]
    assert held[19 / 20] - held[2 / 5] < 40e6
