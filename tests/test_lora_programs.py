"""Semantics: what the programs of a run with LoRA hold and compute, read before XLA compiles them. The shape is that of
a model of 1.5 billion parameters, with two layers."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict
from plans import LAYERS, MATH_1_5B, VOCAB, WEIGHTS

from configs import aime
from ttrl_jax import programs
from ttrl_jax.learn.batch import full_rows
from ttrl_jax.model import decoder, lora
from ttrl_jax.model.config import ModelConfig, parse_config
from ttrl_jax.model.sharding import make_mesh
from ttrl_jax.plan.arithmetic import count
from ttrl_jax.plan.programs import Setting
from ttrl_jax.records import POLICY
from ttrl_jax.rollout import copies
from ttrl_jax.session import losses_of

RANK = 16
ADAPTERS = LAYERS * RANK * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))


def setting(rank: int, *, remat: str = "full", base: str = "dtype", kl: float = 0.001) -> Setting:
    config = ConfigDict(aime.get_config())
    config.rollout.max_tokens, config.rollout.temperature, config.prompt.thinking = 512, 1.0, False
    config.lora.rank, config.lora.base, config.train.remat, config.train.kl_coef = rank, base, remat, kl
    config.train.micro_tokens, config.rollout.rows, config.train.minibatch_prompts = 1024, 64, 8
    fields = {"model_type": "qwen2", "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    model: ModelConfig = parse_config(fields | MATH_1_5B | {"num_hidden_layers": LAYERS})
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return Setting(FrozenConfigDict(config), programs.with_lora(config, model), mesh, (8,), True, (0,))


@cache
def gradient(rank: int, *, remat: str = "full", kl: float = 0.001) -> jax.stages.Lowered:
    made = setting(rank, remat=remat, kl=kl)
    layout = made.layout()
    learner = programs.make_learners(
        made.config, made.model, made.mesh, programs.make_optimizers(made.config), layout,
        losses=losses_of(made.config), temperature=1.0, start=made.start(layout), announce=lambda *told: None,
    )[POLICY]  # fmt: skip
    batch = full_rows(2, length=512, tokens=256)
    micro = learner.micro_batches(batch, np.arange(2))[0]
    numbers = dict.fromkeys(("advantages", "sampler_logps"), micro.mask)
    params = layout.policy.params
    with jax.set_mesh(made.mesh):
        return learner._gradient.lower(params, made.base(), learner.reference, params, micro, numbers)


def sizes(lowered: jax.stages.Lowered, dtype: str) -> dict[str, int]:
    """The shapes of that type in the program, with how many numbers each has."""
    found = {}
    for piece in lowered.as_text().split("tensor<")[1:]:
        *shape, kind = piece.split(">")[0].split("x")
        if shape and kind == dtype and all(size.isdigit() for size in shape):
            found["x".join(shape)] = math.prod(map(int, shape))
    return found


BASES = [{1536, 8960}, {VOCAB, 1536}, {1536, 12 * 128}, {1536, 2 * 128}, {1536, 12, 128}, {1536, 2, 128}]


def of_the_base(shape: str) -> bool:
    return set(map(int, shape.split("x"))) in BASES


def test_the_gradient_holds_the_base_once_and_none_of_it_in_float32():
    arguments = jax.tree.leaves(gradient(RANK).in_avals)
    bf16 = sum(x.size for x in arguments if x.dtype == "bfloat16")
    assert bf16 == WEIGHTS  # the start is the base, too
    assert sum(x.size for x in arguments if x.dtype == "float32" and x.ndim > 2 and RANK in x.shape) == 2 * ADAPTERS
    assert not [shape for shape in sizes(gradient(RANK), "f32") if of_the_base(shape)]
    assert [shape for shape in sizes(gradient(RANK), "bf16") if of_the_base(shape)]  # what is looked for is found
    assert [shape for shape in sizes(gradient(0), "f32") if of_the_base(shape)]


def test_what_comes_out_is_the_gradient_of_the_adapters_alone():
    total, *_ = gradient(RANK).out_info
    assert count(total) == ADAPTERS and count(gradient(0).out_info[0]) == WEIGHTS
    assert ADAPTERS == lora.parameter_count(setting(RANK).model)


def test_without_remat_three_quarters_of_the_operations():
    """Of the three products with a weight, that of its own gradient is not there."""
    alone, whole = (gradient(rank, remat="none", kl=0.0).cost_analysis()["flops"] for rank in (RANK, 0))
    assert 0.5 < alone / whole <= 0.75


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_loop_over_layers_keeps_no_weights_for_its_way_back(remat):
    """As on GPUs and TPUs. What it keeps of all layers for the backward pass would be a second base."""
    made = setting(RANK)
    base, adapters = made.base(), made.layout().policy.params

    def loss(own, base):
        ids = jnp.zeros((3, 96), jnp.int32)
        hidden = decoder.forward({**base, **own}, made.model, ids, dtype=made.dtype, remat=remat)
        return hidden.astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(loss)).lower(adapters, base)
    stacked = [shape for shape in sizes(lowered, "bf16") if shape.startswith(f"{LAYERS}x")]
    assert stacked and not [shape for shape in stacked if of_the_base(shape.partition("x")[2])]


@pytest.mark.parametrize("base", ["dtype", "int8"])
def test_the_decode_loop_holds_the_base_once(base):
    made = setting(RANK, base=base)
    sampler = programs.make_sampler(made.config, made.model, made.shapes, stop_ids=(0,), announce=lambda *told: None)
    weights = copies.layout(made.model, made.mesh, made.dtype)
    with jax.set_mesh(made.mesh):
        key, sampling = jax.eval_shape(lambda: jax.random.key(0)), programs.sampling_of(made.config.rollout)
        *_, last = sampler.work(weights, key, sampling=sampling, prompts=8)
        lowered = sampler._segment.lower(*last.args, **last.keywords)
    held = {"bfloat16": 0, "int8": 0, "float32": 0}
    for x in jax.tree.leaves(lowered.in_avals[0][0]):
        held[x.dtype.name] += x.size
    products = LAYERS * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    scales = LAYERS * (2 * 1536 + 2 * 256 + 2 * 8960 + 1536)
    assert (
        held
        == {
            "dtype": {"bfloat16": WEIGHTS + ADAPTERS, "int8": 0, "float32": 0},
            "int8": {"bfloat16": WEIGHTS - products + ADAPTERS, "int8": products, "float32": scales},
        }[base]
    )
    number = lora.weight_bytes(made.model, itemsize=2)
    assert number == 2 * held["bfloat16"] + held["int8"]  # scales are left out
    assert base == "int8" or not [shape for shape in sizes(lowered, "f32") if of_the_base(shape)]
