"""Compile the programs of a training run for TPUs, on a machine that has none, and say what they need.

    python scripts/compile_tpu.py --model Qwen/Qwen2.5-Math-1.5B --topology v5e:2x4

Needs `pip install -e ".[tpu]"`, but no TPU and no weights; up to 3 minutes and a few GB of memory for each program. The
settings are those of configs/aime.py: 8 questions x 64 votes of up to 512 + 3,072 tokens, 32 of them trained on.
Weights, state and cache are laid out by the project's own code on a mesh over the topology's chips.

For each program, bytes of one chip by XLA's own account: what goes in, comes out (less what is given away for it) and
is needed in between, and what the run holds besides. Operations and bytes that must be moved are the model's
arithmetic, as XLA counts the body of a loop once; the roofline is the longer of the two at the published speed of the
chips. Operations that remat computes again are not counted. Sampling is taken to its end: no response stops early.

The last line is JSON. Exit code 1 if a program does not compile; it says why.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask for the TPU
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs on a TPU that two processes could quarrel about

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from configs import aime  # noqa: E402
from ttrl_jax import build  # noqa: E402
from ttrl_jax.learn.layout import params_layout, state_layout  # noqa: E402
from ttrl_jax.model import attention, decoder  # noqa: E402
from ttrl_jax.model.config import ModelConfig  # noqa: E402
from ttrl_jax.model.shapes import named  # noqa: E402
from ttrl_jax.model.sharding import make_mesh  # noqa: E402
from ttrl_jax.records import TrainBatch, TrainState, padded_length  # noqa: E402
from ttrl_jax.resolve import KINDS  # noqa: E402
from ttrl_jax.rollout import slots as places  # noqa: E402
from ttrl_jax.rollout.sampling import Sampling  # noqa: E402


@dataclass(frozen=True)
class Chip:
    flops: float  # a second, bfloat16
    bandwidth: float  # bytes a second, of the memory
    memory: float  # bytes


# https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e
CHIPS = {
    "v5e": Chip(197e12, 819e9, 16e9),
    "v5p": Chip(459e12, 2765e9, 95e9),
    "v6e": Chip(918e12, 1638e9, 32e9),
}
SAMPLING, LEARNING = ("copy", "prefill", "grow", "decode"), ("score", "gradient", "step")
COLLECTIVE = re.compile(r"= (\S.*?) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Math-1.5B", help="a name that ttrl_jax/model/shapes.py knows")
    parser.add_argument("--topology", default="v5e:2x4", help=f"TPU slice; the kind is one of {', '.join(CHIPS)}")
    parser.add_argument("--phase", default=",".join(SAMPLING + LEARNING), help="programs (default: %(default)s)")
    parser.add_argument(
        "--tensor", type=int, default=1, help="chips that share heads, ffn and vocabulary (mesh.tensor)"
    )
    parser.add_argument("--rows", type=int, help="responses decoded at once (rollout.rows; default: as in the config)")
    parser.add_argument(
        "--micro-tokens", type=int, help="tokens a chip trains on at once (train.micro_tokens; likewise)"
    )
    parser.add_argument("--layers", type=int, help="only so many of the model's layers, to look at the programs fast")
    given = parser.parse_args()
    model, kind, wanted = named(given.model), given.topology.partition(":")[0], given.phase.split(",")
    if model is None or kind not in CHIPS or not set(wanted) <= {*SAMPLING, *LEARNING}:
        parser.error(f"expected a known --model, a --topology of {[*CHIPS]} and a --phase of {SAMPLING + LEARNING}")
    if given.layers is not None:
        model = replace(model, layers=given.layers, windows=model.windows and model.windows[: given.layers])
    jax.config.update("jax_platforms", "cpu")  # of what is not compiled for the topology
    devices = topologies.get_topology_desc(given.topology, platform="tpu").devices
    mesh = make_mesh(data=1, fsdp=-1, tensor=given.tensor, devices=devices)
    config = settings(given)
    length = padded_length(config.prompt.max_tokens + config.rollout.max_tokens)
    dtype = jnp.dtype(config.model.dtype)
    kernel, why = attention.choose(
        config.model.attention, device=mesh.devices.flat[0], config=model, dtype=dtype, length=length
    )
    model = replace(model, attention=kernel)
    print(f"{given.model} for {len(devices)} x {devices[0].device_kind}, mesh {dict(mesh.shape)}", flush=True)
    print(f"attention {kernel}, {why}; jax {jax.__version__}", flush=True)
    layout = state_layout(params_layout(model, mesh), build.make_optimizer(config), mesh)
    frozen = jax.tree.map(lambda x: array(x, x.sharding, dtype), layout.params)
    report = Report(CHIPS[kind], len(devices), wanted)
    with jax.set_mesh(mesh):
        for programs in (sampling_programs, learning_programs):
            try:
                programs(config, model, mesh, layout, frozen, report)
            except jax.errors.JaxRuntimeError as error:
                report.failed(str(error).splitlines()[0])
    print(report.table())
    told = {"model": given.model, "topology": given.topology, "mesh": dict(mesh.shape), "jax": jax.__version__}
    print(json.dumps(told | {"layers": model.layers, "attention": kernel, "programs": report.rows}))
    return int(any("failed" in row for row in report.rows))


def settings(given: argparse.Namespace) -> ConfigDict:
    """configs/aime.py, with what its model decides."""
    config = aime.get_config(given.model)
    kind = KINDS["boxing"]  # Qwen2.5-Math
    config.rollout.temperature, config.rollout.max_tokens = kind.temperature, kind.max_tokens
    if given.rows is not None:
        config.rollout.rows = given.rows
    if given.micro_tokens is not None:
        config.train.micro_tokens = given.micro_tokens
    return config


# ---------------------------------------------------------------------- the programs, as a run would call them


def sampling_programs(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    layout: TrainState,
    frozen: decoder.Params,
    report: "Report",
) -> None:
    """The copy of the weights; prefill; the largest growth of the cache; the decode loop over the whole of it.

    What one leaves behind goes into the next, in the layout that XLA gave it.
    """
    if not set(SAMPLING) & set(report.wanted):
        return
    held, size, groups = chip_bytes((layout, frozen)), count(layout.params), copies(mesh)
    program = build.sampling_copy(config, model, mesh).lower(layout.params)
    besides = held - chip_bytes(layout.params)
    weights = report.compile("copy", program, held=besides, flops=0, moved=(4 + 2) * size * groups)

    sampler = build.make_sampler(config, model, mesh, stop_ids=(0,), announce=print)
    sampling = Sampling(temperature=config.rollout.temperature)
    tokens, length = config.rollout.max_tokens, padded_length(config.prompt.max_tokens)
    questions, votes = config.rollout.prompts, config.rollout.votes
    layout = places.layouts(
        prompts=questions, votes=votes, rows=config.rollout.rows, prompt_multiple=1, vote_multiple=mesh.shape["fsdp"]
    )[0]
    ids, lengths = np.zeros((questions, length), np.int32), np.full(questions, length, np.int32)
    key, uids, all_votes = jax.eval_shape(lambda: jax.random.key(0)), np.zeros(questions, np.uint32), np.arange(votes)
    read = 2 * size * groups  # the weights in bfloat16, which each group of chips has whole
    program = sampler._prefill.lower(
        weights, ids, lengths, key, uids, all_votes.astype(np.int32), sampling=sampling
    )  # fmt: skip
    flops, moved = forward_flops(model, questions, length, logits=1), read + cache_bytes(model, questions * length)
    prefix, *_ = report.compile("prefill", program, held=held, flops=flops, moved=moved)

    before = max(size for size in range(1, tokens) if padded_length(size) == size)
    suffix = outputs(sampler._empty.lower(prompts=layout.groups, votes=layout.slots, slots=before))
    program = sampler._resize.lower(suffix[0], np.int32(0), slots=tokens)
    layer = outputs(program)  # they grow one after the other, this one last
    besides = held + chip_bytes((weights, prefix)) + (model.layers - 1) * chip_bytes(layer)
    moved = cache_bytes(model, layout.size * (before + tokens)) // model.layers
    layer = report.compile("grow", program, held=besides, flops=0, moved=moved)
    suffix = (layer,) * model.layers

    # All steps of all responses: each step reads the weights, each prompt's cache once, and each response's own so far.
    batch, seen = votes * questions, tokens * (tokens - 1) // 2
    steps = -(-batch // layout.size) * tokens
    flops = batch * tokens * forward_flops(model, 1, 1, logits=1) + batch * (seen + tokens * length) * pair_flops(model)
    moved = steps * (read + cache_bytes(model, questions * length)) + cache_bytes(model, batch * seen)
    first, nobody = np.zeros((questions, votes), np.int32), [[] for _ in range(questions)]
    slots, *_ = places.arrange(layout, nobody, [all_votes.tolist() for _ in range(questions)], first)
    program = sampler._segment.lower(
        weights, prefix, suffix, slots, first, key, uids, np.int32(0), np.int32(0), sampling=sampling
    )
    report.compile("decode", program, held=held, flops=flops, moved=moved)


def learning_programs(
    config: ConfigDict,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    layout: TrainState,
    frozen: decoder.Params,
    report: "Report",
) -> None:
    """Log-probs of a micro-batch under the frozen start; its gradient; an optimizer step. Operations are those of the
    whole training step, all responses of which reach the limit."""
    if not set(LEARNING) & set(report.wanted):
        return
    optimizer, train = build.make_optimizer(config), config.train
    update = build.make_update(config, model, mesh, optimizer, layout, reference=frozen, announce=print)
    rows, tokens = config.rollout.prompts * train.samples, config.rollout.max_tokens
    length = config.prompt.max_tokens + tokens
    minibatch = train.minibatch_prompts * train.samples
    micros = update.micro_batches(full_rows(minibatch, length, tokens))
    steps = rows // minibatch
    size, forward = count(layout.params), forward_flops(model, rows, length, logits=tokens)
    read = 2 * size * copies(mesh) * steps * len(micros)  # by each group of chips in each pass
    program = update._score.lower(frozen, micros[0])
    logps = report.compile("score", program, held=chip_bytes(layout), flops=forward, moved=read)
    old = logps if steps > 1 else None
    program = update._gradient.lower(layout.params, layout.params, micros[0], old, logps)
    besides = chip_bytes((frozen, layout.optimizer))
    report.compile("gradient", program, held=besides, flops=3 * forward, moved=3 * read)
    # Of the optimizer: the gradient is read, and masters and two moments in float32 are read and written.
    program = update._step.lower(layout, layout.params, np.float32(1), np.float32(train.learning_rate), np.int32(1))
    report.compile("step", program, held=chip_bytes(frozen), flops=0, moved=4 * 7 * size * steps)


def full_rows(rows: int, length: int, tokens: int) -> TrainBatch:
    """Rows of `length` tokens, the last `tokens` of which are the response."""
    return TrainBatch(
        ids=np.zeros((rows, length), np.int32),
        prompt_lengths=np.full(rows, length - tokens, np.int32),
        responses=np.zeros((rows, tokens), np.int32),
        mask=np.ones((rows, tokens), np.float32),
        sampler_logps=np.zeros((rows, tokens), np.float32),
        advantages=np.ones(rows, np.float32),
    )


def array(like: Any, sharding: jax.sharding.Sharding, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(like.shape, like.dtype if dtype is None else dtype, sharding=sharding)


def outputs(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled | None = None) -> Any:
    """What stands for the outputs of a program, in the layout that XLA gave them."""
    compiled = compiled or lowered.compile()
    return jax.tree.map(array, lowered.out_info, compiled.output_shardings)


# ---------------------------------------------------------------------- the model's arithmetic


def count(params: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def copies(mesh: jax.sharding.Mesh) -> int:
    """Groups of chips that have the whole weights between them while they compute."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def pair_flops(model: ModelConfig) -> int:
    """Of one token that looks at one token, in all layers: a product with its key and one with its value."""
    return 4 * model.layers * model.heads * model.head_dim


def cache_bytes(model: ModelConfig, tokens: int) -> int:
    """Of the keys and values of so many tokens, in bfloat16."""
    return 2 * 2 * model.layers * model.kv_heads * model.head_dim * tokens


def forward_flops(model: ModelConfig, rows: int, length: int, *, logits: int) -> int:
    """Of rows of `length` tokens, of which each sees those before it; logits: how many tokens of a row have them."""
    weights = 2 * count(decoder.shapes(model)["blocks"]) * length + 2 * model.vocab * model.width * logits
    return rows * (weights + length * (length - 1) // 2 * pair_flops(model))


# ---------------------------------------------------------------------- what XLA says


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of laid out arrays on one chip."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Report:
    """Compiles programs, and keeps what it finds of those that are wanted."""

    def __init__(self, chip: Chip, chips: int, wanted: Sequence[str]):
        self.chip, self.chips, self.wanted = chip, chips, wanted
        self.rows: list[dict[str, Any]] = []

    def compile(self, name: str, lowered: jax.stages.Lowered, *, held: int, flops: float, moved: float) -> Any:
        """Compile a program -> what stands for its outputs.

        held: bytes of one chip that the run holds besides what goes in. flops, moved: operations, and bytes from and to
        memory, of all chips together.
        """
        row = {"program": name, "flops": flops, "compute_s": flops / self.chips / self.chip.flops}
        row |= {"moved": moved, "memory_s": moved / self.chips / self.chip.bandwidth}
        if name in self.wanted:
            self.rows.append(row)
        print(f"compiling {name} ...", flush=True)
        start = time.perf_counter()
        compiled = lowered.compile()
        row["compile_s"] = round(time.perf_counter() - start, 1)
        stats, hlo = compiled.memory_analysis(), compiled.as_text()
        sizes = {
            "arguments": stats.argument_size_in_bytes,
            "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "held": held,
        }
        row |= sizes | {"together": sum(sizes.values()), "fits": sum(sizes.values()) <= self.chip.memory}
        row["splash_calls"] = hlo.count('custom_call_target="tpu_custom_call"')  # there is no other kernel
        row["loop_collectives"] = loop_collectives(hlo)
        parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in sizes.items())
        most = max((one["bytes"] for one in row["loop_collectives"]), default=0) / 1e6
        print(
            f"compiled {name} in {row['compile_s']} s: {parts} GB a chip, {row['splash_calls']} splash calls,", end=" "
        )
        print(f"collectives in its loops of {most:.3f} MB at most", flush=True)
        return outputs(lowered, compiled)

    def failed(self, reason: str) -> None:
        """The last program, and with it what needs its outputs, could not be compiled."""
        print(f"it does not compile: {reason}", flush=True)
        self.rows[-1]["failed"] = reason

    def table(self) -> str:
        lines = [
            "| program | arguments | outputs | temporaries | held | together | operations | roofline | splash calls |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            where = "compute" if row["compute_s"] > row["memory_s"] else "memory"
            roof = f"{max(row['compute_s'], row['memory_s']):.3g} s ({where})"
            cells = ["does not compile", "", "", "", ""]
            if "failed" not in row:
                cells = [f"{row[x] / 1e9:.2f} GB" for x in ("arguments", "outputs", "temporaries", "held", "together")]
                cells[-1] += "" if row["fits"] else ", too much"
            calls = "" if "failed" in row else str(row["splash_calls"])
            lines.append("| " + " | ".join([row["program"], *cells, f"{row['flops']:.3g}", roof, calls]) + " |")
        return "\n".join(lines)


def loop_collectives(hlo: str) -> list[dict[str, Any]]:
    """The collectives inside the program's loops, at any depth, largest first: kind, shape, bytes, how many."""
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
            BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
        ]
        plain = re.sub(r"\{.*?\}", "", shape)
        rows.append({"kind": kind, "shape": plain, "bytes": max(sizes), "count": times})
    return sorted(rows, key=lambda row: -row["bytes"])


if __name__ == "__main__":
    sys.exit(main())
