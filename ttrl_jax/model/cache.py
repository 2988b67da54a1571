"""The records that hold keys and values while sampling. Prompts are stored once and shared by their votes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer: a prompt's [P, K, T, H], or the responses' [P, V, K, S, H]."""

    k: jax.Array
    v: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefix:
    """The prefilled prompts."""

    layers: tuple[LayerCache, ...]  # L of them, [P, K, T, H]
    lengths: jax.Array  # int32 [P]
    logits: jax.Array  # float32 [P, W], after each prompt's last token


Suffix = tuple[LayerCache, ...]  # L of them, [P, V, K, S, H]


def empty_suffix(config: ModelConfig, *, prompts: int, votes: int, slots: int, dtype: jnp.dtype) -> Suffix:
    """A cache of `slots` response tokens for each of P x V samples. Zeros: what is masked must still be a number."""
    shape = (prompts, votes, config.kv_heads, slots, config.head_dim)

    def zeros() -> jax.Array:
        return constrain(jnp.zeros(shape, dtype), "prompts", "votes", "kv_heads", None, None)

    return tuple(LayerCache(zeros(), zeros()) for _ in range(config.layers))


def grow(suffix: Suffix, *, slots: int) -> Suffix:
    """The same cache with room for `slots` tokens."""

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, 0)] * 3 + [(0, slots - x.shape[3]), (0, 0)])

    return jax.tree.map(pad, suffix)
