"""PPO's critic: a decoder with a head that gives each state a value, or a head on the policy's own states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttrl_jax.learn.microbatch import MicroBatch
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.layers import INIT_STD
from ttrl_jax.model.sharding import constrain, replicated

Params = dict[str, Any]  # {"head": {"weight": [D], "bias": []}}, with a trunk of its own also "trunk"


def trunk_of(params: decoder.Params) -> decoder.Params:
    """The part of a decoder's parameters (or of their layout) that a critic needs: all but an output table."""
    return {name: leaf for name, leaf in params.items() if name != "head"}


def critic_layout(policy: decoder.Params, config: ModelConfig, mesh: jax.sharding.Mesh, *, trunk: str) -> Params:
    """The layout of a critic's parameters, for the policy's; trunk: "own" or "policy"."""
    head = {"weight": (config.width,), "bias": ()}
    where = replicated(mesh)
    found = {"head": {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for name, shape in head.items()}}
    return found | ({"trunk": trunk_of(policy)} if trunk == "own" else {})


def new_head(config: ModelConfig, *, seed: int) -> Params:
    """A head that transformers would make for classifying tokens: normal weights, std 0.02, no bias (host arrays)."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))  # apart from the questions' order
    weight = INIT_STD * rng.standard_normal(config.width)
    return {"weight": weight.astype(np.float32), "bias": np.zeros((), np.float32)}


def response_values(
    params: Params,
    base: decoder.Params | None,
    config: ModelConfig,
    micro: MicroBatch,
    *,
    dtype: jnp.dtype,
    remat: str,
    unroll: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The value of the state before each response token of a micro-batch (verl workers/critic/dp_critic.py), and zeros
    in place of entropies: float32 [X, Z, C] both.

    base: what is not trained. Where `params` has no trunk, the policy's parameters, whose states are used; else, with
    LoRA, what the adapters of the trunk go with.
    """
    trunk = {**jax.lax.stop_gradient(base or {}), **(params["trunk"] if "trunk" in params else {})}
    ids = constrain(micro.ids, "rows", None)
    hidden = decoder.forward(trunk, config, ids, micro.packing, dtype=dtype, remat=remat, unroll=unroll)
    shards, chunks, slots = micro.tokens.shape
    states = constrain(micro.states.reshape(shards, chunks * slots, 1), "rows", None, None)
    hidden = jnp.take_along_axis(hidden.reshape(shards, -1, hidden.shape[-1]), states, 1).astype(jnp.float32)
    values = (hidden * params["head"]["weight"]).sum(-1) + params["head"]["bias"]
    values = values.reshape(shards, chunks, slots)
    return values, jnp.zeros_like(values)
