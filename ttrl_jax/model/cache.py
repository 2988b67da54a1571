"""Records that hold keys and values while sampling. Each prompt is stored once, and all its votes share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer: a prompt's [P, K, T, H], or the responses' [G, S, K, C, H]."""

    k: jax.Array
    v: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """The prefilled prompts, or those of groups of slots."""

    layers: tuple[LayerCache, ...]  # L of them, [P, K, T, H]
    lengths: jax.Array  # int32 [P]


def of_groups(parts: Sequence[LayerCache], prompts: jax.Array) -> LayerCache:
    """A layer's prompts as G groups of slots need them. parts: of the prompts in their order, [P', K, T, H] each;
    prompts int32 [G], which of them."""

    def one(*parts: jax.Array) -> jax.Array:
        whole = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        return constrain(whole[prompts], "prompts", "kv_heads", None, None)

    return jax.tree.map(one, *parts)


# L of them, [G, S, K, C, H]. A ring: in each step the new tokens of all samples take the same place, so that a sample
# of n tokens has them in the last n places, and samples of different lengths need no scatter.
Suffix = tuple[LayerCache, ...]


def blocks_read(before: jax.Array, at: jax.Array, *, places: int, block: int) -> jax.Array:
    """How many blocks of a ring have the token at place `at` and the `before` ones before it, all int32 []. A block
    that has both the first and the last of a full ring is one."""
    return jnp.minimum(at // block - (at - before) // block + 1, places // block)


def _pinned(x: jax.Array) -> jax.Array:
    return constrain(x, "prompts", "votes", "kv_heads", None, None)


def empty_suffix(config: ModelConfig, *, prompts: int, votes: int, slots: int, dtype: jnp.dtype) -> Suffix:
    """A cache of `slots` response tokens for each of P x V samples. Zeros: what is masked must still be a number."""
    shape = (prompts, votes, config.kv_heads, slots, config.head_dim)
    return tuple(
        LayerCache(_pinned(jnp.zeros(shape, dtype)), _pinned(jnp.zeros(shape, dtype))) for _ in range(config.layers)
    )


def resize(layer: LayerCache, at: jax.Array, *, slots: int) -> LayerCache:
    """The ring of a layer, resized to `slots` places. The first places hold the last tokens, the oldest first.

    at int32 []: the place that was to be written next; now it is min(slots, places before), modulo `slots`.
    """
    places = layer.k.shape[3]
    kept = min(places, slots)
    order = (at - kept + jnp.arange(kept)) % places

    def one(x: jax.Array) -> jax.Array:
        return _pinned(jnp.pad(jnp.take(x, order, axis=3), [(0, 0)] * 3 + [(0, slots - kept), (0, 0)]))

    return jax.tree.map(one, layer)


def move(layer: LayerCache, source: jax.Array) -> LayerCache:
    """The cache of a layer, moved to other slots: source int32 [G', S'] says which slots [G, S] they come from."""
    group, slot = jnp.divmod(source, layer.k.shape[1])
    return jax.tree.map(lambda x: _pinned(x[group, slot]), layer)
