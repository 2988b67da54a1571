"""From logits to a token: temperature, top-k, top-p, greedy. Small pure functions, exact, no vocabulary is sorted."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ttrl_jax.model.sharding import partition

BLOCK, BLOCKS = 64, 64  # the filters look first at the so many blocks of so many tokens that have the highest scores
ROWS = 8  # for which the filters then look at the whole vocabulary at once: a CPU core's cache holds them


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


def _least_kept(order: jax.Array, weights: jax.Array | float, target: jax.Array | float, floor: jax.Array) -> jax.Array:
    """The highest threshold [...] for which the entries of at least that order weigh `target`; else `floor`.

    order int32 and weights float32 [..., W]; target and floor broadcast to [...]. Bisection over the bits of the
    scores: 32 passes, no sort, and exact.
    """
    high = order.max(-1) + 1  # keeps nothing: never enough

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        enough = jnp.where(order >= middle[..., None], weights, 0.0).sum(-1) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    return jax.lax.fori_loop(0, 32, halve, (floor, high))[0]


def _filter(
    order: jax.Array, weights: jax.Array, total: jax.Array, floor: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Order of the last entry that top-k and then top-p keep, int32 [...], and whether it is above `floor`, bool [...].

    order and weights [..., C]: of the entries above `floor`, at least. total [...]: weight of the whole vocabulary.
    """
    low, above = floor, jnp.ones(floor.shape, bool)
    if sampling.top_k:
        low = _least_kept(order, 1.0, float(sampling.top_k), floor)
        above &= low > floor
        weights = jnp.where(order >= low[..., None], weights, 0)
        total = weights.sum(-1)
    if sampling.top_p < 1:
        low = _least_kept(order, weights, sampling.top_p * total, low)
        above &= low > floor
    return low, above


def _threshold(logits: jax.Array, weights: jax.Array, *, sampling: Sampling) -> jax.Array:
    """Order of the last entry that the filters keep, int32 [...]. logits and weights float32 [..., W].

    What they keep lies as a rule in few blocks of the vocabulary, so only the blocks with the highest maxima are looked
    at, and the whole vocabulary only in rows where the threshold is not above all that was left out.
    """

    def whole(logits: jax.Array, weights: jax.Array) -> jax.Array:
        order = _ordered(logits)
        return _filter(order, weights, weights.sum(-1), order.min(-1), sampling)[0]

    shape, size = logits.shape[:-1], logits.shape[-1]
    if size <= BLOCK * BLOCKS:
        return whole(logits, weights)
    logits, weights = logits.reshape(-1, size), weights.reshape(-1, size)
    rows = len(logits)
    blocks = _in_blocks(logits, BLOCK, -jnp.inf)
    highest, chosen = jax.lax.top_k(blocks.max(-1), BLOCKS + 1)
    chosen = chosen[:, :-1, None]
    near = jnp.take_along_axis(blocks, chosen, 1).reshape(rows, -1)
    near_weights = jnp.take_along_axis(_in_blocks(weights, BLOCK, 0), chosen, 1).reshape(rows, -1)
    low, found = _filter(_ordered(near), near_weights, weights.sum(-1), _ordered(highest[:, -1]), sampling)
    missed = jnp.argsort(found)  # first those that were not found

    def look_again(i: jax.Array, low: jax.Array) -> jax.Array:
        some = jax.lax.dynamic_slice_in_dim(missed, i * ROWS, min(ROWS, rows))
        return low.at[some].set(whole(logits[some], weights[some]))

    return jax.lax.fori_loop(0, -(-(~found).sum() // ROWS), look_again, low).reshape(shape)


def _on_each_device(logits: jax.Array, weights: jax.Array, sampling: Sampling) -> jax.Array:
    """_threshold of the rows of each device of the mesh, so that none has to look at another's again."""
    find = functools.partial(_threshold, sampling=sampling)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return find(logits, weights)
    split = partition(("prompts", "draws", None), logits.shape, mesh)
    out = jax.sharding.PartitionSpec(*split[:-1])
    return jax.shard_map(find, in_specs=(split, split), out_specs=out, check_vma=False)(logits, weights)


def _in_blocks(x: jax.Array, width: int, fill: float) -> jax.Array:
    """[..., W] -> [..., blocks, width], the last one filled up."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % width)], constant_values=fill)
    return padded.reshape(*x.shape[:-1], -1, width)


def filtered_weights(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Unnormalised probabilities [..., W] (float32) of the truncated distribution; 0 for what the filters drop.

    logits float32 [..., W], already divided by the temperature; on a mesh [P, V, W]. Every token tied at a threshold is
    kept.
    """
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    if not sampling.top_k and sampling.top_p == 1:
        return weights
    low = _on_each_device(logits, weights, sampling)
    return jnp.where(_ordered(logits) >= low[..., None], weights, 0)


def _width(size: int) -> int:
    """Of the blocks in which `size` entries are searched: about as wide as there are blocks."""
    return 1 << math.ceil(math.log2(size) / 2)


def draw(weights: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Index drawn with probability proportional to `weights`, by inversion of the cumulative sum.

    weights float32 [..., W], uniforms float32 [...] in [0, 1) -> int32 [...]; where weights have size 1 in an axis, all
    of its draws are from the same. First the block, then the index in it: one random number and one pass, and never an
    entry of weight 0. Probabilities below 1e-7 are beyond float32's grain.
    """
    width = _width(weights.shape[-1])
    blocks = _in_blocks(weights, width, 0)
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


def _first_highest(logits: jax.Array) -> jax.Array:
    """argmax over the last axis, int32: of the blocks, then in the block. XLA's own is slow on CPU."""
    width = _width(logits.shape[-1])
    blocks = _in_blocks(logits, width, -jnp.inf)
    block = jnp.argmax(blocks.max(-1), -1)
    inner = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    return (block * width + jnp.argmax(inner, -1)).astype(jnp.int32)


def pick(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """Draw one token for each key, with its log-prob under the tempered, unfiltered distribution.

    logits float32 [..., W], keys [...] of jax.random keys -> tokens int32 [...], logps float32 [...]; where logits have
    size 1 in an axis, all of its draws are from the same. Greedy (temperature 0) takes the first of the highest logits,
    its log-prob at temperature 1.
    """
    if sampling.temperature:
        logits = logits / sampling.temperature
        uniform = jnp.vectorize(lambda key: jax.random.uniform(key))
        tokens = draw(filtered_weights(logits, sampling), uniform(keys))
    else:
        tokens = jnp.broadcast_to(_first_highest(logits), keys.shape)
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return tokens, chosen - jax.nn.logsumexp(logits, -1)
