"""The summary with which a run ends."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ttrl_jax.measure.tables import table
from ttrl_jax.run.diagnosis import Diagnosis
from ttrl_jax.tasks.sets import OWN


def summarise(
    evaluations: Sequence[Mapping[str, Any]], *, steps: int, params_sha256: str, seconds: float, diagnosis: Diagnosis
) -> dict[str, Any]:
    """The content of summary.json: the first and last evaluation, the diagnosis, and what identifies the result."""
    first, last = evaluations[0], evaluations[-1]
    summary = {}
    for name in [name for name in first if name != "step"]:
        prefix = "" if name == OWN else f"{name}_"
        summary |= {f"{prefix}before": first[name], f"{prefix}after": last[name]}
    summary |= {"verdict": diagnosis.verdict, "diagnosis": diagnosis.text}
    return summary | {"seconds": round(seconds, 1), "steps": steps, "params_sha256": params_sha256}


def report(summary: Mapping[str, Any], *, samples: int, extra_k: Sequence[int]) -> str:
    """The table of every evaluation in a summary, each of `samples` samples, and the diagnosis."""
    columns = {name.replace("_", " "): numbers for name, numbers in summary.items() if isinstance(numbers, dict)}
    shown = table(columns, samples=samples, extra_k=extra_k)
    diagnosis = Diagnosis(summary["verdict"], summary["diagnosis"])
    return f"{shown}\n{textwrap.fill(f'diagnosis: {diagnosis}', 120)}"
