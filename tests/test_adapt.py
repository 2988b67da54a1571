"""Semantics: a model that adapts to one question answers it as if there were no other, and is then the start again."""

import copy
import dataclasses
from collections.abc import Iterator

import jax
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import quickstart_sums
from ttrl_jax import library
from ttrl_jax.data.generate import TASKS
from ttrl_jax.data.problems import Problem
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import read_inputs
from ttrl_jax.model.weights import sha256
from ttrl_jax.reward.adoption import AGREED, UNANSWERED, rises
from ttrl_jax.reward.history import History
from ttrl_jax.stream import adapting
from ttrl_jax.stream.adapting import Start, adapt, begin, for_adapting
from ttrl_jax.stream.learning import learn
from ttrl_jax.stream.votes import poll, vote_key

PROBLEMS = [Problem(i, str(i), question, None) for i, (question, _) in enumerate(TASKS["sums.train"]()[:4])]
VOTES, STEPS = 16, 8
SETTINGS = {"rollout.votes": VOTES, "rollout.rows": 32, "train.samples": VOTES, "train.micro_tokens": 384,
            "lora.rank": 4, "train.learning_rate": 1e-4, "rollout.temperature": 0.9, "solve.steps": STEPS}  # fmt: skip


def config_of() -> ConfigDict:
    config = quickstart_sums.get_config()
    config.data.path, config.eval.tasks = "stream", ()
    for key, value in SETTINGS.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    return for_adapting(config, given=())[0]


def open_start() -> Start:
    inputs = read_inputs(config_of(), stream=True)
    return begin(library.open_session(inputs, say=lambda line: None))


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    yield open_start()


def replace(start: Start, **changes) -> Start:
    """The same with another session, which has changes."""
    return dataclasses.replace(start, session=dataclasses.replace(start.session, **changes))


def with_keys(start: Start, **changes) -> Start:
    """The same with keys that no program depends on."""
    config = copy.deepcopy(start.session.config.as_configdict())
    for key, value in changes.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    return replace(start, inputs=dataclasses.replace(start.session.inputs, config=FrozenConfigDict(config)))


def row(start: Start, problem: Problem) -> dict:
    found = adapt(start, problem)
    (ballot,), (winner,) = found.voted.ballots, found.voted.winners
    said = {"label": None if winner is None else ballot.answers[winner].text, "texts": found.voted.rollouts.texts}
    return found.row() | said


@pytest.fixture(scope="module")
def other() -> Start:
    """The same model, opened once more."""
    return open_start()


@pytest.fixture(scope="module")
def rows(start: Start) -> list[dict]:
    """What is answered to each question, in their order."""
    return [row(start, problem) for problem in PROBLEMS]


def test_no_answer_depends_on_another_question(start: Start, other: Start, rows: list[dict]):
    """Invariance: in another order, twice, and by a model that has answered nothing else, all is the same."""
    before = sha256(start.session.state.policy.params)
    order = [3, 0, 2, 1]
    again = {i: row(start, PROBLEMS[i]) for i in order}
    assert [again[i] for i in range(len(PROBLEMS))] == rows
    assert row(other, PROBLEMS[order[0]]) == rows[order[0]]
    assert sha256(start.session.state.policy.params) == before and start.session.step == 0


def test_it_answers_by_the_start_or_by_what_it_has_become(start: Start, rows: list[dict]):
    """Slow twin: a session that only samples, of the model without adapters, draws the votes of the start. What is kept
    is what the signals say, and what is answered is of the one ballot or of the other."""
    config = config_of()
    config.lora.rank = 0
    voting = library.open_session(read_inputs(config, training=False, stream=True))
    for problem, found in zip(PROBLEMS, rows, strict=True):
        voted = poll(voting, [problem], vote_key(voting))
        (ballot,), (winner,), said = voted.ballots, voted.winners, found["adapted"]
        before, after = said["before"], said["after"]
        assert before["label"] == ballot.answers[winner].text
        assert before["share"] == ballot.counts[winner] / VOTES and before["cut"] == voted.rollouts.truncated.mean()
        assert said["steps"] == STEPS and found["tokens"] > STEPS * VOTES
        higher = rises(round(before["share"] * VOTES), round(after["share"] * VOTES), votes=VOTES)
        worse = after["cut"] > before["cut"] or after["no_answer"] > before["no_answer"]
        assert said["kept"] == (higher and not worse and said["why"] != "new") == (said["why"] is None)
        assert found["label"] == (after if said["kept"] else before)["label"]
        assert (found["texts"] == voted.rollouts.texts) == (not said["kept"])
    kept = [found["adapted"]["kept"] for found in rows]
    assert 0 < sum(kept) < len(kept)


def test_its_steps_are_those_of_the_usual_verbs(start: Start, other: Start, monkeypatch: pytest.MonkeyPatch):
    """Slow twin: the loop of docs/library.md on one question, whose first votes are those of the start. Parameters and
    moments are the same bit by bit, after each of two steps."""
    states, steps = [], 2

    def seen(*arguments):
        made = learn(*arguments)
        states.append(sha256(made[0].state.models))
        return made

    monkeypatch.setattr(adapting, "learn", seen)
    problem = PROBLEMS[3]
    found = adapt(with_keys(start, **{"solve.steps": steps}), problem)
    session = adapting._again(other)
    config, task, history = session.config, session.task, History()
    judge, prompts = library.judge_of(config, task), library.encode(session, [problem])
    want, tokens = [], 0
    for step in range(steps + 1):
        (key,) = library.task_keys(session) if step == 0 else (library.step_key(session, step),)
        rollouts = library.sample(session, prompts, key, votes=VOTES, sampling=session.sampling)
        tokens += int(rollouts.lengths.sum())
        ballots = library.cast_votes(task, rollouts.texts)
        if step == steps:
            break
        evidence = library.evidence_of(session, prompts, rollouts, judge)
        verdict = judge(ballots, evidence, history, library.Draw(0, step, [problem.index]))
        chosen = library.select(verdict.rewards, samples=VOTES)
        trained = library.train_batch(prompts, rollouts, chosen)
        session, advantages, _ = library.credit(session, trained, verdict.take(chosen))
        session, metrics = library.update(session, trained, {"advantages": advantages})
        assert metrics["learning_rate"] == pytest.approx(1e-3) and metrics["grad_norm"] > 0
        want.append(sha256(session.state.models))
    assert states == want and len(set(states)) == steps
    assert found.after.ballot.counts == ballots[0].counts and found.tokens == tokens


def test_nothing_is_compiled_for_what_has_shapes_that_were_there(start: Start, rows: list[dict]):
    """Semantics: no program is traced or compiled while the same votes are cast and learned from once more."""
    seen = []

    def listen(event: str, duration: float, **details) -> None:
        if event.startswith("/jax/core/compile/"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 1)(1.0)
        assert seen, "compiles are not told of any more"
        seen.clear()
        assert [row(start, problem) for problem in PROBLEMS[:2]] == rows[:2]
        assert seen == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_arrays_on_the_devices_do_not_grow(start: Start, rows: list[dict]):
    sizes = []
    for problem in PROBLEMS:
        adapt(with_keys(start, **{"solve.steps": 1}), problem)
        sizes.append(sum(each.nbytes for each in jax.live_arrays()))
    assert len(set(sizes)) == 1, sizes


def test_numbers_that_are_not_finite_are_taken_back(start: Start, rows: list[dict]):
    """A rate at which the first step makes parameters that are not finite: the start's answer stands, for the question
    after it too."""
    wild = with_keys(start, **{"train.learning_rate": 3e37})
    for problem, found in zip(PROBLEMS[:2], rows, strict=False):
        answer = row(wild, problem)
        said = answer["adapted"]
        assert said["why"] == adapting.NOT_FINITE and not said["kept"] and said["after"] is None
        assert said["before"] == found["adapted"]["before"] and answer["label"] == said["before"]["label"]
    assert row(start, PROBLEMS[0]) == rows[0]


@pytest.mark.parametrize(("temperature", "why"), [(0.001, AGREED), (1e6, UNANSWERED)])
def test_no_step_is_taken_where_the_answer_would_stand(start: Start, temperature: float, why: str):
    """Votes that all agree, and random tokens, in which there is no answer: the votes of the start are all that is
    drawn."""
    sampling = dataclasses.replace(start.session.sampling, temperature=temperature)
    found = adapt(replace(start, sampling=sampling), PROBLEMS[0])
    assert (found.why, found.steps, found.after) == (why, 0, None)
    assert found.tokens == found.voted.rollouts.lengths.sum() and found.row()["adapted"]["after"] is None
    assert (found.before.winner is None) == (why == UNANSWERED)


def test_it_says_how_far_it_is(start: Start):
    told = []
    found = adapt(
        with_keys(start, **{"solve.steps": 2}), PROBLEMS[0], progress=lambda tokens, share: told.append((tokens, share))
    )
    tokens, shares = zip(*told, strict=True)
    assert list(tokens) == sorted(tokens) and list(shares) == sorted(shares)
    assert {int(3 * share + 1e-9) for share in shares} == {0, 1, 2}  # of three times that it votes
    assert tokens[0] == VOTES and 2 * VOTES < tokens[-1] < found.tokens


# ---------------------------------------------------------------------- what it needs of a config


def test_what_was_set_stays_and_the_rest_is_what_adapting_needs():
    config = quickstart_sums.get_config()
    made, said = for_adapting(config, given=())
    assert (made.lora.rank, made.train.learning_rate) == (16, 3e-5)  # the second by the config file
    assert (made.rollout.prompts, made.train.minibatch_prompts, made.solve.replay) == (1, 1, 0)
    assert said == {
        "lora.rank": "0 before, for --mode=adapt",
        "rollout.prompts": "8 before, for --mode=adapt",
        "train.minibatch_prompts": "8 before, for --mode=adapt",
    }
    config.lora.rank, config.train.learning_rate = 2, 5e-7  # the default
    made, said = for_adapting(config, given=())
    assert (made.lora.rank, made.train.learning_rate) == (2, 5e-5) and "train.learning_rate" in said
    made, said = for_adapting(config, given=("train.learning_rate", "rollout.prompts"))
    assert (made.train.learning_rate, made.rollout.prompts) == (5e-7, 1) and "train.learning_rate" not in said
    config.lora.rank, config.model.adapter = 0, "a folder, whose rank is taken"
    assert for_adapting(config, given=())[0].lora.rank == 0


@pytest.mark.parametrize(
    ("changes", "given", "words"),
    [
        ({"lora.rank": 0}, ("lora.rank",), "leave it out for 16"),
        ({"rollout.stop_votes": 0.05}, (), "ballots of one size"),
        ({"solve.replay": 2}, ("solve.replay",), "--mode=learn"),
        ({"reward.label": "truth"}, (), "beforehand"),
        ({"reward.label": "offline"}, (), "beforehand"),
    ],
)
def test_what_does_not_go_with_it(changes: dict, given: tuple[str, ...], words: str):
    config = quickstart_sums.get_config()
    for key, value in changes.items():
        section, leaf = key.split(".")
        config[section][leaf] = value
    with pytest.raises(InputError, match=words):
        for_adapting(config, given=given)
