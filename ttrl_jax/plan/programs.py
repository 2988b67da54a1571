"""The programs of a training run, lowered as the run would call them at its largest: what each needs of a chip."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ttrl_jax import build
from ttrl_jax.learn.layout import params_layout, state_layout
from ttrl_jax.model import decoder
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.plan.arithmetic import cache_bytes, chip_bytes, copies, count, forward_flops, pair_flops
from ttrl_jax.records import TrainBatch, TrainState, padded_length
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.sampling import Sampling

COLLECTIVE = re.compile(r"= (\S.*?) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}


@dataclass
class Program:
    """A program that XLA compiled. Bytes are those of one chip, flops and moved of all chips and of a whole step."""

    name: str
    arguments: int  # bytes of what goes in
    outputs: int  # of what comes out, less what is given away for it
    temporaries: int  # needed in between
    held: int  # that the run holds besides
    flops: float
    moved: float  # bytes from and to memory
    compile_s: float
    splash_calls: int
    loop_collectives: list[dict[str, Any]]

    @property
    def together(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.held

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"together": self.together}


class DoesNotCompile(Exception):
    """XLA gives up, as a rule because the program does not fit the chip's memory."""


@dataclass(frozen=True)
class Setting:
    """What is planned for: a config in which every value is set, a model's shape, a mesh of devices there or not."""

    config: ConfigDict
    model: ModelConfig
    mesh: jax.sharding.Mesh

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.model.dtype)

    def layout(self) -> TrainState:
        return state_layout(params_layout(self.model, self.mesh), build.make_optimizer(self.config), self.mesh)

    def frozen(self, layout: TrainState) -> decoder.Params | None:
        """The copy of the start that a KL term needs."""
        if not self.config.train.kl_coef:
            return None
        return jax.tree.map(lambda x: _array(x, x.sharding, self.dtype), layout.params)


def compiled(setting: Setting, announce: Callable[[str], None], names: set[str] | None = None) -> Iterator[Program]:
    """Compile the programs one after the other, those of `names` alone if given; what one leaves behind goes into the
    next, in the layout that XLA gave it. Raises DoesNotCompile, with the reason."""
    layout = setting.layout()
    frozen = setting.frozen(layout)
    wanted = names or {"copy", "prefill", "grow", "decode", "score", "gradient", "step"}
    with jax.set_mesh(setting.mesh):
        if wanted & {"copy", "prefill", "grow", "decode"}:
            yield from _sampling(setting, layout, frozen, wanted, announce)
        if wanted & {"score", "gradient", "step"}:
            yield from _learning(setting, layout, frozen, wanted, announce)


def _sampling(
    setting: Setting,
    layout: TrainState,
    frozen: decoder.Params | None,
    wanted: set[str],
    announce: Callable[[str], None],
) -> Iterator[Program]:
    """The copy of the weights; prefill; the last growth of the cache, by a layer; the decode loop over all of it."""
    config, model, mesh = setting.config, setting.model, setting.mesh
    item, size, groups = setting.dtype.itemsize, count(layout.params), copies(mesh)
    held = chip_bytes((layout, frozen))
    program = build.sampling_copy(config, model, mesh).lower(layout.params)
    one = _Compiling("copy", program, held=held - chip_bytes(layout.params), flops=0, moved=(4 + item) * size * groups)
    weights = one.run(announce)
    yield from one.told(wanted)

    sampler = build.make_sampler(config, model, mesh, stop_ids=(0,), announce=announce)
    sampling = Sampling(temperature=config.rollout.temperature, top_k=config.rollout.top_k, top_p=config.rollout.top_p)
    tokens, length = config.rollout.max_tokens, padded_length(config.prompt.max_tokens)
    votes = config.rollout.votes
    questions = places.prompts_at_once(prompts=config.rollout.prompts, votes=votes, rows=config.rollout.rows)
    times = -(-config.rollout.prompts // questions)  # so many batches in a step
    padded = -(-questions // mesh.shape["data"]) * mesh.shape["data"]
    ids, lengths = np.zeros((padded, length), np.int32), np.full(padded, length, np.int32)
    key, uids = jax.eval_shape(lambda: jax.random.key(0)), np.zeros(padded, np.uint32)
    all_votes = np.arange(votes, dtype=np.int32)
    read = item * size * groups  # the weights, which each group of chips has whole
    program = sampler._prefill.lower(weights, ids, lengths, key, uids, all_votes, sampling=sampling)
    flops = forward_flops(model, config.rollout.prompts, length, logits=1)
    moved = times * (read + cache_bytes(model, questions * length, itemsize=item))
    one = _Compiling("prefill", program, held=held, flops=flops, moved=moved)
    prefix, *_ = one.run(announce)
    yield from one.told(wanted)

    layouts = dict(rows=config.rollout.rows, prompt_multiple=mesh.shape["data"], vote_multiple=mesh.shape["fsdp"])
    slots = places.layouts(prompts=padded, votes=votes, **layouts)[0]
    suffix, one = _grown(setting, sampler, slots, tokens, held + chip_bytes((weights, prefix)), announce)
    if one is not None:
        yield from one.told(wanted)

    # All steps of all responses: each step reads the weights, each prompt's cache once, and each response's own so far.
    batch, seen = votes * config.rollout.prompts, tokens * (tokens - 1) // 2
    steps = -(-batch // slots.size) * tokens
    flops = batch * tokens * forward_flops(model, 1, 1, logits=1) + batch * (seen + tokens * length) * pair_flops(model)
    moved = steps * (read + cache_bytes(model, questions * length, itemsize=item))
    moved += cache_bytes(model, batch * seen, itemsize=item)
    first, nobody = np.zeros((padded, votes), np.int32), [[] for _ in range(padded)]
    start, *_ = places.arrange(slots, nobody, [all_votes.tolist() for _ in range(padded)], first)
    program = sampler._segment.lower(
        weights, prefix, suffix, start, first, key, uids, np.int32(0), np.int32(0), sampling=sampling
    )
    one = _Compiling("decode", program, held=held, flops=flops, moved=moved)
    one.run(announce)
    yield from one.told(wanted)


def _grown(
    setting: Setting, sampler: Any, slots: places.Layout, tokens: int, held: int, announce: Callable[[str], None]
) -> tuple[Any, "_Compiling | None"]:
    """The cache at its longest, and the growth of its last layer from the rung before; None if there is none."""
    model, before = setting.model, [size for size in range(1, tokens) if padded_length(size) == size]
    if not before:
        return _outputs(sampler._empty.lower(prompts=slots.groups, votes=slots.slots, slots=tokens)), None
    suffix = _outputs(sampler._empty.lower(prompts=slots.groups, votes=slots.slots, slots=before[-1]))
    program = sampler._resize.lower(suffix[0], np.int32(0), slots=tokens)
    layer = _outputs(program)
    item = setting.dtype.itemsize
    moved = cache_bytes(model, slots.size * (before[-1] + tokens), itemsize=item)
    others = (model.layers - 1) * chip_bytes(layer)
    one = _Compiling("grow", program, held=held + others, flops=0, moved=moved)
    return (one.run(announce),) * model.layers, one


def _learning(
    setting: Setting,
    layout: TrainState,
    frozen: decoder.Params | None,
    wanted: set[str],
    announce: Callable[[str], None],
) -> Iterator[Program]:
    """Log-probs of a micro-batch; its gradient; an optimizer step. Operations are those of the whole training step, all
    responses of which reach the limit."""
    config, model, mesh = setting.config, setting.model, setting.mesh
    train, tokens = config.train, config.rollout.max_tokens
    optimizer = build.make_optimizer(config)
    update = build.make_update(config, model, mesh, optimizer, layout, reference=frozen, announce=announce)
    rows, length = config.rollout.prompts * train.samples, config.prompt.max_tokens + tokens
    minibatch = train.minibatch_prompts * train.samples
    micros = update.micro_batches(_full_rows(minibatch, length, tokens))
    steps = rows // minibatch
    size, forward = count(layout.params), forward_flops(model, rows, length, logits=tokens)
    read = setting.dtype.itemsize * size * copies(mesh) * steps * len(micros)  # by each group of chips in each pass
    scored, logps = (steps > 1) + (frozen is not None), None
    if scored:
        program = update._score.lower(frozen or layout.params, micros[0])
        held = chip_bytes(layout) if frozen else chip_bytes(layout.optimizer)
        one = _Compiling("score", program, held=held, flops=scored * forward, moved=scored * read)
        logps = one.run(announce)
        yield from one.told(wanted)
    old, reference = (logps if steps > 1 else None), (logps if frozen else None)
    program = update._gradient.lower(layout.params, layout.params, micros[0], old, reference)
    besides = chip_bytes((frozen, layout.optimizer))
    one = _Compiling("gradient", program, held=besides, flops=3 * forward, moved=3 * read)
    one.run(announce)
    yield from one.told(wanted)
    # Of the optimizer: the gradient is read, and masters and two moments in float32 are read and written.
    program = update._step.lower(layout, layout.params, np.float32(1), np.float32(train.learning_rate), np.int32(1))
    one = _Compiling("step", program, held=chip_bytes(frozen), flops=0, moved=4 * 7 * size * steps)
    one.run(announce)
    yield from one.told(wanted)


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
        advantages=np.ones(rows, np.float32),
    )


class _Compiling:
    """A lowered program with what XLA does not know of it."""

    def __init__(self, name: str, lowered: jax.stages.Lowered, *, held: int, flops: float, moved: float):
        self.name, self.lowered = name, lowered
        self.held, self.flops, self.moved = held, flops, moved
        self.program: Program | None = None

    def run(self, announce: Callable[[str], None]) -> Any:
        """Compile it -> what stands for its outputs."""
        announce(f"compiling {self.name} ...")
        start = time.perf_counter()
        try:
            done = self.lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise DoesNotCompile(f"{self.name} does not compile: {str(error).splitlines()[0]}") from error
        seconds, stats, hlo = time.perf_counter() - start, done.memory_analysis(), done.as_text()
        self.program = Program(
            self.name,
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            held=self.held,
            flops=self.flops,
            moved=self.moved,
            compile_s=round(seconds, 1),
            splash_calls=hlo.count('custom_call_target="tpu_custom_call"'),  # there is no other kernel
            loop_collectives=loop_collectives(hlo),
        )
        announce(f"compiled {self.name} in {seconds:.1f} s")
        return _outputs(self.lowered, done)

    def told(self, wanted: set[str]) -> Iterator[Program]:
        if self.name in wanted:
            yield self.program


def _array(like: Any, sharding: jax.sharding.Sharding, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(like.shape, like.dtype if dtype is None else dtype, sharding=sharding)


def _outputs(lowered: jax.stages.Lowered, done: jax.stages.Compiled | None = None) -> Any:
    """What stands for the outputs of a program, in the layout that XLA gave them."""
    done = done or lowered.compile()
    return jax.tree.map(_array, lowered.out_info, done.output_shardings)


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
