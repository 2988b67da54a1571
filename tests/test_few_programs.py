"""How many programs a run compiles on devices that take long to compile one, and what that costs: cache that is read in
vain, and padding that is computed."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import LLAMA

from configs import quickstart_sums
from ttrl_jax import programs
from ttrl_jax.inputs import read_inputs
from ttrl_jax.learn import microbatch
from ttrl_jax.learn.batch import train_batch
from ttrl_jax.learn.microbatch import few_shapes, micro_batches
from ttrl_jax.measure.evaluation import measure, task_keys
from ttrl_jax.model import decoder
from ttrl_jax.model.attention import tile_places
from ttrl_jax.model.cache import LayerCache, Prefix, blocks_read
from ttrl_jax.model.shapes import even_length, named
from ttrl_jax.prepare import prepare
from ttrl_jax.records import Prompts, TrainBatch, padded_length
from ttrl_jax.rollout import decoding
from ttrl_jax.rollout.sampler import Sampler
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import Shapes, few
from ttrl_jax.session import encode, open_session, sample, step_key, update

STOP = 1
TINY = dataclasses.replace(LLAMA, vocab=2, layers=1, width=2, heads=1, kv_heads=1, head_dim=2, ffn=2)


@dataclass(frozen=True)
class Task:
    """What a run samples."""

    prompts: int  # of a step
    questions: int  # of an evaluation
    prompt_tokens: int
    rows: int
    max_tokens: int
    median: float  # of the lengths of responses, as a share of max_tokens; they are log-normal
    spread: float

    def lengths(self, questions: int, votes: int) -> np.ndarray:
        drawn = np.random.default_rng(votes).lognormal(np.log(self.median), self.spread, (questions, votes))
        return np.clip(drawn * self.max_tokens, 2, self.max_tokens).astype(np.int32)


# Medians and spreads as of Qwen2.5-Math (AIME, AMC, MATH) and of an R1 distil (32,768 tokens).
TASKS = {
    "aime": Task(8, 30, 384, 512, 3072, 0.35, 0.7),
    "amc": Task(8, 83, 256, 512, 3072, 0.3, 0.7),
    "math": Task(32, 500, 384, 512, 3072, 0.2, 0.7),
    "32k, an eighth of it": Task(8, 30, 48, 64, 4096, 0.3, 0.7),
    "all at the limit": Task(8, 30, 384, 512, 3072, 10.0, 0.1),
}
# What an update computes is counted on the host, for rows of any length. The last figures: how many shapes there are,
# and the operations at most, as a ratio to whole rows of many shapes.
UPDATES = {
    **{name: (TASKS[name], 2, 0.9) for name in ("aime", "amc", "math")},
    "all at the limit": (TASKS["all at the limit"], 2, 1.15),
    "32k": (Task(2, 30, 384, 64, 32768, 0.3, 0.7), 3, 1.3),
    "32k, short": (Task(2, 30, 384, 64, 32768, 0.15, 0.7), 3, 1.3),
    "32k, at the limit": (Task(1, 30, 384, 64, 32768, 10.0, 0.1), 3, 1.01),
}
MODEL = named("Qwen/Qwen2.5-Math-1.5B")
VOTES, SAMPLES = 64, 16
# Where the cache is read by blocks, for each step of a segment: blocks of a slot, and what the kernel for GPUs reads of
# all slots, in places.
BLOCKS = []
TILE = tile_places(128, jnp.bfloat16, block=256)  # places, of Qwen2.5-Math-1.5B and 7B
WEIGHTS = 108_000  # what reading 1.5 B weights costs, in tokens of its cache: 3.1 GB of 28.7 KB


def sampler_of(shapes: Shapes) -> tuple[Sampler, list, list]:
    """The sampler's own programs and decisions, on a model that computes nothing: a response counts down to STOP from
    its first token, which is its length. And what was read: slots, places of the cache of each, and in how many steps;
    the same by the kernel for GPUs."""
    read, by_kernel = [], []
    sampler = Sampler(TINY, dtype=jnp.float32, shapes=shapes, stop_ids=(STOP,), announce=lambda *told: None)
    segment = sampler._segment

    def noted(weights, shared, suffix, slots, *others, **settings):
        BLOCKS.clear()
        found = segment(weights, shared, suffix, slots, *others, **settings)
        jax.effects_barrier()
        steps, places = int(found[3].steps), suffix[0].k.shape[3]
        assert len(BLOCKS) == (steps if shapes.block else 0)
        each = [(count * shapes.block, 1) for count, _ in BLOCKS] or [(places, steps)]
        read.extend((slots.votes.shape, *one) for one in each)
        by_kernel.extend((slots.votes.shape, own / slots.votes.size, 1) for _, own in BLOCKS)
        return found

    sampler._segment = noted
    return sampler, read, by_kernel


@pytest.fixture
def lengths(monkeypatch) -> dict[str, np.ndarray]:
    """Of the responses that are drawn next, [P, V]."""
    told = {}

    def prefill(weights, ids, lengths, key, uids, *, sampling, config):
        room = len(sampling.temperature)
        kept = jnp.zeros((len(ids), 1, ids.shape[1], 2))
        first = jax.pure_callback(
            lambda uids: np.pad(told["now"], [(0, 0), (0, room)])[uids, :room],
            jax.ShapeDtypeStruct((len(ids), room), jnp.int32), uids,
        )  # fmt: skip
        return Prefix((LayerCache(kept, kept),), lengths), first, jnp.zeros(first.shape)

    def step(weights, config, tokens, prefix, suffix, lengths, at, rotation, *, block):
        if block is not None:
            places = suffix[0].k.shape[3]
            count = blocks_read(lengths.max(), at, places=places, block=block)
            own = blocks_read(lengths, at, places=places, block=TILE).sum() * TILE
            jax.debug.callback(lambda *read: BLOCKS.append(tuple(map(int, read))), count, own)
        return tokens[..., None].astype(jnp.float32), suffix

    monkeypatch.setattr(decoding, "prefill", prefill)
    monkeypatch.setattr(decoder, "decode_step", step)
    monkeypatch.setattr(decoding, "pick", lambda logits, *_: (logits[..., 0].astype(jnp.int32) - 1, logits[..., 0] * 0))
    return told


def run(task: Task, sampler: Sampler, told: dict[str, np.ndarray]) -> None:
    """A training step, and an evaluation with one response at temperature 0."""
    for prompts, votes, greedy in ((task.prompts, VOTES, False), (task.questions, SAMPLES, False)):
        told["now"] = task.lengths(prompts, votes + greedy)
        ids = np.zeros((prompts, task.prompt_tokens), np.int32)
        batch = Prompts(ids, np.full(prompts, task.prompt_tokens, np.int32), np.arange(prompts, dtype=np.uint32))
        sampling = Sampling(temperature=0.6 if greedy else 1.0, top_p=0.95 if greedy else 1.0)
        found = sampler(
            {}, batch, jax.random.key(0), votes=votes, sampling=sampling, greedy=greedy, progress=lambda *done: None
        )
        np.testing.assert_array_equal(found.lengths, told["now"])


def cost(task: Task, read: list, *, weights: int) -> float:
    """Of all segments, in tokens of the cache: what is read of it, prompts included, and of the weights."""
    return sum(
        steps * (groups * slots * places + groups * task.prompt_tokens + weights)
        for (groups, slots), places, steps in read
    )


# How much more is read than with the many programs that suit each batch best: of the cache, and of cache and weights.
# By blocks no more than a tenth, on TPUs and by the kernel on GPUs. Where a few programs read it whole, on GPUs that
# the kernel does not run on: the many read a third to a half less than the first limits, as responses of a tenth of
# their limit leave most slots idle.
MORE = {
    "aime": (1.65, 1.5),
    "amc": (1.4, 1.35),
    "math": (1.25, 1.2),
    "32k, an eighth of it": (1.15, 1.15),
    "all at the limit": (1.15, 1.15),
}
BY_BLOCKS = 1.1


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_run_decodes_with_six_programs_and_with_four(name, lengths):
    task = TASKS[name]
    many = Shapes(task.rows, task.max_tokens, prefill_tokens=8192, prompt_multiple=1, vote_multiple=1)
    those = dict(longest_prompt=task.prompt_tokens, prompts=task.prompts, most_votes=VOTES)
    read = {}
    kinds = {kind: few(many, **those, by_blocks=kind == "blocks") for kind in ("few", "blocks")}
    for kind, shapes in {"many": many, **kinds}.items():
        sampler, read[kind], by_kernel = sampler_of(shapes)
        run(task, sampler, lengths)
        programs = {program.name: len(program._programs) for program in sampler.programs}
        if kind != "many":
            assert programs["decode"] <= {"few": 6, "blocks": 4}[kind]
            assert programs["prefill"] == programs["cache"] == 1
        if kind == "blocks":
            assert programs["cache size"] == 0
            read["kernel"] = by_kernel
        if kind == "few":
            assert {(layout, places) for layout, places, _ in read[kind]} <= {
                ((layout.groups, layout.slots), places)
                for layout in shapes.layouts(prompts=1, votes=1) for places in shapes.sizes(layout)
            }  # fmt: skip
    by_blocks = (BY_BLOCKS, BY_BLOCKS)
    for kind, limits in {"few": MORE[name], "blocks": by_blocks, "kernel": by_blocks}.items():
        for weights, most in zip((0, WEIGHTS), limits, strict=True):
            more = cost(task, read[kind], weights=weights) / cost(task, read["many"], weights=weights)
            print(f"{name}: {kind} read {more:.3f} times what many programs do, weights {weights}")
            assert more < most


def rows_of(task: Task, *, seed: int = 0) -> TrainBatch:
    """32 responses to each question of a step, of whose tokens no two are the same."""
    lengths, prompt = task.lengths(task.prompts, 32).reshape(-1), task.prompt_tokens * 3 // 4
    count, width = len(lengths), padded_length(int(lengths.max()))
    ids = np.zeros((count, padded_length(prompt + int(lengths.max()))), np.int32)
    ids[:, :prompt] = np.repeat(np.arange(task.prompts), 32)[:, None]
    mask = (np.arange(width) < lengths[:, None]).astype(np.float32)
    prompts = np.full(count, prompt, np.int32)
    return TrainBatch(ids, prompts, np.zeros((count, width), np.int32), mask, mask)


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_has_few_shapes_and_computes_little_more(name):
    """Each of the 32 rows of a question is an optimizer step's. What whole rows in many shapes compute is what devices
    other than CPUs did before."""
    (task, most_shapes, most), found = UPDATES[name], {}
    sizes = dict(tokens=8192, longest=task.prompt_tokens + task.max_tokens)
    batch, kinds = rows_of(task), few_shapes(rows=32, even=even_length(MODEL), **sizes)
    for kind in ("few", "whole"):
        micros = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(microbatch, "WORTH_PACKING", 0)
            for first in range(0, len(batch.mask), 32):
                micros += micro_batches(
                    batch, np.arange(first, first + 32), shards=1, chunk=1024, full=32,
                    kinds=kinds if kind == "few" else None, **sizes,
                )  # fmt: skip
        found[kind] = micros
    shapes = {kind: {str(jax.tree.map(np.shape, micro)) for micro in micros} for kind, micros in found.items()}
    tokens = {kind: sum(micro.ids.size for micro in micros) for kind, micros in found.items()}
    pairs = {
        "few": sum(np.square(micro.packing.rows.shape[2]) * micro.packing.rows.shape[1] for micro in found["few"]),
        "whole": sum(micro.ids.shape[0] * micro.ids.shape[1] ** 2 for micro in found["whole"]),
    }
    # A row of `even_length` tokens has as many operations in attention as in products with weights.
    cost = {kind: tokens[kind] * even_length(MODEL) + pairs[kind] for kind in tokens}
    more = {what: round(of["few"] / of["whole"], 3) for what, of in dict(tokens=tokens, pairs=pairs, cost=cost).items()}
    print(f"{name}: {more} times what {len(shapes['whole'])} shapes compute")
    assert len(shapes["few"]) <= len(kinds.rows) == most_shapes
    assert more["tokens"] <= 1.15 and more["cost"] <= most


@pytest.mark.slow
def test_a_run_compiles_what_it_needs_before_it_begins(monkeypatch):
    """Invariance and counts: as on a GPU or TPU, but on CPUs. The programs that take long are compiled at the start, no
    more of them later; tokens are those of the many programs, and so is what is learned, up to rounding."""
    found = {}
    for kind in ("many", "few"):
        monkeypatch.setattr(programs, "_on_cpu", lambda mesh, kind=kind: kind == "many")
        config = quickstart_sums.get_config()
        config.update_from_flattened_dict({
            "episodes": 1, "data.limit": 16, "eval.greedy": True, "eval.tasks": (), "train.kl_coef": 0.001,
        })  # fmt: skip
        lines, compiled = [], []
        hear = {"say": lines.append, "compiling": lambda *told, to=compiled: to.append(told)}
        session = open_session(read_inputs(config), **hear)
        prepare(session, say=lines.append)
        compiled.clear()
        evaluated = measure(session, session.inputs.sets[0], task_keys(session)[0], progress=lambda *done: None)
        problems = session.problems.take(0)
        prompts = encode(session, problems)
        rollouts = sample(session, prompts, step_key(session, 0), votes=config.rollout.votes, sampling=session.sampling)
        rows = train_batch(prompts, rollouts, np.tile(np.arange(config.train.samples), (len(problems), 1)))
        advantages = np.random.default_rng(0).normal(size=(len(rows.mask), 1)).astype(np.float32) * rows.mask
        session, metrics = update(session, rows, {"advantages": advantages})
        later = {program.split(",")[0] for program, *_ in compiled}
        found[kind] = rollouts, evaluated.numbers, metrics, session.state.policy.params
        if kind == "few":
            assert later <= {"prompts", "cache", "move"}, later
            count = int(lines[-1].split()[3])
            assert lines[-1].startswith(f"compiled {count} of {count} programs") and 6 <= count <= 12
    (one, numbers, metrics, params), (two, others, later, news) = found["many"], found["few"]
    np.testing.assert_array_equal(one.tokens, two.tokens)
    assert numbers == pytest.approx(others, abs=1e-6)
    assert metrics == pytest.approx(later, rel=1e-3, abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, news)
