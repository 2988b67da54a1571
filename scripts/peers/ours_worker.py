"""Our side of the benchmarks, and what the machine can do at best.

    python scripts/peers/ours_worker.py MODEL

MODEL is a Hugging Face folder or a GGUF file. The parts are those that a run builds, with the stop tokens taken away.
"""

import dataclasses
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # the package and the configs of this checkout

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import worker  # noqa: E402
from ml_collections import ConfigDict, FrozenConfigDict  # noqa: E402

from configs import default  # noqa: E402
from ttrl_jax import huggingface  # noqa: E402
from ttrl_jax.algorithms import credit  # noqa: E402
from ttrl_jax.inputs import Inputs, read_inputs  # noqa: E402
from ttrl_jax.learn.batch import train_batch  # noqa: E402
from ttrl_jax.measure.evidence import evidence_of  # noqa: E402
from ttrl_jax.model import decoder, weights  # noqa: E402
from ttrl_jax.model.layers import product, rms_norm  # noqa: E402
from ttrl_jax.records import Prompts, Rollouts, padded_length  # noqa: E402
from ttrl_jax.reward.history import History  # noqa: E402
from ttrl_jax.reward.judge import Draw, Judge  # noqa: E402
from ttrl_jax.reward.score import select  # noqa: E402
from ttrl_jax.rollout import decoding  # noqa: E402
from ttrl_jax.rollout.sampling import Sampling  # noqa: E402
from ttrl_jax.session import encode, open_session, sample, step_key  # noqa: E402
from ttrl_jax.session import update as learn  # noqa: E402
from ttrl_jax.tasks.voting import cast_votes  # noqa: E402

STOP = 0  # the one stop token where lengths are forced


def config_of(model: str, shape: dict) -> ConfigDict:
    """The settings that all benchmarks share, and where our defaults are for a large model, those of a small one."""
    c = default.get_config()
    c.model.path, c.model.dtype = model, shape["dtype"]
    c.data.path = "builtin:digits.train"
    c.prompt.chat_template, c.prompt.suffix, c.prompt.max_tokens = False, "", 128
    c.rollout.max_tokens, c.rollout.temperature, c.rollout.top_p = shape["new_tokens"], 1.0, 0.95
    c.train.kl_coef, c.train.remat = 0.0, "none"
    return c


def inputs_of(config: ConfigDict, *, training: bool, **changes: object) -> Inputs:
    return dataclasses.replace(read_inputs(FrozenConfigDict(config), training=training), **changes)


def rollout(model: str, shape: dict) -> worker.Run:
    c = config_of(model, shape)
    c.rollout.rows = shape["rows"]
    lengths, key = np.array(shape["asked"]), jax.random.key(0)  # [prompts, votes]
    uids = np.arange(shape["prompts"], dtype=np.uint32)
    forced = bool((lengths < shape["new_tokens"]).any())
    if forced:
        decoding.pick = ending(decoding.pick, ends(key, uids, lengths))
    session = open_session(inputs_of(c, training=False, stops={STOP: ("the benchmark",)} if forced else {}))
    ids = np.array(worker.prompt_ids(shape, vocab=session.inputs.model.vocab), np.int32)
    prompts = Prompts(ids, np.full(len(ids), ids.shape[1], np.int32), uids)
    sampling = Sampling(temperature=0.0) if shape["draw"] == "greedy" else Sampling(top_p=shape["top_p"])

    def run() -> dict:
        drawn = sample(session, prompts, key, votes=lengths.shape[1], sampling=sampling)
        if not np.array_equal(drawn.lengths, lengths):
            raise RuntimeError("the responses do not have the lengths that were asked for")
        return {"tokens": int(lengths.sum()), "slot_steps": lengths.size + drawn.slot_steps}  # the first are prefill's

    run()
    return run


def ends(key: jax.Array, uids: np.ndarray, lengths: np.ndarray) -> jax.Array:
    """The random keys of every response's last token, as the sampler folds them: uint32 [P * V, words]."""
    fold = jax.random.fold_in
    by_vote = jax.vmap(lambda uid: jax.vmap(lambda v: fold(fold(key, uid), v))(jnp.arange(lengths.shape[1])))(uids)
    last = jax.vmap(jax.vmap(fold))(by_vote, jnp.asarray(lengths - 1))
    return jax.random.key_data(last).reshape(lengths.size, -1)


def ending(pick: Callable, last: jax.Array) -> Callable:
    """`pick`, but a token drawn with one of the keys `last` is STOP, and no other is."""

    def forced(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
        tokens, logps = pick(logits, keys, sampling)
        end = (jax.random.key_data(keys)[..., None, :] == last).all(-1).any(-1)
        return jnp.where(end, STOP, jnp.where(tokens == STOP, STOP + 1, tokens)), logps

    return forced


def training_config(model: str, shape: dict) -> ConfigDict:
    """One optimizer step on all trained rows."""
    c = config_of(model, shape)
    c.rollout.prompts, c.rollout.votes = shape["prompts"], shape["votes"]
    c.train.samples, c.train.minibatch_prompts = shape["samples"], shape["prompts"]
    c.train.micro_tokens = (
        shape["micro_rows"] // jax.device_count() * padded_length(shape["prompt_tokens"] + shape["new_tokens"])
    )
    c.train.learning_rate = 1e-6
    return c


def update(model: str, shape: dict) -> worker.Run:
    session = open_session(inputs_of(training_config(model, shape), training=True))
    vocab = session.inputs.model.vocab
    ids = np.array(worker.prompt_ids(shape, vocab=vocab), np.int32)
    tokens = np.array(worker.response_ids(shape, vocab=vocab), np.int32)
    p, g, t = tokens.shape
    prompts = Prompts(ids, np.full(p, ids.shape[1], np.int32), np.arange(p, dtype=np.uint32))
    lengths = np.full((p, g), t, np.int32)
    drawn = Rollouts(tokens, lengths, logps=np.zeros(tokens.shape, np.float32), truncated=lengths > 0, slot_steps=0)
    rows = train_batch(prompts, drawn, np.tile(np.arange(g), (p, 1)))
    advantages = np.array(worker.advantages(shape), np.float32).reshape(p * g, 1) * rows.mask

    def run() -> dict:
        nonlocal session
        session, _ = learn(session, rows, {"advantages": advantages})
        jax.block_until_ready(session.state)
        return {"tokens": p * g * (ids.shape[1] + t)}

    run()
    return run


def step(model: str, shape: dict) -> worker.Run:
    """The loop of train.py, without its files."""
    c = training_config(model, shape)
    c.reward.extract = ("last_number",)
    with tempfile.TemporaryDirectory() as scratch:
        c.data.path = str(Path(scratch) / "questions.jsonl")
        asked = worker.questions(64)
        Path(c.data.path).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
        inputs = inputs_of(c, training=True, stops={})
    session, judge, history = open_session(inputs), Judge(), History()
    drawn = {"votes": shape["votes"], "sampling": session.sampling}

    def run() -> dict:
        nonlocal session
        laps, number = [time.perf_counter()], session.step
        batch = inputs.problems.take(number)
        prompts = encode(session, batch)
        rollouts = sample(session, prompts, step_key(session, number), **drawn)
        laps.append(time.perf_counter())
        ballots = cast_votes(session.task, rollouts.texts)
        evidence = evidence_of(session, prompts, rollouts, judge)
        verdict = judge(ballots, evidence, history, Draw(c.seed, number, [problem.index for problem in batch]))
        chosen = select(verdict.rewards, samples=shape["samples"])
        rows = train_batch(prompts, rollouts, chosen)
        laps.append(time.perf_counter())
        session, advantages, _ = credit(session, rows, verdict.take(chosen))
        session, _ = learn(session, rows, {"advantages": advantages})
        jax.block_until_ready(session.state)
        laps.append(time.perf_counter())
        seconds = dict(zip(("sample", "vote", "update"), np.diff(laps).tolist(), strict=True))
        unanimous = int((np.ptp(verdict.rewards, 1) == 0).sum())
        return {"tokens": int(rollouts.lengths.sum()), "parts": seconds, "unanimous": unanimous}

    run()
    return run


def peak(model: str, shape: dict) -> worker.Run:
    """What XLA's dots reach on the model's own matrices with as many rows, and how fast memory is copied."""
    inputs = inputs_of(config_of(model, shape), training=False)
    size, dtype = inputs.model, jnp.dtype(shape["dtype"])
    jax.set_mesh(inputs.mesh)
    params = weights.load(inputs.source, size, inputs.mesh)
    copy = jax.jit(functools.partial(decoder.sampling_weights, config=size, dtype=dtype))
    x = jnp.ones((shape["matrix_rows"], size.width), dtype)
    matrices = copy(params)
    dots = jax.jit(functools.partial(_products, config=size))
    flat = jnp.zeros(1 << 26, jnp.float32)
    add = jax.jit(lambda flat: flat + 1)

    def run() -> dict:
        product = _median_seconds(lambda: dots(matrices, x))
        flops = 2 * len(x) * matrix_numbers(matrices)
        return {
            "gflops": flops / product / 1e9,
            "copy_gb_s": 2 * flat.nbytes / _median_seconds(lambda: add(flat)) / 1e9,
            "weights_gb": matrix_numbers(matrices) * dtype.itemsize / 1e9,
        }

    run()
    return run


def matrix_numbers(matrices: decoder.Params) -> int:
    """Numbers in the matrices that one token is multiplied with: all layers' and the output projection."""
    return sum(leaf.size for leaf in jax.tree.leaves(matrices["blocks"]) if leaf.ndim > 1) + matrices["embed"].size


def _products(matrices: decoder.Params, x: jax.Array, *, config) -> jax.Array:
    """The model's matrix products in a row, with next to nothing between them."""
    groups = config.heads // config.kv_heads
    for block in matrices["blocks"]:
        a, f = block["attention"], block["ffn"]
        x = rms_norm(x, block["attention_norm"], 1e-5)  # else the numbers would grow out of their type
        q, k, v = (product(x, a[name].reshape(config.width, -1)) for name in "qkv")
        x = product(q + jnp.tile(k + v, groups), a["o"].reshape(-1, config.width))
        x = product(product(x, f["gate"]) + product(x, f["up"]), f["down"])
    return decoder.logits(matrices, config, x)


def _median_seconds(call: Callable[[], jax.Array], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def export(model: str, shape: dict) -> worker.Run:
    """Not timed: the model as the Hugging Face folder shape["out"], in float32, for the peers."""
    out = Path(shape["out"])
    inputs = inputs_of(config_of(model, shape), training=False)
    params = weights.load(inputs.source, inputs.model, inputs.mesh)
    tensors = weights.stream_out(params, inputs.model)
    more = {"dtype": "float32", "card": "", "shard_bytes": huggingface.SHARD_BYTES}
    huggingface.write(out, tensors, source=inputs.source, model=inputs.model, **more)
    return dict


if __name__ == "__main__":
    worker.serve(
        {make.__name__: functools.partial(make, sys.argv[1]) for make in (rollout, update, step, peak, export)},
        versions={"jax": jax.__version__},
        compiling=worker.JaxCompiles(jax),
    )
