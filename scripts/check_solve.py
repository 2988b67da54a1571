"""Answer a stream by vote alone and while the model learns: how many answers are right, and what they cost.

    python scripts/check_solve.py [--passes 3] [--seed 0] [--out runs/check_solve]

The stream is the 320 sums that the model of configs/quickstart_noisy.py has not seen, each `passes` times, every pass
in another order. `solve` sees no truth: answers are joined with them here. It needs no network, and takes 5 to 10
minutes on 2 cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from ttrl_jax.data.generate import TASKS

ROOT = Path(__file__).resolve().parent.parent
PARTS = 6  # of the stream, in the table
WAYS = {
    "vote, 16": [],
    "vote, 64": ["--config.rollout.votes=64"],
    "learn, 16": ["--mode=learn"],
    "learn, 16, half of a step replayed": ["--mode=learn", "--config.solve.replay=4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/check_solve"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = TASKS["sums.train"]() + TASKS["sums.held_out"]()
    rng = np.random.default_rng(given.seed)
    asked = [int(i) for _ in range(given.passes) for i in rng.permutation(len(pairs))]
    stream = given.out / "stream.jsonl"
    stream.write_text("".join(json.dumps({"question": pairs[i][0]}) + "\n" for i in asked))
    print(f"| way | {' | '.join(f'part {k + 1}' for k in range(PARTS))} | all | tokens a question |")
    print("|---" * (PARTS + 3) + "|")
    for way, arguments in WAYS.items():
        right, tokens = solved(way, arguments, stream, [pairs[i][1] for i in asked], given)
        parts = [f"{part.mean():.3f}" for part in np.array_split(right, PARTS)]
        print(f"| {way} | {' | '.join(parts)} | {right.mean():.3f} | {tokens / len(asked):.0f} |", flush=True)


def solved(
    way: str, arguments: list[str], stream: Path, truths: list[str], given: argparse.Namespace
) -> tuple[np.ndarray, int]:
    """Which answers are right, bool [Q], and how many tokens were generated for all of them."""
    name = "".join(letter if letter.isalnum() else "_" for letter in way)
    out, workdir = given.out / f"{name}.jsonl", given.out / name
    command = [sys.executable, "-m", "ttrl_jax.solve", str(stream), "--config=configs/quickstart_noisy.py"]
    command += [f"--out={out}", f"--config.seed={given.seed}", "--config.log.tensorboard=False", *arguments]
    learns = "--mode=learn" in arguments
    with (given.out / f"{name}.log").open("w") as log:
        subprocess.run(command + [f"--workdir={workdir}"] * learns, cwd=ROOT, check=True, stderr=log)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = np.array([row["label"] == truth for row, truth in zip(rows, truths, strict=True)])
    if not learns:
        return right, sum(row["tokens"] for row in rows)
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return right, sum(row["length/generated_tokens"] for row in metrics)  # those of replayed questions too


if __name__ == "__main__":
    main()
