"""From a config in which every value is set to the programs that sample and learn: for runs, and for the planner."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ttrl_jax.errors import InputError
from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.critic import critic_layout, new_head, response_values, trunk_of
from ttrl_jax.learn.layout import model_layout, params_layout, state_layout
from ttrl_jax.learn.logprobs import response_logprobs
from ttrl_jax.learn.loss import Loss
from ttrl_jax.learn.microbatch import MicroBatch
from ttrl_jax.learn.rounding import Seed
from ttrl_jax.learn.update import Sizes, Update
from ttrl_jax.model import attention, decoder, lora
from ttrl_jax.model.config import Lora, ModelConfig
from ttrl_jax.model.shapes import even_length, parameter_count
from ttrl_jax.model.sharding import of_hosts, on_hosts
from ttrl_jax.records import CRITIC, POLICY, PROCESS, Model, TrainState, padded_length
from ttrl_jax.reward.judge import RULES
from ttrl_jax.rollout import hosts
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import Shapes, few
from ttrl_jax.run import distributed
from ttrl_jax.run.compiled import Announce

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
    """The length, in tokens, to which the longest rows of the update are padded."""
    return padded_length(longest_row(config), longest_row(config))


def with_kernel(config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh) -> tuple[ModelConfig, str]:
    """The model with the kernels that attend to whole rows and over the cache on this mesh, and why, in words."""
    device, wanted = mesh.devices.flat[0], config.model
    of = dict(device=device, config=model, dtype=jnp.dtype(wanted.dtype))
    kernel, why = attention.choose(wanted.attention, length=row_tokens(config), **of)
    decode, because = attention.choose_decode(wanted.decode_attention, whole=wanted.attention, **of)
    if device.platform == "gpu":  # elsewhere there is no choice
        why += f"; over the cache {decode}, {because}"
    return dataclasses.replace(model, attention=kernel, decode_attention=decode), why


def with_lora(config: ConfigDict, model: ModelConfig) -> ModelConfig:
    """The model with the adapters that the config asks for, if it does. Raises InputError for a rank that is none."""
    if not config.lora.rank:
        return model
    if config.lora.rank > model.width:
        raise InputError(
            f"lora.rank={config.lora.rank} is more than the {model.width} numbers of a state of {config.model.path}; "
            "adapters are thin, 16 is a good rank"
        )
    rank, targets = config.lora.rank, tuple(config.lora.targets)
    return dataclasses.replace(model, lora=Lora(rank, config.lora.alpha / rank, targets, config.lora.base))


def rate_factor(config: ConfigDict) -> float:
    """What learning rates are multiplied by."""
    return config.lora.rate_factor if config.lora.rank else 1.0


def sampling_of(section: ConfigDict) -> Sampling:
    """How `rollout` or `eval` samples."""
    return Sampling(temperature=section.temperature, top_k=section.top_k, top_p=section.top_p)


def shapes_of(config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, *, longest_prompt: int) -> Shapes:
    """The shapes for which the programs that sample on `mesh` are compiled. model: with its kernels. longest_prompt:
    tokens of the longest prompt in the whole run."""
    found = Shapes(
        rows=config.rollout.rows,
        max_tokens=config.rollout.max_tokens,
        prefill_tokens=config.train.micro_tokens,
        prompt_multiple=mesh.shape["data"],
        vote_multiple=mesh.shape["fsdp"],
    )
    if _on_cpu(mesh):
        return found
    canary = config.canary.samples if config.canary.path else 0
    return few(
        found,
        longest_prompt=longest_prompt,
        prompts=config.rollout.prompts,
        most_votes=max(config.rollout.votes, evaluation_votes(config), canary),
        by_blocks=mesh.devices.flat[0].platform == "tpu" or model.decode_attention == "triton",
    )


def sampling_host(
    config: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, *, training: bool, say: Callable[[str], None]
) -> jax.sharding.Mesh | None:
    """The mesh of this host, if it samples by itself. say: gets lines on that, and on memory that is short."""
    item, kept_bytes = jnp.dtype(config.model.dtype).itemsize, 4 * trained_parameters(model)
    if training:  # masters and two moments of each model, and the start
        kept_bytes = 0 if config.mesh.offload else trained_bytes(config, model)
        kept_bytes += item * trained_parameters(model) if needs_start(config) else 0
    needed_bytes = functools.partial(
        hosts.sampling_bytes,
        model,
        mesh=mesh,
        itemsize=item,
        rows=config.rollout.rows,
        tokens=config.rollout.max_tokens,
        kept_bytes=kept_bytes,
    )
    alone, why = hosts.choose(mesh, needed_bytes=needed_bytes)
    if distributed.several():
        say(f"sampling  {why}")
    elif (short := hosts.shortage(mesh, needed_bytes(mesh))) is not None:
        say(f"memory    {short}")
    return of_hosts(mesh).local_mesh if alone else None


def start_model_votes(config: ConfigDict) -> bool:
    """Whether the start model votes once on all questions, for labels or for their order."""
    return config.reward.label == "offline" or config.data.order == "vote_share"


def evaluation_votes(config: ConfigDict) -> int:
    """How many responses to each question an evaluation draws, with the one at temperature 0."""
    return config.eval.samples + config.eval.greedy


def asks_entropies(config: ConfigDict, name: str) -> bool:
    """Whether each step computes the entropies of all votes under the model of that name, another forward pass over
    them, for judge.rule."""
    return name == POLICY and RULES[config.judge.rule].asks_entropies


def _on_cpu(mesh: jax.sharding.Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def make_sampler(
    config: ConfigDict,
    model: ModelConfig,
    shapes: Shapes,
    *,
    stop_ids: tuple[int, ...],
    announce: Announce,
) -> Sampler:
    """The programs that sample, compiled for `shapes`."""
    dtype = jnp.dtype(config.model.dtype)
    return Sampler(model, dtype=dtype, shapes=shapes, stop_ids=stop_ids, announce=announce)


def trained_models(config: ConfigDict) -> int:
    """How many models of the policy's size are trained."""
    own_trunk = config.algorithm == "ppo" and config.critic.trunk == "own"
    return 1 + int(own_trunk or config.algorithm == "prime")


def trained_parameters(model: ModelConfig) -> int:
    """Numbers of the policy that are trained."""
    return lora.parameter_count(model) if model.lora else parameter_count(model)


def trained_bytes(config: ConfigDict, model: ModelConfig) -> int:
    """Bytes of masters and both moments of all models that are trained."""
    master, moment = itemsizes(config)
    return (master + 2 * moment) * trained_parameters(model) * trained_models(config)


def itemsizes(config: ConfigDict) -> tuple[int, int]:
    """Bytes of a number of the masters, and of a moment."""
    return jnp.dtype(config.train.master_dtype).itemsize, jnp.dtype(config.train.moments_dtype).itemsize


def uses_policy(config: ConfigDict, name: str) -> bool:
    """Whether the model of that name computes with the policy's parameters, which it does not train."""
    return name == CRITIC and config.critic.trunk == "policy"


def needs_start(config: ConfigDict) -> bool:
    """Whether a copy of the start is kept: for the KL term, and for what a process model has learned since."""
    return config.train.kl_coef != 0 or config.algorithm == "prime"


def make_optimizers(config: ConfigDict) -> dict[str, optax.GradientTransformation]:
    """The optimizer of each model that is trained, by name."""
    train = config.train
    ways = {POLICY: {"weight_decay": train.weight_decay, "grad_clip": train.grad_clip}}
    if config.algorithm == "ppo":
        ways[CRITIC] = {"weight_decay": train.weight_decay, "grad_clip": config.critic.grad_clip}
    if config.algorithm == "prime":  # without decay, as the reference has it
        ways[PROCESS] = {"weight_decay": 0.0, "grad_clip": config.prime.grad_clip}
    adam = {"b1": train.b1, "b2": train.b2, "moments_dtype": jnp.dtype(train.moments_dtype)}
    return {name: optim.make_optimizer(**adam, **way, seed=_seed(config, name)) for name, way in ways.items()}


def _seed(config: ConfigDict, name: str) -> Seed:
    """Of what is rounded by chance in the training of a model."""
    return config.seed, (POLICY, CRITIC, PROCESS).index(name)


def resting(config: ConfigDict, tree: Any) -> Any:
    """Masters and moments where they are while the model samples: with mesh.offload in the hosts' memory, from which
    whoever computes with them fetches them. The arrays of `tree` are used up then."""
    return on_hosts(tree) if config.mesh.offload else tree


def layout_of(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    optimizers: dict[str, optax.GradientTransformation],
) -> TrainState:
    """How the state of all models lies on the mesh."""
    policy = params_layout(model, mesh, jnp.dtype(config.train.master_dtype))
    params = {POLICY: policy, PROCESS: policy, CRITIC: critic_layout(policy, model, mesh, trunk=config.critic.trunk)}
    models = {name: model_layout(params[name], each, mesh) for name, each in optimizers.items()}
    return state_layout(models, mesh)


def make_learners(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    optimizers: dict[str, optax.GradientTransformation],
    layout: TrainState,
    *,
    losses: dict[str, Loss],
    temperature: float,
    start: decoder.Params | None,
    announce: Announce,
) -> dict[str, Update]:
    """The programs that learn on `mesh`, of each model by name.

    losses: likewise. temperature: of sampling, at which the policy's log-probs are taken; the process model's are taken
    at 1. start: the frozen start, or None where `needs_start` says so; with LoRA its adapters, or {} where it has none.
    announce: as in Update.
    """
    train, on_cpu = config.train, _on_cpu(mesh)
    alone = model.lora is None  # else gradients are of the adapters, which are few
    way = dict(config=model, dtype=jnp.dtype(config.model.dtype), remat=train.remat)
    way["unroll"] = on_cpu  # where XLA copies all that a loop over layers has kept, at each of them
    rows = {name: train.minibatch_prompts * train.samples for name in losses}
    rows[PROCESS] = min(config.prime.minibatch_rows, config.rollout.prompts * train.samples)
    logprobs = functools.partial(_logprobs, table_gradient=alone, **way)
    forwards = {
        POLICY: functools.partial(logprobs, temperature=temperature, loss=losses[POLICY]),
        CRITIC: functools.partial(response_values, **way),
        PROCESS: functools.partial(logprobs, temperature=1.0, loss=losses[PROCESS] if PROCESS in losses else None),
    }
    starts = {POLICY: start if train.kl_coef else None, CRITIC: None, PROCESS: start}
    return {
        name: Update(
            forwards[name],
            optimizers[name],
            name="" if name == POLICY else name,
            loss=loss,
            sizes=Sizes(
                minibatch_rows=rows[name],
                micro_tokens=train.micro_tokens,
                chunk_tokens=train.chunk_tokens,
                longest=longest_row(config),
                shards=mesh.shape["data"] * mesh.shape["fsdp"],
                # A loop over layers, which `unroll` is there to avoid.
                in_place=train.remat == "full" and alone and not on_cpu,
                few=not on_cpu,
                even=even_length(model),
            ),
            reference=starts[name],
            shardings=jax.tree.map(lambda leaf: leaf.sharding, layout.models[name]),
            announce=announce,
            seed=_seed(config, name),
            compiler_options=_LEAST_MEMORY if on_cpu else None,
        )
        for name, loss in losses.items()
    }


def _logprobs(
    params: decoder.Params, base: decoder.Params | None, *, micro: MicroBatch, loss: Loss, **way: Any
) -> tuple[jax.Array, jax.Array]:
    """base: what stays as it is, with LoRA; params are then the adapters, or none of them for the base alone."""
    whole = {**(base or {}), **params}
    return response_logprobs(whole, micro=micro, entropy_gradient=loss.entropy_gradient, **way)


def frozen(params: decoder.Params, dtype: jnp.dtype) -> decoder.Params:
    """A real copy in the type that computes, also where the type stays: the parameters' own buffers are given away to
    the first update."""
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    freeze = jax.jit(lambda params: jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), params), out_shardings=where)
    return freeze(params)


def first_state(
    params: decoder.Params,
    optimizers: Mapping[str, optax.GradientTransformation],
    layout: TrainState,
    model: ModelConfig,
    *,
    seed: int,
) -> TrainState:
    """The state before any step: the helpers begin as copies of the policy."""
    where = jax.tree.map(lambda leaf: leaf.sharding, layout)
    models = {POLICY: Model(params, None)}
    for name, optimizer in optimizers.items():
        its, own = where.models[name], params
        if name == PROCESS:
            own = _copied(params)
        if name == CRITIC:
            own = {"head": jax.device_put(new_head(model, seed=seed), its.params["head"])}
            own |= {"trunk": _copied(trunk_of(params))} if "trunk" in its.params else {}
        models[name] = Model(own, jax.jit(optimizer.init, out_shardings=its.optimizer)(own))
    return TrainState(jax.device_put(np.int32(0), where.step), models)


def _copied(params: decoder.Params) -> decoder.Params:
    """A copy with buffers of its own, because the buffers of the policy are given away to its first update."""
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    return jax.jit(lambda params: jax.tree.map(lambda x: jnp.array(x, copy=True), params), out_shardings=where)(params)
