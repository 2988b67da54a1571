"""The programs of a training run, lowered as the run would call them at its largest: what each needs of a chip."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from ttrl_jax import programs
from ttrl_jax.learn.batch import full_rows
from ttrl_jax.learn.layout import sums_layout
from ttrl_jax.learn.microbatch import MicroBatch
from ttrl_jax.learn.update import Update
from ttrl_jax.model import decoder
from ttrl_jax.model.attention import tile_places
from ttrl_jax.model.cache import Prefix
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import replicated
from ttrl_jax.plan import arithmetic, hlo
from ttrl_jax.plan.arithmetic import Draw, Work, chip_bytes
from ttrl_jax.records import CRITIC, POLICY, TrainState
from ttrl_jax.rollout import copies
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import FewShapes, Shapes
from ttrl_jax.run.compiled import lines
from ttrl_jax.session import losses_of

Say = Callable[[str], None]
_SHORT = ("", " of short rows", " of the shortest rows")  # of which shape of few a program is


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
        """The copy of the start, where there is one; new adapters leave nothing to copy."""
        if not programs.needs_start(self.config):
            return None
        if self.model.lora and not self.config.model.adapter:
            return {}
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, self.dtype, sharding=x.sharding), layout.policy.params
        )

    def base(self) -> decoder.Params | None:
        """What adapters go with, where there are any."""
        return copies.base_layout(self.model, self.mesh, self.dtype) if self.model.lora else None

    def draws(self) -> list[tuple[str, list[Draw], Sampling]]:
        """What a run samples: the phase; what is drawn in it, the largest first; and how."""
        config, sizes = self.config, sorted(self.questions, reverse=True)
        training, evaluating = programs.sampling_of(config.rollout), programs.sampling_of(config.eval)
        found = [("sample", [self._draw(config.rollout.prompts, config.rollout.votes)], training)]
        if programs.start_model_votes(config):
            found.append(("label", [self._draw(self.questions[0], config.rollout.votes)], training))
        votes = programs.evaluation_votes(config)
        return [*found, ("evaluate", [self._draw(questions, votes) for questions in sizes], evaluating)]

    @property
    def shapes(self) -> Shapes:
        """For which the programs that sample are compiled, if a prompt is as long as it may be."""
        return programs.shapes_of(self.config, self.model, self.mesh, longest_prompt=self.config.prompt.max_tokens)

    @property
    def prompt_tokens(self) -> int:
        """What such prompts are padded to."""
        return self.shapes.prompt_tokens(self.config.prompt.max_tokens)

    def _draw(self, questions: int, votes: int) -> Draw:
        drawn = arithmetic.draw(questions=questions, votes=votes, shapes=self.shapes, length=self.prompt_tokens)
        if drawn.block is None or self.model.decode_attention != "triton":
            return drawn
        return dataclasses.replace(drawn, block=tile_places(self.model.head_dim, self.dtype, block=drawn.block))


@dataclass(frozen=True)
class Program:
    """A program that XLA compiled. Bytes are those of one chip while it runs; work is that of all chips in a whole
    step, or in a whole evaluation."""

    name: str
    phase: str  # sample | label | evaluate | score | update
    weights: int  # bytes of masters, of the copy of the start, and of the copy that samples
    optimizer: int  # of the moments, and of the gradient
    cache: int  # of all else that goes in, comes out or is held: keys and values, tokens, log-probs
    activations: int  # of what the program needs in between
    work: Work
    compile_s: float
    aliased: int  # bytes of what goes in and is used up by what comes out
    custom_calls: dict[str, int]  # of kernels that XLA did not make, by target
    loop_kernels: int  # fusions and custom calls that a turn of the largest loop starts
    loop_collectives: list[dict[str, Any]]  # of all loops
    loop_copies: list[dict[str, Any]]
    scatters: int
    loop_scatters: int

    @property
    def label(self) -> str:
        return _label(self.phase, self.name)

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
        self.start, self.base = setting.start(self.layout), setting.base()
        self.state = chip_bytes((self.layout, self.start, self.base))  # is held while the model learns
        self.offload = setting.config.mesh.offload
        self.sampled = chip_bytes((self.start, self.base)) if self.offload else self.state  # and while it samples
        self.learners = programs.make_learners(
            setting.config,
            setting.model,
            setting.mesh,
            programs.make_optimizers(setting.config),
            self.layout,
            losses=losses_of(setting.config),
            temperature=programs.sampling_of(setting.config.rollout).temperature,
            start=self.start,
            announce=lines(say),
        )
        self.micros = self._micros(self.learners[POLICY])
        self.programs: list[Program] = []
        self._done: dict[str, jax.stages.Compiled] = {}  # by what is compiled

    def all(self) -> None:
        """Compile what training runs. Raises DoesNotCompile with the reason; `programs` has those before."""
        config, model, mesh = self.setting.config, self.setting.model, self.setting.mesh
        with jax.set_mesh(mesh):
            program = copies.program(model, mesh, self.setting.dtype).lower(self.layout.policy.params)
            copied = copies.layout(model, mesh, self.setting.dtype)
            master, _ = programs.itemsizes(config)
            work = arithmetic.copy_work(model, mesh, master=master, itemsize=self.setting.dtype.itemsize)
            masters, more = chip_bytes(self.layout.policy.params), chip_bytes(copied) - chip_bytes(self.base)
            way = {"held": self.sampled, "more_weights": more + masters}  # which are fetched for it
            if not self.offload:
                way = {"held": self.state - masters, "more_weights": more}
            self.compile("copy", "sample", program, **way, work=work)
            of_run = dict(stop_ids=self.setting.stop_ids, announce=lines(self.say))
            sampler = programs.make_sampler(config, model, self.setting.shapes, **of_run)
            for phase, draws, sampling in self.setting.draws():
                self.sampling(phase, sampler, copied, draws, sampling)
            for name in self.learners:
                self.learning(name)

    def _micros(self, learner: Update) -> list[MicroBatch]:
        """The micro-batches of an optimizer step in which all responses reach their limit."""
        prompt, tokens = self.setting.config.prompt.max_tokens, self.setting.config.rollout.max_tokens
        batch = full_rows(learner.sizes.minibatch_rows, length=prompt + tokens, tokens=tokens)
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
            "pass_tokens": micro.ids.size,
            "real_tokens": int(micro.mask.sum()) // config.rollout.max_tokens * programs.longest_row(config),
        }

    def of_run(self) -> dict[str, int] | None:
        """How many programs that take long to compile a whole run has; None where each batch has those that suit it."""
        shapes, config = self.setting.shapes, self.setting.config
        if not isinstance(shapes, FewShapes):
            return None
        layouts = shapes.layouts(prompts=config.rollout.prompts, votes=config.rollout.votes)
        found = {"decode": sum(len(shapes.sizes(layout)) for layout in layouts), "prefill": 1, "update": 0}
        way = dict(rows=config.rollout.prompts * config.train.samples)
        for name, learner in self.learners.items():
            way |= dict(base=self._base(name), scores=programs.asks_entropies(config, name))
            found["update"] += sum(1 for _ in learner.work(self.layout.models[name], **way))
        return found

    def _base(self, name: str) -> decoder.Params | None:
        if not programs.uses_policy(self.setting.config, name):
            return self.base
        return (self.base or {}) | self.layout.policy.params

    def sampling(
        self, phase: str, sampler: Sampler, weights: decoder.Params, draws: list[Draw], sampling: Sampling
    ) -> None:
        """Prefill, the last growth of the cache if it grows, and the decode loop over all of it, of the first of
        `draws`, which is the largest; the work is that of all."""
        setting, drawn = self.setting, draws[0]
        config, model, item = setting.config, setting.model, setting.dtype.itemsize
        length, tokens = setting.prompt_tokens, config.rollout.max_tokens
        ids, lengths = np.zeros((drawn.prefill, length), np.int32), np.full(drawn.prefill, length, np.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))  # not made: the mesh's devices may not be there
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(setting.mesh))
        uids, groups = np.zeros(drawn.prefill, np.uint32), drawn.slots.groups
        room = setting.shapes.votes(drawn.votes)
        temperatures = np.full(room, sampling.temperature, np.float32)
        sampling = dataclasses.replace(sampling, temperature=temperatures, top_p=np.float32(sampling.top_p))
        under = chip_bytes(self.base)  # goes into the programs, as a part of `weights`
        held, copied, sizes = self.sampled - under, chip_bytes(weights) - under, dict(length=length, itemsize=item)

        program = sampler._prefill.lower(weights, ids, lengths, key, uids, sampling=sampling)
        work = total(arithmetic.prefill_work(model, each, setting.mesh, **sizes) for each in draws)
        prefix, *_ = self.compile("prefill", phase, program, held=held, more_weights=copied, work=work)
        held += (drawn.parts - 1) * chip_bytes(prefix)  # of the other prompts

        program = sampler._share.lower([prefix.layers[0]] * drawn.parts, np.zeros(groups, np.int32))
        layer = _outputs(program, self._compiled(program, f"{phase} prompts"))
        shared = Prefix((layer,) * model.layers, np.zeros(groups, np.int32))

        places_of = dict(prompts=drawn.slots.groups, votes=drawn.slots.slots)
        before, size = ([None] + list(drawn.sizes))[-2:]
        program = sampler._empty.lower(**places_of, slots=before or size)
        suffix = _outputs(program, self._compiled(program, f"{phase} cache"))
        if before is not None:
            program = sampler._resize.lower(suffix[0], np.int32(0), slots=size)
            moved = arithmetic.cache_bytes(model, drawn.slots.size * (before + size), itemsize=item)
            grown = self._compiled(program, f"{phase} grow").memory_analysis()
            # A layer at a time: when the last one grows, the others have, and are as large as what comes out.
            others = (
                held + chip_bytes((weights, prefix, shared.layers)) + (model.layers - 1) * grown.output_size_in_bytes
            )
            layer = self.compile("grow", phase, program, held=others, more_weights=copied, work=Work(0, moved))
            suffix = (layer,) * model.layers

        first = np.zeros((drawn.at_once, drawn.votes), np.int32)
        nobody, waiting = [[] for _ in first], [list(range(drawn.votes)) for _ in first]
        start, *_ = places.arrange(drawn.slots, nobody, waiting, first, room=room)
        of_groups, held = np.zeros(groups, np.uint32), held + chip_bytes(prefix)
        program = sampler._segment.lower(
            weights, shared, suffix, start, key, of_groups, np.int32(0), np.int32(0), sampling=sampling
        )
        work = total(arithmetic.decode_work(model, each, setting.mesh, tokens=tokens, **sizes) for each in draws)
        self.compile("decode", phase, program, held=held, more_weights=copied, work=work)

    def learning(self, name: str) -> None:
        """Scores of the largest micro-batch of one model that learns; its gradient; an optimizer step."""
        setting, start, learner, layout = self.setting, self.start, self.learners[name], self.layout.models[name]
        config, model, mesh, micros = setting.config, setting.model, setting.mesh, self._micros(self.learners[name])
        rows = config.rollout.prompts * config.train.samples
        steps, length = -(-rows // learner.sizes.minibatch_rows), programs.row_tokens(config)
        base = self._base(name)
        weights, prefix = (layout.params, base), "" if name == POLICY else f"{name} "
        read = setting.dtype.itemsize * arithmetic.count(weights) * arithmetic.copies(mesh) * steps * len(micros)
        forward = steps * sum(_forward_flops(model, micro, length) for micro in micros)
        old = (steps > 1 and learner.loss.asks_old) or name == CRITIC  # or values
        held, sums = self.state - chip_bytes(weights), sums_layout(layout.params)
        gradient = chip_bytes(sums)
        # Backward twice what forward is, or once where weights have no gradient; forward again if layers are computed
        # again; and forward under the start.
        again = config.train.remat == "full"
        times = (2 if model.lora else 3) + again + (learner.reference is not None)
        few = learner.sizes.few
        scored = float(old)  # how often, beside the rows trained on
        if programs.asks_entropies(config, name):
            scored += config.rollout.votes / config.train.samples
        for i, micro in enumerate((learner.kinds(scores=True) if few else micros[:1]) if scored else ()):
            program = learner._score.lower(layout.params, base, micro)
            work = Work(0, 0) if i else Work(scored * forward, scored * read)
            scores, _ = self.compile(f"{prefix}score{_SHORT[i]}", "score", program, held=held, work=work)
        for i, micro in enumerate(learner.kinds() if few else micros[:1]):
            numbers, which = dict.fromkeys((*learner.loss.names, "sampler_logps"), micro.mask), _SHORT[i]
            if old:
                numbers["old"] = jax.ShapeDtypeStruct(micro.mask.shape, scores.dtype, sharding=scores.sharding)
            reference = start if learner.reference is not None else None
            program = learner._gradient.lower(layout.params, base, reference, sums, micro, numbers)
            work = Work(0, 0) if i else Work(times * forward, times * read)
            self.compile(
                f"{prefix}gradient{which}", "update", program, held=held - chip_bytes(reference),
                more_optimizer=gradient, work=work,
            )  # fmt: skip
        program = learner._step.lower(layout, sums, np.float32(1), np.float32(1))
        master, moment = programs.itemsizes(config)
        work = arithmetic.step_work(arithmetic.count(sums), steps, master=master, moment=moment)
        held = self.state - chip_bytes(layout)
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
        self.say(f"compiling {_label(phase, name)} ...")
        began = time.perf_counter()
        done = self._compiled(lowered, _label(phase, name))
        seconds, stats, text = time.perf_counter() - began, done.memory_analysis(), done.as_text()
        rest = self.offload and phase not in ("score", "update")
        models = () if rest else self.layout.models.values()
        weights = chip_bytes(([model.params for model in models], self.start, self.base)) + more_weights
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
            aliased=stats.alias_size_in_bytes,
            custom_calls=hlo.custom_calls(text),
            loop_kernels=hlo.loop_kernels(text),
            loop_collectives=hlo.loop_collectives(text),
            loop_copies=hlo.loop_copies(text),
            scatters=text.count(" scatter("),
            loop_scatters=hlo.loop_scatters(text),
        )
        self.programs.append(program)
        self.say(f"compiled {program.label} in {seconds:.1f} s: {program.together / 1e9:.2f} GB of a chip")
        return _outputs(lowered, done)

    def _compiled(self, lowered: jax.stages.Lowered, label: str) -> jax.stages.Compiled:
        """Compile the programs of an evaluation; if a run has few programs, they are those of a training step."""
        text = lowered.as_text()
        if text not in self._done:
            try:
                self._done[text] = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                raise DoesNotCompile(f"{label} does not compile: {str(error).splitlines()[0]}") from error
        return self._done[text]


def _label(phase: str, name: str) -> str:
    return name if name.startswith(phase) else f"{phase} {name}"


def total(works: Any) -> Work:
    works = list(works)
    return Work(sum(work.flops for work in works), sum(work.moved for work in works))


def _forward_flops(model: ModelConfig, micro: MicroBatch, length: int) -> int:
    """Operations of a forward pass over a micro-batch whose rows are padded to `length`, on all shards."""
    shards, _, slots = micro.tokens.shape
    rows = micro.packing.rows.shape[0] * micro.packing.rows.shape[1] if micro.packing else len(micro.ids)
    logits = shards * int(micro.chunks) * slots
    return arithmetic.forward_flops(model, rows, length, logits=logits, tokens=micro.ids.size)


def _outputs(lowered: jax.stages.Lowered, done: jax.stages.Compiled) -> Any:
    """What stands for the outputs of a program, in the layout that XLA gave them."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        lowered.out_info,
        done.output_shardings,
    )
