"""What one NVIDIA GPU makes of the programs of a run: speeds, and how near each is to what the card can do.

    python scripts/bench_gpu.py --out FOLDER [--seconds 560] [--stages env,decode] [--peer-python PYTHON]

The shape is that of configs/aime.py: Qwen2.5-Math-1.5B with random weights, 8 questions x 64 responses of 512 + 3,072
tokens. Nothing is downloaded. Stages are processes of their own, the most valuable first; one that fails or runs out of
time does not stop the next. FOLDER/results.jsonl gets a line for each measurement, FOLDER/STAGE.log what a stage
prints; a table stands at the end. Exit code 1 if something failed. --tiny runs every stage with tiny shapes on a CPU,
to see that the script itself works. docs/benchmarks.md says what the figures mean.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 560
# The most that each may take of SECONDS; with more in all, each has more.
STAGES = {
    "env": 60,
    "attention": 120,
    "decode": 150,
    "update": 130,
    "quickstart": 100,
    "peer": 90,
    "rollout": 120,
    "flags": 120,
}
LEAST = 15  # seconds in which a stage can do something
FLAGS = {  # of XLA, each tried on the decode step with the smallest cache
    "cublas": "--xla_gpu_enable_triton_gemm=false",
    "no graphs": "--xla_gpu_enable_command_buffer=",
    "while graphs": "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE,CONDITIONAL",
}
HIDDEN = ("stage", "what", "kernels", "laps", "platform_version")  # in results.jsonl alone
TITLES = ("label", "places", "remat", "kl_coef", "tokens_of_each")  # what tells the lines of the table apart
ENDS = ("skipped", "unfinished", "broken")
TARGETS = {"ours over generate": 5.0, "of the bound in decode": 0.3, "MFU in the gradient": 0.35}

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """All stages of one call."""

    out: Path
    tiny: bool
    peer_python: str
    scale: float  # of the stages' limits
    ends: float  # time.monotonic() by which all is done
    scratch: Path  # for what nobody reads afterwards

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    def put(self, stage: str, what: str, **fields: Any) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps({"stage": stage, "what": what, **fields}) + "\n")

    def stage(self, name: str) -> None:
        """Run one stage, which puts its own results; what keeps it from ending is one too."""
        limit = min(STAGES[name] * self.scale, self.ends - time.monotonic())
        if limit < LEAST:
            return self.put(name, "skipped", why="no time is left")
        begun = len(read(self.results))
        {"quickstart": self.quickstart, "peer": self.peer, "flags": self.flags}.get(name, self.worker)(name, limit)
        for record in read(self.results)[begun:]:
            print(line_of(record), flush=True)

    def worker(self, name: str, limit: float, label: str = "", **environment: str) -> None:
        command = [sys.executable, str(HERE / "peers" / "gpu_worker.py"), name, str(self.out)]
        command += [f"--limit={limit:.0f}", f"--label={label}"] + ["--tiny"] * self.tiny
        self.wait(f"{name} {label}".strip(), command, limit, environment)

    def flags(self, name: str, limit: float) -> None:
        until = time.monotonic() + limit
        for label, flags in FLAGS.items():
            if (left := until - time.monotonic()) < LEAST:
                return self.put(name, "skipped", why=f"no time is left for {label}")
            self.worker(name, left, label, XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip())

    def quickstart(self, name: str, limit: float) -> None:
        """The product itself, from a shell."""
        folder = self.scratch / name
        command = [sys.executable, "-m", "ttrl_jax.train", "--config", "configs/quickstart.py"]
        command += ["--workdir", str(folder), "--config.episodes=4"]
        if self.tiny:
            command += ["--config.episodes=1", "--config.data.limit=8", "--config.rollout.votes=4"]
            command += ["--config.train.samples=2", "--config.eval.samples=1"]
        begun = time.monotonic()
        if self.wait(name, command, limit, {}) == 0:
            rows = read(folder / "metrics.jsonl")
            self.put(name, "run", s=round(time.monotonic() - begun, 1), **quickstart_figures(rows))

    def peer(self, name: str, limit: float) -> None:
        find = "import importlib.util, sys; sys.exit(None in map(importlib.util.find_spec, sys.argv[1:]))"
        with contextlib.suppress(OSError):
            if subprocess.run([self.peer_python, "-c", find, "torch", "transformers"]).returncode == 0:
                command = [self.peer_python, str(HERE / "peers" / "gpu_peer.py"), str(self.out)]
                self.wait(name, command + [f"--limit={limit:.0f}"] + ["--tiny"] * self.tiny, limit, {})
                return
        why = f"{self.peer_python} has no torch and transformers; name a Python that has them with --peer-python"
        self.put(name, "skipped", why=why)

    def wait(self, title: str, command: list[str], limit: float, environment: dict[str, str]) -> int | None:
        """Run a command in the checkout for at most `limit` seconds -> its exit code. What it prints goes to a file."""
        print(f"\n{title}, at most {limit:.0f} s", flush=True)
        path = [str(HERE.parent)] + [each for each in [os.environ.get("PYTHONPATH")] if each]
        own = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        # Of JAX: more than its 75 % of the memory, which do not hold the cache of all responses at their limit.
        own |= {} if "XLA_PYTHON_CLIENT_MEM_FRACTION" in os.environ else {"XLA_CLIENT_MEM_FRACTION": "0.92"}
        own |= {"JAX_COMPILATION_CACHE_DIR": str(self.scratch / "programs")}
        own |= {"JAX_PLATFORMS": "cpu"} if self.tiny else {}
        own = {key: value for key, value in own.items() if key == "PYTHONPATH" or key not in os.environ} | environment
        log, code = self.out / f"{title.replace(' ', '_')}.log", None
        way = dict(cwd=HERE.parent, env=os.environ | own, start_new_session=True)
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **way)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with all that it started
                process.wait()
        if code != 0:
            why = f"stopped after {limit:.0f} s" if code is None else f"exit code {code}"
            last = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
            self.put(
                title.split()[0], "unfinished" if code is None else "broken", why=why, label=title, last=last[-600:]
            )
        return code


# ---------------------------------------------------------------------- results


def read(path: Path) -> list[Record]:
    """The lines of a file of JSON Lines; none if it is not there. One that was cut short is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def quickstart_figures(rows: list[Record]) -> Record:
    """Of a run's metrics.jsonl: the first and the last score of its own questions, and seconds of its last step."""
    scores = [row[name] for row in rows for name in row if re.fullmatch(r"eval/data/avg@\d+", name)]
    seconds = {name: row[name] for row in rows for name in row if name.startswith("time/")}
    found = {"first_avg": scores[0], "last_avg": scores[-1]} if scores else {}
    return found | {name.removeprefix("time/") + "_s": round(value, 3) for name, value in seconds.items()}


def line_of(record: Record) -> str:
    """A measurement on one line."""
    shown = ", ".join(
        f"{key} {value}" for key, value in record.items() if key not in HIDDEN and value not in ("", None)
    )
    return f"{record['stage']:11}{record['what']:22}{shown}"[:400]


def failures(records: list[Record]) -> list[Record]:
    """What went wrong. To run out of time is no failure."""
    return [record for record in records if record["what"] == "broken" or "failed" in record]


def ratio(records: list[Record]) -> tuple[int, float] | None:
    """Response tokens of each row that both sides reached, the most, and how much faster ours had; None if none."""
    laps = {name: [r["laps"] for r in records if r["stage"] == name and "laps" in r] for name in ("rollout", "peer")}
    if not all(laps.values()):
        return None
    ours, theirs = (dict(map(tuple, laps[name][-1])) for name in ("rollout", "peer"))
    both = sorted(ours.keys() & theirs.keys())
    return (both[-1], theirs[both[-1]] / ours[both[-1]]) if both else None


def reached(records: list[Record]) -> dict[str, float]:
    """Of each target what was measured: of several figures the lowest of decode, and the best of the gradient."""
    found = {}
    if compared := ratio(records):
        found["ours over generate"] = compared[1]
    if shares := [r["of_bound"] for r in records if r["stage"] == "decode" and r.get("of_bound")]:
        found["of the bound in decode"] = min(shares)
    if shares := [r["mfu"] for r in records if r["stage"] == "update" and r.get("mfu")]:
        found["MFU in the gradient"] = max(shares)
    return found


def table(records: list[Record]) -> str:
    """What was timed, a line each; what went wrong; and what became of the targets."""
    lines = [f"{'':42}{'tokens/s':>10}{'s':>9}{'compile s':>11}{'peak GB':>9}{'of bound':>10}{'MFU':>7}"]
    for record in [record for record in records if "tokens_s" in record]:
        title = f"{record['what']} " + " ".join(f"{k}={record[k]}" for k in TITLES if k in record)
        shares = [f"{record[key]:.0%}" if record.get(key) is not None else "" for key in ("of_bound", "mfu")]
        numbers = [record.get(key, "") for key in ("tokens_s", "s", "compile_s", "peak_gb")]
        cells = zip([*numbers, *shares], (10, 9, 11, 9, 10, 7), strict=True)
        lines.append(f"{title[:42]:42}" + "".join(f"{cell:>{width}}" for cell, width in cells))
    lines += [line_of(record) for record in records if record["what"] in ENDS or "failed" in record]
    if compared := ratio(records):
        lines.append(f"ours over generate at {compared[0]} tokens of each response: {compared[1]:.2f}")
    measured = reached(records)
    lines.append(f"\n{'':26}{'target':>8}{'measured':>10}")
    for name, target in TARGETS.items():
        lines.append(f"{name:26}{target:>8.2f}" + (f"{measured[name]:>10.2f}" if name in measured else f"{'-':>10}"))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; results of an earlier call stay in its file")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="in all; default: %(default)s")
    parser.add_argument("--stages", default=",".join(STAGES), help="which of them, with commas; default: %(default)s")
    parser.add_argument("--peer-python", default=sys.executable, help="that has torch and transformers; default: this")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes on a CPU, to see that the script works; takes ten minutes"
    )
    flags = parser.parse_args()
    if unknown := set(flags.stages.split(",")) - set(STAGES):
        parser.error(f"--stages has {', '.join(sorted(unknown))}; this benchmark knows {', '.join(STAGES)}")
    flags.out.mkdir(parents=True, exist_ok=True)
    scale, ends = max(1.0, flags.seconds / SECONDS), time.monotonic() + flags.seconds
    before = len(read(flags.out / "results.jsonl"))
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(flags.out.resolve(), flags.tiny, flags.peer_python, scale, ends, Path(scratch))
        for name in [name for name in STAGES if name in flags.stages.split(",")]:
            run.stage(name)
    found = read(run.results)[before:]
    print(f"\n{table(found)}")
    return int(bool(failures(found)))


if __name__ == "__main__":
    sys.exit(main())
