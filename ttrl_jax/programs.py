"""From a config in which every value is set to the programs that sample and learn: for runs, and for the planner."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ttrl_jax.errors import InputError
from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.loss import Loss
from ttrl_jax.learn.update import ScoreSettings, Sizes, Update
from ttrl_jax.model import attention, decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.records import Model, padded_length
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling

# How a CPU orders a program: for the least memory. Its default is for the most at once, no faster where cores are few.
_LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def check_length(config: ConfigDict, model: ModelConfig) -> None:
    """Raise InputError if prompt and response are longer than the model can see."""
    longest = longest_row(config)
    if longest > model.max_positions:
        raise InputError(
            f"prompt.max_tokens + rollout.max_tokens is {longest}, more than the {model.max_positions} positions of "
            f"{config.model.path}; lower one of them"
        )


def longest_row(config: ConfigDict) -> int:
    """Tokens of a prompt and a response that are as long as they may be."""
    return config.prompt.max_tokens + config.rollout.max_tokens


def row_tokens(config: ConfigDict) -> int:
    """What the longest rows of the update are padded to."""
    return padded_length(longest_row(config), longest_row(config))


def with_kernel(config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh) -> tuple[ModelConfig, str]:
    """The model with the kernel that attends to whole rows on this mesh, and why, in words."""
    kernel, why = attention.choose(
        config.model.attention,
        device=mesh.devices.flat[0],
        config=model,
        dtype=jnp.dtype(config.model.dtype),
        length=row_tokens(config),
    )
    return dataclasses.replace(model, attention=kernel), why


def sampling_of(section: ConfigDict) -> Sampling:
    """How `rollout` or `eval` samples."""
    return Sampling(temperature=section.temperature, top_k=section.top_k, top_p=section.top_p)


def make_sampler(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    *,
    stop_ids: tuple[int, ...],
    announce: Callable[[str], None],
) -> Sampler:
    """The programs that sample on `mesh`."""
    return Sampler(
        model,
        dtype=jnp.dtype(config.model.dtype),
        rows=config.rollout.rows,
        max_tokens=config.rollout.max_tokens,
        stop_ids=stop_ids,
        prompt_multiple=mesh.shape["data"],
        vote_multiple=mesh.shape["fsdp"],
        announce=announce,
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Of the policy."""
    train = config.train
    return optim.make_optimizer(b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, grad_clip=train.grad_clip)


def make_update(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    optimizer: optax.GradientTransformation,
    layout: Model,
    *,
    loss: Loss,
    temperature: float,
    reference: decoder.Params | None,
    announce: Callable[[str], None],
) -> Update:
    """The programs that learn on `mesh`. layout: of the model; temperature: of sampling; the rest as in Update."""
    train, on_cpu = config.train, mesh.devices.flat[0].platform == "cpu"
    return Update(
        model,
        optimizer,
        loss=loss,
        score=ScoreSettings(
            temperature=temperature,
            dtype=jnp.dtype(config.model.dtype),
            remat=train.remat,
            unroll=on_cpu,  # where XLA copies all that a loop over layers has kept, at each of them
        ),
        sizes=Sizes(
            minibatch_rows=train.minibatch_prompts * train.samples,
            micro_tokens=train.micro_tokens,
            chunk_tokens=train.chunk_tokens,
            longest=longest_row(config),
            shards=mesh.shape["data"] * mesh.shape["fsdp"],
            pack=on_cpu,  # in each layer tokens are moved between rows: not measured on TPUs and GPUs
        ),
        reference=reference,
        shardings=jax.tree.map(lambda leaf: leaf.sharding, layout),
        announce=announce,
        compiler_options=_LEAST_MEMORY if on_cpu else None,
    )
