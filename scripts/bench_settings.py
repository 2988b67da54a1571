"""How long a training step takes with other settings, or in another checkout: whole runs of `train`, in turn.

    python scripts/bench_settings.py --out DIR --config configs/smollm2.py --arm "all weights" \\
        --arm "LoRA:--config.lora.rank=16" [--turns 3] [--config.a.b=value ...]
    python scripts/bench_settings.py --out DIR --config configs/quickstart.py --arm before@CHECKOUT --arm now

An arm is NAME, NAME:FLAGS or NAME@CHECKOUT[:FLAGS]; --config.a.b=value is for all of them. Each turn runs every arm
once with the same seed, so that a machine that gets slower does so for all. What is reported are medians of the seconds
of a step, over all turns and without the first two steps, which compile, and their ratios to the first arm: below 1 is
faster. DIR keeps the runs; a turn that is there is not run again.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("sample", "vote", "update")
COMPILING = 2  # steps at the beginning of a run


@dataclass(frozen=True)
class Arm:
    """One side of the comparison."""

    name: str
    checkout: Path
    flags: tuple[str, ...]


def arm_of(text: str) -> Arm:
    """Read NAME, NAME:FLAGS or NAME@CHECKOUT:FLAGS. Raises ValueError if the checkout has no package."""
    left, _, flags = text.partition(":")
    name, at, where = left.partition("@")
    checkout = Path(where).expanduser().resolve() if at else ROOT
    if not (checkout / "ttrl_jax" / "train.py").is_file():
        raise ValueError(f"{checkout} of the arm {name!r} is no checkout of ttrl_jax")
    return Arm(name, checkout, tuple(shlex.split(flags)))


def run(arm: Arm, config: str, shared: Sequence[str], workdir: Path) -> None:
    """Train once, unless the run is there. Raises CalledProcessError if it fails."""
    if (workdir / "summary.json").is_file():
        return
    command = ["-m", "ttrl_jax.train", "--config", config, *shared, *arm.flags, "--workdir", str(workdir)]
    environment = os.environ | {"PYTHONPATH": str(arm.checkout)}
    with (workdir.parent / f"{workdir.name}.log").open("w") as log:
        subprocess.run(
            [sys.executable, *command], cwd=arm.checkout, env=environment, stdout=log, stderr=log, check=True
        )


def seconds(workdir: Path) -> dict[str, list[float]]:
    """Of each part of a step, and of the whole, after those that compile."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "time/update" in row][COMPILING:]
    found = {part: [row[f"time/{part}"] for row in rows] for part in PARTS}
    return found | {"step": [sum(each) for each in zip(*found.values(), strict=True)]}


def table(measured: Sequence[tuple[str, dict[str, list[float]]]]) -> str:
    """Markdown: medians of each arm, and the ratio of each to the first."""
    names = (*PARTS, "step")
    lines = [f"| | {' | '.join(names)} | steps |", f"|---|{'---|' * (len(names) + 1)}"]
    first = {name: median(measured[0][1][name]) for name in names}
    for arm, found in measured:
        middle = {name: median(found[name]) for name in names}
        cells = (f"{middle[name]:.3f} s, {middle[name] / first[name]:.2f}" for name in names)
        lines.append(f"| {arm} | {' | '.join(cells)} | {len(found['step'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--config", required=True, help="as of train")
    parser.add_argument("--arm", action="append", required=True, help="NAME, NAME:FLAGS or NAME@CHECKOUT:FLAGS")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    flags, shared = parser.parse_known_args()
    try:
        arms = [arm_of(text) for text in flags.arm]
    except ValueError as error:
        parser.error(str(error))
    if len({arm.name for arm in arms}) < len(arms) or flags.turns < 1:
        parser.error("arms have different names, and --turns is at least 1")
    if strange := [flag for flag in shared if not flag.startswith("--config.")]:
        parser.error(f"{strange[0]} is unknown; settings of all arms are --config.a.b=value")
    flags.out.mkdir(parents=True, exist_ok=True)
    where = {
        (arm, turn): flags.out.resolve() / f"{arm.name.replace(' ', '_')}-{turn}"
        for arm in arms
        for turn in range(flags.turns)
    }
    for turn in range(flags.turns):
        for arm in arms if turn % 2 == 0 else arms[::-1]:
            print(f"turn {turn + 1} of {flags.turns}: {arm.name}", flush=True)
            run(arm, flags.config, shared, where[arm, turn])
    measured = []
    for arm in arms:
        each = [seconds(where[arm, turn]) for turn in range(flags.turns)]
        measured.append((arm.name, {name: [x for found in each for x in found[name]] for name in each[0]}))
    print(table(measured))


if __name__ == "__main__":
    main()
