"""Invariance and semantics: the votes that count are the first ones of all, on any slots and any mesh, and the others
leave no trace."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import QWEN2, on_mesh, random_params, sampling_copy

from ttrl_jax.data.problems import Problem
from ttrl_jax.model import decoder
from ttrl_jax.records import Prompts
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.stopping import Poll, Race, wins_needed
from ttrl_jax.rollout import decoding
from ttrl_jax.rollout import sampler as module_of_sampler
from ttrl_jax.rollout import shapes as module_of_shapes
from ttrl_jax.rollout import slots as slots_of
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import Shapes
from ttrl_jax.rollout.slots import IDLE, Slots, without
from ttrl_jax.tasks.hearing import Hearing, stop_of
from ttrl_jax.tasks.task import Task, by_strategies

SLOW_MESH = pytest.param((2, 2, 2), None, marks=pytest.mark.slow)
P, V, LEAST, T, ERROR = 5, 16, 4, 12, 0.8
KEY = jax.random.key(5)
PARAMS = random_params(QWEN2)
PROMPTS = Prompts(
    np.random.default_rng(0).integers(QWEN2.vocab, size=(P, 6)).astype(np.int32),
    np.array([5, 1, 6, 3, 2], np.int32),
    np.array([11, 5, 900, 0, 7], np.uint32),
)


def plain(one: Answer, other: Answer) -> bool:
    return one == other


def answer_of(prompt: int, ids: np.ndarray) -> Answer | None:
    """Made of the first token: all alike for prompt 0, and of several kinds for the others."""
    kind = int(ids[0]) % 7
    return None if kind == 6 and prompt > 1 else Answer("most" if kind >= prompt else str(kind))


def draw(*, rows=1000, shape=None, by_blocks=None, greedy=False, stop=True, wanted=None):
    """Rollouts, and the answers of the responses that were handed over: {(prompt, vote): answer}."""
    shapes = Shapes(rows, T, 1000, *((1, 1) if shape is None else shape[:2]))
    if by_blocks is not None:
        shapes = module_of_shapes.few(shapes, longest_prompt=6, prompts=P, most_votes=V + 1, by_blocks=by_blocks)
    sampler = Sampler(QWEN2, dtype=jnp.float32, shapes=shapes, stop_ids=(3, 17, 40), announce=lambda *told: None)
    polls = [Poll(votes=V, least=LEAST, error=ERROR, surely=plain) for _ in range(P)]
    said: dict[tuple[int, int], Answer | None] = {}

    def ended(prompt: int, vote: int, ids: np.ndarray) -> None:
        assert (prompt, vote) not in said
        said[prompt, vote] = answer_of(prompt, ids)
        if vote < V:
            polls[prompt].end(vote, said[prompt, vote])

    way = dict(votes=V, sampling=Sampling(temperature=1.0), greedy=greedy, ended=ended)
    way |= dict(progress=lambda tokens, share: None)
    if wanted is not None:
        way["wanted"] = functools.partial(wanted, said)
    elif stop:
        way["wanted"] = lambda prompts: [polls[p].wanted() for p in prompts]
    if shape is None:
        weights = decoder.sampling_weights(jax.tree.map(jnp.asarray, PARAMS), QWEN2, jnp.float32)
        return sampler(weights, PROMPTS, KEY, **way), said
    with on_mesh(shape) as mesh:
        return sampler(sampling_copy(PARAMS, QWEN2, mesh), PROMPTS, KEY, **way), said


@functools.cache
def whole():
    return draw(stop=False)


@functools.cache
def counts() -> list[int]:
    """Slow twin: of all votes of each prompt, the smallest prefix that is certified."""
    _, said = whole()
    found = []
    for p in range(P):
        race, count = Race(wins_needed(ERROR, V), plain), V
        for v in range(V):
            race.add(said[p, v])
            if v + 1 >= LEAST and race.certified:
                count = v + 1
                break
        found.append(count)
    return found


def assert_counted(found) -> None:
    """The votes that count are those of `whole`, and the others are zeros."""
    every, counted = whole()[0], np.arange(found.lengths.shape[1]) < np.array(counts())[:, None]
    np.testing.assert_array_equal(found.counted, counted)
    want = every.only(counted)
    for name in ("tokens", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(every, name).dtype
    np.testing.assert_allclose(found.logps, want.logps, atol=1e-4)
    assert not found.tokens[~counted].any() and not found.logps[~counted].any()


def test_the_questions_differ():
    assert counts()[0] < V and counts()[-1] == V and len(set(counts())) > 2


# 3: fewer slots than the votes of two prompts. 20: one for each vote that is cast in any case.
@pytest.mark.parametrize("rows", [3, 20, 1000])
@pytest.mark.parametrize("segment", [2, 64])
def test_slots_and_segments_change_nothing(rows: int, segment: int, monkeypatch):
    monkeypatch.setattr(decoding, "SEGMENT", segment)
    found, said = draw(rows=rows)
    assert_counted(found)
    every = whole()[0]
    drawn = found.lengths.sum() + found.thrown
    assert drawn < every.lengths.sum() and found.slot_steps >= (found.lengths[found.counted] - 1).sum() + found.thrown
    assert {(p, v) for p, count in enumerate(counts()) for v in range(count)} <= set(said)
    if segment == 64 and rows > 3:  # none runs beside those that count, but for an eighth more at a time
        assert max(v for p, v in said if p == 0) < counts()[0] + LEAST


def test_slots_that_were_moved_together_grow_again(monkeypatch):
    """At first some votes of one prompt, on few slots, and when they have ended all the others."""
    monkeypatch.setattr(decoding, "SEGMENT", 2)
    monkeypatch.setattr(module_of_sampler, "WORTH_MOVING", 2)
    monkeypatch.setattr(slots_of, "SMALLEST", 2)
    sizes, settle = [], module_of_sampler._Batch._settle

    def watched(batch, layout):
        new, watch = settle(batch, layout)
        sizes.append((layout.size, new.size))
        return new, watch

    monkeypatch.setattr(module_of_sampler._Batch, "_settle", watched)
    first = {(0, v) for v in range(LEAST)}
    found, _ = draw(wanted=lambda said, prompts: [V] * P if first <= said.keys() else [LEAST, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.tokens, whole()[0].tokens)
    assert found.counted.all() and found.thrown == 0
    assert any(after < before for before, after in sizes) and any(after > before for before, after in sizes)


@pytest.mark.parametrize(("shape", "by_blocks"), [((1, 8, 1), None), SLOW_MESH, (None, False), (None, True)])
def test_meshes_and_few_shapes_change_nothing(shape, by_blocks: bool | None):
    """by_blocks: few shapes, whose cache is read whole or by blocks; None: many."""
    assert_counted(draw(rows=64, shape=shape, by_blocks=by_blocks)[0])


def test_a_greedy_response_is_drawn_in_any_case(monkeypatch):
    """It is the last, waits behind the votes that are dropped, and is no vote."""
    monkeypatch.setattr(decoding, "SEGMENT", 2)
    found, said = draw(rows=5, greedy=True)
    every, _ = draw(greedy=True, stop=False)
    assert found.counted[:, V].all() and all((p, V) in said for p in range(P))
    np.testing.assert_array_equal(found.tokens[:, V], every.tokens[:, V])
    assert found.counted[:, :V].sum(1).tolist() == counts()


def test_samples_that_are_dropped_by_hand():
    """Prompt 0 is finished after two votes. Group 1 is prompt 1's, and stays as it is; in group 2 prompt 0's vote 7,
    which is not dropped, loses its place in the queue."""
    slots = Slots(
        prompts=np.array([0, 1, 0], np.int32),
        votes=np.array([[2, IDLE], [4, 5], [6, 3]], np.int32),
        tokens=np.array([[9, 0], [8, 7], [6, 5]], np.int32),
        lengths=np.array([[1, 0], [2, 3], [4, 5]], np.int32),
        queue=np.array([[4, 0], [6, 7], [5, 7]], np.int32),
        firsts=np.ones((3, 2), np.int32),
        waiting=np.array([1, 2, 2], np.int32),
        taken=np.array([0, 1, 0], np.int32),
    )
    dropped = np.zeros((2, 8), bool)
    dropped[0, 2:7] = True
    found, left = without(slots, dropped)
    assert found.votes.tolist() == [[IDLE, IDLE], [4, 5], [IDLE, IDLE]]
    assert found.tokens.tolist() == [[0, 0], [8, 7], [0, 0]] and found.lengths.tolist() == [[0, 0], [2, 3], [0, 0]]
    assert found.waiting.tolist() == [0, 2, 0] and found.taken.tolist() == [0, 1, 0]
    assert left == [[7], []]
    assert {getattr(found, name).dtype for name in ("votes", "tokens", "lengths", "waiting", "taken")} == {
        np.dtype("int32")
    }


# ---------------------------------------------------------------------- what is heard


def hear(task: Task, texts: list[str], *, least: int, error: float = 0.5) -> int:
    """How many votes count of responses whose token is their number."""
    problems = [Problem(7, "7", "which?\nA. x\nB. y", None)]
    stop = stop_of(task, problems, error=error, least=least)
    heard = Hearing(lambda ids: texts[ids[0]], [7], votes=len(texts), greedy=False, stop=stop)
    at = 0
    while at < (now := heard.wanted(range(1))[0]):
        heard.ended(0, at, np.array([at]))
        at += 1
    return now


def boxes(*answers: str) -> list[str]:
    return [f"so \\boxed{{{answer}}}" for answer in answers]


def test_answers_are_read_as_the_task_reads_them():
    assert hear(by_strategies(), boxes("5", "5.0", "10/2", "05", "5", "6", "7", "8"), least=2) == 5
    assert hear(by_strategies(), ["5 it is"] * 8, least=2) == 8
    choice = by_strategies(strategies=("choice",))
    assert hear(choice, boxes("A", "(a)", "A.", "A", "A", "B", "C", "C"), least=2) == 5
    assert hear(choice, boxes(*"EEEEEEEE"), least=2) == 8  # a letter that the question does not offer


def test_of_a_task_of_ones_own_nothing_is_sure_but_what_is_written_alike():
    """All that is written otherwise may be the same: a leader is one against all others together."""
    read = lambda text: Answer(re.search("[0-9]+", text)[0])  # noqa: E731
    own = Task("own", lambda question: [], read, classes=None, same=None)
    assert hear(own, ["1", "1", "1", "1", "1", "2", "3", "4"], least=2) == 5
    # The first vote is no bet: 6 wins are enough against a loss to each of two rivals, and 8 against two to one.
    votes = list("1213111111111")
    assert hear(own, votes, least=2) == 11 and hear(by_strategies(strategies=("last_number",)), votes, least=2) == 9


def test_no_error_is_no_stop():
    assert stop_of(by_strategies(), [], error=0.0, least=3) is None
    problem = Problem(3, "3", "why?", None)
    assert stop_of(by_strategies(), [problem], error=0.05, least=3).questions == {3: "why?"}
    assert json.dumps(stop_of(by_strategies(), [problem], error=0.05, least=3).error) == "0.05"
