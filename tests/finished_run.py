"""What a run has left, for tests."""

import json
from pathlib import Path

from ttrl_jax.run.lock import LOCK


def results(workdir: Path) -> dict[str, object]:
    """All that a run leaves, but for what depends on the clock or the machine's memory."""
    timed = ("time/", "speed/", "memory/")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["seconds"]
    return {
        "metrics": [{name: x for name, x in row.items() if not name.startswith(timed)} for row in rows],
        "summary": summary,  # with the SHA-256 of the parameters
        "undecided": (workdir / "undecided.jsonl").read_text(),
        "votes": (workdir / "votes.jsonl").read_text(),
        "generations": {path.name: path.read_text() for path in (workdir / "rollouts").iterdir()},
    }


def locked_by(workdir: Path, process: int) -> bool:
    """Whether this process, by its id, has begun to write the run."""
    path = workdir / LOCK
    return path.is_file() and f'"process": {process},' in path.read_text()
