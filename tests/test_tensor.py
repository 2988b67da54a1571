"""Semantics: what devices exchange in a pass of the update, where heads, ffn and vocabulary are split over `tensor`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plans import sizes
from tiny_model import LLAMA, on_mesh

from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.learn.microbatch import few_shapes, micro_batches
from ttrl_jax.model import decoder
from ttrl_jax.model.sharding import placed, shardings
from ttrl_jax.plan import hlo
from ttrl_jax.records import TrainBatch

# Sizes that nothing else has, so that the shapes of what is exchanged tell what it is.
MODEL = dataclasses.replace(LLAMA, width=20, heads=4, kv_heads=2, head_dim=14, ffn=88, vocab=384)
HEADS, FFN, VOCAB = 4 * 14, 88, 384
SHARDS, ROWS, PROMPT, TOKENS = 4, 4, 8, 32


@pytest.mark.parametrize("packed", [False, True], ids=["whole rows", "packed rows"])
def test_no_device_has_weights_or_activations_of_another_part(packed: bool):
    """Weights are gathered over fsdp, and their gradients added up over it: those of a device's own heads, and of its
    own part of ffn and vocabulary."""
    with on_mesh((1, SHARDS, 2)) as mesh:
        exchanged = hlo.loop_collectives(gradient(mesh, packed=packed))
    found = sizes(exchanged)
    assert {HEADS // 2, FFN // 2} <= found, exchanged
    assert not found & {HEADS, FFN, VOCAB}, exchanged


def gradient(mesh: jax.sharding.Mesh, *, packed: bool) -> str:
    """The program of a gradient of rows that share their prompts, compiled."""
    count = SHARDS * ROWS
    ids = np.random.default_rng(0).integers(VOCAB, size=(count, TOKENS)).astype(np.int32)
    ids[:, :PROMPT] = ids[0, :PROMPT]
    mask = np.ones((count, TOKENS - PROMPT), np.float32)
    batch = TrainBatch(ids, np.full(count, PROMPT, np.int32), ids[:, PROMPT:], mask, mask > 0)
    kinds = few_shapes(tokens=ROWS * TOKENS, rows=ROWS, longest=TOKENS, even=1e9) if packed else None
    limits = dict(tokens=ROWS * TOKENS, chunk=16, full=count, longest=TOKENS)
    micro, *_ = micro_batches(batch, np.arange(count), shards=SHARDS, kinds=kinds, **limits)
    assert (micro.packing is not None) == packed

    def loss(params):
        way = dict(temperature=1.0, dtype=jnp.float32, remat="full", entropy_gradient=True)
        logps, entropies = response_logprobs(params, MODEL, micro, **way)
        return ((logps + entropies) * micro.mask).sum()

    shapes = decoder.shapes(MODEL)
    params = jax.tree.map(placed, shapes, shardings(decoder.logical_axes(MODEL), shapes, mesh))
    return jax.jit(jax.grad(loss)).lower(params).compile().as_text()
