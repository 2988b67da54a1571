"""Stochastic rounding from float32 to bfloat16: up or down by chance, so that the mean of many roundings is the number.

bfloat16 is the upper half of float32. A random number of 16 bits is added to the lower half, which is then cut off.
So a number at the share s of the way to its neighbour, away from zero, becomes that neighbour with probability s, and
stays exactly as it is where bfloat16 has it. Rounding to nearest would lose every step that is less than half of the
distance: 2^-9 of the number, or more (arXiv 1502.02551, 2010.06192).

Random bits are those of (seed, what is rounded, step, leaf), whatever the mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Threefry on four words. The default of JAX, on two, is a loop on CPUs, which holds 16 bytes for each number and takes
# four times as long. Both count from the place of a number in its whole array, so that devices agree.
_GENERATOR = "threefry4x32"

Seed = tuple[int, ...]  # (config.seed, number of the model, what of it is rounded)


def key_of(seed: Seed, step: jax.Array) -> jax.Array:
    """The random key of one optimizer step, int32 []."""
    first, *others = seed
    key = jax.random.key(first, impl=_GENERATOR)
    for word in (*others, step):
        key = jax.random.fold_in(key, word)
    return key


def stochastic(x: jax.Array, random: jax.Array) -> jax.Array:
    """x float32, random uint32 of the same shape, of which the lower 16 bits count -> bfloat16.

    Signs stay, infinities and what is no number too. A number beyond the largest that bfloat16 has may become infinite,
    as it may where one rounds to nearest.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (random & 0xFFFF)
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def rounded_like(tree: Any, like: Any, key: jax.Array) -> Any:
    """A tree of float32 arrays in the dtypes of another, float32 or bfloat16: those in bfloat16 by chance, each leaf
    with random bits of its own."""

    def one(number: int, x: jax.Array, of: jax.Array) -> jax.Array:
        if of.dtype == x.dtype:
            return x
        return stochastic(x, jax.random.bits(jax.random.fold_in(key, number), x.shape, jnp.uint32))

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, map(one, range(len(leaves)), leaves, jax.tree.leaves(like)))


def pair(x: Any, y: Any, key: jax.Array) -> tuple[Any, Any]:
    """Two trees of float32 arrays of the same shapes in bfloat16. Two leaves share the halves of the same random
    numbers, since these are what takes time."""

    def one(number: int, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        random = jax.random.bits(jax.random.fold_in(key, number), a.shape, jnp.uint32)
        return stochastic(a, random), stochastic(b, random >> 16)

    leaves, structure = jax.tree.flatten(x)
    found = list(map(one, range(len(leaves)), leaves, jax.tree.leaves(y)))
    return tuple(jax.tree.unflatten(structure, [each[i] for each in found]) for i in range(2))
