"""Answer a stream by vote alone, while the model learns, and while it adapts: what is right, and what it costs.

    python scripts/check_solve.py [--seeds 0,1,2] [--out runs/check_solve] [--votes 16] [--limit 0]

The model is that of configs/quickstart_noisy.py. Of the 320 sums that it has not seen, drawn by the seed, 80 are held
out. The stream has the others, twice, the second pass in another order: in its second half each question comes for the
second time. A model that does not learn gives the same kind of answer at any time, so that those ways answer the second
half alone. Ways are compared there at equal tokens: learning with a vote of as many responses as it draws, replayed
questions among them, and adapting with a vote of all that it draws. Then the models that have learned answer the held
out questions, each three times, beside the start. `solve` sees no truth: answers are joined with them here.

It needs no network, and takes about 20 minutes on 2 free cores. It says how long is left. The same command again runs
only what is not finished, and goes on within it. OUT/table.md gets the tables, of the seeds that are finished.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout

from ttrl_jax.data.generate import TASKS  # noqa: E402
from ttrl_jax.run.metrics import write_json, write_text  # noqa: E402

CONFIG = ROOT / "configs" / "quickstart_noisy.py"
HELD_OUT, ASKED = 80, 3  # questions, and how often each is asked
STEPS = 8  # of adapting; its rate makes most of the difference on this model (docs/solve.md)
LEARN, REPLAY, ADAPT, START = "learn", "learn, half of a step replayed", "adapt", "start"  # titles
WHOLE, SECOND, HELD = "whole", "second", "held"  # streams
NOTHING = "-"


@dataclass(frozen=True)
class Way:
    """One command."""

    title: str
    arguments: tuple[str, ...]
    stream: str  # of the streams of a seed
    seconds: float  # on two free cores, about: only for how long is left
    of: str | None = None  # the way whose model answers

    @property
    def name(self) -> str:
        return "".join(letter if letter.isalnum() else "_" for letter in f"{self.stream}_{self.title}")


@dataclass(frozen=True)
class Answered:
    """What came of a way."""

    right: np.ndarray  # bool [Q]
    tokens: float  # a question, of all responses, in the second half of what was answered


def ways_of(votes: int) -> list[Way]:
    """All ways, in the order in which they run."""

    def vote(count: int, seconds: float) -> Way:
        return Way(vote_of(count), (f"--config.rollout.votes={count}",), SECOND, seconds)

    few, learn = f"--config.rollout.votes={votes}", "--mode=learn"
    adapt = ("--mode=adapt", few, f"--config.solve.steps={STEPS}", "--config.train.learning_rate=1e-4")
    held = [Way(title, (few,), HELD, 15, of) for title, of in ((START, None), (LEARN, LEARN), (REPLAY, REPLAY))]
    return [
        vote(votes, 15),
        Way(LEARN, (learn, few), WHOLE, 45),
        vote(2 * votes, 20),
        Way(REPLAY, (learn, few, "--config.solve.replay=4"), WHOLE, 75),
        vote(4 * votes, 30),
        vote((STEPS + 1) * votes, 60),
        Way(ADAPT, adapt, SECOND, 90),
        *held,
    ]


def vote_of(count: int) -> str:
    return f"vote of {count}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="whole numbers with commas between (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/check_solve"))
    parser.add_argument("--votes", type=int, default=16, help="of the ways that learn or adapt (%(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="questions of a pass, at most, to try it out; 0: all")
    given = parser.parse_args()
    seeds, ways = [int(seed) for seed in given.seeds.split(",")], ways_of(given.votes)
    folders = {seed: given.out.absolute() / f"seed{seed}" for seed in seeds}
    truths = {seed: write_streams(folder, seed=seed, limit=given.limit) for seed, folder in folders.items()}
    run_all(ways, folders)
    text = tables(ways, folders, truths, votes=given.votes)
    write_text(given.out / "table.md", text)
    print(text, end="")


# ---------------------------------------------------------------------- the streams


def write_streams(folder: Path, *, seed: int, limit: int) -> dict[str, list[str]]:
    """Write the streams of a seed -> the truths of each, by its name. Stops where others are there."""
    pairs = TASKS["sums.train"]() + TASKS["sums.held_out"]()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pairs))
    held, own = order[:HELD_OUT][: limit or None], order[HELD_OUT:][: limit or None]
    first, second = rng.permutation(own), rng.permutation(own)
    streams = {WHOLE: [*first, *second], SECOND: second, HELD: [*held] * ASKED}
    folder.mkdir(parents=True, exist_ok=True)
    for name, asked in streams.items():
        path, text = folder / f"{name}.jsonl", "".join(json.dumps({"question": pairs[i][0]}) + "\n" for i in asked)
        if path.is_file() and path.read_text() != text:
            raise SystemExit(f"{path} has other questions; choose another --out")
        path.write_text(text)
    return {name: [pairs[i][1] for i in asked] for name, asked in streams.items()}


# ---------------------------------------------------------------------- the runs


def run_all(ways: Sequence[Way], folders: dict[int, Path]) -> None:
    """Run what is not finished, and say how long is left, by how long the others took beside what was expected."""
    left = [(way, folder) for folder in folders.values() for way in ways if not finished(way, folder)]
    print(f"{len(left)} of {len(ways) * len(folders)} runs are left", flush=True)
    expected = taken = 0.0
    for i, (way, folder) in enumerate(left):
        rest = sum(each.seconds for each, _ in left[i:]) * (taken / expected if expected else 1)
        print(f"== {folder.name}, {way.stream}: {way.title}; about {rest / 60:.0f} min left", flush=True)
        began = time.monotonic()
        log = folder / f"{way.name}.log"
        with log.open("a") as file:
            code = subprocess.run(command(way, folder), cwd=ROOT, env=environment(), stderr=file).returncode
        if code:
            raise SystemExit(f"{log} says why it ended with code {code}; the same command again goes on")
        seconds = time.monotonic() - began
        write_json(done(way, folder), {"arguments": list(way.arguments), "seconds": seconds})
        expected, taken = expected + way.seconds, taken + seconds
    print(f"{taken:.0f} s", flush=True)


def command(way: Way, folder: Path) -> list[str]:
    """What answers the stream of a way, and goes on with it."""
    seed = folder.name.removeprefix("seed")
    made = [sys.executable, "-m", "ttrl_jax.solve", str(folder / f"{way.stream}.jsonl"), f"--config={CONFIG}"]
    made += [f"--out={answers(way, folder)}", f"--config.seed={seed}", "--config.log.tensorboard=False"]
    made += [f"--checkpoint={run_of(way.of, folder)}"] if way.of else []
    return [*made, *way.arguments, *([f"--workdir={run_of(way.title, folder)}"] if learns(way) else [])]


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def learns(way: Way) -> bool:
    return "--mode=learn" in way.arguments


def run_of(title: str, folder: Path) -> Path:
    """The run folder of a way that learns."""
    return folder / ("replay" if title == REPLAY else title)


def answers(way: Way, folder: Path) -> Path:
    return folder / f"{way.name}.answers.jsonl"


def done(way: Way, folder: Path) -> Path:
    """What is written once a way has come to its end."""
    return folder / f"{way.name}.done.json"


def finished(way: Way, folder: Path) -> bool:
    """Whether a way has come to its end. Stops where that was with other settings."""
    if not done(way, folder).is_file():
        return False
    if json.loads(done(way, folder).read_text())["arguments"] != list(way.arguments):
        raise SystemExit(f"{done(way, folder)} is of other settings; choose another --out")
    return True


# ---------------------------------------------------------------------- what came of them


def read(way: Way, folder: Path, truths: Sequence[str]) -> Answered:
    """The answers of a way, with the truths of its stream."""
    rows = rows_of(answers(way, folder))
    right = np.array([row["label"] == truth for row, truth in zip(rows, truths, strict=True)])
    if not learns(way):
        return Answered(right, fmean(row["tokens"] for row in rows))
    spent = [row["length/generated_tokens"] for row in rows_of(run_of(way.title, folder) / "metrics.jsonl")]
    half = spent[len(spent) // 2 :]  # with those of replayed questions; a step has the same number of new ones
    return Answered(right, sum(half) / (len(rows) * len(half) / len(spent)))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tables(
    ways: Sequence[Way], folders: dict[int, Path], truths: dict[int, dict[str, list[str]]], *, votes: int
) -> str:
    """All tables, as Markdown."""
    streams = [way for way in ways if way.stream != HELD]
    found = {way: [read(way, folder, truths[seed][way.stream]) for seed, folder in folders.items()] for way in ways}
    by_title = {way.title: found[way] for way in streams}
    (adapts,) = (way for way in streams if way.title == ADAPT)
    kept = [fmean(row["adapted"]["kept"] for row in rows_of(answers(adapts, folder))) for folder in folders.values()]
    return "\n".join(
        [
            f"Seeds {', '.join(map(str, folders))}: the mean, and each.\n",
            "| way | first half | second half | tokens a question |",
            "|---|---|---|---|",
            *(answered(way, found[way]) for way in streams),
            "\nAt equal tokens, in the second half:\n",
            "| way | beside | difference | tokens beside those |",
            "|---|---|---|---|",
            compared(by_title, LEARN, votes),
            compared(by_title, REPLAY, 2 * votes),
            compared(by_title, ADAPT, (STEPS + 1) * votes),
            f"\nAdapted answers that were kept: {spread(kept)}.",
            f"\nQuestions that were held out, each {ASKED} times, {votes} votes:\n",
            "| model | right | difference to the start |",
            "|---|---|---|",
            *held_out({way.title: found[way] for way in ways if way.stream == HELD}),
            "",
        ]
    )


def answered(way: Way, found: Sequence[Answered]) -> str:
    """The row of a way."""
    halves = [np.array_split(one.right, 2) if learns(way) else (None, one.right) for one in found]
    first = spread([half.mean() for half, _ in halves]) if learns(way) else NOTHING
    tokens = fmean(one.tokens for one in found)
    return f"| {way.title} | {first} | {spread([half.mean() for _, half in halves])} | {tokens:.0f} |"


def compared(by_title: dict[str, list[Answered]], title: str, count: int) -> str:
    """The row of a way beside a vote of `count`, on the questions of the second half."""
    pairs = list(zip(by_title[title], by_title[vote_of(count)], strict=True))
    gains = [own.right[-len(other.right) :].mean() - other.right.mean() for own, other in pairs]
    tokens = fmean(own.tokens / other.tokens for own, other in pairs)
    return f"| {title} | {vote_of(count)} | {spread(gains, sign='+')} | {tokens:.2f} |"


def held_out(by_title: dict[str, list[Answered]]) -> Iterator[str]:
    """The rows of the models on questions that were held out."""
    start = by_title[START]
    for title, found in by_title.items():
        gains = [own.right.mean() - other.right.mean() for own, other in zip(found, start, strict=True)]
        gain = NOTHING if title == START else spread(gains, sign="+")
        yield f"| {title} | {spread([one.right.mean() for one in found])} | {gain} |"


def spread(values: Sequence[float], *, sign: str = "") -> str:
    """The mean, and each value where there are several."""
    each = f" ({', '.join(f'{value:{sign}.3f}' for value in values)})" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.3f}{each}"


if __name__ == "__main__":
    main()
