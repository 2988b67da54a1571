"""From logits to a token: temperature, top-k, top-p, greedy. Small pure functions, exact, no vocabulary is sorted."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = 64  # tokens, of which top-k looks at the highest alone first


@functools.partial(jax.tree_util.register_dataclass, data_fields=("temperature", "top_p"), meta_fields=("top_k",))
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Applied in this order, as transformers does: temperature, top-k, top-p.

    To jit, temperature and top_p are arguments: one program serves all their values. top_k is part of the program.
    """

    temperature: Any = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: Any = 1.0  # 1: off


def _in_blocks(x: jax.Array, width: int, fill: float) -> jax.Array:
    """[..., W] -> [..., blocks, width], the last one filled up."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % width)], constant_values=fill)
    return padded.reshape(*x.shape[:-1], -1, width)


def _width(size: int) -> int:
    """Of the blocks in which `size` entries are searched: about as wide as there are blocks."""
    return 1 << math.ceil(math.log2(size) / 2)


def keep_top_k(weights: jax.Array, k: int) -> jax.Array:
    """weights float32 [..., W] with 0 for all below the k-th highest; those tied with it stay.

    The k highest lie in the k blocks with the highest maxima, so no more is looked at.
    """
    size = weights.shape[-1]
    if k >= size:
        return weights
    near, blocks = weights, _in_blocks(weights, BLOCK, 0)
    if k < blocks.shape[-2]:
        chosen = jax.lax.top_k(blocks.max(-1), k)[1]
        near = jnp.take_along_axis(blocks, chosen[..., None], -2)
        near = near.reshape(*near.shape[:-2], -1)
    highest, _ = jax.lax.top_k(near, k)
    least = highest.min(-1, keepdims=True)  # with [-1] instead XLA sorts on CPU
    return jnp.where(weights >= least, weights, 0)


def draw(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Index drawn with probability proportional to `weights`, by inversion of the cumulative sum.

    weights float32 [..., W], uniforms float32 [...] in [0, 1) -> int32 [...]. First the block, then the index in it:
    one random number and one pass, and never an entry of weight 0. Probabilities below 1e-7 are beyond float32's grain.
    """
    blocks = _in_blocks(weights, _width(weights.shape[-1]), 0)
    return _draw_above(blocks, blocks.sum(-1), jnp.zeros(uniforms.shape), uniforms)


def draw_nucleus(weights: jax.Array, keys: jax.Array, top_p: float | jax.Array) -> jax.Array:
    """Index drawn with probability proportional to `weights` among the nucleus: the fewest of the highest entries that
    weigh `top_p` of the whole, and those tied with the last of them. From 1 on: among all.

    weights float32 [..., W], keys [...] of jax.random keys, top_p float32 [] -> int32 [...]. By rejection: an entry
    drawn from all is taken if those above it weigh less than that, and else the next one is drawn from those above it.
    So what is taken has exactly the nucleus's distribution, one pass tells both whether an entry is taken and what is
    left, and the first is taken with a chance of `top_p` at least. Each try is above the one before, so there are at
    most W of them.

    Weights that are not finite, or all zero, have no nucleus: 0, at once.
    """
    blocks = _in_blocks(weights, _width(weights.shape[-1]), 0)
    total = blocks.sum(-1).sum(-1)
    # Not 0, or nothing left would weigh as much: where top_p rounds to 0 the nucleus is the highest entry.
    most = jnp.maximum(top_p * total, jnp.finfo(jnp.float32).tiny)
    valid = jnp.isfinite(total) & (total > 0)

    def again(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tried, tokens, open_ = state
        edge = jnp.take_along_axis(weights, tokens[..., None], -1)[..., 0]
        sums = jnp.where(blocks > edge[..., None, None], blocks, 0).sum(-1)
        open_ &= sums.sum(-1) >= most
        drawn = _draw_above(blocks, sums, edge, _uniforms(keys, tried))
        return tried + 1, jnp.where(open_, drawn, tokens), open_

    def more(state: tuple[jax.Array, ...]) -> jax.Array:
        return state[-1].any() & (state[0] < weights.shape[-1])

    uniforms = jnp.where(top_p < 1, _uniforms(keys, 0), jnp.vectorize(lambda key: jax.random.uniform(key))(keys))
    tokens = jnp.where(valid, draw(weights, uniforms), 0)
    return jax.lax.while_loop(more, again, (jnp.int32(1), tokens, valid & (top_p < 1)))[1]


def _uniforms(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """The random numbers of each key for its try `number`, float32 in [0, 1)."""
    return jnp.vectorize(lambda key: jax.random.uniform(jax.random.fold_in(key, number)))(keys)


def _draw_above(blocks: jax.Array, sums: jax.Array, edge: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Index into the flattened blocks [..., B, width], int32 [...], among the entries above `edge` [...].

    sums [..., B]: of those entries in each block. uniforms [...].
    """
    ends = jnp.cumsum(sums, -1)
    target = uniforms * ends[..., -1]
    block = _first_beyond(sums, ends, target)
    before = jnp.take_along_axis(ends - sums, block[..., None], -1)[..., 0]
    inner = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    inner = jnp.where(inner > edge[..., None], inner, 0)
    return (block * blocks.shape[-1] + _first_beyond(inner, jnp.cumsum(inner, -1), target - before)).astype(jnp.int32)


def _first_beyond(weights: jax.Array, ends: jax.Array, target: jax.Array) -> jax.Array:
    """The first index of positive weight whose cumulative sum `ends` exceeds `target`, else the last such index.

    Cumulative sums are computed as a tree: entries of weight 0 may move them by a rounding, up or down.
    """
    ends = jnp.where(weights > 0, ends, -jnp.inf)
    target = jnp.minimum(target, jnp.nextafter(ends.max(-1), -jnp.inf))
    return jnp.argmax(ends > target[..., None], -1)


def pick(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """Draw one token for each row, with its log-prob under the tempered, unfiltered distribution.

    logits float32 [..., W], keys [...] of jax.random keys, sampling of numbers or, its temperature, float32 [...] ->
    tokens int32 [...], logps float32 [...]. Greedy (temperature 0) takes the first of the highest logits, its log-prob
    at temperature 1. Of logits with a NaN or +infinity among them, or with nothing but -infinity, the log-prob is NaN
    and the token any.
    """
    temperature = jnp.asarray(sampling.temperature, jnp.float32)
    greedy = temperature == 0
    temperature = jnp.where(greedy, 1, temperature)
    width = _width(logits.shape[-1])
    blocks = _in_blocks(logits, width, -jnp.inf)
    maxima = blocks.max(-1)
    highest = maxima.max(-1)
    # Divided here, not before: else the quotients would be stored, and read again for each use.
    weights = jnp.exp((logits - highest[..., None]) / temperature[..., None])
    total = _in_blocks(weights, width, 0).sum(-1).sum(-1)
    kept = keep_top_k(weights, sampling.top_k) if sampling.top_k else weights
    tokens = jnp.where(greedy, _first_highest(blocks, maxima), draw_nucleus(kept, keys, sampling.top_p))
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return tokens, (chosen - highest) / temperature - jnp.log(total)


def _first_highest(blocks: jax.Array, maxima: jax.Array) -> jax.Array:
    """argmax over the last two axes as one, [..., B, width] -> int32 [...]; maxima [..., B]: of each block."""
    block = _first_of_the_highest(maxima)
    inner = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    return block * blocks.shape[-1] + _first_of_the_highest(inner)


def _first_of_the_highest(x: jax.Array) -> jax.Array:
    """argmax over the last axis, int32; beside a NaN the last index. XLA's own argmax, which carries index and value
    through one reduction, takes three times as long on CPUs."""
    size = x.shape[-1]
    places = jnp.arange(size, dtype=jnp.int32)
    return jnp.minimum(jnp.where(x == x.max(-1, keepdims=True), places, size).min(-1), size - 1)
