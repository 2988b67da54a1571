"""A session: a model on its devices, and the functions that all commands are made of. Each takes one frozen record.

    session = open_session(read_inputs(config))
    prompts = encode(session, problems)
    rollouts = sample(session, prompts, key, votes=64, sampling=session.sampling)
    scores = score(session, rows)
    session, metrics = update(session, rows, numbers)
    save(session, checkpoints); session = restore(session, checkpoints, step)
    close(session)

These functions set the mesh of JAX while they run, and leave it as it was.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from ttrl_jax.data import prompts as text
from ttrl_jax.data import stops
from ttrl_jax.data.problems import Problem, Problems
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import Inputs
from ttrl_jax.learn import loss as losses
from ttrl_jax.learn.layout import params_layout, state_layout
from ttrl_jax.learn.optimizer import learning_rate
from ttrl_jax.learn.update import Numbers, Update
from ttrl_jax.model import decoder, lora, weights
from ttrl_jax.model.sharding import key_on, on_devices, replicated
from ttrl_jax.programs import (
    first_state,
    frozen,
    layout_of,
    make_learners,
    make_optimizers,
    make_sampler,
    needs_start,
    rate_factor,
    resting,
    sampling_host,
    sampling_of,
    shapes_of,
    uses_policy,
)
from ttrl_jax.records import CRITIC, POLICY, PROCESS, Model, Prompts, Rollouts, TrainBatch, TrainState
from ttrl_jax.rollout import copies, hosts
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.run import distributed
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.compiled import Announce, keep_programs, lines
from ttrl_jax.tasks.hearing import Hearing, Stop
from ttrl_jax.tasks.task import Task

_LOWER = "lower the learning rate (train.learning_rate, with a critic or a process model also theirs)"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Session:
    """A model that samples and, if it was opened for training, learns. A function that changes it returns a new record.
    The two records share arrays, which are used up."""

    inputs: Inputs
    sampling: Sampling  # of training; what is learned is scored at its temperature
    step: int  # finished training steps
    state: TrainState | None  # None before `restore`; without optimizers where nothing is trained
    layout: TrainState  # of the state: ShapeDtypeStructs with shardings
    sampler: Sampler
    host: jax.sharding.Mesh | None  # of this host, where each samples by itself
    copy: copies.Copy  # from the masters to what samples
    base: decoder.Params | None  # with LoRA what the adapters go with, in the layout of copies.base_layout
    learners: Mapping[str, Update]  # of each model of the state, by name; none where nothing is trained

    @property
    def config(self) -> FrozenConfigDict:
        return self.inputs.config

    @property
    def problems(self) -> Problems:
        """The questions in the order of training; there are none where they come from a stream."""
        return self.inputs.problems

    @property
    def task(self) -> Task:
        return self.inputs.task

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self.sampler.compile_seconds + sum(each.compile_seconds for each in self.learners.values())


def losses_of(config: FrozenConfigDict) -> dict[str, losses.Loss]:
    """The loss of each model that is trained, by name; `update` trains the policy."""
    train, rows = config.train, config.rollout.prompts * config.train.samples
    policy = losses.grpo(
        clip_low=train.clip_low,
        clip_high=train.clip_high,
        dual_clip=train.dual_clip,
        kl_coef=train.kl_coef,
        entropy_coef=train.entropy_coef,
        row_counts=config.rollout.max_tokens if config.algorithm == "dr_grpo" else None,
    )
    if config.algorithm == "ppo":
        return {POLICY: policy, CRITIC: losses.values(clip=config.critic.clip)}
    if config.algorithm == "prime":
        return {POLICY: policy, PROCESS: losses.process(beta=config.prime.beta, rows=rows)}
    return {POLICY: policy}


def open_session(
    inputs: Inputs,
    *,
    say: Callable[[str], None] = _to_stderr,
    compiling: Announce | None = None,
    begin: bool = True,
) -> Session:
    """Put the model on its mesh, and make what samples and, if the inputs were read for training, what learns.

    begin: hold the model as it starts; False leaves the state to `restore`, so that no two are there at once. say: gets
    lines. compiling: told of each compile; by default `say` gets a line for each that takes long. Programs are kept on
    disk for other processes (run/compiled.py).
    """
    compiling = compiling or lines(say, details=inputs.config.log.compiles)
    keep_programs(say)
    config, mesh, training = inputs.config, inputs.mesh, inputs.trains
    host, sampling = sampling_host(config, inputs.model, mesh, training=training, say=say), sampling_of(config.rollout)
    shapes = shapes_of(config, inputs.model, host or mesh, longest_prompt=inputs.longest_prompt)
    make_copy = copies.of_each_host if host else copies.of_the_mesh
    optimizers = make_optimizers(config) if training else {}
    layout = layout_of(config, inputs.model, mesh, optimizers)
    if not training:
        layout = state_layout({POLICY: Model(params_layout(inputs.model, mesh), None)}, mesh)
    with_start, dtype, base = training and needs_start(config), jnp.dtype(config.model.dtype), None
    if inputs.model.lora:
        base = weights.load_base(inputs.source, inputs.model, copies.base_layout(inputs.model, mesh, dtype))
    params = _first(inputs, layout) if begin or with_start else None
    learners = {}
    if training:
        learners = make_learners(
            config,
            inputs.model,
            mesh,
            optimizers,
            layout,
            losses=losses_of(config),
            temperature=sampling.temperature,
            start=_start(inputs, params) if with_start else None,
            announce=compiling,
        )
    state = first_state(params, optimizers, layout, inputs.model, seed=config.seed) if begin else None
    if not begin:
        jax.tree.map(lambda leaf: leaf.delete(), params)
    state = None if state is None else resting(config, state)
    return Session(
        inputs=inputs,
        sampling=sampling,
        step=0,
        state=state,
        layout=layout,
        sampler=make_sampler(config, inputs.model, shapes, stop_ids=inputs.stop_ids, announce=compiling),
        host=host,
        copy=make_copy(inputs.model, mesh, dtype, base=base),
        base=base,
        learners=learners,
    )


def _first(inputs: Inputs, layout: TrainState) -> decoder.Params:
    """The policy's masters before any step: the model's weights, or its adapters."""
    if inputs.model.lora is None:
        return weights.load(inputs.source, inputs.model, inputs.mesh, layout.policy.params["embed"].dtype)
    made = inputs.adapter or lora.init(inputs.model, seed=inputs.config.seed)
    return jax.device_put(made, jax.tree.map(lambda leaf: leaf.sharding, layout.policy.params))


def _start(inputs: Inputs, params: decoder.Params) -> decoder.Params:
    """What stays of the start beside a base. New adapters change nothing, so that there is nothing to keep of them."""
    new = inputs.model.lora is not None and inputs.adapter is None
    return {} if new else frozen(params, jnp.dtype(inputs.config.model.dtype))


def encode(session: Session, problems: Sequence[Problem], *, task: Task | None = None) -> Prompts:
    """The prompts of questions of `task`, by default the session's own. Raises InputError for one that is too long."""
    ids = session.inputs.encoder(task or session.task).encode(problems)
    lengths = np.array([len(row) for row in ids], np.int32)
    padded = np.zeros((len(ids), lengths.max()), np.int32)
    for row, its_ids in enumerate(ids):
        padded[row, : len(its_ids)] = its_ids
    return Prompts(padded, lengths, np.array([problem.index for problem in problems], np.uint32))


def render(session: Session, problems: Sequence[Problem], *, task: Task | None = None) -> list[str]:
    """The same prompts as text, as the model sees them."""
    encoder = session.inputs.encoder(task or session.task)
    return [encoder.render(problem.question) for problem in problems]


def step_key(session: Session, step: int) -> jax.Array:
    """The random key that training step `step` samples with."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(session.config.seed), 0), step)


def sample(
    session: Session,
    prompts: Prompts,
    key: jax.Array,
    *,
    votes: int,
    sampling: Sampling,
    greedy: bool = False,
    tokens: bool = True,
    stop: Stop | None = None,
    progress: Callable[[int, float], None] = lambda tokens, share: None,
) -> Rollouts:
    """Draw `votes` responses to each prompt, with their texts, which are decoded while others are being drawn.

    greedy: and one more, the last, at temperature 0. tokens: keep the tokens and their log-probs, which training needs;
    False: their means alone, for evaluations. key: of this step, on whatever device. stop: draw only as many votes on
    each question as certify its winner (`Rollouts.counted`); without `greedy`, V is then the most that any has.
    progress(tokens drawn so far, share of the responses that have ended): called now and then, may raise to abandon the
    batch. With several processes, all get all responses. Raises FloatingPointError, naming a question, where the model
    computed logits that are not finite.
    """
    inputs, mesh, host = session.inputs, session.inputs.mesh, session.host
    with jax.set_mesh(mesh):
        key, copied = key_on(mesh, key), session.copy(_at_work(session, session.state.policy.params))
        settings = dict(votes=votes, sampling=sampling, greedy=greedy, tokens=tokens)
        silent = stops.silent(inputs.tokenizer, inputs.stops)
        decode = functools.partial(text.decode, inputs.tokenizer, silent=silent)

        def draw(prompts: Prompts, key: jax.Array, *, progress: Callable[[int, float], None]) -> Rollouts:
            heard = Hearing(decode, prompts.uids.tolist(), votes=votes, greedy=greedy, stop=stop)
            ask = heard.wanted if host else lambda which: distributed.first(heard.wanted(which))
            told = dict(progress=progress, ended=heard.ended, wanted=ask if stop else None)
            return heard.with_texts(session.sampler(copied, prompts, key, **settings, **told))

        try:
            if host is None:  # what progress raises, all raise: here they decode in step
                drawn = draw(prompts, key, progress=lambda *done: distributed.together(lambda: progress(*done)))
            else:
                sizes = dict(votes=votes + greedy, max_tokens=session.sampler.max_tokens if tokens else 0)
                drawn = hosts.sample_shares(draw, prompts, key, host=host, **sizes, progress=progress)
            return drawn if greedy else drawn.most_votes()
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}, after {session.step} training steps; {_advice(session)}") from error


def _advice(session: Session) -> str:
    """What to do where the model computes what is not finite."""
    if session.step == 0:
        return "look for what is wrong with the model, or set model.dtype=float32"
    if not session.inputs.trains:
        return "take an earlier checkpoint, --checkpoint RUN/checkpoints/STEP"
    return _LOWER


def respond(session: Session, texts: Sequence[Sequence[str]]) -> Rollouts:
    """Make rollouts of texts that you have, as if they had been drawn. texts [P][V]: V is the same for all, and no text
    is empty.

    Texts are encoded as they are, without a token that ends them. `logps` are not known, and are zeros. Raises
    InputError for other texts, and for a text of more than rollout.max_tokens tokens.
    """
    ids = [[session.inputs.tokenizer(one, add_special_tokens=False)["input_ids"] for one in group] for group in texts]
    if len({len(group) for group in ids}) != 1 or not all(row for group in ids for row in group):
        raise InputError("respond() needs the same number of texts for each question, and no empty one")
    lengths = np.array([[len(row) for row in group] for group in ids], np.int32)
    if lengths.max() > (limit := session.config.rollout.max_tokens):
        raise InputError(
            f"a response has {lengths.max()} tokens, more than rollout.max_tokens={limit}; raise that, or shorten it"
        )
    tokens = np.zeros((*lengths.shape, lengths.max()), np.int32)
    for p, group in enumerate(ids):
        for v, row in enumerate(group):
            tokens[p, v, : len(row)] = row
    logps = np.zeros(tokens.shape, np.float32)
    return Rollouts(tokens, lengths, logps, np.ones(lengths.shape, bool), slot_steps=0, texts=texts)


def score(session: Session, rows: TrainBatch, *, model: str = POLICY) -> jax.Array:
    """Log-probs of the response tokens of rows under a model of the state, at the temperature of training, or a
    critic's values of the states before them: float32 [R, T'], 0 where there is no token, whole on every device. Raises
    ValueError where nothing is trained."""
    with jax.set_mesh(session.inputs.mesh):
        learner, base = _learner(session, model), _base(session, model)
        return learner.score(_at_work(session, session.state.models[model].params), rows, base=base)


def entropies(session: Session, rows: TrainBatch, *, model: str = POLICY) -> jax.Array:
    """Entropies, in nats, of the distributions that the tokens were drawn from; shape and errors are those of
    `score`."""
    with jax.set_mesh(session.inputs.mesh):
        params, base = _at_work(session, session.state.models[model].params), _base(session, model)
        return _learner(session, model).entropies(params, rows, base=base)


def rate(session: Session, model: str = POLICY) -> float:
    """The learning rate of the next update of a model. The rate of the policy follows the schedule; others are
    constant. With LoRA all are lora.rate_factor times those of the config."""
    config, total = session.config, session.inputs.total_steps
    factor = rate_factor(config)
    if model == CRITIC:
        return factor * config.critic.learning_rate
    if model == PROCESS:
        return factor * config.prime.learning_rate
    peak = factor * config.train.learning_rate
    return learning_rate(session.step, peak=peak, total_steps=total, warmup=config.train.warmup)


def learn(
    session: Session, model: str, rows: TrainBatch, numbers: Numbers
) -> tuple[Session, dict[str, float], jax.Array | None]:
    """Train one model of the state on rows, by its loss of `losses_of`. The arrays of `session` are used up.

    numbers: what the loss asks for, float32 [R, T'] each. Returns the session after it, what is worth logging, and what
    the loss keeps. Raises FloatingPointError where no gradient is finite, ValueError where nothing is trained.
    """
    models = session.state.models
    with jax.set_mesh(session.inputs.mesh):
        learner, base = _learner(session, model), _base(session, model)
        try:
            own = _at_work(session, models[model])
            trained, metrics, kept = learner(own, rows, numbers, rate(session, model), base=base)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} of training step {session.step} (counted from 0); {_LOWER}") from error
    state = TrainState(session.state.step, models | {model: resting(session.config, trained)})
    return dataclasses.replace(session, state=state), metrics, kept


def update(session: Session, rows: TrainBatch, numbers: Numbers) -> tuple[Session, dict[str, float]]:
    """Train the policy on rows, with "advantages" among the numbers: `learn`, and the end of a training step."""
    session, metrics, _ = learn(session, POLICY, rows, numbers)
    metrics["learning_rate"], step = rate(session), session.step + 1
    count = jax.device_put(np.int32(step), replicated(session.inputs.mesh))
    return dataclasses.replace(session, step=step, state=TrainState(count, session.state.models)), metrics


def save(
    session: Session, checkpoints: Checkpoints, meta: Mapping[str, Any] | None = None, *, best: Collection[int] = ()
) -> bool:
    """Start saving the state under the number of finished steps, with `meta`, a JSON object, beside it; best: as of
    `Checkpoints.save`. Returns False, and does nothing, if that step is saved already. With checkpoint.weights_only
    only the parameters of the policy are saved. No run can continue from these, and `meta` says so."""
    if not session.config.checkpoint.weights_only:
        return checkpoints.save(session.step, session.state, meta or {}, best=best)
    weights_alone = TrainState(session.state.step, {POLICY: Model(session.state.policy.params, None)})
    return checkpoints.save(session.step, weights_alone, {"weights_only": True, **(meta or {})}, best=best)


def restore(session: Session, checkpoints: Checkpoints, step: int) -> Session:
    """The session with the state that was saved after `step` steps, or with its parameters alone where nothing is
    trained. Raises InputError if there is no such checkpoint, or if it is of another model."""
    if session.state is not None:
        jax.tree.map(lambda leaf: leaf.delete(), session.state)  # two at once may be more than fits
    if session.learners:
        state = resting(session.config, checkpoints.restore(step, session.layout))
        return dataclasses.replace(session, step=step, state=state)
    path = f"models.{POLICY}.params"
    params = checkpoints.restore_part(step, path, session.layout.policy.params)
    count = jax.device_put(np.int32(step), replicated(session.inputs.mesh))
    return dataclasses.replace(session, step=step, state=TrainState(count, {POLICY: Model(params, None)}))


def close(session: Session) -> None:
    """Free the devices' memory. The session cannot be used any more."""
    starts = [learner.reference for learner in session.learners.values()]
    for leaf in jax.tree.leaves((session.state, session.base, starts)):
        leaf.delete()


def _learner(session: Session, model: str) -> Update:
    if not session.learners:
        raise ValueError("the session samples alone; open it with read_inputs(config), without training=False")
    return session.learners[model]


def _base(session: Session, model: str) -> decoder.Params | None:
    """What a model computes with and does not train: with LoRA the base, and where it uses them the policy's
    parameters."""
    if not uses_policy(session.config, model):
        return session.base
    return {**(session.base or {}), **_at_work(session, session.state.policy.params)}


def _at_work(session: Session, tree: Any) -> Any:
    """What rests in the hosts' memory, or does not, on the devices."""
    return on_devices(tree) if session.config.mesh.offload else tree
