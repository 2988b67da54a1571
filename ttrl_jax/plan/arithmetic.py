"""What a model computes and moves, from its shape alone; and what chips can do. XLA's own count takes the body of a
loop once, so that it says nothing of a scan over layers or a decode loop."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig

GB = 1e9


@dataclass(frozen=True)
class Chip:
    flops: float  # a second, bfloat16
    bandwidth: float  # bytes a second, of its memory
    memory: float  # bytes


# By jax.Device.device_kind. https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e
CHIPS = {
    "TPU v4": Chip(275e12, 1228e9, 32 * GB),
    "TPU v5 lite": Chip(197e12, 819e9, 16 * GB),
    "TPU v5": Chip(459e12, 2765e9, 95 * GB),
    "TPU v6 lite": Chip(918e12, 1638e9, 32 * GB),
}


def count(params: Any) -> int:
    """Numbers in a tree of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def copies(mesh: jax.sharding.Mesh) -> int:
    """Groups of chips that have the whole weights between them while they compute."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def pair_flops(model: ModelConfig) -> int:
    """Of one token that looks at one token, in all layers: a product with its key and one with its value."""
    return 4 * model.layers * model.heads * model.head_dim


def cache_bytes(model: ModelConfig, tokens: int, *, itemsize: int) -> int:
    """Of the keys and values of so many tokens."""
    return 2 * itemsize * model.layers * model.kv_heads * model.head_dim * tokens


def forward_flops(model: ModelConfig, rows: int, length: int, *, logits: int) -> int:
    """Of rows of `length` tokens, of which each sees those before it; logits: how many tokens of a row have them."""
    weights = 2 * count(decoder.shapes(model)["blocks"]) * length + 2 * model.vocab * model.width * logits
    return rows * (weights + length * (length - 1) // 2 * pair_flops(model))


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of laid out arrays on one chip."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
