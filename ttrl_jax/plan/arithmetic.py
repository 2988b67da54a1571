"""What the programs of a step compute and move, from the model's shape alone.

Padding, idle slots and what remat computes again count: chips spend time on them. XLA's own count takes the body of a
loop once, so that it says nothing of a scan over layers or of a decode loop.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax

from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.plan.chips import Chip
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.shapes import Shapes


@dataclass(frozen=True)
class Work:
    """Of all chips together."""

    flops: float
    moved: float  # bytes from and to memory

    def seconds(self, chip: Chip, chips: int) -> float:
        """The roofline: no less than the operations take, and no less than the bytes."""
        return max(self.flops / chip.flops, self.moved / chip.bandwidth) / chips


@dataclass(frozen=True)
class Draw:
    """Responses that are sampled together in a run: so many to each of so many questions, decoded on slots."""

    questions: int
    votes: int
    at_once: int  # questions whose responses are decoded together
    slots: places.Layout  # to begin with, which is the largest
    sizes: tuple[int, ...]  # of the cache of those slots, ascending to the limit of a response
    prefill: int  # questions whose prompts are computed at once

    @property
    def batches(self) -> int:
        return -(-self.questions // self.at_once)

    @property
    def parts(self) -> int:
        """Prefills of a batch."""
        return -(-self.at_once // self.prefill)


def draw(*, questions: int, votes: int, shapes: Shapes, length: int) -> Draw:
    """How the sampler decodes `votes` responses to each question, whose prompts are padded to `length` tokens."""
    at_once = shapes.prompts_at_once(prompts=questions, votes=votes)
    slots = shapes.layouts(prompts=at_once, votes=votes)[0]
    each = shapes.prefill_prompts(prompts=at_once, tokens=length)
    return Draw(questions, votes, at_once, slots, tuple(shapes.sizes(slots)), each)


def count(params: Any) -> int:
    """Numbers in a tree of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of laid out arrays on one chip."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def copies(mesh: jax.sharding.Mesh) -> int:
    """Groups of chips that have the whole weights between them while they compute."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def pair_flops(model: ModelConfig) -> int:
    """Of one token that looks at one token, in all layers: a product with its key and one with its value."""
    return 4 * model.layers * model.heads * model.head_dim


def cache_bytes(model: ModelConfig, tokens: int, *, itemsize: int) -> int:
    """Of the keys and values of so many tokens."""
    return 2 * itemsize * model.layers * model.kv_heads * model.head_dim * tokens


def forward_flops(model: ModelConfig, rows: int, length: int, *, logits: int, tokens: int | None = None) -> int:
    """Of rows of `length` tokens, of which each sees those before it; logits: how many tokens in all have them; tokens:
    how many the layers compute, where that is less than what the rows have."""
    tokens = rows * length if tokens is None else tokens
    weights = 2 * count(decoder.shapes(model)["blocks"]) * tokens
    pairs = rows * (length * (length - 1) // 2)
    return weights + pairs * pair_flops(model) + 2 * model.vocab * model.width * logits


def copy_work(model: ModelConfig, mesh: jax.sharding.Mesh, *, itemsize: int) -> Work:
    """Of float32 masters, for each group of chips, into the type that samples."""
    return Work(0, (4 + itemsize) * count(decoder.shapes(model)) * copies(mesh))


def prefill_work(model: ModelConfig, drawn: Draw, mesh: jax.sharding.Mesh, *, length: int, itemsize: int) -> Work:
    """Of all questions, padded to `length` tokens. Each is computed by all chips that share its votes (fsdp)."""
    computed = drawn.batches * drawn.parts * drawn.prefill * mesh.shape["fsdp"]
    weights = drawn.batches * drawn.parts * itemsize * count(decoder.shapes(model)) * copies(mesh)
    cache = cache_bytes(model, computed * length, itemsize=itemsize)
    return Work(forward_flops(model, computed, length, logits=computed), weights + cache)


def decode_work(
    model: ModelConfig, drawn: Draw, mesh: jax.sharding.Mesh, *, length: int, tokens: int, itemsize: int
) -> Work:
    """Of all responses of `tokens` tokens to prompts padded to `length`. Each step computes a token for each slot, and
    reads the weights, a prompt's cache once on each chip that has votes of it, and the places of each slot's own."""
    rounds = drawn.batches * -(-drawn.at_once * drawn.votes // drawn.slots.size)
    places_read = sum(next(size for size in drawn.sizes if size >= made) for made in range(1, tokens))
    seen = drawn.slots.size * (places_read + (tokens - 1) * length)
    each = drawn.slots.size * forward_flops(model, 1, 1, logits=1)
    weights = itemsize * count(decoder.shapes(model)) * copies(mesh)
    prompts = cache_bytes(model, mesh.shape["fsdp"] * drawn.slots.groups * length, itemsize=itemsize)
    own = cache_bytes(model, drawn.slots.size * places_read, itemsize=itemsize)
    return Work(
        rounds * ((tokens - 1) * each + seen * pair_flops(model)), rounds * ((tokens - 1) * (weights + prompts) + own)
    )


def step_work(parameters: int, steps: int) -> Work:
    """Of optimizer steps: the gradient is read; masters and two moments in float32 are read and written."""
    return Work(0, 4 * 7 * parameters * steps)
