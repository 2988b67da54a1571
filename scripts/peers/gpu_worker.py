"""The stages of bench_gpu.py that run programs of ours.

    python scripts/peers/gpu_worker.py STAGE OUT [--limit SECONDS] [--label NAME] [--tiny]

bench_gpu.py starts a process for each. STAGE flags is decode with the smallest cache alone, and without a profile.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gpu_bench import Bench, ceilings, of_peak, peak_gb, profile, say, seconds, temporary_gb
from ml_collections import ConfigDict

from ttrl_jax import programs
from ttrl_jax.learn.batch import full_rows
from ttrl_jax.learn.update import Update
from ttrl_jax.model import attention as attends
from ttrl_jax.model import decoder
from ttrl_jax.model.cache import LayerCache
from ttrl_jax.model.config import ModelConfig
from ttrl_jax.model.sharding import key_on, make_mesh
from ttrl_jax.plan import arithmetic
from ttrl_jax.plan.arithmetic import Draw, Work
from ttrl_jax.records import POLICY, Model, Prompts, TrainBatch
from ttrl_jax.rollout import copies, decoding
from ttrl_jax.rollout import slots as places
from ttrl_jax.rollout.sampler import Sampler, _Batch
from ttrl_jax.rollout.sampling import Sampling
from ttrl_jax.rollout.shapes import BLOCK, FewShapes, few
from ttrl_jax.rollout.slots import IDLE, Layout
from ttrl_jax.run.compiled import in_parallel, lines
from ttrl_jax.session import losses_of

# Rows, tokens, heads, kv heads, head size, window: odd lengths, a group of one, windows, heads of 64 and 256.
ROWS = [
    (2, 3584, 12, 2, 128, None), (2, 3584, 28, 4, 128, None), (4, 1536, 14, 2, 64, None), (3, 1023, 8, 8, 128, None),
    (2, 2048, 32, 8, 128, 512), (2, 777, 9, 3, 64, 100), (1, 1024, 8, 4, 256, None), (8, 16, 12, 2, 128, None),
]  # fmt: skip
# Prompts, votes, heads, kv heads, head size, places of the cache, window: of a decode step.
DECODES = [
    (8, 64, 12, 2, 128, 3072, None), (8, 64, 28, 4, 128, 3072, None), (4, 64, 14, 2, 64, 1024, None),
    (2, 8, 32, 8, 128, 32768, None), (8, 16, 32, 8, 128, 4096, 512), (4, 16, 8, 4, 256, 2048, None),
]  # fmt: skip
TINY_DECODES = [(2, 4, 4, 2, 16, 256, None), (2, 4, 4, 2, 16, 512, 100)]
MOST_WRONG = 0.01  # of the norm of an output: bfloat16 rounds to 0.004
TINY_ROWS = [(2, 33, 4, 2, 16, None), (2, 32, 4, 2, 16, 8)]
COMPARED = 6 * decoding.SEGMENT  # tokens of each response after which a short rollout ends


class Enough(Exception):
    """A rollout has gone as far as it should."""


# ---------------------------------------------------------------------- the card


def env(bench: Bench) -> None:
    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "transformers", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    stats = device.memory_stats() or {}
    limit = {"limit_gb": round(stats["bytes_limit"] / 1e9, 1)} if "bytes_limit" in stats else {}
    bench.put("machine", kind=device.device_kind, platform_version=device.client.platform_version, **versions, **limit)
    ceilings(bench)


# ---------------------------------------------------------------------- attention


def attention(bench: Bench) -> None:
    for shape in TINY_DECODES if bench.tiny else DECODES:
        for type_ in (jnp.bfloat16, jnp.float32):
            with bench.part(f"decode attention {shape} {jnp.dtype(type_).name}"):
                one_decode_attention(bench, shape, type_)
    for shape in TINY_ROWS if bench.tiny else ROWS:
        with bench.part(f"attention {shape}"):
            one_attention(bench, shape)


def one_attention(bench: Bench, shape: tuple) -> None:
    """The kernel in bfloat16 against "xla" in float32, outputs and gradients, and how long either takes in bfloat16."""
    rows, length, heads, kv_heads, size, window = shape
    keys = jax.random.split(jax.random.key(0), 4)
    each = [
        jax.random.normal(key, (rows, length, n, size), jnp.bfloat16)
        for key, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
    ]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, slope: jax.Array, *, kernel: str) -> tuple[jax.Array, jax.Array]:
        out = attends.causal(q, k, v, window, kernel=kernel, rows="rows")
        return (out.astype(jnp.float32) * slope.astype(jnp.float32)).sum(), out

    kernel = "cudnn" if jax.devices()[0].platform == "gpu" else "xla"
    ours, plain = (
        jax.jit(jax.grad(functools.partial(loss, kernel=name), argnums=(0, 1, 2), has_aux=True))
        for name in (kernel, "xla")
    )
    with jax.default_matmul_precision("highest"):  # or products of float32 would be of tf32
        true = jax.tree.leaves(plain(*(x.astype(jnp.float32) for x in each)))
    found, again = (jax.tree.leaves(ours(*each)) for _ in range(2))
    pairs_of = zip(found, true, strict=True)
    errors = [float(jnp.linalg.norm(x.astype(jnp.float32) - y) / jnp.linalg.norm(y)) for x, y in pairs_of]
    taken, pairs = seconds(lambda: ours(*each)), sum(min(i + 1, window or length) for i in range(length))
    bench.put(
        "attention", shape=shape, kernel=kernel, errors_of_dq_dk_dv_out=[round(error, 5) for error in errors],
        same_again=all(bool((x == y).all()) for x, y in zip(found, again, strict=True)), ms=round(taken * 1e3, 3),
        xla_ms=round(seconds(lambda: plain(*each)) * 1e3, 3),
        tflops=round(3.5 * 4 * rows * heads * size * pairs / taken / 1e12, 2),  # 2 products forward, 5 backward
    )  # fmt: skip


def one_decode_attention(bench: Bench, shape: tuple, dtype: jnp.dtype) -> None:
    """What a decode step reads the cache with against whole rings in float32, and how long either takes in `dtype`:
    where votes have from no token to a full ring, the new one in the middle of it, and where all have a full one.
    Raises FloatingPointError if they differ by more than `dtype` rounds."""
    prompts, votes, heads, kv_heads, size, places, window = shape
    keys, length = jax.random.split(jax.random.key(0), 5), 384
    sizes = [(prompts, votes, heads, size)] + 2 * [(prompts, kv_heads, length, size)]
    sizes += 2 * [(prompts, votes, kv_heads, places, size)]
    q, *caches = (jax.random.normal(key, shape, dtype) for key, shape in zip(keys, sizes, strict=True))
    full = np.full((prompts, votes), places - 1, np.int32)
    mixed = np.linspace(0, places - 1, full.size).astype(np.int32).reshape(full.shape)
    kernel = "triton" if jax.devices()[0].platform == "gpu" else "xla"

    @functools.partial(jax.jit, static_argnames=("block", "kernel"))
    def attend(q: jax.Array, caches: list[jax.Array], lengths: np.ndarray, **way) -> jax.Array:
        shared, own = LayerCache(*caches[:2]), LayerCache(*caches[2:])
        real = jnp.arange(prompts, dtype=jnp.int32) % length + 1
        return attends.cached(q, shared, real, own, lengths, jnp.int32(places // 2), window, **way)

    found, way = {}, dict(block=BLOCK, kernel=kernel)
    for name, lengths in (("mixed", mixed), ("full", full)):
        with jax.default_matmul_precision("highest"):
            true = attend(*jax.tree.map(lambda x: x.astype(jnp.float32), (q, caches)), lengths)
        got, again = (attend(q, caches, lengths, **way) for _ in range(2))
        error = float(jnp.linalg.norm(got.astype(jnp.float32) - true) / jnp.linalg.norm(true))
        found |= {f"{name}_error": round(error, 6), f"{name}_same_again": bool((got == again).all())}
        ours, whole = (seconds(lambda a=a: attend(q, caches, lengths, **a)) for a in (way, {}))  # noqa: B023
        moved = 2 * kv_heads * size * jnp.dtype(dtype).itemsize * int(np.minimum(lengths + 1, window or places).sum())
        found |= {f"{name}_ms": round(ours * 1e3, 3), f"{name}_whole_ms": round(whole * 1e3, 3)}
        found |= {f"{name}_gb_s": round(moved / ours / 1e9, 1)}
    bench.put("decode attention", shape=shape, dtype=jnp.dtype(dtype).name, kernel=kernel, **found)
    if not max(found["mixed_error"], found["full_error"]) <= MOST_WRONG:
        raise FloatingPointError(f"errors are above {MOST_WRONG}: {found}")


# ---------------------------------------------------------------------- sampling


def shapes_of(c: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh) -> FewShapes:
    """Those that a run on a GPU has, also where this is none."""
    found = programs.shapes_of(c, model, mesh, longest_prompt=c.prompt.max_tokens)
    if isinstance(found, FewShapes):
        return found
    most = max(c.rollout.votes, programs.evaluation_votes(c))
    return few(found, longest_prompt=c.prompt.max_tokens, prompts=c.rollout.prompts, most_votes=most, by_blocks=True)


def prepared(bench: Bench) -> tuple[ConfigDict, Sampler, decoder.Params, Prompts, jax.Array]:
    """The sampler of a run, random weights, and prompts that are as long as they may be."""
    c, model, mesh = bench.setting()
    jax.set_mesh(mesh)
    dtype, length = jnp.dtype(c.model.dtype), c.prompt.max_tokens
    where = jax.tree.map(lambda x: x.sharding, copies.layout(model, mesh, dtype))
    make = jax.jit(lambda key: decoder.sampling_weights(decoder.init(model, key), model, dtype), out_shardings=where)
    ids = np.random.default_rng(0).integers(1, model.vocab, (c.rollout.prompts, length)).astype(np.int32)
    prompts = Prompts(ids, np.full(len(ids), length, np.int32), np.arange(len(ids), dtype=np.uint32))
    sampler = programs.make_sampler(c, model, shapes_of(c, model, mesh), stop_ids=(), announce=lines(say))
    return c, sampler, make(jax.random.key(0)), prompts, key_on(mesh, jax.random.key(0))


def compile_all(bench: Bench, sampler: Sampler, prompts: Prompts, key: jax.Array) -> None:
    """As a run does: in parallel, before anything is drawn."""
    mesh, begun = jax.sharding.get_mesh(), time.perf_counter()
    weights = copies.layout(sampler.config, mesh, sampler.dtype)
    work = list(sampler.work(weights, key, sampling=Sampling(), prompts=len(prompts.lengths)))
    in_parallel([(mesh, task) for task in work], announce=say)
    bench.put("compile", programs=len(work), s=round(time.perf_counter() - begun, 1))


def step_work(model: ModelConfig, slots: Layout, *, size: int, length: int, itemsize: int) -> Work:
    """Of a decode step on these slots, each group of which has a prompt of its own, with a cache of `size` places."""
    drawn = Draw(slots.groups, slots.slots, slots.groups, slots, sizes=(size,), block=None, prefill=slots.groups)
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return arithmetic.decode_work(model, drawn, mesh, length=length, tokens=2, itemsize=itemsize)  # the first is drawn


def decode(bench: Bench) -> None:
    """Whole segments, called as a rollout calls them, at each size that the cache has; if it has one, at the ends of
    four quarters of the limit."""
    c, sampler, weights, prompts, key = prepared(bench)
    bench.chip()  # while there is room for it
    if not bench.label:
        with bench.part("compile"):
            compile_all(bench, sampler, prompts, key)
    votes, count = c.rollout.votes, len(prompts.lengths)
    sampling = sampler.settings(Sampling(), votes=votes, greedy=False)
    batch = _Batch(sampler, weights, prompts, key, at_once=count, votes=votes, sampling=sampling)
    layout = batch.layouts[0]
    batch.slots, *_ = places.arrange(layout, [[]] * count, batch.waiting, batch.first, room=batch.room)
    batch._share()
    sizes, most = sampler.shapes.sizes(layout), c.rollout.max_tokens
    tokens = sizes if sampler.shapes.block is None else [most * quarter // 4 for quarter in (1, 2, 3, 4)]
    for size in tokens[:1] if bench.label else tokens:
        with bench.part(f"decode {size}"):
            segments(bench, batch, layout, size, prompts=count, votes=votes)


def segments(bench: Bench, batch: _Batch, layout: Layout, size: int, *, prompts: int, votes: int) -> None:
    """size: tokens of each response at the end of the segment."""
    sampler, program = batch.sampler, batch.sampler._segment
    held = next(places for places in sampler.shapes.sizes(layout) if places >= size)
    filled = max(0, size - decoding.SEGMENT - 1)  # as if so many tokens had been drawn
    busy = batch.slots.votes != IDLE
    start = dataclasses.replace(batch.slots, lengths=np.where(busy, filled, 0).astype(np.int32))
    suffix, before = sampler._empty(prompts=layout.groups, votes=layout.slots, slots=held), program.compile_seconds

    def segment() -> jax.Array:
        nonlocal suffix
        suffix, _, _, out = program(
            batch.weights, batch.shared, suffix, start, batch.key, batch.uids[start.prompts], np.int32(filled),
            np.int32(0), sampling=batch.sampling,
        )  # fmt: skip
        return out.steps

    steps = int(segment())
    taken, chip = seconds(segment, times=3) / steps, bench.chip()
    sizes = dict(size=size, length=batch.shared.layers[0].k.shape[2], itemsize=sampler.dtype.itemsize)
    needed = step_work(sampler.config, Layout(prompts, votes), **sizes)
    done = step_work(sampler.config, layout, **sizes)
    bench.put(
        "decode", places=size, slots=layout.size, busy=int(busy.sum()), steps=steps, ms_a_step=round(taken * 1e3, 3),
        tokens_s=round(int(busy.sum()) / taken), bound_ms=round(needed.seconds(chip, 1) * 1e3, 3),
        of_bound=round(needed.seconds(chip, 1) / taken, 4), of_ours=round(done.seconds(chip, 1) / taken, 4),
        gb_s=round(done.moved / taken / 1e9, 1), compile_s=round(program.compile_seconds - before, 1),
        **peak_gb(), **({} if bench.label else profile(segment)),
    )  # fmt: skip


def rollout(bench: Bench) -> None:
    """The sampler as training calls it, host included: compiled in parallel, as a run does, and then three times."""
    c, sampler, weights, prompts, key = prepared(bench)
    compile_all(bench, sampler, prompts, key)
    for name, sampling, until in (
        ("cold", Sampling(), COMPARED),
        ("top-p 0.95", Sampling(temperature=0.6, top_p=0.95), COMPARED),
        ("warm", Sampling(), c.rollout.max_tokens),
    ):
        with bench.part(f"rollout {name}"):
            one_rollout(
                bench, name, sampler, weights, prompts, key, votes=c.rollout.votes, sampling=sampling, until=until
            )


def one_rollout(bench: Bench, name: str, sampler: Sampler, weights: decoder.Params, prompts: Prompts, key: jax.Array, *,
                votes: int, sampling: Sampling, until: int) -> None:  # fmt: skip
    """Until all responses have `until` tokens, or no time is left."""
    laps, rows, before, begun = [], votes * len(prompts.lengths), sampler.compile_seconds, time.perf_counter()

    def lap(tokens: int, share: float = 1.0) -> None:
        laps.append((tokens // rows, round(time.perf_counter() - begun, 3)))
        if tokens >= rows * until or time.monotonic() > bench.ends:
            raise Enough

    with contextlib.suppress(Enough):
        drawn = sampler(weights, prompts, key, votes=votes, sampling=sampling, progress=lap)
        lap(int(drawn.lengths.sum()))
    made, taken = laps[-1]
    bench.put(
        f"rollout {name}", rows=rows, prompt=prompts.ids.shape[1], tokens_of_each=made, s=taken,
        tokens_s=round(rows * made / taken), compile_s=round(sampler.compile_seconds - before, 1), **peak_gb(),
        laps=laps,
    )  # fmt: skip


# ---------------------------------------------------------------------- learning


def update(bench: Bench) -> None:
    """An optimizer step on as many rows as configs/aime.py has in one, all at the limit."""
    for remat, kl in (("full", 0.0), ("dots", 0.0), ("none", 0.0), ("full", 0.001)):
        with bench.part(f"update remat={remat} kl_coef={kl}"):
            one_update(bench, remat=remat, kl=kl)


def learner_of(c: ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh) -> tuple[Update, Model]:
    """The policy's programs, made as a run makes them, and random parameters with their moments."""
    optimizers = programs.make_optimizers(c)
    layout = programs.layout_of(c, model, mesh, optimizers)
    where = jax.tree.map(lambda x: x.sharding, layout.policy.params)
    params = jax.jit(functools.partial(decoder.init, model), out_shardings=where)(jax.random.key(0))
    start = programs.frozen(params, jnp.dtype(c.model.dtype)) if programs.needs_start(c) else None
    of_run = dict(losses=losses_of(c), temperature=c.rollout.temperature, start=start, announce=lines(say))
    learners = programs.make_learners(c, model, mesh, optimizers, layout, **of_run)
    return learners[POLICY], programs.first_state(params, optimizers, layout, model, seed=0).policy


def rows_of(c: ConfigDict, model: ModelConfig, *, rows: int) -> tuple[TrainBatch, np.ndarray]:
    """Random rows at the limit, no two with the same prompt, so that nothing is computed for several; advantages."""
    tokens, draw = c.rollout.max_tokens, np.random.default_rng(0)
    batch = full_rows(rows, length=programs.longest_row(c), tokens=tokens)
    ids = draw.integers(1, model.vocab, batch.ids.shape).astype(np.int32)
    batch = dataclasses.replace(batch, ids=ids, responses=ids[:, -tokens:])
    return batch, draw.choice([-1, 1], (rows, 1)).astype(np.float32) * batch.mask


def one_update(bench: Bench, *, remat: str, kl: float) -> None:
    c, model, mesh = bench.setting(remat=remat, kl_coef=kl)
    jax.set_mesh(mesh)
    learner, state = learner_of(c, model, mesh)
    rows, length = learner.sizes.minibatch_rows, programs.longest_row(c)
    batch, advantages = rows_of(c, model, rows=rows)
    whole = []
    for _ in range(3):
        begun = time.perf_counter()
        state, metrics, _ = learner(state, batch, {"advantages": advantages}, 1e-7)
        jax.block_until_ready(state)
        whole.append(time.perf_counter() - begun)
    micros, total = learner.micro_batches(batch, np.arange(rows)), learner._zeros(state.params)
    numbers = {"advantages": advantages, "sampler_logps": batch.sampler_logps}
    numbers = {name: micros[0].take(values) for name, values in numbers.items()}

    def gradient() -> jax.Array:
        nonlocal total
        total, sums, _ = learner._gradient(state.params, None, learner.reference, total, micros[0], numbers)
        return sums

    taken, s = seconds(gradient, times=3) * len(micros), min(whole[1:])
    forward = arithmetic.forward_flops(model, rows, length, logits=rows * c.rollout.max_tokens)
    # Backward is twice forward, and the start's pass is one more; what remat computes again earns nothing.
    rate = (3 + (learner.reference is not None)) * forward / taken
    bench.put(
        "update", remat=remat, kl_coef=kl, rows=rows, tokens=rows * length, passes=len(micros), s=round(s, 3),
        gradient_s=round(taken, 3), **of_peak(rate, bench.chip()), tokens_s=round(rows * length / s),
        first_s=round(whole[0], 1), compile_s=round(learner.compile_seconds, 1),
        temporary_gb=temporary_gb(learner._gradient), **peak_gb(), grad_norm=round(metrics["grad_norm"], 4),
    )  # fmt: skip


def main() -> None:
    stages = (env, attention, decode, update, rollout)
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=[*(stage.__name__ for stage in stages), "flags"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=float, default=3600)
    parser.add_argument("--label", default="")
    parser.add_argument("--tiny", action="store_true")
    flags = parser.parse_args()
    bench = Bench(flags.stage, flags.out, flags.tiny, flags.label, time.monotonic() + 0.8 * flags.limit)
    ({stage.__name__: stage for stage in stages} | {"flags": decode})[flags.stage](bench)


if __name__ == "__main__":
    main()
