"""From logits to a token: temperature, top-k, top-p, greedy. Small pure functions, exact, without a sort."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Applied in this order, as transformers does: temperature, top-k, top-p."""

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off


def _ordered(x: jax.Array) -> jax.Array:
    """float32 -> int32 with the same order."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.int32)  # -0.0 ties with 0.0
    return jnp.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


def _keep_heaviest(scores: jax.Array, weights: jax.Array, target: jax.Array | float) -> jax.Array:
    """Mask of the fewest highest-scored entries whose weights reach `target`, and of all that tie with the last one.

    scores, weights float32 [..., W]; target broadcasts to [...]. The threshold is found by bisection over the bits of
    the scores: 32 passes, no sort, and exact.
    """
    order = _ordered(scores)
    low = order.min(-1)  # keeps everything: always enough
    high = order.max(-1) + 1  # keeps nothing: never enough

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        enough = jnp.where(order >= middle[..., None], weights, 0).sum(-1) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return order >= low[..., None]


def filtered_weights(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Unnormalised probabilities [..., W] (float32) of the truncated distribution; 0 for what the filters drop.

    logits float32 [..., W], already divided by the temperature. Every token tied at a threshold is kept.
    """
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    if sampling.top_k:
        weights = jnp.where(
            _keep_heaviest(logits, jnp.ones_like(weights), min(sampling.top_k, logits.shape[-1])), weights, 0
        )
    if sampling.top_p < 1:
        weights = jnp.where(_keep_heaviest(logits, weights, sampling.top_p * weights.sum(-1)), weights, 0)
    return weights


def draw(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Index drawn with probability proportional to `weights`, by inversion of the cumulative sum.

    weights float32 [..., W], uniforms float32 [...] in [0, 1) -> int32 [...]. First the block, then the index in it:
    one random number and one pass, and never an entry of weight 0. Probabilities below 1e-7 are beyond float32's grain.
    """
    size = weights.shape[-1]
    width = 1 << math.ceil(math.log2(size) / 2)
    blocks = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -size % width)])
    blocks = blocks.reshape(*weights.shape[:-1], -1, width)
    sums = blocks.sum(-1)
    ends = jnp.cumsum(sums, -1)
    target = uniforms * ends[..., -1]
    block = _first_beyond(sums, ends, target)
    before = jnp.take_along_axis(ends - sums, block[..., None], -1)[..., 0]
    inner = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    return (block * width + _first_beyond(inner, jnp.cumsum(inner, -1), target - before)).astype(jnp.int32)


def _first_beyond(weights: jax.Array, ends: jax.Array, target: jax.Array) -> jax.Array:
    """The first index of positive weight whose cumulative sum `ends` exceeds `target`, else the last such index.

    Cumulative sums are computed as a tree: entries of weight 0 may move them by a rounding, up or down.
    """
    ends = jnp.where(weights > 0, ends, -jnp.inf)
    target = jnp.minimum(target, jnp.nextafter(ends.max(-1), -jnp.inf))
    return jnp.argmax(ends > target[..., None], -1)


def pick(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """Draw one token for each row, with its log-prob under the tempered, unfiltered distribution.

    logits float32 [..., W], keys [...] of jax.random keys -> tokens int32 [...], logps float32 [...]. Greedy
    (temperature 0) takes the first of the highest logits, its log-prob at temperature 1.
    """
    if sampling.temperature:
        logits = logits / sampling.temperature
        uniform = jnp.vectorize(lambda key: jax.random.uniform(key))
        tokens = draw(filtered_weights(logits, sampling), uniform(keys))
    else:
        tokens = jnp.argmax(logits, -1).astype(jnp.int32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return tokens, chosen - jax.nn.logsumexp(logits, -1)
