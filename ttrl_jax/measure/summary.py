"""The summary with which a run ends."""

import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ttrl_jax import commands
from ttrl_jax.measure.canary import sentence
from ttrl_jax.measure.tables import table
from ttrl_jax.run import patience
from ttrl_jax.run.choice import LAST, START
from ttrl_jax.run.diagnosis import Diagnosis
from ttrl_jax.tasks.sets import OWN


def summarise(
    evaluations: Sequence[Mapping[str, Any]],
    *,
    steps: int,
    params_sha256: str,
    seconds: float,
    diagnosis: Diagnosis,
    certificate: Mapping[str, Any] | None = None,
    stopped: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The content of summary.json: the first and last evaluation, the diagnosis, what the canaries say if there are
    any, why the run stopped early if it did, and what identifies the result."""
    first, last = evaluations[0], evaluations[-1]
    summary = {}
    for name in [name for name in first if name != "step"]:
        prefix = "" if name == OWN else f"{name}_"
        summary |= {f"{prefix}before": first[name], f"{prefix}after": last[name]}
    summary |= {"verdict": diagnosis.verdict, "diagnosis": diagnosis.text}
    summary |= {} if certificate is None else {"certificate": certificate}
    summary |= {} if stopped is None else {"stopped": stopped}
    return summary | {"seconds": round(seconds, 1), "steps": steps, "params_sha256": params_sha256}


def report(summary: Mapping[str, Any], *, samples: int, extra_k: Sequence[int]) -> str:
    """The table of every evaluation in a summary, each of `samples` samples, the diagnosis, and the certificate."""
    ends = {name: numbers for name, numbers in summary.items() if name.endswith(("before", "after"))}
    columns = {name.replace("_", " "): numbers for name, numbers in ends.items()}
    shown = table(columns, samples=samples, extra_k=extra_k)
    diagnosis = Diagnosis(summary["verdict"], summary["diagnosis"])
    told = [f"diagnosis: {diagnosis}"] + [sentence(summary.get("certificate"))] * bool(summary["steps"])
    if "stopped" in summary:
        told.append(patience.sentence(summary["stopped"], steps=summary["steps"]))
    return "\n".join([shown, *(textwrap.fill(each, 120) for each in told)])


def next_commands(workdir: Path, summary: Mapping[str, Any], *, adapters: bool = False) -> list[str]:
    """What one does with a finished run, ready to paste: with this Python, which need not be the first on the PATH.
    Where the certificate returns the start, they say that the trained model is meant all the same."""
    python = Path(sys.executable)
    python = shlex.quote(str(python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python))
    config, run = shlex.quote(commands.config_flag()), shlex.quote(str(workdir))
    changed = "".join(f" {shlex.quote(each)}" for each in commands.overrides())
    step = f" --step {LAST}" if summary.get("certificate", {}).get("returned") == START else ""
    model, adapter = (shlex.quote(f"{workdir}-{what}") for what in ("model", "adapter"))
    return [
        f"{python} -m ttrl_jax.report {run}",
        f"{python} -m ttrl_jax.evaluate --config {config} --checkpoint {run}{step}{changed}",
        f"{python} -m ttrl_jax.export {run}{step} --out {model}",
    ] + [f"{python} -m ttrl_jax.export {run}{step} --out {adapter} --adapter"] * adapters
