"""LoRA (arXiv 2106.09685): adapters that are trained over a model that stays as it is.

    y = x W + scale * (x A) B        A [L, inputs, r] random, B [L, r, outputs] zero, so that a run begins as the model

W is the base. It is held once, each layer by itself and in the type of the computation, for sampling, training and the
start alike; masters, gradients, moments and checkpoints are those of A and B. What a decoder computes with is the base
with the adapters beside it: `{**base, "lora": ...}`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ttrl_jax.model import decoder
from ttrl_jax.model.config import PROJECTIONS, ModelConfig

Adapters = dict[str, Any]  # {"lora": {"attention": {"q": {"a": ..., "b": ...}, ...}, "ffn": {...}}}
_SPAWN = 3  # apart from the order of questions and a critic's head


def shapes(config: ModelConfig) -> Adapters:
    """The tree of the adapters of `config.lora`, with ShapeDtypeStructs (float32) for leaves."""
    whole, rank = decoder.shapes(config)["blocks"], config.lora.rank

    def pair(name: str, weight: jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
        layers, inputs, outputs = _split(name, weight.shape)
        return {
            "a": jax.ShapeDtypeStruct((layers, *inputs, rank), jnp.float32),
            "b": jax.ShapeDtypeStruct((layers, rank, *outputs), jnp.float32),
        }

    return {"lora": _each(config, whole, pair)}


def logical_axes(config: ModelConfig) -> Adapters:
    """The same tree with tuples of logical axis names: A lies as the inputs of its weight, B as the outputs, and r is
    whole everywhere."""

    def pair(name: str, axes: tuple[str | None, ...]) -> dict[str, tuple[str | None, ...]]:
        layers, inputs, outputs = _split(name, axes)
        return {"a": (layers, *inputs, None), "b": (layers, None, *outputs)}

    return {"lora": _each(config, decoder.logical_axes(config)["blocks"], pair)}


def init(config: ModelConfig, *, seed: int) -> Adapters:
    """The adapters that PEFT makes by itself: A uniform within 1 / sqrt(d_in), B zero (host arrays, float32).

    The numbers are those of (seed, projection), whatever the devices.
    """
    of = {target: i for i, target in enumerate(PROJECTIONS)}
    whole = decoder.shapes(config)["blocks"]

    def pair(name: str, weight: jax.ShapeDtypeStruct) -> dict[str, np.ndarray]:
        layers, inputs, outputs = _split(name, weight.shape)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SPAWN, of[name])))
        bound = 1 / math.sqrt(math.prod(inputs))
        a = rng.uniform(-bound, bound, (layers, *inputs, config.lora.rank)).astype(np.float32)
        return {"a": a, "b": np.zeros((layers, config.lora.rank, *outputs), np.float32)}

    return {"lora": _each(config, whole, pair)}


def sampling_adapters(adapters: Adapters, config: ModelConfig, dtype: jnp.dtype) -> Adapters:
    """A copy of the adapters for sampling: in `dtype`, layers apart (a tuple of L trees)."""
    cast = jax.tree.map(lambda x: x.astype(dtype), adapters["lora"])
    return {"lora": decoder.apart(cast, config)}


def sampling_axes(config: ModelConfig) -> Adapters:
    """The tree of `sampling_adapters` with tuples of logical axis names for leaves."""
    one = jax.tree.map(
        lambda names: names[1:], logical_axes(config)["lora"], is_leaf=lambda node: isinstance(node, tuple)
    )
    return {"lora": (one,) * config.layers}


def parameter_count(config: ModelConfig) -> int:
    """Numbers in the adapters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(config)))


def weight_bytes(config: ModelConfig, *, itemsize: int) -> int:
    """Bytes of all weights that sample, of `itemsize` each but for those in 8 bits, with the adapters if there are
    any."""
    whole = decoder.shapes(config)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(whole))
    if config.lora is None:
        return itemsize * numbers
    blocks, in_bytes = whole["blocks"], 0
    if config.lora.base == "int8":
        in_bytes = sum(math.prod(blocks[room][name].shape) for room, name, _ in PROJECTIONS.values())
    return in_bytes + itemsize * (numbers - in_bytes + parameter_count(config))


def _split(name: str, axes: tuple) -> tuple[Any, tuple, tuple]:
    """The axes of a stacked weight: layers, inputs, outputs."""
    inputs = 1 + PROJECTIONS[name][2]
    return axes[0], axes[1:inputs], axes[inputs:]


def _each(config: ModelConfig, blocks: decoder.Params, pair: Any) -> dict[str, Any]:
    """pair(target, leaf of its weight) for each target, by room and name."""
    found: dict[str, Any] = {}
    for target in config.lora.targets:
        room, name, _ = PROJECTIONS[target]
        found.setdefault(room, {})[name] = pair(target, blocks[room][name])
    return found
