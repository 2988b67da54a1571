"""Run folders for the tests of the report, and what a page holds."""

import json
import re
from pathlib import Path
from typing import Any

from configs import quickstart_sums
from ttrl_jax.run.metrics import write_json, write_jsonl

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- \u2028 \ud800"


def data_in(text: str, name: str) -> Any:
    """What a page embeds under this id: questions, charts or formulas."""
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)[1])


def charts_in(text: str) -> dict[str, dict]:
    return {chart["name"]: chart for chart in data_in(text, "charts")}


def numbers(avg: float, majority: float) -> dict[str, float]:
    return {"avg@4": avg, "maj@2": avg, "maj@4": avg + 0.1, "pass@4": avg + 0.2, "majority_ratio": majority}


def made_run(
    where: Path,
    evaluations: dict[int, dict[str, float]],
    *,
    label: str = "majority",
    seed: int = 0,
    questions: int = 0,
    finished: bool = False,
) -> Path:
    """A run folder with these evaluations, of its own questions, and the steps between."""
    config = quickstart_sums.get_config().to_dict()
    config["reward"]["label"] = label
    config["seed"] = seed
    made = {"config": config, "model": {}} | ({"questions": {"data": {"count": questions}}} if questions else {})
    write_json(where / "config.json", made)
    rows = [
        {"step": step}
        | (
            {"vote/majority_ratio": step / 10, "audit/votes_ground_truth_reward": step / 20}
            if step == 0 or step < max(evaluations)
            else {}
        )
        | {f"eval/data/{name}": x for name, x in evaluations.get(step, {}).items()}
        for step in range(max(evaluations) + 1)
    ]
    write_jsonl(where / "metrics.jsonl", rows)
    if finished:
        ends = {"before": evaluations[0], "after": evaluations[max(evaluations)]}
        write_json(where / "summary.json", ends | {"steps": max(evaluations), "seconds": 3725.0})
    return where


def generation(response: str, answer: str | None, kind: int | None, reward: float) -> dict:
    return {"response": response, "answer": answer, "class": kind, "tokens": 3, "truncated": False, "reward": reward}


def row(name: str, label: str, *, right: int | None, count: int = 4, response: str = "it is so") -> dict:
    """A question with `count` responses that all answer `label`."""
    samples = [generation(response, label, 0, 1.0)] * count
    question = {"id": name, "question": f"question {name}", "label": label, "counts": [count], "samples": samples}
    return question | {"truth": "9", "right": right}


def ballot(name: str, hits: int, votes: int = 4) -> dict:
    """A question of which `hits` of the responses are right and the others all wrong, each in its own way."""
    kinds = [0] * hits + list(range(1, 1 + votes - hits))
    samples = [generation(f"it is {kind}", str(kind), kind, 1.0) for kind in kinds]
    counts = [hits, *[1] * (votes - hits)]
    made = {"id": name, "question": f"question {name}", "label": "0", "counts": counts, "samples": samples}
    return made | {"truth": "0", "right": 0 if hits else None}


def call(patch, fresh_flags, capfd, *given: object) -> tuple[int, str]:
    """Call the command -> (exit code, stderr)."""
    import sys

    from ttrl_jax import cli, commands
    from ttrl_jax.report import __main__ as report

    fresh_flags()
    patch.setattr(sys, "argv", ["report", *map(str, given)])
    code = cli.run(report.main, commands.REPORT)
    return code, capfd.readouterr().err
