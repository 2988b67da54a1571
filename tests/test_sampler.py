"""Invariance and semantics: the same tokens whatever is decoded together, stops that stop, and log-probs that are those
of training."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import LLAMA, QWEN2, QWEN3, all_logits, on_mesh, random_params, sampling_copy

from ttrl_jax.learn.batch import train_batch
from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.learn.microbatch import few_shapes, micro_batches
from ttrl_jax.model import decoder
from ttrl_jax.records import Prompts
from ttrl_jax.rollout import decoding, slots
from ttrl_jax.rollout import sampler as module
from ttrl_jax.rollout import shapes as module_of_shapes
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import Shapes

CONFIG = QWEN2
PARAMS = random_params(CONFIG)
T, V = 14, 15
STOPS = (3, 17, 40)
SAMPLING = Sampling(temperature=0.8, top_k=20, top_p=0.95)
KEY, OTHER_KEY = jax.random.key(5), jax.random.key(6)


def make_prompts():
    """7 prompts of 1 to 9 tokens; what pads them is not zero."""
    rng = np.random.default_rng(0)
    lengths = np.array([5, 1, 9, 3, 9, 2, 6], np.int32)
    ids = rng.integers(CONFIG.vocab, size=(7, 21)).astype(np.int32)
    return Prompts(ids, lengths, np.array([11, 5, 900, 0, 2**32 - 1, 7, 8], np.uint32))


PROMPTS = make_prompts()


def make_sampler(*, rows=1000, max_tokens=T, stops=STOPS, multiples=(1, 1), config=CONFIG, prefill=1000, few=None):
    shapes = Shapes(rows, max_tokens, prefill, *multiples)
    if few is not None:
        shapes = module_of_shapes.few(shapes, **few)
    return Sampler(config, dtype=jnp.float32, shapes=shapes, stop_ids=stops, announce=lambda *told: None)


@functools.cache
def copy():
    return decoder.sampling_weights(jax.tree.map(jnp.asarray, PARAMS), CONFIG, jnp.float32)


def ignore(tokens, share):
    pass


def run(sampler, *, weights=None, prompts=PROMPTS, key=KEY, votes=V, sampling=SAMPLING, progress=ignore):
    weights = copy() if weights is None else weights
    return sampler(weights, prompts, key, votes=votes, sampling=sampling, progress=progress)


@pytest.fixture(scope="module")
def whole():
    """The sampler that decodes everything at once."""
    return make_sampler()


@pytest.fixture(scope="module")
def rollouts(whole):
    return run(whole)


def rows_of(prompts, rollouts):
    """Everything as rows for the training forward."""
    p, v = rollouts.lengths.shape
    return train_batch(prompts, rollouts, np.tile(np.arange(v), (p, 1)))


def probabilities(p, tokens):
    """Of what top-k keeps after prompt p and `tokens`, float64 [W]."""
    row = np.zeros((1, 32), np.int32)
    length = PROMPTS.lengths[p]
    row[0, :length] = PROMPTS.ids[p, :length]
    row[0, length : length + len(tokens)] = tokens
    logits = np.asarray(all_logits(PARAMS, CONFIG, row), np.float64)[0, length + len(tokens) - 1]
    weights = np.exp(logits / SAMPLING.temperature)
    weights[weights < np.sort(weights)[-SAMPLING.top_k]] = 0
    return weights / weights.sum()


def slow_draw(p, v, tokens):
    """The token that sample v of prompt p has after `tokens`, and how near it was to another one, in probability.

    By inversion of the cumulative distribution; a token outside the nucleus is drawn again, from those above it.
    """
    probs, key = probabilities(p, tokens), KEY
    for data in (PROMPTS.uids[p], v, len(tokens)):
        key = jax.random.fold_in(key, data)
    edge, margins = 0.0, []
    for attempt in range(CONFIG.vocab):
        cumulative = np.cumsum(np.where(probs > edge, probs, 0))
        target = float(jax.random.uniform(jax.random.fold_in(key, attempt))) * cumulative[-1]
        token = int(np.searchsorted(cumulative, target, side="right"))
        edge = probs[token]
        above = probs[probs > edge].sum()
        margins += [np.abs(cumulative[:-1] - target).min(), abs(above - SAMPLING.top_p)]
        if above < SAMPLING.top_p:
            return token, min(margins)
    raise AssertionError("the highest is never outside the nucleus")


def assert_same_tokens(got, want):
    """Equal, but for at most 1 % of the samples, whose first difference lies within 1e-4 of the border between two
    tokens."""
    differ = np.argwhere((got.tokens != want.tokens).any(-1))
    assert len(differ) < 0.01 * want.lengths.size
    for p, v in differ:
        position = int((got.tokens[p, v] != want.tokens[p, v]).argmax())
        assert slow_draw(p, v, want.tokens[p, v, :position])[1] < 1e-4
    same = (got.tokens == want.tokens).all(-1)
    np.testing.assert_array_equal(got.lengths[same], want.lengths[same])
    np.testing.assert_array_equal(got.truncated[same], want.truncated[same])
    np.testing.assert_allclose(got.logps[same], want.logps[same], atol=1e-4)


def test_tokens_are_the_draws_of_their_own_random_numbers(rollouts):
    """Slow twin of a few samples: full forward, sorting, float64, the key of each position."""
    for p, v in [(0, 0), (1, 3), (4, 14), (6, 7)]:
        tokens = rollouts.tokens[p, v, : rollouts.lengths[p, v]]
        for position, token in enumerate(tokens[:6]):
            assert token == slow_draw(p, v, tokens[:position])[0]


def test_shapes_stops_lengths_and_truncation(rollouts):
    assert rollouts.tokens.shape == rollouts.logps.shape == (7, V, T)
    assert rollouts.lengths.shape == rollouts.truncated.shape == (7, V)
    assert rollouts.tokens.dtype == rollouts.lengths.dtype == np.int32
    assert rollouts.logps.dtype == np.float32 and rollouts.truncated.dtype == bool
    for tokens, logps, length, truncated in zip(
        rollouts.tokens.reshape(-1, T),
        rollouts.logps.reshape(-1, T),
        rollouts.lengths.ravel(),
        rollouts.truncated.ravel(),
        strict=True,
    ):
        stops = np.flatnonzero(np.isin(tokens[:length], STOPS))
        assert truncated == (len(stops) == 0)
        assert length == (T if truncated else stops[0] + 1)
        assert (logps[:length] < 0).all() and not tokens[length:].any() and not logps[length:].any()
    assert 10 < rollouts.truncated.sum() < 95  # both kinds
    assert len(set(rollouts.lengths.ravel())) > 8


@pytest.mark.parametrize("few", [False, True])
def test_logprobs_are_those_of_the_training_forward(rollouts, few):
    batch = rows_of(PROMPTS, rollouts)
    rows = np.arange(len(batch.mask))
    sizes = dict(tokens=10_000, longest=100)
    kinds = few_shapes(rows=len(rows), even=math.inf, **sizes) if few else None
    pieces = micro_batches(batch, rows, shards=1, chunk=500, full=len(rows), kinds=kinds, **sizes)
    score = jax.jit(
        lambda micro: response_logprobs(
            jax.tree.map(jnp.asarray, PARAMS),
            CONFIG,
            micro,
            temperature=SAMPLING.temperature,
            dtype=jnp.float32,
            remat="none",
            entropy_gradient=False,
        )[0]
    )
    gaps = [np.abs(score(micro) - micro.take(batch.sampler_logps)) * micro.mask for micro in pieces]
    assert sum(micro.mask.sum() for micro in pieces) == rollouts.lengths.sum() > 500
    assert max(gap.max() for gap in gaps) < 1e-4


def test_each_response_is_handed_over_once_and_before_the_last_is_drawn(rollouts, monkeypatch):
    monkeypatch.setattr(decoding, "SEGMENT", 3)
    events = []
    sampler = make_sampler(rows=20)
    sampler(
        copy(), PROMPTS, KEY, votes=V, sampling=SAMPLING, progress=lambda tokens, share: events.append(tokens),
        ended=lambda prompt, vote, ids: events.append((prompt, vote, ids.tolist())),
    )  # fmt: skip
    found = {event[:2]: event[2] for event in events if isinstance(event, tuple)}
    assert found == {(p, v): rollouts.tokens[p, v, :n].tolist() for (p, v), n in np.ndenumerate(rollouts.lengths)}
    assert len([event for event in events if isinstance(event, tuple)]) == 7 * V
    last_look = max(i for i, event in enumerate(events) if isinstance(event, int))
    assert sum(isinstance(event, tuple) for event in events[:last_look]) > 6 * V


# 1: one sample after the other. 64: nine slots for each prompt, which are refilled.
@pytest.mark.parametrize("rows", [1, 64])
def test_the_number_of_slots_changes_nothing(rows, rollouts):
    drawn, shares, sampler = [], [], make_sampler(rows=rows)

    def look(tokens, share):
        drawn.append(tokens)
        shares.append(share)

    found = run(sampler, progress=look)
    assert_same_tokens(found, rollouts)
    assert shares == sorted(shares) and 0 <= shares[0] and 0.5 < shares[-1] < 1
    assert drawn == sorted(drawn) and drawn[0] == {1: V, 64: 7 * V}[rows] and drawn[-1] < rollouts.lengths.sum()
    # The first token of a sample takes no step, and one slot is never idle.
    used = (rollouts.lengths - 1).sum() / found.slot_steps
    assert used == 1 if rows == 1 else 0.5 < used < 1


LONG = 40


@pytest.fixture(scope="module")
def long_rollouts():
    """Responses of up to 40 tokens."""
    long = run(make_sampler(max_tokens=LONG))
    assert 0 < long.truncated.sum() < 80 and len(set(long.lengths.ravel())) > 15
    return long


@pytest.fixture
def small_steps(monkeypatch):
    """What is kept for long responses happens to short ones too."""
    monkeypatch.setattr(decoding, "SEGMENT", 5)
    monkeypatch.setattr(module_of_shapes, "FIRST_CACHE", 16)
    monkeypatch.setattr(module, "WORTH_MOVING", 2)
    monkeypatch.setattr(slots, "SMALLEST", 4)
    monkeypatch.setattr(module_of_shapes, "SMALLEST", 4)


def listen(sampler):
    """Name of each program -> the lines, from now on, of what it is compiled for."""
    said = {program.name: [] for program in sampler.programs}
    for program in sampler.programs:
        lines = said[program.name]
        program._announce = lambda name, shapes, seconds, lines=lines: lines.append(shapes) if seconds is None else None
    return said


def assert_each_shape_was_compiled_once(sampler):
    """No two signatures of a program differ in the devices' layout alone."""
    for program in sampler.programs:
        shapes = {
            (structure, static, tuple(shape for shape, _ in leaves))
            for structure, static, _, leaves in program._programs
        }
        assert len(shapes) == len(program._programs), program.name


def test_growing_shrinking_and_moving_change_nothing(long_rollouts, small_steps):
    """Two slots for each prompt, refilled."""
    sampler = make_sampler(rows=20, max_tokens=LONG)
    said = listen(sampler)
    found = run(sampler)
    assert_same_tokens(found, long_rollouts)
    sizes = [{size for size in (16, 24, 32, 40) if line.endswith(f"slots={size}")} for line in said["cache size"]]
    assert {24, 32, 40} <= set.union(*sizes) and len(said["move"]) > 0 and len(said["decode"]) > 3
    assert len(said["prefill"]) == len(said["cache"]) == 1
    assert 0.6 < (long_rollouts.lengths - 1).sum() / found.slot_steps < 1
    assert sampler.compile_seconds > 0
    # Other random numbers and another mix of prompts: nothing but new shapes of the ladders is compiled.
    order = [3, 5, 1, 0, 6, 4, 2]
    run(sampler, prompts=Prompts(PROMPTS.ids[order], PROMPTS.lengths[order], PROMPTS.uids[order]), key=OTHER_KEY)
    assert len(said["prefill"]) == 1
    assert_each_shape_was_compiled_once(sampler)
    total = sampler.compile_seconds
    assert_same_tokens(run(sampler), long_rollouts)
    assert sampler.compile_seconds == total


def test_eight_devices_change_nothing(long_rollouts, small_steps):
    """Slots are refilled, moved to fewer, and padded to what the mesh divides."""
    with on_mesh((2, 2, 2)) as mesh:
        sampler = make_sampler(rows=40, max_tokens=LONG, multiples=(mesh.shape["data"], mesh.shape["fsdp"]))
        said = listen(sampler)
        got = run(sampler, weights=sampling_copy(PARAMS, CONFIG, mesh))
        run(sampler, weights=sampling_copy(PARAMS, CONFIG, mesh), key=OTHER_KEY)
    assert_same_tokens(got, long_rollouts)
    assert len(said["move"]) > 0 and len(said["cache size"]) > 1
    assert_each_shape_was_compiled_once(sampler)


@pytest.mark.slow
def test_few_slots_are_idle_though_few_responses_are_long():
    """Uniform logits, a stop token in 74: the median length is a fifth of the limit. 512 samples on 64 slots."""
    config = dataclasses.replace(LLAMA, vocab=74, layers=1)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), decoder.shapes(config))
    sampler = make_sampler(rows=64, max_tokens=256, stops=(3,), config=config)
    prompts = Prompts(np.ones((8, 4), np.int32), np.full(8, 4, np.int32), np.arange(8, dtype=np.uint32))
    weights = decoder.sampling_weights(zeros, config, jnp.float32)
    found = run(sampler, weights=weights, prompts=prompts, votes=64, sampling=Sampling())
    assert 0.15 < np.median(found.lengths) / 256 < 0.25 and 5 < found.truncated.sum() < 30
    assert 0.85 < (found.lengths - 1).sum() / found.slot_steps < 1


@pytest.mark.parametrize("by_blocks", [False, True])
def test_few_shapes_change_nothing(by_blocks, long_rollouts, small_steps, monkeypatch):
    """One prefill of three prompts, six decode programs at most, whatever is sampled; here of 7 prompts and of 2."""
    monkeypatch.setattr(module_of_shapes, "VECTOR", 8)
    monkeypatch.setattr(module_of_shapes, "BLOCK", 8)
    sampler = make_sampler(
        rows=64, max_tokens=LONG, few=dict(longest_prompt=9, prompts=3, most_votes=V + 2, by_blocks=by_blocks)
    )
    said = listen(sampler)
    assert_same_tokens(run(sampler), long_rollouts)
    part = Prompts(PROMPTS.ids[:2], PROMPTS.lengths[:2], PROMPTS.uids[:2])
    assert_same_tokens(run(sampler, prompts=part, votes=6), take(long_rollouts, slice(2), slice(6)))
    run(sampler, sampling=dataclasses.replace(SAMPLING, temperature=1.5, top_p=0.5))
    assert len(said["prefill"]) == len(said["cache"]) == 1 and 2 < len(said["decode"]) <= 6
    assert_each_shape_was_compiled_once(sampler)


def test_prompts_are_computed_a_few_at_once(rollouts):
    """Two at once, the last of them twice."""
    sampler = make_sampler(prefill=40)
    said = listen(sampler)
    assert_same_tokens(run(sampler), rollouts)
    assert len(said["prefill"]) == 1 and "ids int32[2, 16]" in said["prefill"][0]


def test_a_greedy_response_beside_the_votes(whole, rollouts):
    """Semantics: the votes are what they are without it, and it is what a greedy sampler draws."""
    both = whole(copy(), PROMPTS, KEY, votes=V, sampling=SAMPLING, greedy=True, progress=ignore)
    assert both.tokens.shape == (7, V + 1, T)
    assert_same_tokens(both.of_votes(0, V), rollouts)
    alone = run(whole, votes=1, sampling=Sampling(temperature=0.0))
    np.testing.assert_array_equal(both.of_votes(V, V + 1).tokens, alone.tokens)


def test_responses_may_be_held_without_their_tokens(rollouts):
    """In batches of prompts, and of some votes."""
    light = make_sampler(rows=20)(copy(), PROMPTS, KEY, votes=V, sampling=SAMPLING, tokens=False, progress=ignore)
    assert light.tokens.shape == light.logps.shape == (7, V, 0)
    for got, want in ((light, rollouts), (light.of_votes(1, 3), rollouts.of_votes(1, 3))):
        np.testing.assert_array_equal(got.lengths, want.lengths)
        np.testing.assert_array_equal(got.truncated, want.truncated)
        np.testing.assert_allclose(got.mean_logps, want.mean_logps, rtol=1e-4)


def test_votes_and_questions_have_their_own_randomness(whole, rollouts):
    """Keys name the question and the vote, not the place in the batch."""
    order = [4, 2, 0, 1, 3, 6, 5]
    shuffled = Prompts(PROMPTS.ids[order], PROMPTS.lengths[order], PROMPTS.uids[order])
    assert_same_tokens(run(whole, prompts=shuffled), take(rollouts, order, slice(None)))
    # One question under seven names, all else equal: no two samples of some length are the same.
    twins = Prompts(PROMPTS.ids[[2] * 7], PROMPTS.lengths[[2] * 7], np.arange(7, dtype=np.uint32))
    again = run(whole, prompts=twins)
    long = again.tokens[again.lengths > 4]
    assert len({tuple(row) for row in long}) == len(long) > 50
    other = run(whole, key=jax.random.fold_in(KEY, 1))
    assert (other.tokens != rollouts.tokens).any(-1).mean() > 0.9


def test_fewer_votes_are_the_first_of_more(rollouts):
    sampler = make_sampler(rows=5)
    first = run(sampler, votes=5)
    assert first.tokens.shape == (7, 5, T)
    assert_same_tokens(run(sampler, votes=8), take(rollouts, slice(None), slice(8)))
    assert_same_tokens(first, take(rollouts, slice(None), slice(5)))


def take(rollouts, p, v):
    return module.Rollouts(
        rollouts.tokens[p][:, v], rollouts.lengths[p][:, v], rollouts.logps[p][:, v], rollouts.truncated[p][:, v], 0
    )


@pytest.mark.parametrize("config", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_greedy_is_the_argmax_of_the_full_forward(config):
    params = random_params(config, seed=3)
    prompts = Prompts(PROMPTS.ids[:3] % config.vocab, PROMPTS.lengths[:3], PROMPTS.uids[:3])
    rows = np.zeros((3, 32), np.int32)
    for row, ids, length in zip(rows, prompts.ids, prompts.lengths, strict=True):
        row[:length] = ids[:length]
    want = np.zeros((3, T), np.int32)
    for t in range(T):
        logits = np.asarray(all_logits(params, config, rows))
        want[:, t] = logits[np.arange(3), prompts.lengths + t - 1].argmax(-1)
        rows[np.arange(3), prompts.lengths + t] = want[:, t]
    weights = decoder.sampling_weights(jax.tree.map(jnp.asarray, params), config, jnp.float32)
    greedy = run(
        make_sampler(stops=(), config=config),
        weights=weights,
        prompts=prompts,
        votes=2,
        sampling=Sampling(temperature=0.0),
    )
    np.testing.assert_array_equal(greedy.tokens, np.repeat(want[:, None], 2, 1))
    assert greedy.truncated.all() and (greedy.lengths == T).all()
    assert len(np.unique(want)) > 5  # not a model that repeats itself


def test_nothing_is_decoded_after_the_last_stop():
    drawn = []
    rollouts = run(make_sampler(stops=tuple(range(CONFIG.vocab))), progress=lambda *done: drawn.append(done))
    assert drawn == [] and (rollouts.lengths == 1).all() and not rollouts.truncated.any()
    assert not rollouts.tokens[..., 1:].any()


def test_progress_may_abandon_the_batch(whole, rollouts):
    class Leave(Exception):
        pass

    def leave(tokens, share):
        raise Leave

    with pytest.raises(Leave):
        run(whole, progress=leave)
    assert_same_tokens(run(whole), rollouts)  # and nothing is left behind


def test_logits_that_are_not_finite_end_the_batch_while_it_is_decoded(long_rollouts, small_steps):
    """A token whose embedding is broken, which no prompt has: all is well until it has been drawn."""
    unseen = np.setdiff1d(np.arange(CONFIG.vocab), [*PROMPTS.ids.ravel(), *STOPS])
    held = np.isin(long_rollouts.tokens, unseen) & (np.arange(LONG) < long_rollouts.lengths[..., None])
    broken = jax.tree.map(np.copy, PARAMS)
    broken["embed"][unseen] = np.nan
    weights, drawn = decoder.sampling_weights(jax.tree.map(jnp.asarray, broken), CONFIG, jnp.float32), []
    with pytest.raises(FloatingPointError, match="not finite, first those of question (.*) .counted from 0.") as caught:
        run(make_sampler(max_tokens=LONG), weights=weights, progress=lambda *done: drawn.append(done))
    question = int(str(caught.value).split("question ")[1].split()[0])
    assert held[PROMPTS.uids.tolist().index(question)].any()
    assert 0 < len(drawn) < 1 + LONG // 5  # of as many segments
