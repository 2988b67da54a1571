"""Packing: a token that several rows share is computed once, and there is no padding."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ttrl_jax.model.sharding import constrain, parts_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packing:
    """How the N tokens of each of X shards (the devices that rows are split over) make R rows of T places."""

    positions: Any  # int32 [X, N], of each token in its row
    rows: Any  # int32 [X, R, T], which token is at each place of each row; any at the places of padding
    places: Any  # int32 [X, N], at which of the R * T places each token is, or at one of them
    prompts: Any  # int32 [X, R], tokens of each row's prompt
    owners: Any  # int32 [X, R], the row that the tokens of its prompt have their `places` in

    def spread(self, x: jax.Array, heads: str) -> jax.Array:
        """Values of the tokens, [X, N, heads, H] -> those of the rows [X * R, T, heads, H]. heads: their logical axis.
        The gradients of a token that several rows have add up in float32."""
        shards, rows, length = self.rows.shape
        found = _spread(_flat(x, heads), self, _axis(x, heads)).reshape(shards * rows, length, *x.shape[2:])
        return constrain(found, "rows", None, heads, None)

    def gather(self, x: jax.Array, heads: str) -> jax.Array:
        """The inverse of `spread`: values at the places of rows [X * R, T, heads, H] -> those of the tokens
        [X, N, heads, H]."""
        shards, rows, length = self.rows.shape
        by_shard = x.reshape(shards, rows * length, *x.shape[2:])
        found = _gather(_flat(by_shard, heads), self, _axis(x, heads))
        return constrain(found.reshape(*found.shape[:2], *x.shape[2:]), "rows", None, heads, None)


def _axis(x: jax.Array, heads: str) -> str | None:
    """The logical axis of the features of all heads [..., heads * H]: split where the heads are."""
    return heads if parts_of(heads, x.shape[2]) > 1 else None


def _flat(x: jax.Array, heads: str) -> jax.Array:
    """[X, N, heads, H] -> [X, N, heads * H]."""
    return constrain(x.reshape(*x.shape[:2], -1), "rows", None, _axis(x, heads))


# Either is the other's transpose but for tokens that several rows have, and both are gathers in both directions: what
# XLA makes of a gather is a scatter that adds, which is slow on TPUs, and on GPUs adds in an order of its own.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread(x: jax.Array, packing: Packing, axis: str | None) -> jax.Array:
    """[X, N, F] -> [X, R * T, F]. axis: the logical one of F."""
    return jnp.take_along_axis(x, packing.rows.reshape(len(x), -1, 1), 1)


def _spread_back(axis: str | None, packing: Packing, slope: jax.Array) -> tuple[jax.Array, None]:
    shards, rows, length = packing.rows.shape
    slope = constrain(slope.reshape(shards, rows, length, -1), "rows", None, None, axis)
    shared = (jnp.arange(length) < packing.prompts[..., None])[..., None]
    owned = packing.owners[:, None] == jnp.arange(rows)[:, None]  # [X, owner, R]
    sums = jnp.einsum(
        "xor,xrtf->xotf",
        owned.astype(slope.dtype),
        jnp.where(shared, slope, 0),
        preferred_element_type=jnp.float32,
    )
    slope = jnp.where(shared, sums.astype(slope.dtype), slope).reshape(shards, rows * length, -1)
    index = packing.rows.reshape(shards, rows * length)
    real = jnp.take_along_axis(index, packing.places, 1) == jnp.arange(packing.places.shape[1])
    return jnp.where(real[..., None], _gather(slope, packing, axis), 0), None


_spread.defvjp(lambda x, packing, axis: (_spread(x, packing, axis), packing), _spread_back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gather(x: jax.Array, packing: Packing, axis: str | None) -> jax.Array:
    """[X, R * T, F] -> [X, N, F]. axis: the logical one of F."""
    return jnp.take_along_axis(x, packing.places[..., None], 1)


def _gather_back(axis: str | None, packing: Packing, slope: jax.Array) -> tuple[jax.Array, None]:
    shards, rows, length = packing.rows.shape
    index = packing.rows.reshape(shards, rows * length)
    taken = jnp.take_along_axis(packing.places, index, 1) == jnp.arange(rows * length)
    return jnp.where(taken[..., None], _spread(slope, packing, axis), 0), None


_gather.defvjp(lambda x, packing, axis: (_gather(x, packing, axis), packing), _gather_back)
