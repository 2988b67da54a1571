"""From the config to the parts of a run. The one place, beside resolve.py and the commands, that reads the config."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax.data import prompts as text
from ttrl_jax.data.problems import Problem, Problems, load, truths
from ttrl_jax.errors import InputError
from ttrl_jax.learn import optimizer as optim
from ttrl_jax.learn.update import LossSettings, ScoreSettings, Update
from ttrl_jax.model import decoder, weights
from ttrl_jax.model.config import ModelConfig, read_config
from ttrl_jax.model.sharding import make_mesh, replicated, shardings
from ttrl_jax.records import Prompts, Rollouts, TrainState
from ttrl_jax.resolve import resolve
from ttrl_jax.reward.extract import Answer, extract
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling

_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
]


@dataclass(frozen=True)
class Inputs:
    """What a run reads, all of it checked before anything is written."""

    config: FrozenConfigDict  # with every value set
    sources: dict[str, str]  # of the values that the model can decide: key -> where it is from, in words
    folder: Path  # of the model
    model: ModelConfig
    tokenizer: Any
    stop_ids: tuple[int, ...]
    encoder: text.PromptEncoder
    problems: Problems
    held_out: list[Problem]
    mesh: jax.sharding.Mesh
    total_steps: int


def read_inputs(config: FrozenConfigDict) -> Inputs:
    """Read and check config, model folder and data, and let the model decide what the config leaves unset.

    Raises InputError for the first thing that cannot be used.
    """
    check(config)
    folder = _model_folder(config.model.path)
    model = read_config(folder)
    tokenizer = text.load_tokenizer(str(folder))
    text.check_vocabulary(tokenizer, model.vocab, str(folder))
    stop_ids = text.stop_ids(tokenizer, str(folder))
    config, sources = resolve(config, template=text.chat_template(tokenizer), max_positions=model.max_positions)
    longest = config.prompt.max_tokens + config.rollout.max_tokens
    if longest > model.max_positions:
        raise InputError(
            f"prompt.max_tokens + rollout.max_tokens is {longest}, more than the {model.max_positions} positions of "
            f"{config.model.path}; lower one of them"
        )
    encoder = text.PromptEncoder(
        tokenizer,
        chat_template=config.prompt.chat_template,
        system=config.prompt.system,
        prefix=config.prompt.prefix,
        suffix=config.prompt.suffix,
        thinking=config.prompt.thinking,
        max_tokens=config.prompt.max_tokens,
    )
    items = _problems(config, config.data.path, level=config.data.level or None)
    problems = Problems(items, batch=config.rollout.prompts, seed=config.seed)
    held_out = _problems(config, config.eval.held_out_path, level=None) if config.eval.held_out_path else []
    encoder.check([*items, *held_out])
    if config.reward.label == "truth" and truths(items) is None:
        raise InputError(
            f'reward.label="truth" needs a truth for each question; {config.data.path} has no column '
            f"{config.data.truth_column!r}"
        )
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    _micro_rows(config, mesh)
    weights.check(folder, model)
    total_steps = config.episodes * problems.steps_per_episode
    return Inputs(config, sources, folder, model, tokenizer, stop_ids, encoder, problems, held_out, mesh, total_steps)


def _micro_rows(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """Rows of one micro-batch, over all devices. Raises InputError if a minibatch cannot be cut into such."""
    minibatch_rows = config.train.minibatch_prompts * config.train.samples
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if minibatch_rows % (config.train.micro_rows * devices):
        raise InputError(
            f"a minibatch of train.minibatch_prompts x train.samples = {minibatch_rows} responses cannot be cut into "
            f"micro-batches of train.micro_rows={config.train.micro_rows} on each of {devices} devices; change one"
        )
    return config.train.micro_rows * devices


def _problems(config: ConfigDict, path: str, *, level: int | None) -> list[Problem]:
    return load(
        path,
        split=config.data.split,
        question_column=config.data.question_column,
        truth_column=config.data.truth_column,
        level=level,
        limit=config.data.limit or None,
    )


def _model_folder(path: str) -> Path:
    """A local model folder: `path` itself, or the hub's files of that name, downloaded (with progress) or cached."""
    if Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise InputError(f"There is no model folder {Path(path).expanduser().absolute()}; set model.path")
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path} is neither a model folder here nor could it be fetched from the hub ({reason})"
        ) from error


def _number_rules(config: ConfigDict) -> list[tuple[bool, str]]:
    """What must be at least 1, or at least 0."""
    rollout, train = config.rollout, config.train
    at_least_one = {
        "episodes": config.episodes,
        "prompt.max_tokens": config.prompt.max_tokens,
        "rollout.prompts": rollout.prompts,
        "rollout.votes": rollout.votes,
        "rollout.rows": rollout.rows,
        "train.samples": train.samples,
        "train.minibatch_prompts": train.minibatch_prompts,
        "train.micro_rows": train.micro_rows,
        "train.chunk_tokens": train.chunk_tokens,
        "eval.samples": config.eval.samples,
        "checkpoint.keep": config.checkpoint.keep,
    }
    not_negative = {
        "data.level": config.data.level,
        "data.limit": config.data.limit,
        "train.learning_rate": train.learning_rate,
        "train.kl_coef": train.kl_coef,
        "train.weight_decay": train.weight_decay,
        "train.grad_clip": train.grad_clip,
        "eval.every": config.eval.every,
        "log.generations_every": config.log.generations_every,
    }
    if rollout.max_tokens is not None:
        at_least_one["rollout.max_tokens"] = rollout.max_tokens
    rules = [(value >= 1, f"{name} must be at least 1, got {value}") for name, value in at_least_one.items()]
    rules += [(value >= 0, f"{name} must not be negative, got {value}") for name, value in not_negative.items()]
    return rules


def check(config: ConfigDict) -> None:
    """Raise InputError for the first value that is out of range or does not fit the others. None is for the model."""
    rollout, train, sampling = config.rollout, config.train, (config.rollout, config.eval)
    rules = [
        (config.algorithm == "grpo", f'algorithm must be "grpo", got {config.algorithm!r}'),
        (config.model.path, "model.path is empty; give a model folder or a hub name"),
        (config.data.path, "data.path is empty; give a data file, builtin:NAME or a hub name"),
        (
            config.model.dtype in ("bfloat16", "float32"),
            f"model.dtype must be bfloat16 or float32, got {config.model.dtype!r}",
        ),
        (
            config.reward.label in ("majority", "truth", "random"),
            f"reward.label must be majority, truth or random, got {config.reward.label!r}",
        ),
        (
            train.samples <= rollout.votes,
            f"train.samples={train.samples} is more than the rollout.votes={rollout.votes} that are sampled",
        ),
        (
            rollout.temperature is None or rollout.temperature > 0,
            f"rollout.temperature must be above 0 to learn from, got {rollout.temperature}",
        ),
        (config.eval.temperature >= 0, f"eval.temperature must not be negative, got {config.eval.temperature}"),
        (all(s.top_k >= 0 for s in sampling), "top_k must not be negative; 0 switches it off"),
        (all(0 < s.top_p <= 1 for s in sampling), "top_p must be above 0 and at most 1, which switches it off"),
        (0 <= train.warmup <= 1, f"train.warmup is a share of the steps, 0 to 1, got {train.warmup}"),
        (0 < train.clip_low <= 1 and train.clip_high > 0, "train.clip_low must be in (0, 1], train.clip_high above 0"),
        (train.dual_clip > 1, f"train.dual_clip must be above 1, got {train.dual_clip}"),
        (0 <= config.seed < 2**31, f"seed must be in 0 .. 2^31 - 1, got {config.seed}"),
    ]
    rules += _number_rules(config)
    rules.append(
        (
            rollout.prompts % max(1, train.minibatch_prompts) == 0,
            f"rollout.prompts={rollout.prompts} questions cannot be cut into minibatches of "
            f"train.minibatch_prompts={train.minibatch_prompts}",
        )
    )
    for holds, sentence in rules:
        if not holds:
            raise InputError(sentence)
    extract("", strategies=tuple(config.reward.extract), thinking=False)


@dataclass(frozen=True)
class Parts:
    """What the loop calls."""

    state: TrainState  # at the start, before any step
    state_layout: TrainState  # ShapeDtypeStructs with shardings, for restoring
    encode: Callable[[Sequence[Problem]], Prompts]
    sample: Callable[..., Rollouts]  # (params, prompts, key, *, progress)
    sample_for_eval: Callable[..., Rollouts]
    texts: Callable[[Rollouts], list[list[str]]]
    extract: Callable[[str], Answer | None]
    learning_rate: Callable[[int], float]
    update: Update
    compile_seconds: Callable[[], float]  # of all programs so far


def build(config: ConfigDict, inputs: Inputs, announce: Callable[[str], None]) -> Parts:
    """Put the model on the mesh and make the functions that the loop calls. Sets JAX's mesh for the process."""
    model, mesh, train = inputs.model, inputs.mesh, config.train
    jax.set_mesh(mesh)
    optimizer = optim.make_optimizer(
        b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, grad_clip=train.grad_clip
    )
    layout = _layout(model, optimizer, mesh)
    params = weights.load(inputs.folder, model, mesh)
    sampler = _sampler(config, inputs, announce)
    update = _update(config, inputs, optimizer, params, layout, announce)
    sample = functools.partial(_sample, sampler, _sampling_copy(model, jnp.dtype(config.model.dtype), mesh))
    start = jax.jit(optimizer.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout.optimizer))
    return Parts(
        state=TrainState(jax.device_put(jnp.int32(0), replicated(mesh)), params, start(params)),
        state_layout=layout,
        encode=functools.partial(_encode, inputs.encoder),
        sample=functools.partial(sample, votes=config.rollout.votes, sampling=_sampling(config.rollout)),
        sample_for_eval=functools.partial(sample, votes=config.eval.samples, sampling=_sampling(config.eval)),
        texts=functools.partial(_texts, inputs.tokenizer),
        extract=functools.partial(extract, strategies=tuple(config.reward.extract), thinking=config.prompt.thinking),
        learning_rate=functools.partial(
            optim.learning_rate, peak=train.learning_rate, total_steps=inputs.total_steps, warmup=train.warmup
        ),
        update=update,
        compile_seconds=lambda: sampler.compile_seconds + update.compile_seconds,
    )


def _sampler(config: ConfigDict, inputs: Inputs, announce: Callable[[str], None]) -> Sampler:
    return Sampler(
        inputs.model,
        dtype=jnp.dtype(config.model.dtype),
        rows=config.rollout.rows,
        max_tokens=config.rollout.max_tokens,
        stop_ids=inputs.stop_ids,
        prompt_multiple=inputs.mesh.shape["data"],
        vote_multiple=inputs.mesh.shape["fsdp"],
        announce=announce,
    )


def _update(
    config: ConfigDict,
    inputs: Inputs,
    optimizer: optax.GradientTransformation,
    params: decoder.Params,
    layout: TrainState,
    announce: Callable[[str], None],
) -> Update:
    train, dtype = config.train, jnp.dtype(config.model.dtype)
    # A real copy, also where the type stays: the parameters' own buffers are given away to the first update.
    freeze = jax.jit(
        lambda params: jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), params),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout.params),
    )
    return Update(
        inputs.model,
        optimizer,
        loss=LossSettings(
            clip_low=train.clip_low,
            clip_high=train.clip_high,
            dual_clip=train.dual_clip,
            kl_coef=train.kl_coef,
            entropy_coef=train.entropy_coef,
        ),
        score=ScoreSettings(
            temperature=config.rollout.temperature, dtype=dtype, remat=train.remat, chunk=train.chunk_tokens
        ),
        minibatch_rows=train.minibatch_prompts * train.samples,
        micro_rows=_micro_rows(config, inputs.mesh),
        reference=freeze(params) if train.kl_coef else None,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, layout),
        announce=announce,
    )


def state_bytes(model: ModelConfig) -> int:
    """Bytes of a checkpoint: float32 parameters and Adam's two moments."""
    return 3 * 4 * parameter_count(model)


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the model, a tied table counted once."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(decoder.shapes(model)))


def _sampling(section: ConfigDict) -> Sampling:
    return Sampling(temperature=section.temperature, top_k=section.top_k, top_p=section.top_p)


def _layout(model: ModelConfig, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    shapes = decoder.shapes(model)
    placed = shardings(decoder.logical_axes(model), shapes, mesh)

    def like(shape: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        like,
        jax.eval_shape(optimizer.init, shapes),
        placed,
        transform_non_params=lambda shape: like(shape, replicated(mesh)),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return TrainState(step, jax.tree.map(like, shapes, placed), opt_state)


def _sampling_copy(model: ModelConfig, dtype: jnp.dtype, mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
    """One jitted program from the masters to the weights that sampling likes: in `dtype`, whole on each fsdp group."""
    make = functools.partial(decoder.sampling_weights, config=model, dtype=dtype)
    axes = decoder.sampling_axes(model)
    out = shardings(axes, jax.eval_shape(make, decoder.shapes(model)), mesh, without=("embed",))
    return jax.jit(make, out_shardings=out)


def _sample(
    sampler: Sampler,
    copy: Callable[[Any], Any],
    params: decoder.Params,
    prompts: Prompts,
    key: jax.Array,
    *,
    votes: int,
    sampling: Sampling,
    progress: Callable[[int], None],
) -> Rollouts:
    return sampler(copy(params), prompts, key, votes=votes, sampling=sampling, progress=progress)


def _encode(encoder: text.PromptEncoder, batch: Sequence[Problem]) -> Prompts:
    ids = encoder.encode(batch)
    lengths = np.array([len(row) for row in ids], np.int32)
    padded = np.zeros((len(ids), lengths.max()), np.int32)
    for row, its_ids in enumerate(ids):
        padded[row, : len(its_ids)] = its_ids
    return Prompts(padded, lengths, np.array([problem.index for problem in batch], np.uint32))


def _texts(tokenizer: Any, rollouts: Rollouts) -> list[list[str]]:
    """Response texts [P][V], special tokens left out."""
    pairs = zip(rollouts.tokens, rollouts.lengths, strict=True)
    return [[text.decode(tokenizer, ids[:n]) for ids, n in zip(*pair, strict=True)] for pair in pairs]
