"""Attention of one new token of each vote over the vote's own tokens, as a kernel for NVIDIA GPUs.

XLA on a GPU copies a part of the cache before it multiplies with it, so it can only read the whole cache at the size of
all. This kernel reads the tokens of each vote where they lie, and no more of them than the vote has. It is written in
Pallas, which lowers it to Triton.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ttrl_jax.errors import InputError
from ttrl_jax.model.cache import blocks_read

NEVER = -1e30  # as of attention.py: the score of a place that holds no token of the vote
_ROWS = 16  # of a product, the fewest that Triton has: queries that share a kv head are padded to them, in registers
_WARPS, _STAGES = 4, 3
_NUMBERS = 2**31  # in a ring of a device: what Triton's lowering in Pallas counts with is int32


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    at: jax.Array,
    *,
    window: int | None,
    tile: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The softmax over the votes' own tokens, not divided by its sum, to be merged with one over other tokens.

    q [P, V, K, G, H]; k and v [P, V, K, S, H], rings that hold the new token at place `at` (int32 []) and before it
    lengths [P, V] tokens of the vote, fewer than S. `tile` places are read at once, a part of S; it and H are powers of
    two. With a window only the last `window` tokens are seen, the new one among them. Returns the weighted sum of the
    values [P, V, K, G, H], the highest score [P, V, K, G], and the sum of the weights [P, V, K, G], which are relative
    to it, all float32. The softmax of one pass is of arXiv 1805.02867. Raises InputError for rings of 2^31 numbers.
    """
    prompts, votes, kv_heads, group, size = q.shape
    places = k.shape[3]
    if k.size >= _NUMBERS:
        raise InputError(
            f"a device would hold rings of {k.size} numbers, and the kernel that reads them counts to {_NUMBERS - 1}; "
            "lower rollout.rows, or set model.decode_attention to 'xla'"
        )
    rows = max(_ROWS, pl.next_power_of_2(group))

    def of(*shape: int) -> pl.BlockSpec:
        """What a program of the grid (votes, kv heads) sees of an array whose first axes these are."""
        return pl.BlockSpec((None, None, *shape), lambda vote, head: (vote, head) + (0,) * len(shape))

    def made(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((prompts * votes, kv_heads, *shape), jnp.float32)

    found = pl.pallas_call(
        functools.partial(_one_vote, group=group, tile=tile, window=window),
        grid=(prompts * votes, kv_heads),
        in_specs=[
            pl.BlockSpec((1,), lambda vote, head: (0,)),
            pl.BlockSpec((None,), lambda vote, head: (vote,)),
            of(rows, size),
            of(places, size),
            of(places, size),
        ],
        out_specs=[of(rows, size), of(rows), of(rows)],
        out_shape=[made(group, size), made(group), made(group)],
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        name="decode_attention",
    )(at.reshape(1), lengths.reshape(-1), *(x.reshape(-1, *x.shape[2:]) for x in (q, k, v)))
    return tuple(x.reshape(prompts, votes, *x.shape[1:]) for x in found)


def _one_vote(at_ref, length_ref, q_ref, k_ref, v_ref, out_ref, top_ref, total_ref, *, group, tile, window):
    """One kv head of one vote: from the tile with the new token backwards, round the ring."""
    (rows, size), places = q_ref.shape, k_ref.shape[0]
    at, before = at_ref[0], length_ref[()]
    if window is not None:
        before = jnp.minimum(before, window - 1)
    real = (jnp.arange(rows) < group)[:, None]
    q = triton.load(q_ref.at[pl.ds(0, rows), :], mask=real, other=0.0)

    def more(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, top, total = state
        number = at // tile - i
        start = jnp.where(number < 0, number + places // tile, number) * tile
        k, v = (ref[pl.ds(start, tile), :] for ref in (k_ref, v_ref))
        age = at - start - jnp.arange(tile)
        age = jnp.where(age < 0, age + places, age)
        scores = jnp.where((age <= before)[None], triton.dot(q, k.T) * size**-0.5, NEVER)
        higher = jnp.maximum(top, scores.max(-1))
        weights, less = jnp.exp(scores - higher[:, None]), jnp.exp(top - higher)
        out = out * less[:, None] + triton.dot(weights.astype(v.dtype), v)
        return out, higher, total * less + weights.sum(-1)

    none = jnp.zeros((rows, size), jnp.float32), jnp.full(rows, NEVER), jnp.zeros(rows, jnp.float32)
    count = blocks_read(before, at, places=places, block=tile)
    out, top, total = jax.lax.fori_loop(0, count, more, none)
    triton.store(out_ref.at[pl.ds(0, rows), :], out, mask=real)
    triton.store(top_ref.at[pl.ds(0, rows)], top, mask=real[:, 0])
    triton.store(total_ref.at[pl.ds(0, rows)], total, mask=real[:, 0])
