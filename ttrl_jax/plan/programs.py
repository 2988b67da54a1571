"""The programs of a training run, lowered as the run would call them at its largest: what each needs of a chip."""

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from ttrl_jax import programs
from ttrl_jax.learn.microbatch import MicroBatch
from ttrl_jax.learn.update import Update
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import replicated
from ttrl_jax.plan import arithmetic
from ttrl_jax.plan.arithmetic import Draw, Work, chip_bytes
from ttrl_jax.records import CRITIC, POLICY, PROCESS, TrainBatch, TrainState, padded_length
from ttrl_jax.rollout import copies
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.sampler import FIRST_CACHE, Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.session import losses_of

Say = Callable[[str], None]
COLLECTIVE = re.compile(r"= (\S.*?) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}


# What a loss asks of each token, besides what is scored.
_NUMBERS = {
    POLICY: ("advantages", "sampler_logps"),
    CRITIC: ("returns", "sampler_logps"),
    PROCESS: ("outcome", "row", "sampler_logps"),
}


class DoesNotCompile(Exception):
    """XLA gives up, as a rule because the program does not fit the chip's memory."""


@dataclass(frozen=True)
class Setting:
    """What is planned for."""

    config: FrozenConfigDict  # in which every value is set
    model: ModelConfig
    mesh: jax.sharding.Mesh  # of devices that need not be there
    questions: tuple[int, ...]  # of the config's data, and of each of eval.tasks
    known: bool  # whether there are so many, or it is only assumed
    stop_ids: tuple[int, ...]

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.model.dtype)

    def layout(self) -> TrainState:
        return programs.layout_of(self.config, self.model, self.mesh, programs.make_optimizers(self.config))

    def start(self, layout: TrainState) -> decoder.Params | None:
        """The copy of the start, where there is one."""
        if not programs.needs_start(self.config):
            return None
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, self.dtype, sharding=x.sharding), layout.policy.params
        )

    def draws(self) -> list[tuple[str, list[Draw], Sampling]]:
        """What a run samples: the phase; what is drawn in it, the largest first; and how."""
        config, sizes = self.config, sorted(self.questions, reverse=True)
        training, evaluating = programs.sampling_of(config.rollout), programs.sampling_of(config.eval)
        found = [("sample", [self._draw(config.rollout.prompts, config.rollout.votes)], training)]
        if config.reward.label == "offline":
            found.append(("label", [self._draw(self.questions[0], config.rollout.votes)], training))
        found.append(("evaluate", [self._draw(questions, config.eval.samples) for questions in sizes], evaluating))
        if config.eval.greedy:
            found.append(("greedy", [self._draw(questions, 1) for questions in sizes], Sampling(temperature=0.0)))
        return found

    def _draw(self, questions: int, votes: int) -> Draw:
        return arithmetic.draw(questions=questions, votes=votes, rows=self.config.rollout.rows, mesh=self.mesh)


@dataclass(frozen=True)
class Program:
    """A program that XLA compiled. Bytes are those of one chip while it runs; work is that of all chips in a whole
    step, or in a whole evaluation."""

    name: str
    phase: str  # sample | label | evaluate | greedy | score | update
    weights: int  # bytes of masters, of the copy of the start, and of the copy that samples
    optimizer: int  # of the moments, and of the gradient
    cache: int  # of all else that goes in, comes out or is held: keys and values, tokens, log-probs
    activations: int  # of what the program needs in between
    work: Work
    compile_s: float
    splash_calls: int
    loop_collectives: list[dict[str, Any]]

    @property
    def label(self) -> str:
        return self.name if self.name == self.phase else f"{self.phase} {self.name}"

    @property
    def together(self) -> int:
        return self.weights + self.optimizer + self.cache + self.activations

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"label": self.label, "together": self.together}


class Compiler:
    """Compiles one program after the other; what one leaves behind goes into the next, in the layout XLA gave it."""

    def __init__(self, setting: Setting, say: Say):
        self.setting, self.say = setting, say
        self.layout = setting.layout()
        self.start = setting.start(self.layout)
        self.state = chip_bytes((self.layout, self.start))  # is held all the time
        self.learners = programs.make_learners(
            setting.config,
            setting.model,
            setting.mesh,
            programs.make_optimizers(setting.config),
            self.layout,
            losses=losses_of(setting.config),
            temperature=programs.sampling_of(setting.config.rollout).temperature,
            start=self.start,
            announce=say,
        )
        self.micros = self._micros(self.learners[POLICY])
        self.programs: list[Program] = []

    def all(self) -> None:
        """Compile what training runs. Raises DoesNotCompile with the reason; `programs` has those before."""
        config, model, mesh = self.setting.config, self.setting.model, self.setting.mesh
        with jax.set_mesh(mesh):
            program = copies.of_the_mesh(model, mesh, self.setting.dtype).lower(self.layout.policy.params)
            copied = copies.layout(model, mesh, self.setting.dtype)
            work = arithmetic.copy_work(model, mesh, itemsize=self.setting.dtype.itemsize)
            held = self.state - chip_bytes(self.layout.policy.params)
            self.compile("copy", "sample", program, held=held, more_weights=chip_bytes(copied), work=work)
            sampler = programs.make_sampler(config, model, mesh, stop_ids=self.setting.stop_ids, announce=self.say)
            for phase, draws, sampling in self.setting.draws():
                self.sampling(phase, sampler, copied, draws, sampling)
            for name in self.learners:
                self.learning(name)

    def _micros(self, learner: Update) -> list[MicroBatch]:
        """Those of an optimizer step, all of whose responses reach their limit."""
        prompt, tokens = self.setting.config.prompt.max_tokens, self.setting.config.rollout.max_tokens
        batch = _full_rows(learner.sizes.minibatch_rows, prompt + tokens, tokens)
        return learner.micro_batches(batch, np.arange(len(batch.mask)))

    def sizes(self) -> dict[str, int]:
        """What is computed at once, by which it shows where devices have nothing to do."""
        config, micro, drawn = self.setting.config, self.micros[0], self.setting.draws()[0][1][0]
        return {
            "rollout.rows": config.rollout.rows,
            "train.micro_tokens": config.train.micro_tokens,
            "slots": drawn.slots.size,
            "responses": drawn.questions * drawn.votes,
            "row_tokens": programs.row_tokens(config),
            "pass_rows": _pass_rows(micro),
            "real_rows": int(micro.mask.sum()) // config.rollout.max_tokens,
        }

    def sampling(
        self, phase: str, sampler: Sampler, weights: decoder.Params, draws: list[Draw], sampling: Sampling
    ) -> None:
        """Prefill, the last growth of the cache, and the decode loop over all of it, of the first of `draws`, which is
        the largest; the work is that of all."""
        setting, drawn = self.setting, draws[0]
        config, model, item = setting.config, setting.model, setting.dtype.itemsize
        length, tokens = padded_length(config.prompt.max_tokens), config.rollout.max_tokens
        ids, lengths = np.zeros((drawn.at_once, length), np.int32), np.full(drawn.at_once, length, np.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))  # not made: the mesh's devices may not be there
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(setting.mesh))
        uids = np.zeros(drawn.at_once, np.uint32)
        votes = np.arange(drawn.votes, dtype=np.int32)
        held, copied, sizes = self.state, chip_bytes(weights), dict(length=length, itemsize=item)

        program = sampler._prefill.lower(weights, ids, lengths, key, uids, votes, sampling=sampling)
        work = total(arithmetic.prefill_work(model, each, setting.mesh, **sizes) for each in draws)
        prefix, *_ = self.compile("prefill", phase, program, held=held, more_weights=copied, work=work)

        places_of = dict(prompts=drawn.slots.groups, votes=drawn.slots.slots)
        before = _rung_before(tokens)
        program = sampler._empty.lower(**places_of, slots=before or tokens)
        suffix = _outputs(program, _compiled(program, f"{phase} cache"))
        if before is not None:
            program = sampler._resize.lower(suffix[0], np.int32(0), slots=tokens)
            moved = arithmetic.cache_bytes(model, drawn.slots.size * (before + tokens), itemsize=item)
            grown = _compiled(program, f"{phase} grow").memory_analysis()
            # A layer at a time: when the last one grows, the others have, and are as large as what comes out.
            others = held + chip_bytes((weights, prefix)) + (model.layers - 1) * grown.output_size_in_bytes
            layer = self.compile("grow", phase, program, held=others, more_weights=copied, work=Work(0, moved))
            suffix = (layer,) * model.layers

        first = np.zeros((drawn.at_once, drawn.votes), np.int32)
        nobody, waiting = [[] for _ in uids], [votes.tolist() for _ in uids]
        start, *_ = places.arrange(drawn.slots, nobody, waiting, first)
        program = sampler._segment.lower(
            weights, prefix, suffix, start, first, key, uids, np.int32(0), np.int32(0), sampling=sampling
        )
        work = total(arithmetic.decode_work(model, each, setting.mesh, tokens=tokens, **sizes) for each in draws)
        self.compile("decode", phase, program, held=held, more_weights=copied, work=work)

    def learning(self, name: str) -> None:
        """Scores of the largest micro-batch of one model that learns; its gradient; an optimizer step."""
        setting, start, learner, layout = self.setting, self.start, self.learners[name], self.layout.models[name]
        config, model, mesh, micros = setting.config, setting.model, setting.mesh, self._micros(self.learners[name])
        rows = config.rollout.prompts * config.train.samples
        steps, length = -(-rows // learner.sizes.minibatch_rows), programs.row_tokens(config)
        base = self.layout.policy.params if name == CRITIC and config.critic.trunk == "policy" else None
        weights, prefix = (layout.params, base), "" if name == POLICY else f"{name} "
        read = setting.dtype.itemsize * arithmetic.count(weights) * arithmetic.copies(mesh) * steps * len(micros)
        forward = steps * sum(_forward_flops(model, micro, length) for micro in micros)
        # Under the masters for old scores, and for values; under the start where the loss compares with it.
        old = (steps > 1 and learner.loss.asks_old) or name == CRITIC
        scored, numbers = old + (learner.reference is not None), dict.fromkeys(_NUMBERS[name], micros[0].mask)
        if scored:
            under = layout.params if learner.reference is None else start
            program = learner._score.lower(under, base, micros[0])
            work = Work(scored * forward, scored * read)
            held = self.state - chip_bytes((under, base))
            scores, _ = self.compile(f"{prefix}score", "score", program, held=held, work=work)
            numbers |= {"old": scores} if old else {}
            numbers |= {"reference": scores} if learner.reference is not None else {}
        program = learner._gradient.lower(layout.params, base, layout.params, micros[0], numbers)
        held, gradient = self.state - chip_bytes(weights), chip_bytes(layout.params)
        times = 4 if config.train.remat else 3  # backward twice what forward is, and with remat forward again
        work = Work(times * forward, times * read)
        self.compile(f"{prefix}gradient", "update", program, held=held, more_optimizer=gradient, work=work)
        program = learner._step.lower(layout, layout.params, np.float32(1), np.float32(1))
        held, work = self.state - chip_bytes(layout), arithmetic.step_work(arithmetic.count(layout.params), steps)
        self.compile(f"{prefix}step", "update", program, held=held, more_optimizer=gradient, work=work)

    def compile(
        self,
        name: str,
        phase: str,
        lowered: jax.stages.Lowered,
        *,
        held: int,
        work: Work,
        more_weights: int = 0,
        more_optimizer: int = 0,
    ) -> Any:
        """Compile a program -> what stands for its outputs.

        held: bytes of a chip that do not go into it, but are there. more_weights, more_optimizer: bytes that are there
        besides the state's, whether they go in, come out or are held.
        """
        self.say(f"compiling {phase} {name} ...")
        began = time.perf_counter()
        done = _compiled(lowered, f"{phase} {name}")
        seconds, stats, hlo = time.perf_counter() - began, done.memory_analysis(), done.as_text()
        models = self.layout.models.values()
        weights = chip_bytes(([model.params for model in models], self.start)) + more_weights
        optimizer = chip_bytes([model.optimizer for model in models]) + more_optimizer
        outside = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        program = Program(
            name,
            phase,
            weights=weights,
            optimizer=optimizer,
            cache=held + outside - weights - optimizer,
            activations=stats.temp_size_in_bytes,
            work=work,
            compile_s=round(seconds, 1),
            splash_calls=hlo.count('custom_call_target="tpu_custom_call"'),  # there is no other kernel
            loop_collectives=loop_collectives(hlo),
        )
        self.programs.append(program)
        self.say(f"compiled {phase} {name} in {seconds:.1f} s: {program.together / 1e9:.2f} GB of a chip")
        return _outputs(lowered, done)


def total(works: Any) -> Work:
    works = list(works)
    return Work(sum(work.flops for work in works), sum(work.moved for work in works))


def _rung_before(tokens: int) -> int | None:
    """The size from which the cache grows to `tokens`; None if it begins with so many."""
    return max((size for size in map(padded_length, range(FIRST_CACHE, tokens)) if size < tokens), default=None)


def _full_rows(rows: int, length: int, tokens: int) -> TrainBatch:
    """Rows of `length` tokens, the last `tokens` of which are the response. No two have the same prompt."""
    ids = np.zeros((rows, length), np.int32)
    ids[:, 0] = np.arange(rows)
    return TrainBatch(
        ids=ids,
        prompt_lengths=np.full(rows, length - tokens, np.int32),
        responses=np.zeros((rows, tokens), np.int32),
        mask=np.ones((rows, tokens), np.float32),
        sampler_logps=np.zeros((rows, tokens), np.float32),
    )


def _forward_flops(model: ModelConfig, micro: MicroBatch, length: int) -> int:
    """Of a micro-batch whose rows are padded to `length`, on all shards."""
    shards, _, slots = micro.tokens.shape
    return arithmetic.forward_flops(model, _pass_rows(micro), length, logits=shards * int(micro.chunks) * slots)


def _pass_rows(micro: MicroBatch) -> int:
    return micro.packing.rows.shape[0] * micro.packing.rows.shape[1] if micro.packing else len(micro.ids)


def _compiled(lowered: jax.stages.Lowered, label: str) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise DoesNotCompile(f"{label} does not compile: {str(error).splitlines()[0]}") from error


def _outputs(lowered: jax.stages.Lowered, done: jax.stages.Compiled) -> Any:
    """What stands for the outputs of a program, in the layout that XLA gave them."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        lowered.out_info,
        done.output_shardings,
    )


def loop_collectives(hlo: str) -> list[dict[str, Any]]:
    """The collectives inside a program's loops, at any depth, largest first: kind, shape, bytes, how many."""
    bodies = {name: text for text in re.split(r"\n(?=\S)", hlo) for name in re.findall(r"^%?([\w.\-]+) \(", text)}
    inside, todo = set(), re.findall(r"(?:body|condition)=%?([\w.\-]+)", hlo)
    while todo:
        name = todo.pop()
        if name in bodies and name not in inside:
            inside.add(name)
            todo += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", bodies[name])
    rows = []
    for (kind, shape), times in Counter((k, s) for name in inside for s, k in COLLECTIVE.findall(bodies[name])).items():
        sizes = [
            BYTES[dtype] * int(np.prod([int(n) for n in dims.split(",") if n]))
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
        ]
        plain = re.sub(r"\{.*?\}", "", shape)
        rows.append({"kind": kind, "shape": plain, "bytes": max(sizes), "count": times})
    return sorted(rows, key=lambda row: -row["bytes"])
