"""From the config to the parts of a run. Beside the commands, and the modules that check and
complete the config, the one place that reads it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax import hosts
from ttrl_jax.check import check
from ttrl_jax.data import prompts as text
from ttrl_jax.data.problems import Problem, Problems, truths
from ttrl_jax.errors import InputError
from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.layout import params_layout, state_layout
from ttrl_jax.learn.update import LossSettings, ScoreSettings, Sizes, Update
from ttrl_jax.model import attention, decoder, weights
from ttrl_jax.model.config import ModelConfig, read_config
from ttrl_jax.model.sharding import (
    make_mesh,
    of_hosts,
    replicated,
    require_fit,
    require_fit_of_batch,
)
from ttrl_jax.records import Prompts, Rollouts, TrainState, padded_length
from ttrl_jax.resolve import resolve
from ttrl_jax.reward.extract import Answer
from ttrl_jax.rollout import copies
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.run import distributed
from ttrl_jax.run.compiled import keep_programs
from ttrl_jax.source import model_source, parameter_count, tokenizer_of
from ttrl_jax.tasks import Task, read_tasks

_FLOAT32 = 4  # bytes
# How a CPU orders a program: for the least memory. Its default is for the most at once, no faster where cores are few.
_LEAST_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


@dataclass(frozen=True)
class EvalInputs:
    """What an evaluation reads, all of it checked before anything is written."""

    config: FrozenConfigDict  # with every value set
    sources: dict[str, str]  # of the values that the model can decide: key -> where it is from, in words
    source: Path  # of the model: a Hugging Face folder or a GGUF file
    model: ModelConfig
    tokenizer: Any
    stop_ids: tuple[int, ...]
    encoder: text.PromptEncoder
    tasks: tuple[Task, ...]  # the first is the config's own data
    mesh: jax.sharding.Mesh
    attention: str  # why whole rows are attended to as `model` says, in words


@dataclass(frozen=True)
class Inputs(EvalInputs):
    """What a run of training reads, likewise."""

    problems: Problems
    total_steps: int


def read_eval_inputs(config: FrozenConfigDict) -> EvalInputs:
    """Read and check config, model and data, and let the model decide what the config leaves unset.

    Raises InputError for the first thing that cannot be used.
    """
    check(config)
    source = model_source(config.model.path)
    model = read_config(source)
    tokenizer, stop_ids = tokenizer_of(source)
    text.check_vocabulary(tokenizer, model.vocab, str(source))
    stop_ids = tuple(sorted({*stop_ids, *text.stop_text_ids(tokenizer, config.rollout.stop)}))
    config, sources = resolve(config, template=text.chat_template(tokenizer), max_positions=model.max_positions)
    check_length(config, model)
    encoder = text.PromptEncoder(
        tokenizer,
        chat_template=config.prompt.chat_template,
        system=config.prompt.system,
        prefix=config.prompt.prefix,
        suffix=config.prompt.suffix,
        thinking=config.prompt.thinking,
        max_tokens=config.prompt.max_tokens,
    )
    tasks = read_tasks(config)
    for task in tasks:
        try:
            encoder.check(task.items)
        except InputError as error:
            raise InputError(f"{task.path}: {error}") from error
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    require_fit(mesh, heads=model.heads)
    model, why = with_kernel(config, model, mesh)
    weights.check(source, model)
    return EvalInputs(config, sources, source, model, tokenizer, stop_ids, encoder, tasks, mesh, why)


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


def read_inputs(config: FrozenConfigDict) -> Inputs:
    """The same for training, which asks more of the config and the data."""
    shared = read_eval_inputs(config)
    config = shared.config
    items = shared.tasks[0].items
    problems = Problems(items, batch=config.rollout.prompts, seed=config.seed)
    require_fit_of_batch(shared.mesh, prompts=config.rollout.prompts)
    if config.reward.label == "truth" and truths(items) is None:
        raise InputError(
            f'reward.label="truth" needs a truth for each question; {config.data.path} has no column '
            f"{config.data.truth_column!r}"
        )
    return Inputs(**vars(shared), problems=problems, total_steps=config.episodes * problems.steps_per_episode)


def identity(inputs: EvalInputs) -> dict[str, Any]:
    """What tells this model from any other: its shape, and the fingerprint of its files."""
    shape = dataclasses.asdict(inputs.model)
    del shape["attention"]  # a run may go on on other devices
    return {**shape, "fingerprint": weights.fingerprint(inputs.source)}


@dataclass(frozen=True)
class EvalParts:
    """What an evaluation calls."""

    params_layout: decoder.Params  # ShapeDtypeStructs with shardings, for restoring
    encode: Callable[[Sequence[Problem]], Prompts]
    render: Callable[[Sequence[Problem]], list[str]]  # the prompts as text
    # Rollouts and their texts [P][V], special tokens left out; texts are made while others are being sampled.
    draw: Callable[..., tuple[Rollouts, list[list[str]]]]  # (params, prompts, key, *, votes, sampling, progress)
    sample_for_eval: Callable[..., tuple[Rollouts, list[list[str]]]]  # (params, prompts, key, *, progress)
    sample_greedy: Callable[..., tuple[Rollouts, list[list[str]]]]  # likewise, one response to each prompt


@dataclass(frozen=True)
class Parts(EvalParts):
    """What the loop calls."""

    state: TrainState  # at the start, before any step
    state_layout: TrainState  # as params_layout
    sample: Callable[..., tuple[Rollouts, list[list[str]]]]  # (params, prompts, key, *, progress)
    extract: Callable[[str], Answer | None]
    in_format: Callable[[str], bool] | None  # of Task
    learning_rate: Callable[[int], float]
    update: Update
    compile_seconds: Callable[[], float]  # of all programs so far


def build_eval(config: ConfigDict, inputs: EvalInputs, announce: Callable[[str], None]) -> EvalParts:
    """Make the functions that an evaluation calls. Sets JAX's mesh, and where it keeps programs, for the process."""
    keep_programs(announce)
    jax.set_mesh(inputs.mesh)
    sampler, host = _sampler_and_host(config, inputs, announce, kept_bytes=_FLOAT32)
    return _eval_parts(config, inputs, sampler, host)


def build(config: ConfigDict, inputs: Inputs, announce: Callable[[str], None]) -> Parts:
    """Put the model on the mesh and make the functions that the loop calls. For the process: as build_eval."""
    keep_programs(announce)
    model, mesh, train = inputs.model, inputs.mesh, config.train
    jax.set_mesh(mesh)
    reference_bytes = jnp.dtype(config.model.dtype).itemsize if train.kl_coef else 0
    sampler, host = _sampler_and_host(config, inputs, announce, kept_bytes=3 * _FLOAT32 + reference_bytes)
    shared = _eval_parts(config, inputs, sampler, host)
    optimizer = make_optimizer(config)
    layout = state_layout(shared.params_layout, optimizer, mesh)
    params = weights.load(inputs.source, model, mesh)
    # A real copy, also where the type stays: the parameters' own buffers are given away to the first update.
    freeze = jax.jit(
        lambda params: jax.tree.map(lambda x: jnp.array(x, jnp.dtype(config.model.dtype), copy=True), params),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout.params),
    )
    reference = freeze(params) if train.kl_coef else None
    update = make_update(config, model, mesh, optimizer, layout, reference=reference, announce=announce)
    start = jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout.optimizer))
    return Parts(
        **vars(shared),
        state=TrainState(jax.device_put(np.int32(0), replicated(mesh)), params, start(params)),
        state_layout=layout,
        sample=functools.partial(shared.draw, votes=config.rollout.votes, sampling=sampling_of(config.rollout)),
        extract=inputs.tasks[0].extract,
        in_format=inputs.tasks[0].in_format,
        learning_rate=functools.partial(
            optim.learning_rate, peak=train.learning_rate, total_steps=inputs.total_steps, warmup=train.warmup
        ),
        update=update,
        compile_seconds=lambda: sampler.compile_seconds + update.compile_seconds,
    )


def _sampler_and_host(
    config: ConfigDict, inputs: EvalInputs, announce: Callable[[str], None], *, kept_bytes: int
) -> tuple[Sampler, jax.sharding.Mesh | None]:
    """The programs that sample, and the mesh of this host if it does that by itself. kept_bytes: for each parameter."""
    model, mesh, rollout = inputs.model, inputs.mesh, config.rollout
    alone, why = hosts.choose(
        mesh,
        needed_bytes=lambda host: hosts.sampling_bytes(
            model,
            host,
            mesh,
            itemsize=jnp.dtype(config.model.dtype).itemsize,
            rows=rollout.rows,
            tokens=rollout.max_tokens,
            kept_bytes=kept_bytes,
        ),
    )
    if distributed.several():
        announce(f"sampling  {why}")
    host = of_hosts(mesh).local_mesh if alone else None
    return make_sampler(config, model, host or mesh, stop_ids=inputs.stop_ids, announce=announce), host


def _eval_parts(config: ConfigDict, inputs: EvalInputs, sampler: Sampler, host: jax.sharding.Mesh | None) -> EvalParts:
    make = copies.of_each_host if host else copies.of_the_mesh
    copy = make(inputs.model, inputs.mesh, jnp.dtype(config.model.dtype))
    decode = functools.partial(text.decode, inputs.tokenizer)
    draw = functools.partial(_sample, sampler, copy, decode, host)
    return EvalParts(
        params_layout=params_layout(inputs.model, inputs.mesh),
        encode=functools.partial(_encode, inputs.encoder),
        render=lambda batch: [inputs.encoder.render(problem.question) for problem in batch],
        draw=draw,
        sample_for_eval=functools.partial(draw, votes=config.eval.samples, sampling=sampling_of(config.eval)),
        sample_greedy=functools.partial(draw, votes=1, sampling=Sampling(temperature=0.0)),
    )


def make_sampler(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    *,
    stop_ids: tuple[int, ...],
    announce: Callable[[str], None],
) -> Sampler:
    """The programs that sample, as a config in which every value is set has them."""
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
    train = config.train
    return optim.make_optimizer(b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, grad_clip=train.grad_clip)


def make_update(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    optimizer: optax.GradientTransformation,
    layout: TrainState,
    *,
    reference: decoder.Params | None,
    announce: Callable[[str], None],
) -> Update:
    """The programs that learn, likewise. layout: of the state; reference: as in Update."""
    train, on_cpu = config.train, mesh.devices.flat[0].platform == "cpu"
    return Update(
        model,
        optimizer,
        loss=LossSettings(
            clip_low=train.clip_low,
            clip_high=train.clip_high,
            dual_clip=train.dual_clip,
            kl_coef=train.kl_coef,
            entropy_coef=train.entropy_coef,
        ),
        score=ScoreSettings(
            temperature=config.rollout.temperature,
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
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout),
        announce=announce,
        compiler_options=_LEAST_MEMORY if on_cpu else None,
    )


def state_bytes(model: ModelConfig) -> int:
    """Bytes of a checkpoint: float32 parameters and Adam's two moments."""
    return 3 * 4 * parameter_count(model)


def sampling_of(section: ConfigDict) -> Sampling:
    """How `rollout` or `eval` samples."""
    return Sampling(temperature=section.temperature, top_k=section.top_k, top_p=section.top_p)


def _sample(
    sampler: Sampler,
    copy: Callable[[Any], Any],
    decode: Callable[[np.ndarray], str],
    host: jax.sharding.Mesh | None,
    params: decoder.Params,
    prompts: Prompts,
    key: jax.Array,
    *,
    votes: int,
    sampling: Sampling,
    progress: Callable[[int], None],
) -> tuple[Rollouts, list[list[str]]]:
    weights = copy(params)

    def draw(prompts: Prompts, key: jax.Array, *, progress: Callable[[int], None]) -> tuple[Rollouts, list[list[str]]]:
        texts = [[""] * votes for _ in prompts.lengths]

        def ended(prompt: int, vote: int, ids: np.ndarray) -> None:
            texts[prompt][vote] = decode(ids)

        rollouts = sampler(weights, prompts, key, votes=votes, sampling=sampling, progress=progress, ended=ended)
        return rollouts, texts

    if host is None:  # what progress raises, all raise: here they decode in step
        return draw(prompts, key, progress=lambda tokens: distributed.together(lambda: progress(tokens)))
    return hosts.sample_shares(
        draw, prompts, key, host=host, votes=votes, max_tokens=sampler.max_tokens, progress=progress
    )


def _encode(encoder: text.PromptEncoder, batch: Sequence[Problem]) -> Prompts:
    ids = encoder.encode(batch)
    lengths = np.array([len(row) for row in ids], np.int32)
    padded = np.zeros((len(ids), lengths.max()), np.int32)
    for row, its_ids in enumerate(ids):
        padded[row, : len(its_ids)] = its_ids
    return Prompts(padded, lengths, np.array([problem.index for problem in batch], np.uint32))
