"""What the stages of bench_gpu.py share: the setting, results, clocks and profiles, and what the card does at best."""

import contextlib
import functools
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import aime
from ttrl_jax import programs
from ttrl_jax.measure.step import memory
from ttrl_jax.model import shapes
from ttrl_jax.model.config import ModelConfig, parse_config
from ttrl_jax.model.layers import product
from ttrl_jax.model.sharding import make_mesh
from ttrl_jax.plan.arithmetic import Chip
from ttrl_jax.run.compiled import Compiled

# FLOP a second in bfloat16, dense, by NVIDIA's data sheets. By the words in jax.Device.device_kind.
PEAKS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
# Rows, columns, and what they have in common: a large one, and those of a pass of the update.
PRODUCTS = [(8192, 8192, 8192), (7168, 8960, 1536), (7168, 1536, 8960)]
QUEUED = 10  # products between two waits, which take as long as a small one
TINY_FIELDS = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "rms_norm_eps": 1e-6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True,
    "rope_theta": 10_000.0, "max_position_embeddings": 4096,
}  # fmt: skip
KERNELS = 12  # of a profile, those that take longest


@dataclass(frozen=True)
class Bench:
    """One stage."""

    stage: str
    out: Path
    tiny: bool
    label: str  # of XLA's flags, where others than the usual ones are tried
    ends: float  # time.monotonic() by which a result should be written

    def put(self, what: str, **fields: Any) -> None:
        label = {"label": self.label} if self.label else {}
        line = json.dumps({"stage": self.stage, "what": what, **label, **fields})
        with (self.out / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    @contextlib.contextmanager
    def part(self, what: str) -> Iterator[None]:
        """What it raises is a result too, and the next part goes on."""
        begun = time.monotonic()
        try:
            yield
        except Exception as error:
            text = f"{type(error).__name__}: {error}"[:1500]
            self.put(what, failed=text, after_s=round(time.monotonic() - begun, 1))
        gc.collect()  # the next part may need all of the memory

    def known(self, what: str, name: str) -> float | None:
        """The last figure of this name, of whichever stage."""
        path = self.out / "results.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return next((line[name] for line in reversed(lines) if line["what"] == what and name in line), None)

    def chip(self) -> Chip:
        """What the card does at best, as the stage env measured it; without that stage it is measured here."""
        if self.known("copy", "gb_s") is None:
            ceilings(self)
        return Chip(self.known("product", "tflops") * 1e12, self.known("copy", "gb_s") * 1e9, 0)

    def setting(self, **train: Any) -> tuple[ConfigDict, ModelConfig, jax.sharding.Mesh]:
        """The config of the shape that is measured, the model, and the mesh of one device. train: of the config."""
        c = aime.get_config()
        c.rollout.max_tokens, c.rollout.temperature = 3072, 1.0
        model = shapes.named(c.model.path)
        if self.tiny:
            model = parse_config(TINY_FIELDS)
            c.prompt.max_tokens, c.rollout.max_tokens, c.rollout.prompts, c.rollout.votes = 32, 160, 2, 4
            c.rollout.rows, c.train.samples, c.train.micro_tokens, c.train.chunk_tokens = 8, 4, 512, 64
        c.train.update(train)
        mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
        model, why = programs.with_kernel(c, model, mesh)
        print(f"attention {model.attention}, {why}", flush=True)
        return c, model, mesh


def say(line: str) -> None:
    print(line[:160], flush=True)


def seconds(call: Callable[[], Any], *, times: int = 5) -> float:
    """The median of some calls, each waited for; one more before them."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def temporary_gb(compiled: Compiled) -> float:
    """What the newest of its programs needs besides its arguments and results."""
    return round(list(compiled._programs.values())[-1].memory_analysis().temp_size_in_bytes / 1e9, 2)


def peak_gb() -> dict[str, float]:
    return {name: round(value, 2) for name, value in memory().items()}


def kernels(planes: Iterable[Any]) -> dict[str, Any]:
    """Of a trace's planes: the share of the time from the first kernel to the last in which there is one, and the
    kernels' shares of all their time. Empty where there are none."""
    names, spans = {}, []
    lines = [line for plane in planes if "/device:GPU" in plane.name for line in plane.lines]
    for event in [event for line in lines if line.name.startswith("Stream") for event in line.events]:
        name = "".join(c for c in event.name.split("(")[0] if not c.isdigit()).rstrip("_.")[:60]
        names[name] = names.get(name, 0) + event.duration_ns
        spans.append((event.start_ns, event.start_ns + event.duration_ns))
    if not spans:
        return {}
    spans.sort()
    busy, end = 0, spans[0][0]
    for begin, until in spans:
        busy += max(0, until - max(begin, end))
        end = max(end, until)
    longest = sorted(names, key=names.get, reverse=True)[:KERNELS]
    shares = {name: round(names[name] / sum(names.values()), 3) for name in longest}
    return {"busy": round(busy / (end - spans[0][0]), 3), "kernels": shares, "launches": len(spans)}


def profile(call: Callable[[], Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        files = sorted(Path(folder).rglob("*.xplane.pb"))
        return kernels(jax.profiler.ProfileData.from_file(str(files[0])).planes) if files else {}


def ceilings(bench: Bench) -> None:
    """Products in bfloat16, as the model makes them and as XLA has them by itself; and a copy."""
    for i, (m, n, inner) in enumerate([(256, 256, 256)] if bench.tiny else PRODUCTS):
        x = jax.random.normal(jax.random.key(0), (m, inner), jnp.bfloat16)
        y = jax.random.normal(jax.random.key(1), (inner, n), jnp.bfloat16)
        for name, form in (("product", jnp.matmul), ("product of ours", product)):
            call = functools.partial(jax.jit(form), x, y)
            rate = 2 * m * n * inner * QUEUED / seconds(lambda call=call: [call() for _ in range(QUEUED)])
            bench.put(f"{name}{f' {m} {n} {inner}' * (i > 0)}", tflops=round(rate / 1e12, 3))
    flat = jnp.ones(1 << (20 if bench.tiny else 30), jnp.bfloat16)
    halve = jax.jit(lambda x: x * jnp.bfloat16(0.5))
    bench.put("copy", gb_s=round(2 * flat.nbytes / seconds(lambda: halve(flat), times=10) / 1e9, 1))


def of_peak(rate: float, chip: Chip) -> dict[str, float | None]:
    """Shares of the data sheet's rate, where the card is known, and of the product that was measured."""
    kind = jax.devices()[0].device_kind
    peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
    found = {"tflops": round(rate / 1e12, 3), "mfu": peak and round(rate / peak, 4)}
    return found | {"of_product": round(rate / chip.flops, 4)}
