"""Semantics: a run measures its canaries with the same random numbers before and after, and returns what they allow.
Invariance: they change nothing else."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from finished_run import results
from refusals import assert_one_sentence
from tiny_model import on_mesh

from configs import quickstart_sums
from ttrl_jax import cli, commands, evaluate, export, train
from ttrl_jax.data import generate
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import read_inputs
from ttrl_jax.measure import canary
from ttrl_jax.measure.certificate import certify
from ttrl_jax.measure.evaluation import measure
from ttrl_jax.run import choice
from ttrl_jax.run.visits import read_visits
from ttrl_jax.session import open_session

ROOT = Path(__file__).parent.parent
FEW = [
    f"--config={ROOT / 'configs' / 'quickstart_sums.py'}", "--config.eval.tasks=()", "--config.rollout.prompts=4",
    "--config.data.limit=4", "--config.rollout.votes=4", "--config.train.samples=4", "--config.train.micro_tokens=384",
    "--config.train.minibatch_prompts=4", "--config.eval.samples=2", "--config.log.tensorboard=False",
    "--config.episodes=1",
]  # fmt: skip
COUNT, SAMPLES = 12, 4
# Nothing is learned, so that no canary changes.
STILL = ["--config.train.learning_rate=0.0"]


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def held_out(count: int = COUNT) -> list[dict[str, str]]:
    return [{"prompt": asked, "answer": truth} for asked, truth in generate.TASKS["sums.held_out"]()[:count]]


@pytest.fixture
def call(monkeypatch, capfd, fresh_flags, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Call a command -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments: str) -> tuple[int, str, str]:
        fresh_flags()
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with on_mesh((1, 8, 1)):
            code = cli.run(command.main, commands.COMMANDS[command.__name__.split(".")[1]], doc=command.__doc__)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def canaries(tmp_path: Path) -> list[str]:
    path = write(tmp_path / "canaries.jsonl", held_out())
    return [f"--config.canary.path={path}", f"--config.canary.samples={SAMPLES}"]


def kept(run: str) -> dict:
    return json.loads((Path(run) / canary.FILE).read_text())


def certificate(run: str) -> dict:
    return json.loads((Path(run) / "summary.json").read_text())["certificate"]


@pytest.mark.slow
def test_a_model_that_did_not_change_is_not_returned(call, canaries, tmp_path: Path):
    """The random numbers are the same: each canary is answered as before. Export and evaluate say what is returned."""
    code, out, err = call(train, *FEW, *STILL, *canaries, "--workdir=run")
    assert code == 0, err
    found, measured = certificate("run"), kept("run")
    assert measured["looks"][0]["trained"] == measured["start"] and 0 < sum(measured["start"]) < COUNT * SAMPLES
    bet = certify([0.0] * COUNT, eps=0.05, delta=0.05)
    assert (found["returned"], found["capital"], found["needed"]) == ("start", bet.capital, 68)
    assert found["before"] == found["after"] == sum(measured["start"]) / (COUNT * SAMPLES)
    said = " ".join(out.split())
    assert "canaries " in out and "12 questions, 4 responses to each before and after; eps 0.05, delta 0.05" in said
    assert "certificate: the start model is returned; accuracy on 12 canaries, 4 responses each" in said
    assert "about 68 canaries would have been needed, were the others like these (an estimate)" in said
    assert said.count("run --step last") == 2  # what to do next
    code, out, err = call(export, "run", "--out=model")
    assert_one_sentence((code, err), "the certificate of", "returns the start model", "--step last")
    assert not (tmp_path / "model").exists()
    assert_one_sentence(call(evaluate, *FEW, "--checkpoint=run")[::2], "returns the start model", "--step last")
    code, out, err = call(export, "run", "--out=model", "--step=last")
    assert code == 0 and "after 1 steps" in out, err
    code, out, err = call(evaluate, *FEW, "--checkpoint=run", "--step=last", "--out=eval")
    assert code == 0 and "after step 1" in out, err


@pytest.mark.slow
def test_a_run_that_goes_on_needs_no_start_and_counts_its_looks(call, canaries, tmp_path: Path):
    """With eps and delta of 0.9 no change is enough: x = 0.9, and the second bet of 0.95 makes 1.855 of 1, above
    1 / 0.9."""
    wide = ["--config.canary.eps=0.9", "--config.canary.delta=0.9"]
    begun = [*FEW, *STILL, *canaries, *wide, "--workdir=run"]
    code, out, err = call(train, *begun)
    assert code == 0, err
    first, start = certificate("run"), kept("run")["start"]
    assert (first["returned"], first["needed"], first["look"]) == ("trained", 2, 1)
    said = " ".join(out.split())
    assert "the trained model is returned" in said and "took 2 canaries" in said and "--step" not in said
    assert "worse by more than 0.9 on such questions is returned with a chance of at most 0.9 " in f"{said} "
    assert call(train, *begun)[1].count("certificate: the trained model is returned") == 1  # finished: it says so again

    lost = (tmp_path / "run" / canary.FILE).rename(tmp_path / "lost")
    more = [each for each in begun if each != "--config.episodes=1"] + ["--config.episodes=2"]
    assert_one_sentence(call(train, *more)[::2], canary.FILE, "missing or damaged", "put it back")
    lost.rename(tmp_path / "run" / canary.FILE)
    code, out, err = call(train, *more)
    assert code == 0, err
    assert certificate("run") == first | {"look": 2} and kept("run")["start"] == start
    assert [look["step"] for look in kept("run")["looks"]] == [1, 2]
    assert "with a chance of at most 1.8, over all 2 looks at these canaries" in " ".join(out.split())

    write(tmp_path / "other.jsonl", held_out()[1:])
    other = [f"--config.canary.path={tmp_path / 'other.jsonl'}" if "canary.path" in each else each for each in more]
    assert_one_sentence(call(train, *other)[::2], "canary_sha256", "another --workdir")
    (tmp_path / "canaries.jsonl").rename(tmp_path / "moved.jsonl")
    moved = [each.replace("canaries.jsonl", "moved.jsonl") for each in more]
    assert call(train, *moved)[0] == 0  # a path is no matter


@pytest.mark.slow
def test_canaries_change_nothing_else(call, canaries, tmp_path: Path):
    learning = ["--config.train.learning_rate=4e-4", "--config.episodes=3"]
    found = []
    for name, more in (("with", canaries), ("without", [])):
        code, out, err = call(train, *FEW[:-1], *learning, *more, f"--workdir={name}")
        assert code == 0, err
        found.append(results(tmp_path / name))
    assert found[0]["summary"].pop("certificate")["canaries"] == COUNT
    assert found[0] == found[1]
    line = "certificate: none, as there are no canaries (canary.path); nothing is promised of new questions"
    assert line in out.splitlines()


def test_a_canary_is_measured_as_an_evaluation_measures(tmp_path: Path):
    """Slow twin: the accuracy that an evaluation finds with the same random numbers, before and after no training."""
    config = quickstart_sums.get_config()
    config.eval.tasks, config.data.limit, config.rollout.prompts = (), 4, 4
    config.train.minibatch_prompts = 4
    config.canary.path, config.canary.samples = write(tmp_path / "canaries.jsonl", held_out()), SAMPLES
    config.eval.samples = SAMPLES
    session = open_session(read_inputs(config))
    canary.begin(session, tmp_path, progress=lambda tokens, share: None)
    key = jax.random.fold_in(jax.random.key(config.seed), canary._KEY)
    twin = measure(session, session.inputs.canaries, key, progress=lambda tokens, share: None)
    assert sum(kept(tmp_path)["start"]) / (COUNT * SAMPLES) == twin.numbers[f"avg@{SAMPLES}"]
    assert [each.name for each in session.inputs.sets] == ["data"]  # no evaluation shows them
    session = dataclasses.replace(session, step=session.inputs.total_steps)
    canary.end(session, tmp_path, progress=lambda tokens, share: None)
    found = canary.outcome(tmp_path, step=session.step)
    assert kept(tmp_path)["looks"][0]["trained"] == kept(tmp_path)["start"]
    assert (found["returned"], found["needed"], found["look"]) == ("start", 68, 1)
    assert canary.outcome(tmp_path, step=session.step + 1) is None


TRAINED = generate.TASKS["sums.train"]()[0][0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*held_out(), {"prompt": f" {TRAINED}\n", "answer": "1"}], ("is trained on (builtin:sums.train)", "take it")),
        ([*held_out(), held_out()[0]], ("is there twice",)),
        ([*held_out(), {"prompt": "What is 1 + 1?"}], ("1 of 13 questions have no truth",)),
        ([{"prompt": "What is 1 + 1?"}], ("1 of 1 questions have no truth",)),
    ],
)  # fmt: skip
def test_questions_that_are_no_canaries(tmp_path: Path, rows: list[dict], words: tuple[str, ...]):
    config = quickstart_sums.get_config()
    config.canary.path = write(tmp_path / "canaries.jsonl", rows)
    with pytest.raises(InputError) as error:
        read_inputs(config)
    assert all(word in str(error.value) for word in ("canary.path", *words)), error.value
    read_inputs(config, training=False)  # who only measures has no canaries


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("path", "/nowhere.json", ("/nowhere.json",)),
        ("samples", 0, ("canary.samples must be at least 1",)),
        ("eps", 1.0, ("canary.eps", "below 1")),
        ("eps", -0.1, ("canary.eps", "at least 0")),
        ("delta", 1.0, ("canary.delta", "below 1")),
        ("delta", 0.0, ("canary.delta", "at least 1e-09")),
    ],
)
def test_bad_values(key: str, value: object, words: tuple[str, ...]):
    config = quickstart_sums.get_config()
    config.canary[key] = value
    with pytest.raises(InputError) as error:
        read_inputs(config)
    assert all(word in str(error.value) for word in words), error.value


def test_too_few_canaries_are_refused(tmp_path: Path):
    """Six that all went from wrong to right are the fewest that pass (tests/test_certificate.py)."""
    config = quickstart_sums.get_config()
    for count in (5, 6):
        config.canary.path = write(tmp_path / f"{count}.jsonl", held_out(count))
        inputs = read_inputs(config)
        if count == 5:
            with pytest.raises(InputError, match="has 5 questions.*at least 6"):
                canary.require_enough(inputs)
        else:
            canary.require_enough(inputs)


@pytest.mark.slow
def test_the_best_checkpoint_stays_and_is_exported(call, tmp_path: Path):
    """Semantics: what a run keeps is what the rule chooses of its votes, at each save."""
    more = ["--config.train.learning_rate=4e-4", "--config.episodes=6", "--config.rollout.votes=16"]
    more += ["--config.checkpoint.keep=1", "--config.checkpoint.keep_best=1", "--workdir=run"]
    code, out, err = call(train, *FEW[:-1], *more)
    assert code == 0 and "the newest 1 are kept, and the best 1 by checkpoint.keep_best" in " ".join(out.split()), err
    visits = read_visits(tmp_path / "run")
    saved: list[int] = []
    for step in range(1, 7):  # an episode has one step
        kept = choice.best([visit for visit in visits if visit["step"] < step], saved, episode=1, most=1)
        saved = sorted({*kept, step})
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == saved
    assert len(saved) == 2, "nothing was learned, so that nothing can be told apart"
    code, out, err = call(export, "run", "--out=model", "--step=chosen")
    assert code == 0 and f"after {saved[0]} steps" in out, err
