"""A session: a model on its devices, and the verbs that everything is made of, each a function of one frozen record.

    session = open_session(read_inputs(config))
    prompts = encode(session, problems)
    rollouts = sample(session, prompts, key, votes=64, sampling=session.sampling)
    scores = score(session, rows)
    session, metrics = update(session, rows, numbers)
    save(session, checkpoints); session = restore(session, checkpoints, step)
    close(session)

The verbs set JAX's mesh while they run, and leave it as it was.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from ttrl_jax.data import prompts as text
from ttrl_jax.data.problems import Problem, Problems
from ttrl_jax.inputs import Inputs
from ttrl_jax.learn import loss as losses
from ttrl_jax.learn.layout import model_layout, params_layout, state_layout
from ttrl_jax.learn.optimizer import learning_rate
from ttrl_jax.learn.update import Numbers, Update
from ttrl_jax.model import decoder, weights
from ttrl_jax.model.sharding import of_hosts, replicated
from ttrl_jax.programs import make_optimizer, make_sampler, make_update, sampling_of
from ttrl_jax.records import POLICY, Model, Prompts, Rollouts, TrainBatch, TrainState
from ttrl_jax.rollout import copies, hosts
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.run import distributed
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.compiled import keep_programs
from ttrl_jax.tasks.task import Task

_FLOAT32 = 4  # bytes


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Session:
    """A model that samples and, opened for training, learns. Each verb that changes it returns another record; its
    arrays, which are used up, are shared."""

    inputs: Inputs
    sampling: Sampling  # of training; what is learned is scored at its temperature
    step: int  # finished training steps
    state: TrainState | None  # None before `restore`; without optimizers where nothing is trained
    layout: TrainState  # of the state: ShapeDtypeStructs with shardings
    sampler: Sampler
    host: jax.sharding.Mesh | None  # of this host, where each samples by itself
    copy: copies.Copy  # of the masters, for sampling
    learner: Update | None  # None where nothing is trained

    @property
    def config(self) -> FrozenConfigDict:
        return self.inputs.config

    @property
    def problems(self) -> Problems:
        """The questions in the order of training."""
        return self.inputs.problems

    @property
    def task(self) -> Task:
        return self.inputs.task

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self.sampler.compile_seconds + (self.learner.compile_seconds if self.learner else 0.0)


def policy_loss(config: FrozenConfigDict) -> losses.Loss:
    """What `update` makes smaller."""
    train = config.train
    return losses.grpo(
        clip_low=train.clip_low,
        clip_high=train.clip_high,
        dual_clip=train.dual_clip,
        kl_coef=train.kl_coef,
        entropy_coef=train.entropy_coef,
    )


def open_session(inputs: Inputs, *, say: Callable[[str], None] = _to_stderr, begin: bool = True) -> Session:
    """Put the model on its mesh, and make what samples and, if the inputs were read for training, what learns.

    begin: hold the model as it starts; False leaves the state to `restore`, so that no two are there at once. say: gets
    a line before and after each compile. Programs are kept on disk for other processes (run/compiled.py).
    """
    keep_programs(say)
    config, mesh, training = inputs.config, inputs.mesh, inputs.problems is not None
    layout = params_layout(inputs.model, mesh)
    host = _host(inputs, say)
    make_copy = copies.of_each_host if host else copies.of_the_mesh
    optimizer = make_optimizer(config) if training else None
    model = Model(layout, None) if optimizer is None else model_layout(layout, optimizer, mesh)
    session = Session(
        inputs=inputs,
        sampling=sampling_of(config.rollout),
        step=0,
        state=None,
        layout=state_layout({POLICY: model}, mesh),
        sampler=make_sampler(config, inputs.model, host or mesh, stop_ids=inputs.stop_ids, announce=say),
        host=host,
        copy=make_copy(inputs.model, mesh, jnp.dtype(config.model.dtype)),
        learner=None,
    )
    with_kl = training and config.train.kl_coef != 0
    params = weights.load(inputs.source, inputs.model, mesh) if begin or with_kl else None
    if training:
        reference = _frozen(params, config) if with_kl else None
        learner = _learner(session, optimizer, reference, say)
        session = dataclasses.replace(session, learner=learner)
    if begin:
        return dataclasses.replace(session, state=_start(params, optimizer, session.layout))
    jax.tree.map(lambda leaf: leaf.delete(), params)
    return session


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
    progress: Callable[[int], None] = lambda tokens: None,
) -> Rollouts:
    """Draw `votes` responses to each prompt, with their texts, which are decoded while others are being drawn.

    key: of this step, on whatever device. progress(tokens drawn so far): called now and then, may raise to abandon the
    batch. With several processes, all get all responses.
    """
    mesh, host = session.inputs.mesh, session.host
    everywhere = jax.device_put(np.asarray(jax.random.key_data(key)), replicated(mesh))
    with jax.set_mesh(mesh):
        key, copied = jax.random.wrap_key_data(everywhere), session.copy(session.state.policy.params)

        def draw(prompts: Prompts, key: jax.Array, *, progress: Callable[[int], None]) -> Rollouts:
            texts = [[""] * votes for _ in prompts.lengths]

            def ended(prompt: int, vote: int, ids: np.ndarray) -> None:
                texts[prompt][vote] = text.decode(session.inputs.tokenizer, ids)

            settings = dict(votes=votes, sampling=sampling)
            rollouts = session.sampler(copied, prompts, key, **settings, progress=progress, ended=ended)
            return dataclasses.replace(rollouts, texts=texts)

        if host is None:  # what progress raises, all raise: here they decode in step
            return draw(prompts, key, progress=lambda tokens: distributed.together(lambda: progress(tokens)))
        limit = session.sampler.max_tokens
        return hosts.sample_shares(draw, prompts, key, host=host, votes=votes, max_tokens=limit, progress=progress)


def respond(session: Session, texts: Sequence[Sequence[str]]) -> Rollouts:
    """Responses that somebody else gave, as if they had been drawn: texts [P][V], V the same for all, none empty.

    They are encoded as they stand, without a token that ends them; `logps`, which are not known, are zeros.
    """
    ids = [[session.inputs.tokenizer(one, add_special_tokens=False)["input_ids"] for one in group] for group in texts]
    lengths = np.array([[len(row) for row in group] for group in ids], np.int32)
    if lengths.ndim != 2 or not lengths.all():
        raise ValueError("respond() needs the same number of texts for each question, and no empty one")
    tokens = np.zeros((*lengths.shape, lengths.max()), np.int32)
    for p, group in enumerate(ids):
        for v, row in enumerate(group):
            tokens[p, v, : len(row)] = row
    logps = np.zeros(tokens.shape, np.float32)
    return Rollouts(tokens, lengths, logps, np.ones(lengths.shape, bool), slot_steps=0, texts=texts)


def score(session: Session, rows: TrainBatch, *, model: str = POLICY) -> jax.Array:
    """Log-probs of the response tokens of rows under a model of the state, at the temperature of training: float32
    [R, T'], 0 where there is no token, whole on every device. Raises ValueError where nothing is trained."""
    with jax.set_mesh(session.inputs.mesh):
        return _trained(session).score(session.state.models[model].params, rows)


def entropies(session: Session, rows: TrainBatch, *, model: str = POLICY) -> jax.Array:
    """The same of the entropies, in nats, of what each token was drawn from."""
    with jax.set_mesh(session.inputs.mesh):
        return _trained(session).entropies(session.state.models[model].params, rows)


def rate(session: Session) -> float:
    """The learning rate of the next update: it counts training steps."""
    train, total = session.config.train, session.inputs.total_steps
    return learning_rate(session.step, peak=train.learning_rate, total_steps=total, warmup=train.warmup)


def update(session: Session, rows: TrainBatch, numbers: Numbers) -> tuple[Session, dict[str, float]]:
    """Train the policy on rows, by `policy_loss`: one training step. The arrays of `session` are used up.

    numbers: "advantages", float32 [R, T'], and what else the loss asks for. Returns the session after it and what is
    worth logging. Raises FloatingPointError where no gradient is finite, ValueError where nothing is trained.
    """
    step, mesh, models = session.step + 1, session.inputs.mesh, session.state.models
    with jax.set_mesh(mesh):
        policy, metrics = _trained(session)(models[POLICY], rows, numbers, rate(session))
        state = TrainState(jax.device_put(np.int32(step), replicated(mesh)), models | {POLICY: policy})
    metrics["learning_rate"] = rate(session)
    return dataclasses.replace(session, step=step, state=state), metrics


def save(session: Session, checkpoints: Checkpoints, meta: Mapping[str, Any] | None = None) -> None:
    """Start saving the state, under the number of finished steps, with `meta`, a JSON object beside it."""
    checkpoints.save(session.step, session.state, meta or {})


def restore(session: Session, checkpoints: Checkpoints, step: int) -> Session:
    """The session with the state that was saved after `step` steps, or with its parameters alone where nothing is
    trained. Raises InputError if there is no such checkpoint, or if it is of another model."""
    if session.state is not None:
        jax.tree.map(lambda leaf: leaf.delete(), session.state)  # two at once may be more than fits
    if session.learner is not None:
        return dataclasses.replace(session, step=step, state=checkpoints.restore(step, session.layout))
    path = f"models.{POLICY}.params"
    params = checkpoints.restore_part(step, path, session.layout.policy.params)
    count = jax.device_put(np.int32(step), replicated(session.inputs.mesh))
    return dataclasses.replace(session, step=step, state=TrainState(count, {POLICY: Model(params, None)}))


def close(session: Session) -> None:
    """Free the devices' memory. The session cannot be used any more."""
    reference = session.learner.reference if session.learner else None
    for leaf in jax.tree.leaves((session.state, reference)):
        leaf.delete()


def _trained(session: Session) -> Update:
    if session.learner is None:
        raise ValueError("the session samples alone; open it with read_inputs(config), without training=False")
    return session.learner


def _host(inputs: Inputs, say: Callable[[str], None]) -> jax.sharding.Mesh | None:
    """The mesh of this host, if it samples by itself."""
    config, model, mesh = inputs.config, inputs.model, inputs.mesh
    item = jnp.dtype(config.model.dtype).itemsize
    kept_bytes = _FLOAT32
    if inputs.problems is not None:  # masters, two moments, and the start for the KL term
        kept_bytes = 3 * _FLOAT32 + (item if config.train.kl_coef else 0)
    alone, why = hosts.choose(
        mesh,
        needed_bytes=lambda host: hosts.sampling_bytes(
            model,
            host,
            mesh,
            itemsize=item,
            rows=config.rollout.rows,
            tokens=config.rollout.max_tokens,
            kept_bytes=kept_bytes,
        ),
    )
    if distributed.several():
        say(f"sampling  {why}")
    return of_hosts(mesh).local_mesh if alone else None


def _learner(
    session: Session,
    optimizer: optax.GradientTransformation,
    reference: decoder.Params | None,
    say: Callable[[str], None],
) -> Update:
    inputs = session.inputs
    return make_update(
        inputs.config,
        inputs.model,
        inputs.mesh,
        optimizer,
        session.layout.policy,
        loss=policy_loss(inputs.config),
        temperature=session.sampling.temperature,
        reference=reference,
        announce=say,
    )


def _frozen(params: decoder.Params, config: FrozenConfigDict) -> decoder.Params:
    """A real copy in the type that computes, also where the type stays: the parameters' own buffers are given away to
    the first update."""
    dtype, where = jnp.dtype(config.model.dtype), jax.tree.map(lambda leaf: leaf.sharding, params)
    freeze = jax.jit(lambda params: jax.tree.map(lambda x: jnp.array(x, dtype, copy=True), params), out_shardings=where)
    return freeze(params)


def _start(params: decoder.Params, optimizer: optax.GradientTransformation | None, layout: TrainState) -> TrainState:
    """The state before any step."""
    where = jax.tree.map(lambda leaf: leaf.sharding, layout)
    moments = None
    if optimizer is not None:
        moments = jax.jit(optimizer.init, out_shardings=where.policy.optimizer)(params)
    return TrainState(jax.device_put(np.int32(0), where.step), {POLICY: Model(params, moments)})
