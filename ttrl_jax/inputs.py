"""What a session reads: config, model, tokenizer and questions, all of it checked before anything is written."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax import commands
from ttrl_jax.check import check
from ttrl_jax.data import prompts as text
from ttrl_jax.data import stops
from ttrl_jax.data.problems import Problems, truths
from ttrl_jax.errors import InputError
from ttrl_jax.model import lora, peft, weights
from ttrl_jax.model.config import PROJECTIONS, ModelConfig, passed_over
from ttrl_jax.model.shapes import parameter_count
from ttrl_jax.model.sharding import make_mesh, require_fit, require_fit_of_batch, require_host_memory
from ttrl_jax.programs import check_length, rate_factor, with_kernel, with_lora
from ttrl_jax.resolve import agree, agree_with_data, resolve
from ttrl_jax.run import distributed, folder
from ttrl_jax.source import adapter_source, is_local, model_source, text_fingerprint, tokenizer_of
from ttrl_jax.tasks.scorer import Scorer
from ttrl_jax.tasks.scorer import from_file as scorer_of
from ttrl_jax.tasks.sets import Questions, QuestionSet, read_canaries, read_questions, to_come, with_tasks
from ttrl_jax.tasks.task import Task

LEAST_LORA_RATE = 1e-6


@dataclass(frozen=True)
class Inputs:
    """What was read, and what was decided by it."""

    config: FrozenConfigDict  # with every value set
    sources: dict[str, str]  # of the values that the model can decide: key -> where it is from, in words
    source: Path  # of the model: a Hugging Face folder or a GGUF file
    model: ModelConfig
    adapter: lora.Adapters | None  # those of model.adapter, host arrays
    tokenizer: Any
    stops: stops.Stops  # the ids that end a response, and from where each is known
    sets: tuple[QuestionSet, ...]  # the first is the config's own data
    longest_prompt: int  # tokens, of all sets
    mesh: jax.sharding.Mesh
    attention: str  # why whole rows are attended to as `model` says, in words
    trains: bool  # whether a session learns, or samples alone
    problems: Problems | None  # the own questions in the order of training; None without training, and of a stream
    scorer: Scorer | None  # of eval.scorer
    canaries: QuestionSet | None = None  # of canary.path, None as `problems` is

    @property
    def task(self) -> Task:
        """The task of the config's own questions."""
        return self.sets[0].task

    @property
    def total_steps(self) -> int | None:
        """How many training steps the run has; None where it learns from a stream, whose end nobody knows."""
        if self.problems is None:
            return None if self.trains else 0
        return self.config.episodes * self.problems.steps_per_episode

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a response, ascending."""
        return tuple(self.stops)

    def encoder(self, task: Task) -> text.PromptEncoder:
        """What makes the prompts of a task's questions."""
        return _encoder(self.config, self.tokenizer, task)


def read_inputs(
    config: ConfigDict | FrozenConfigDict, *, training: bool = True, given: Collection[str] = (), stream: bool = False
) -> Inputs:
    """Read and check config, data and model, which may have to be fetched, in this order; and let the model decide what
    the config leaves unset.

    training: also what training alone asks of the config and the data. given: the keys set on the command line, which
    others follow (resolve.agree). stream: the questions come later, one after the other, so that none is read here.
    Raises InputError for the first thing that cannot be used.
    """
    config, adjusted = agree(FrozenConfigDict(config), given=given)
    check(config)
    scorer = scorer_of(config.eval.scorer) if config.eval.scorer else None
    read, canaries = to_come(config) if stream else read_questions(config), None
    if training and not stream:
        config, more = agree_with_data(config, questions=len(read[0].items), given=given)
        adjusted |= more
        _check_truths(config, read[0])
        canaries = read_canaries(config, read[0])
    source = model_source(config.model.path)
    model, adapter = weights.read_model(source), None
    if config.model.adapter:
        config, adapter, more = with_adapter(config, model)
        adjusted |= more
    model = with_lora(config, model)
    tokenizer, ends = tokenizer_of(source)
    text.check_vocabulary(tokenizer, model.vocab, str(source))
    turn = config.rollout.end_of_turn and config.prompt.chat_template
    ends = stops.of_run(tokenizer, ends, end_of_turn=turn, texts=config.rollout.stop)
    config, sources = resolve(config, template=text.chat_template(tokenizer), max_positions=model.max_positions)
    check_length(config, model)
    sets = with_tasks((*read, canaries) if canaries else read, config)
    longest = config.prompt.max_tokens if stream else _longest(config, tokenizer, sets)
    _require_format(config, sets[0].task)
    mesh = _mesh(config, model)
    model, why = with_kernel(config, model, mesh)
    weights.check(source, model)
    if training:
        require_fit_of_batch(mesh, prompts=config.rollout.prompts)
    problems = _problems(config, sets[0]) if training and not stream else None
    sets, last = (sets[:-1], sets[-1]) if canaries else (sets, None)
    return Inputs(
        config=config,
        sources=adjusted | sources,
        source=source,
        model=model,
        adapter=adapter,
        tokenizer=tokenizer,
        stops=ends,
        sets=sets,
        longest_prompt=longest,
        mesh=mesh,
        attention=why,
        trains=training,
        problems=problems,
        scorer=scorer,
        canaries=last,
    )


def _longest(config: FrozenConfigDict, tokenizer: Any, sets: Sequence[QuestionSet]) -> int:
    """Tokens of the longest prompt of all sets. Raises InputError for one that is too long, naming its file."""
    longest = 0
    for each in sets:
        try:
            longest = max(longest, _encoder(config, tokenizer, each.task).longest(each.items))
        except InputError as error:
            raise InputError(f"{each.path}: {error}") from error
    return longest


def _require_format(config: FrozenConfigDict, task: Task) -> None:
    """Raise InputError where a format is rewarded that the task does not have."""
    if config.reward.format_weight and task.in_format is None:
        raise InputError(
            f"reward.format_weight={config.reward.format_weight} has no format to reward: the task of {config.task} "
            "has no in_format; give it one, or leave the weight at 0"
        )


def _mesh(config: FrozenConfigDict, model: ModelConfig) -> jax.sharding.Mesh:
    """The mesh that the config asks for. Raises InputError if the devices or the model do not suit it."""
    mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
    require_fit(mesh, heads=model.heads)
    if config.mesh.offload:
        require_host_memory(mesh)
    return mesh


def with_adapter(
    config: FrozenConfigDict, model: ModelConfig
) -> tuple[FrozenConfigDict, lora.Adapters, dict[str, str]]:
    """The config with rank, alpha and targets of model.adapter; its adapters; which keys it decided, and why, in words.
    Raises InputError for one that cannot be used, or is another than these keys ask for."""
    folder_of = adapter_source(config.model.adapter)
    found, adapter = peft.read(folder_of, model)
    own = {"rank": found.rank, "alpha": found.scale * found.rank, "targets": found.targets}
    whole, defaults = ConfigDict(config.as_configdict()), commands.defaults()["lora"]
    for key, value in own.items():
        asked = config.lora[key]
        if asked not in (defaults[key], value) and not (key == "targets" and set(asked) == set(value)):
            raise InputError(
                f"lora.{key}={asked}, and the adapters of {config.model.adapter} have {key} {value}; leave "
                f"lora.{key} out"
            )
        whole.lora[key] = value
    base = peft.base_of(folder_of)
    why = "as model.adapter" + (f", which was made for {base}" if base else "")
    return FrozenConfigDict(whole), adapter, {f"lora.{key}": why for key in own}


def _encoder(config: FrozenConfigDict, tokenizer: Any, task: Task) -> text.PromptEncoder:
    return text.PromptEncoder(
        tokenizer,
        messages=task.messages,
        chat_template=config.prompt.chat_template,
        thinking=config.prompt.thinking,
        max_tokens=config.prompt.max_tokens,
    )


def _problems(config: FrozenConfigDict, own: QuestionSet) -> Problems:
    batch, drop_last = config.rollout.prompts, config.data.drop_last
    return Problems(own.items, batch=batch, seed=config.seed, drop_last=drop_last, order=config.data.order)


def _check_truths(config: FrozenConfigDict, own: Questions) -> None:
    if config.reward.label == "truth" and None in (found := truths(own.items) or [None]):
        raise InputError(
            f'reward.label="truth" needs a truth for each question; {own.path} has '
            + (f"{found.count(None)} without" if truths(own.items) else f"no column {config.data.truth_column!r}")
        )


def identity(inputs: Inputs) -> folder.Identity:
    """What a run of these inputs is a run of."""
    shape = dataclasses.asdict(inputs.model)
    for name in ("attention", "decode_attention", "lora"):  # a run may go on on other devices; settings have the others
        del shape[name]
    fingerprints = {"fingerprint": weights.fingerprint(inputs.source), "tokenizer": text_fingerprint(inputs.source)}
    if inputs.trains or inputs.adapter is not None:
        fingerprints["adapter"] = None if inputs.adapter is None else weights.sha256(inputs.adapter)
    settings = inputs.config.as_configdict().to_dict()
    for name, path in (("task", inputs.config.task), ("scorer", inputs.config.eval.scorer)):
        if path:
            settings[f"{name}_sha256"] = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    if inputs.canaries is not None:
        settings["canary_sha256"] = _digest(inputs.canaries)["sha256"]
    return folder.Identity(
        config=settings,
        model=shape | fingerprints,
        model_path=str(inputs.source.resolve()) if is_local(inputs.config.model.path) else None,
        questions={each.name: _digest(each) for each in inputs.sets},
    )


def _digest(questions: QuestionSet) -> dict[str, Any]:
    """How many questions there are, and the SHA-256 of their ids, texts and truths in their order."""
    facts = [[[problem.id, problem.question] for problem in questions.items], truths(questions.items)]
    return {"count": len(questions.items), "sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest()}


def facts(inputs: Inputs, run: folder.Identity) -> dict[str, Any]:
    """What must be the same in all processes of a command, by the name that an error gives it: the settings, the
    questions, the model's files, the version of jax."""
    found = {f"--config.{name}": value for name, value in commands.flat(run.config).items()}
    found |= {f"the questions of {each.path}": run.questions[each.name] for each in inputs.sets}
    return found | {"the files of model.path": run.model, "the version of jax": jax.__version__}


def repeats(environment: Mapping[str, str]) -> str:
    """What a GPU promises of two runs of one seed, and of one that goes on, in words.

    XLA's own account is https://openxla.org/xla/determinism: its programs may add up in an order of their own, and
    which kernels it takes is measured while it compiles.
    """
    flag = "--xla_gpu_exclude_nondeterministic_ops=true"
    if "XLA_FLAGS" in environment and flag in environment["XLA_FLAGS"].split():
        return "bit for bit, as long as the compiled programs are kept on disk"
    return f"up to rounding; with XLA_FLAGS={flag} bit for bit, and perhaps slower"


def _about_lora(inputs: Inputs) -> list[str]:
    """What is trained beside the weights, and how fast, in words."""
    config, own = inputs.config, inputs.config.lora
    if not own.rank:
        return []
    begun = f", which begin as {config.model.adapter} has them" if config.model.adapter else ""
    held = "in 8 bits" if own.base == "int8" else f"in {config.model.dtype}"
    count = lora.parameter_count(inputs.model) / 1e6
    said = [
        f"rank {own.rank}, alpha {own.alpha:g}, adapters of {len(own.targets)} of a layer's {len(PROJECTIONS)} "
        f"projections: {count:.2f} M parameters{begun}; the model's own stay as they are, {held}"
    ]
    if inputs.trains:
        rate = rate_factor(config) * config.train.learning_rate
        said.append(
            f"learning rate {rate:.3g}: lora.rate_factor={own.rate_factor:g} times train.learning_rate="
            f"{config.train.learning_rate:g}"
        )
        if rate < LEAST_LORA_RATE:
            said.append(
                f"a rate below {LEAST_LORA_RATE:g} hardly changes adapters; raise train.learning_rate or "
                "lora.rate_factor"
            )
    return said


def introduce(inputs: Inputs, say: Callable[[str], None]) -> None:
    """Print what was resolved: model, devices, questions, settings, and the first prompt as the model sees it."""
    config, device = inputs.config, jax.devices()[0]
    count = parameter_count(inputs.model) / 1e6
    say(f"model     {config.model.path}: {count:.2f} M parameters, {config.model.dtype} compute")
    for line in _about_lora(inputs):
        say(f"lora      {line}")
    say(f"devices   {jax.device_count()} x {device.device_kind}, mesh {dict(inputs.mesh.shape)}")
    if distributed.several():
        say(f"processes {jax.process_count()}, with {jax.local_device_count()} devices each")
    say(f"attention {inputs.model.attention}, {inputs.attention}")
    if device.platform == "gpu":
        say(f"repeats   {repeats(os.environ)}")
    for i, each in enumerate(inputs.sets if inputs.sets[0].items else ()):  # of a stream nothing is known
        known = truths(each.items)
        said = f"; no truth (data.truth_column={each.truth_column!r}): no accuracy is measured" if known is None else ""
        if known and None in known:
            said = f"; {len(known) - known.count(None)} of them have a truth, on which accuracies are measured"
        begin = f"task      {each.name}, " if i else "data      "
        say(f"{begin}{each.path}: {len(each.items)} questions{said}")
        for note in each.notes:
            say(f"{begin}{note}")
    if inputs.canaries is not None:
        own, count = config.canary, len(inputs.canaries.items)
        say(
            f"canaries  {inputs.canaries.path}: {count} questions, {own.samples} responses to each before and after; "
            f"eps {own.eps:g}, delta {own.delta:g}"
        )
        for note in inputs.canaries.notes:
            say(f"canaries  {note}")
    for key, source in inputs.sources.items():
        section, name = key.split(".")
        say(f"setting   {key}={config[section][name]!r}, {source}")
    say(f"ends      {stops.described(inputs.tokenizer, inputs.stops)}; others: rollout.stop, rollout.end_of_turn")
    if passed := passed_over(inputs.source):
        say(f"config    fields of the model that are passed over: {', '.join(passed)}")
    if inputs.sets[0].items:
        say(f"prompt    {inputs.encoder(inputs.task).render(inputs.sets[0].items[0].question)!r}")
