"""The files that a run writes into its folder step by step: metrics, votes and generations. Process 0 writes, the
others do nothing."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ttrl_jax.run import distributed, machine, places
from ttrl_jax.run.metrics import Lines, MetricsLog, require_wandb, write_jsonl

VOTES, METRICS, ROLLOUTS, UNDECIDED = "votes.jsonl", "metrics.jsonl", "rollouts", "undecided.jsonl"
STARTS = "starts.jsonl"  # on what the run was computed
MOST_UNDECIDED = 10_000  # lines of undecided.jsonl; later ones are left out, and count in the metrics alone


def require_files(folder: Path, *, flag: str, wandb_project: str | None) -> None:
    """Raise InputError, with nothing left behind, if `Files` could not be opened in `folder`, which `flag` sets."""
    if distributed.leader():
        if wandb_project is not None:
            require_wandb(wandb_project)
        places.require_writable(folder, flag=flag)


class Files:
    """The files of one run that grow. A run that goes on drops first what an earlier process wrote too many of."""

    def __init__(self, folder: Path, *, start_step: int, **logs: Any):
        """logs: as of MetricsLog. votes.jsonl has a line for each question and step, starts.jsonl for each start."""
        self.folder, self._metrics, self._votes, self._undecided = folder, None, None, None
        if distributed.leader():
            self._metrics = MetricsLog(folder, start_step=start_step, **logs)
            self._votes = Lines(folder / VOTES, start_step=start_step)
            self._undecided = Lines(folder / UNDECIDED, start_step=start_step, most=MOST_UNDECIDED)
            # A start at a step that is gone on from again, after a kill, stays: it computed what came before.
            with Lines(folder / STARTS, start_step=start_step + 1) as starts:
                starts.write([{"step": start_step} | machine.facts()])

    def write(self, step: int, metrics: Mapping[str, float], votes: Iterable[Mapping[str, Any]] = ()) -> None:
        """The metrics of a step, and its votes as JSON objects with a "step"."""
        distributed.alone(lambda: self._write(step, metrics, votes))

    def _write(self, step: int, metrics: Mapping[str, float], votes: Iterable[Mapping[str, Any]]) -> None:
        self._votes.write(votes)
        self._metrics.write(step, metrics)

    def undecided(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Pairs of answers that were not decided, as JSON objects with a "step"; to be called before `write`."""
        if self._undecided is not None:
            self._undecided.write(rows)

    def generations(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """rollouts/NAME_STEP.jsonl; the first response of the first row is also a text in TensorBoard."""
        distributed.alone(lambda: self._generations(name, step, rows))

    def _generations(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        write_jsonl(self.folder / ROLLOUTS / f"{name}_{step:06}.jsonl", rows)
        row, sample = rows[0], rows[0]["samples"][0]
        read = f"read as {sample['answer']!r}, majority {row['majority']!r}"
        self._metrics.text(f"responses/{name}", f"{row['question']}\n\n{sample['response']}\n\n{read}", step)

    def flush(self) -> None:
        """Write what waits, as rows for a bucket do, and raise in all processes what process 0 could not write.

        Due before each checkpoint: a run that goes on from there misses no row.
        """
        distributed.together(lambda: [log.flush() for log in (self._metrics, self._votes) if log is not None])

    def close(self) -> None:
        for log in (self._metrics, self._votes, self._undecided):
            if log is not None:
                log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
