"""Slow twin and semantics: draws follow the truncated distribution exactly, ties and edges of the unit interval too."""

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ttrl_jax.rollout import sampling as module
from ttrl_jax.rollout.sampling import Sampling, draw, draw_nucleus, keep_top_k, pick

DRAWS = 100_000
LARGEST = 1 - 2**-23  # of jax.random.uniform in float32


def truncated(logits, sampling):
    """The distribution [W] in float64, by sorting. Every token tied with the last one kept is kept."""
    scores = np.asarray(logits, np.float64) / sampling.temperature
    weights = np.exp(scores - scores.max())
    if sampling.top_k:
        weights[scores < np.sort(scores)[::-1][: sampling.top_k][-1]] = 0
    probs = weights / weights.sum()
    if sampling.top_p < 1:
        order = np.sort(probs)[::-1]
        last = np.searchsorted(np.cumsum(order), sampling.top_p)  # the first whose cumulative sum reaches top_p
        probs = np.where(probs >= order[last], probs, 0)
    return probs / probs.sum()


@jax.jit
def pick_many(logits, keys, sampling):
    """One row of logits, many keys."""
    return jax.vmap(lambda key: pick(logits, key, sampling))(keys)


def chi_square(counts, probs):
    """p-value of the counts; tokens that are expected fewer than 5 times are taken together."""
    expected = probs * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    seen = expected > 0
    assert counts[~seen].sum() == 0
    if seen.sum() == 1:
        return 1.0
    return scipy.stats.chisquare(counts[seen], expected[seen] * counts.sum() / expected[seen].sum()).pvalue


@pytest.fixture(scope="module", autouse=True)
def optimised() -> Iterator[None]:
    """Millions of numbers are drawn here: what is saved in compiling would be lost."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ)


# Each pair of two settings' values once.
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(t, k, (1.0, 0.95, 0.5)[(i + j) % 3]) for i, t in enumerate((0.6, 1.0, 1.5)) for j, k in enumerate((0, 5, 50))],
)
def test_draws_follow_the_truncated_distribution(temperature, top_k, top_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 2
    probs = truncated(logits, sampling)
    tokens, logps = pick_many(logits, jax.random.split(jax.random.key(1), DRAWS), sampling)
    counts = np.bincount(tokens, minlength=1000)
    assert counts[probs == 0].sum() == 0
    assert chi_square(counts, probs) > 1e-4
    untruncated = scipy.special.log_softmax(logits.astype(np.float64) / temperature)
    np.testing.assert_allclose(logps, untruncated[tokens], rtol=1e-5)


def test_the_chi_square_test_has_teeth():
    """It tells apart distributions that differ by a token at the threshold, or by 5 % in temperature."""
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 2
    tokens, _ = pick_many(logits, jax.random.split(jax.random.key(1), DRAWS), Sampling(1.0, 50, 0.95))
    counts = np.bincount(tokens, minlength=1000)
    assert chi_square(counts, truncated(logits, Sampling(1.05, 50, 0.95))) < 1e-4
    fewer = np.where(np.arange(1000) == np.flatnonzero(counts)[0], 0, counts)
    assert chi_square(fewer, truncated(logits, Sampling(1.0, 50, 0.95))) < 1e-4


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 10_007])
@pytest.mark.parametrize("k", [1, 3, 20, 2000])
def test_top_k_in_batches_equals_the_sorting_twin(size, k):
    """In few blocks (10,007 tokens), and where there are fewer blocks or tokens than k."""
    rows = tied_rows(size, size + k)
    got = np.asarray(jax.jit(keep_top_k, static_argnums=1)(rows - rows.min() + 1, k))
    for row, weights in zip(rows, got, strict=True):
        np.testing.assert_array_equal(weights > 0, row >= np.sort(row)[::-1][:k][-1])
        np.testing.assert_array_equal(weights[weights > 0], (row - rows.min() + 1)[weights > 0])


def tied_rows(size, seed):
    """30 rows [30, size] of which some are peaked, some nearly flat, and most have ties."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(30, size)) * np.linspace(0.1, 6, 30)[:, None]
    rows[::3] = np.round(rows[::3], 1)
    rows[1] = 0
    rows[4, rng.integers(size, size=300)] = 20.0  # more ties at the top than most values of k
    return rows.astype(np.float32)


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.9), Sampling(top_p=0.3), Sampling(1.0, 300, 0.95)], ids=str)
def test_a_large_vocabulary_is_filtered_as_if_it_were_sorted(sampling):
    """Peaked rows and flat ones together: nothing comes from outside a row's nucleus, and all of it in proportion."""
    rows = tied_rows(10_007, 0)
    run = jax.jit(pick)
    keys = jax.random.split(jax.random.key(3), (400, 30))
    tokens = np.stack([run(rows, key, sampling)[0] for key in keys])
    sizes = []
    for i, row in enumerate(rows):
        probs = truncated(row, sampling)
        outside = np.unique(tokens[probs[tokens[:, i]] == 0, i])
        assert len(set(row[outside])) <= 1  # sums in float32 may end one value later than in float64
        if len(outside) == 0:
            assert chi_square(np.bincount(tokens[:, i], minlength=row.size), probs) > 1e-4
            sizes.append((probs > 0).sum())
    assert len(sizes) >= 27 and min(sizes) < 10 and max(sizes) >= 300


@pytest.mark.parametrize(("spread", "top_p"), [(5.0, 0.9), (1.0, 0.1)])
def test_draws_from_a_large_vocabulary_follow_the_distribution(spread, top_p):
    """From few tokens (5.0) and from many (1.0); found at the first try as a rule (0.9), and as a rule not (0.1)."""
    sampling = Sampling(top_p=top_p)
    logits = np.random.default_rng(1).normal(size=5000).astype(np.float32) * spread
    probs = truncated(logits, sampling)
    tokens = np.concatenate(
        [pick_many(logits, keys, sampling)[0] for keys in jax.random.split(jax.random.key(2), (20, 5000))]
    )
    counts = np.bincount(tokens, minlength=5000)
    assert counts[probs == 0].sum() == 0
    assert chi_square(counts, probs) > 1e-4


def test_a_row_that_is_tried_again_changes_nothing_for_the_others():
    """Draws in a batch are those of each row alone, however often others have to try."""
    rows = np.random.default_rng(0).normal(size=(40, 3000)).astype(np.float32) * np.linspace(0.1, 8, 40)[:, None]
    rows = rows.astype(np.float32)
    keys = jax.random.split(jax.random.key(5), 40)
    weights = np.exp(rows - rows.max(1, keepdims=True))
    drawn = jax.jit(draw_nucleus)
    together = np.asarray(drawn(weights, keys, 0.2))
    alone = [int(drawn(weights[i : i + 1], keys[i : i + 1], 0.2)[0]) for i in range(40)]
    np.testing.assert_array_equal(together, alone)
    assert len(set(alone)) > 20


def test_weights_that_are_no_numbers_end_the_search():
    keys = jax.random.split(jax.random.key(0), 2)
    weights = np.ones((2, 1000), np.float32)
    want = draw_nucleus(weights, keys, 0.5)[1]
    weights[0] = np.nan
    assert draw_nucleus(weights, keys, 0.5)[1] == want


def kept(logits, sampling):
    """The tokens that 5,000 draws give. The rarest in the tests below has a chance of 0.008."""
    tokens, _ = pick_many(jnp.asarray(logits, jnp.float32), jax.random.split(jax.random.key(7), 5000), sampling)
    return np.unique(tokens).tolist()


def test_every_token_tied_at_the_threshold_is_kept():
    logits = np.array([1.0, 3.0, 2.0, 0.5, 2.0, -1.0, 2.0, 0.5])
    assert kept(logits, Sampling(top_k=1)) == [1]
    assert kept(logits, Sampling(top_k=2)) == kept(logits, Sampling(top_k=4)) == [1, 2, 4, 6]
    assert kept(logits, Sampling(top_k=5)) == [0, 1, 2, 4, 6]
    assert kept(logits, Sampling(top_k=6)) == [0, 1, 2, 3, 4, 6, 7]
    # Probabilities 0.413, three of 0.152 (sums 0.565, 0.717, 0.869), 0.056 (0.925), two of 0.034, 0.008.
    assert kept(logits, Sampling(top_p=0.41)) == [1]
    assert kept(logits, Sampling(top_p=0.42)) == kept(logits, Sampling(top_p=0.86)) == [1, 2, 4, 6]
    assert kept(logits, Sampling(top_p=0.88)) == [0, 1, 2, 4, 6]
    assert kept(logits, Sampling(top_p=0.93)) == [0, 1, 2, 3, 4, 6, 7]
    # Both: top-k keeps four, of which the first has 0.475.
    assert kept(logits, Sampling(top_k=2, top_p=0.45)) == [1]
    assert kept(logits, Sampling(top_k=2, top_p=0.49)) == [1, 2, 4, 6]
    assert kept(np.zeros(9), Sampling(top_k=1)) == kept(np.zeros(9), Sampling(top_p=0.01)) == list(range(9))
    assert kept([0.0, -0.0, -1.0], Sampling(top_k=1)) == [0, 1]
    assert kept([-5.0, -2.0, -2.0, -3.0], Sampling(top_k=1)) == [1, 2]


def test_top_p_stops_as_soon_as_it_is_reached():
    logits = np.log([0.5, 0.25, 0.25])
    assert kept(logits, Sampling(top_p=0.5)) == [0]
    assert kept(logits, Sampling(top_p=0.51)) == [0, 1, 2]


def test_greedy_is_the_first_argmax_with_its_logprob():
    logits = np.array([[0.5, 2.0, -1.0, 2.0], [1.0, 0.0, 3.0, 2.0]], np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    for sampling in (Sampling(temperature=0.0), Sampling(temperature=0.0, top_k=1, top_p=0.3)):
        tokens, logps = jax.jit(pick)(logits, keys, sampling)
        assert tokens.dtype == jnp.int32 and tokens.tolist() == [1, 2]
        # log(e^2 / (e^0.5 + 2 e^2 + e^-1)) and log(e^3 / (e + 1 + e^3 + e^2))
        np.testing.assert_allclose(logps, [-0.821064, -0.440190], atol=1e-5)


def test_top_k_of_one_is_greedy_with_the_tempered_logprob():
    logits = np.array([[1.0, 0.0, 3.0, 2.0]], np.float32)
    tokens, logps = pick(logits, jax.random.split(jax.random.key(0), 1), Sampling(temperature=0.5, top_k=1))
    assert tokens.tolist() == [2]
    np.testing.assert_allclose(logps, [-np.log(1 + np.exp(-2) + np.exp(-4) + np.exp(-6))], atol=1e-6)


def test_same_key_same_token_other_key_other_token():
    logits = np.zeros(1000, np.float32)
    keys = jax.random.split(jax.random.key(0), 100)
    first, again = pick_many(logits, keys, Sampling())[0], pick_many(logits, keys, Sampling())[0]
    np.testing.assert_array_equal(first, again)
    assert len(set(first.tolist())) > 80  # 95 expected
    np.testing.assert_array_equal(pick(np.tile(logits, (100, 1)), keys, Sampling())[0], first)  # in a batch or alone


def test_draw_by_hand():
    """Weights 0, 3, 0, 1, 0, 4, 0: an eighth of the unit interval for each unit of weight."""
    weights = np.tile(np.float32([0, 3, 0, 1, 0, 4, 0]), (8, 1))
    below = np.float32(np.nextafter(np.float32(0.375), np.float32(0)))
    assert draw(weights, np.arange(8, dtype=np.float32) / 8).tolist() == [1, 1, 1, 3, 5, 5, 5, 5]
    assert draw(weights[:3], np.array([below, 0.375, LARGEST], np.float32)).tolist() == [1, 3, 5]


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 1024])
def test_draw_at_both_ends_of_the_unit_interval(size):
    rng = np.random.default_rng(size)
    weights = rng.random((200, size)).astype(np.float32)
    weights *= rng.random((200, size)) < 0.1
    weights[:, rng.integers(size)] = 0.5
    first = (weights > 0).argmax(1)
    last = size - 1 - (weights[:, ::-1] > 0).argmax(1)
    run = jax.jit(draw)
    np.testing.assert_array_equal(run(weights, np.zeros(200, np.float32)), first)
    for u in (LARGEST, 1 - 2**-24):
        got = run(weights, np.full(200, u, np.float32))
        assert (weights[np.arange(200), got] > 0).all()
        light = weights[np.arange(200), last] < 1e-4
        np.testing.assert_array_equal(np.asarray(got)[~light], last[~light])


def test_draw_equals_a_float64_search():
    rng = np.random.default_rng(0)
    weights = np.exp(rng.normal(size=(2000, 1000))).astype(np.float32)
    uniforms = (rng.integers(2**23, size=2000) / 2**23).astype(np.float32)
    ends = np.cumsum(weights.astype(np.float64), 1)
    target = uniforms * ends[:, -1]
    near = np.abs(ends - target[:, None]).min(1) < 2e-6 * ends[:, -1]
    want = (ends <= target[:, None]).sum(1)
    got = np.asarray(jax.jit(draw)(weights, uniforms))
    np.testing.assert_array_equal(got[~near], want[~near])
    assert near.mean() < 0.02 and (np.abs(got - want) <= 1).all()


def test_never_a_token_of_weight_zero_even_where_sums_round():
    """Cumulative sums round differently from place to place: a number right at the end of a token's share of the unit
    interval must not fall through to a token that the filters dropped."""
    rng = np.random.default_rng(0)
    run = jax.jit(draw)
    for keep in (3, 20, 60):
        weights = np.exp(2 * rng.normal(size=(2000, 1000))).astype(np.float32)
        weights[weights < np.sort(weights, 1)[:, -keep, None]] = 0
        ends = np.cumsum(weights.astype(np.float64), 1)
        ends /= ends[:, -1:]
        rows = np.arange(2000)
        columns = np.nonzero(weights)[1].reshape(2000, keep)
        for _ in range(20):
            end = ends[rows, columns[rows, rng.integers(keep, size=2000)]]
            grid = np.clip(np.round(end * 2**23) + rng.integers(-2, 3, size=2000), 0, 2**23 - 1)
            tokens = np.asarray(run(weights, (grid / 2**23).astype(np.float32)))
            assert tokens.max() < 1000
            assert (weights[rows, tokens] > 0).all()


@pytest.mark.parametrize("sampling", [Sampling(0.6, 20, 0.95), Sampling(0.6, 0, 0.95), Sampling(0.6, 20), Sampling(0)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_end_and_change_no_other_row(bad, sampling):
    """Their log-prob is NaN, which whoever samples looks for; a -infinity among others is never drawn."""
    logits = np.random.default_rng(0).normal(size=(4, 1000)).astype(np.float32)
    logits[0, 7] = -np.inf
    keys, run = jax.random.split(jax.random.key(0), 4), jax.jit(pick)
    want = [np.asarray(x) for x in run(logits, keys, sampling)]
    logits[1, 3], logits[2] = bad, -np.inf
    tokens, logps = (np.asarray(x) for x in run(logits, keys, sampling))
    assert np.isnan(logps).tolist() == [False, True, True, False]
    assert (0 <= tokens).all() and (tokens < 1000).all()
    for got, before in zip((tokens, logps), want, strict=True):
        np.testing.assert_array_equal(got[[0, 3]], before[[0, 3]])


def test_weights_without_a_nucleus_are_left_at_once():
    weights = np.array([[1, 2, 3], [np.nan, 1, 1], [np.inf, 1, 1], [0, 0, 0]], np.float32)
    assert draw_nucleus(weights, jax.random.split(jax.random.key(0), 4), 0.1).tolist() == [2, 0, 0, 0]


def test_the_nucleus_of_a_top_p_below_float32_is_the_highest_token():
    logits = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32)
    tokens, _ = jax.jit(pick)(logits, jax.random.split(jax.random.key(0), 50), Sampling(top_p=1e-46))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))


def test_a_nucleus_is_tried_as_often_as_there_are_tokens_at_most(monkeypatch):
    """Even if what is drawn were never above what was drawn before, as rounding or a fault might have it."""
    lowest = np.zeros(1, np.int32)
    monkeypatch.setattr(module, "_draw_above", lambda *given: jnp.asarray(lowest))
    tries = []
    monkeypatch.setattr(jax.random, "fold_in", lambda key, tried: tries.append(int(tried)) or key)
    with jax.disable_jit():
        tokens = draw_nucleus(np.array([[1.0, 2.0, 3.0, 4.0]], np.float32), jax.random.split(jax.random.key(0), 1), 0.1)
    assert tries == [0, 1, 2, 3] and tokens.tolist() == [0]
