"""Look at a run in the terminal: its table, its curves, the labels of its last step and a response.

    python -m ttrl_jax.look RUN [--follow]

RUN is a run folder, of a run that is finished or not. With --follow the run is shown again whenever it has gone on.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.LOOK, doc=__doc__)

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ttrl_jax import cli
from ttrl_jax.check import measured_samples
from ttrl_jax.measure.tables import table
from ttrl_jax.report.data import Run, read_runs
from ttrl_jax.run.metrics import read_lines
from ttrl_jax.tasks.sets import OWN

CURVES = {  # metric -> its name here, and the range of its axis (None: its own)
    "vote/majority_ratio": ("majority ratio", (0, 1)),
    "vote/majority_voting_reward": ("reward", (0, 1)),
    "audit/label_accuracy": ("label accuracy", (0, 1)),
    "audit/reward_accuracy": ("reward accuracy", (0, 1)),
    "vote/no_answer_rate": ("no answer", (0, 1)),
    "length/truncation_rate": ("cut at the limit", (0, 1)),
    "length/response_mean": ("response tokens", None),
    "update/entropy": ("entropy", None),
    "update/grad_norm": ("grad norm", None),
    "time/sample": ("seconds sampling", None),
    "time/update": ("seconds updating", None),
}
BARS = "▁▂▃▄▅▆▇█"
_LOOK_AGAIN = 2.0  # seconds


def main(path: str) -> int:
    shown = None
    while True:
        run = read_runs([path])[0]
        state = len(run.rows), len(run.evaluations), run.finished
        if state != shown:
            if shown is not None:
                print()
            print("\n".join(lines(run, width=shutil.get_terminal_size((80, 24)).columns)), flush=True)
        if not flags.FLAGS.follow or run.finished:
            return 0
        shown = state
        time.sleep(_LOOK_AGAIN)


def lines(run: Run, *, width: int) -> Iterator[str]:
    """All that is shown of a run, none longer than `width`, but for the table."""
    trained = [row["step"] for row in run.rows if "vote/majority_ratio" in row]
    yield f"{run.name}: {len(trained)} steps, {'finished' if run.finished else 'not finished'}"
    yield from run.notes
    if run.evaluations:
        steps = sorted(run.evaluations)
        columns = {
            f"{'' if task == OWN else f'{task} '}after {at}": run.evaluations[at][task]
            for task in run.tasks
            for at in dict.fromkeys((steps[0], steps[-1]))
            if task in run.evaluations[at]
        }
        yield ""
        measured = measured_samples(
            int(run.settings.get("eval.samples", 16)), float(run.settings.get("eval.stop_votes", 0))
        )
        yield table(columns, samples=measured, extra_k=run.settings.get("eval.k", ()))
        if len(steps) == 1:
            yield f"not evaluated since step {steps[0]}"
    yield ""
    for name, (title, axis) in CURVES.items():
        values = [row[name] for row in run.rows if isinstance(row.get(name), float | int)]
        if values:
            drawn = sparkline(values, width=max(10, width - 44), axis=axis)
            yield f"{title:<18}{values[0]:>9.3f} {drawn} {values[-1]:.3f}"
    yield from last_votes(run, width=width)
    yield from last_response(run, width=width)


def sparkline(values: Sequence[float], *, width: int, axis: tuple[float, float] | None) -> str:
    """Values as bars, at most `width`, each the mean of its share of them. axis: lowest and highest; None: theirs."""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = axis or (min(means), max(means))
    return "".join(BARS[round((min(max(x, low), high) - low) / ((high - low) or 1) * (len(BARS) - 1))] for x in means)


def last_votes(run: Run, *, width: int) -> Iterator[str]:
    """The labels of the last step, each with its share of the votes."""
    votes, _ = read_lines(run.path / "votes.jsonl")
    if not votes:
        return
    yield ""
    yield f"labels of step {votes[-1]['step']}, with their shares of the votes:"
    for visit in [each for each in votes if each["step"] == votes[-1]["step"]]:
        flipped = ", another label than before" if visit["flipped"] else ""
        label = "no answer" if visit["label"] is None else visit["label"]
        yield _cut(f"  question {visit['question']}: {visit['share']:.2f} {label!r}{flipped}", width)


def last_response(run: Run, *, width: int) -> Iterator[str]:
    """The first response of the newest file of generations."""
    files = sorted((run.path / "rollouts").glob("train_*.jsonl"))
    rows = read_lines(files[-1])[0] if files else []
    if not rows:
        return
    row: dict[str, Any] = rows[0]
    sample = row["samples"][0]
    yield ""
    yield f"a response of {Path(files[-1]).stem}, label {row['label']!r}, read as {sample['answer']!r}:"
    yield _cut(f"  {row['question']!r}", width)
    yield _cut(f"  {sample['response']!r}", 4 * width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.LOOK, arguments=ARGUMENTS))
