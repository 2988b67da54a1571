"""How many operations the programs of a step take, and how many bytes they move, from the shape of the model alone.

Padding, idle slots and what remat computes again count, because chips spend time on them. XLA's own count takes the
body of a loop once, so it cannot be used for a scan over layers or for a decode loop.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax

from ttrl_jax.model import decoder, lora
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.plan.chips import Chip
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.shapes import Shapes


@dataclass(frozen=True)
class Work:
    """Operations and bytes of all chips together."""

    flops: float
    moved: float  # bytes from and to memory

    def seconds(self, chip: Chip, chips: int) -> float:
        """The roofline: the time for the operations or for the bytes, whichever is longer."""
        return max(self.flops / chip.flops, self.moved / chip.bandwidth) / chips


@dataclass(frozen=True)
class Draw:
    """Responses that are sampled together in a run: `votes` responses to each of `questions` questions, on slots."""

    questions: int
    votes: int
    at_once: int  # questions whose responses are decoded together
    slots: places.Layout  # to begin with, which is the largest
    sizes: tuple[int, ...]  # of the cache of those slots, ascending to the limit of a response
    block: int | None  # places of it that are read at once; None: it is read whole
    prefill: int  # questions whose prompts are computed at once

    @property
    def batches(self) -> int:
        return -(-self.questions // self.at_once)

    @property
    def parts(self) -> int:
        """How many prefills a batch has."""
        return -(-self.at_once // self.prefill)

    def places_read(self, length: int) -> int:
        """Places of a slot's cache that a step reads where the longest response has `length` tokens."""
        if self.block is None:
            return next(size for size in self.sizes if size >= length)
        return min(length - 1 + self.block, self.sizes[-1])  # on average: they begin anywhere in a block


def draw(*, questions: int, votes: int, shapes: Shapes, length: int) -> Draw:
    """How the sampler decodes `votes` responses to each question, whose prompts are padded to `length` tokens."""
    at_once = shapes.prompts_at_once(prompts=questions, votes=votes)
    slots = shapes.layouts(prompts=at_once, votes=votes)[0]
    each = shapes.prefill_prompts(prompts=at_once, tokens=length)
    return Draw(questions, votes, at_once, slots, tuple(shapes.sizes(slots)), shapes.block, each)


def count(params: Any) -> int:
    """How many numbers a tree of arrays has."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def adapters(model: ModelConfig) -> int:
    """How many numbers the adapters have, if there are any."""
    return lora.parameter_count(model) if model.lora else 0


def chip_bytes(tree: Any) -> int:
    """How many bytes of a tree of arrays with shardings are on one chip."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def copies(mesh: jax.sharding.Mesh) -> int:
    """How many groups of chips there are that together hold all weights while they compute."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def pair_flops(model: ModelConfig) -> int:
    """Operations for one token that attends to one token, in all layers: a product with its key and one with its
    value."""
    return 4 * model.layers * model.heads * model.head_dim


def cache_bytes(model: ModelConfig, tokens: int, *, itemsize: int) -> int:
    """Bytes of the keys and values of so many tokens."""
    return 2 * itemsize * model.layers * model.kv_heads * model.head_dim * tokens


def forward_flops(model: ModelConfig, rows: int, length: int, *, logits: int, tokens: int | None = None) -> int:
    """Operations of a forward pass over rows of `length` tokens, in which a token sees those before it. logits: for how
    many tokens logits are computed. tokens: how many tokens the layers compute, if fewer than the rows have."""
    tokens = rows * length if tokens is None else tokens
    weights = 2 * (count(decoder.shapes(model)["blocks"]) + adapters(model)) * tokens
    pairs = rows * (length * (length - 1) // 2)
    return weights + pairs * pair_flops(model) + 2 * model.vocab * model.width * logits


def copy_work(model: ModelConfig, mesh: jax.sharding.Mesh, *, master: int, itemsize: int) -> Work:
    """The work of copying the masters, of `master` bytes each, into the type that samples, for each group of chips."""
    return Work(0, (master + itemsize) * (adapters(model) or count(decoder.shapes(model))) * copies(mesh))


def prefill_work(model: ModelConfig, drawn: Draw, mesh: jax.sharding.Mesh, *, length: int, itemsize: int) -> Work:
    """The work of the prefill of all questions, padded to `length` tokens. All chips that share the votes on a question
    (fsdp) compute its prompt."""
    computed = drawn.batches * drawn.parts * drawn.prefill * mesh.shape["fsdp"]
    weights = drawn.batches * drawn.parts * lora.weight_bytes(model, itemsize=itemsize) * copies(mesh)
    cache = cache_bytes(model, computed * length, itemsize=itemsize)
    return Work(forward_flops(model, computed, length, logits=computed), weights + cache)


def decode_work(
    model: ModelConfig, drawn: Draw, mesh: jax.sharding.Mesh, *, length: int, tokens: int, itemsize: int
) -> Work:
    """The work of decoding all responses of `tokens` tokens to prompts padded to `length`. Each step computes a token
    for each slot. It reads the weights, the cache of a prompt once on each chip that has votes on it, and the own cache
    of each slot."""
    rounds = drawn.batches * -(-drawn.at_once * drawn.votes // drawn.slots.size)
    places_read = sum(map(drawn.places_read, range(1, tokens)))
    seen = drawn.slots.size * (places_read + (tokens - 1) * length)
    each = drawn.slots.size * forward_flops(model, 1, 1, logits=1)
    weights = lora.weight_bytes(model, itemsize=itemsize) * copies(mesh)
    prompts = cache_bytes(model, mesh.shape["fsdp"] * drawn.slots.groups * length, itemsize=itemsize)
    own = cache_bytes(model, drawn.slots.size * places_read, itemsize=itemsize)
    return Work(
        rounds * ((tokens - 1) * each + seen * pair_flops(model)), rounds * ((tokens - 1) * (weights + prompts) + own)
    )


def step_work(parameters: int, steps: int, *, master: int, moment: int) -> Work:
    """The work of optimizer steps: the gradient, float32, is read; masters of `master` bytes and two moments of
    `moment` bytes each are read and written."""
    return Work(0, (4 + 2 * master + 4 * moment) * parameters * steps)
