"""How long 64 votes on each of 32 questions take: ours against the reference's way, same answers, same run.

    python scripts/bench_votes.py

Needs nothing but the package; takes minutes, nearly all of them the reference's. With TTRL_DATA set to a folder with
MATH-TTT.json the true answers are the ones in there, else they come from tests/golden/answers.jsonl. A question's votes
are its true answer, as different people write it, and wrong answers made of it and of others. Each of the three rounds
has questions of its own, so that nothing is remembered from the one before; the table and the last line, JSON, give
medians. Starting our worker processes is timed apart: they start once per run. The reference evaluates answers as code
(`peers/reference_votes.py`), so only these answers may go through it.
"""

import json
import os
import random
import re
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout

from peers import reference_votes  # noqa: E402

from ttrl_jax.reward import symbolic  # noqa: E402
from ttrl_jax.reward.extract import Answer  # noqa: E402
from ttrl_jax.reward.score import score  # noqa: E402
from ttrl_jax.reward.vote import vote  # noqa: E402

ROUNDS, PROMPTS, VOTES = 3, 32, 64
RIGHT, SILENT = 0.5, 0.05  # shares of votes: the true answer, no answer
WRONG = 8  # different wrong answers to a question
_CODE = re.compile(r"__|['\"]|\*\*|[eE]\d{3}|!")  # the golden table has hostile rows; none may reach the reference


def true_answers() -> list[str]:
    """The true answers to choose questions from."""
    if "TTRL_DATA" in os.environ:
        found = [row["answer"] for row in json.loads((Path(os.environ["TTRL_DATA"]) / "MATH-TTT.json").read_text())]
    else:
        rows = map(json.loads, (ROOT / "tests/golden/answers.jsonl").read_text().splitlines())
        found = [row["a"] for row in rows if row["kind"] == "equal"]
    return sorted({text for text in found if not _CODE.search(text)})


def spellings(truth: str) -> list[str]:
    """Ways to write the same answer, by rules that hold for any."""
    spaced = re.sub(r"(?<![\\{]),(?!\d{3}|\\!)", ", ", truth)
    ways = [truth, truth.replace("\\frac", "\\dfrac"), truth.rstrip(".") + ".", spaced]
    if "$" not in truth:
        ways.append(f"${truth}$")
    if truth.isdigit():
        ways += [f"{truth}.0", f"x = {truth}"]
    return list(dict.fromkeys(ways))


def wrong_answers(truth: str, others: list[str], rng: random.Random) -> list[str]:
    """Answers near the true one, with one digit changed, and true answers to other questions."""
    places = [match.start() for match in re.finditer(r"\d", truth)]
    near = [truth[:i] + str((int(truth[i]) + rng.randint(1, 8)) % 10) + truth[i + 1 :] for i in places]
    return (near + rng.sample(others, WRONG))[:WRONG]


def questions() -> list[tuple[list[str | None], set[int]]]:
    """For each question the votes, and which of them are right."""
    rng = random.Random(0)
    truths = true_answers()
    made = []
    for truth in rng.sample(truths, ROUNDS * PROMPTS):
        right, wrong = spellings(truth), wrong_answers(truth, [t for t in truths if t != truth], rng)
        votes: list[str | None] = []
        for _ in range(VOTES):
            draw = rng.random()
            votes.append(None if draw < SILENT else rng.choice(right if draw < SILENT + RIGHT else wrong))
        made.append((votes, {i for i, text in enumerate(votes) if text in right}))
    return made


def ours(groups: list[list[str | None]]) -> list[list[bool]]:
    ballots = [vote([None if text is None else Answer(text) for text in group]) for group in groups]
    return (score(ballots, [ballot.label for ballot in ballots]) == 1).tolist()


def reference(groups: list[list[str | None]]) -> list[list[bool]]:
    return [reference_votes.vote(group)[1] for group in groups]


def main() -> None:
    start = time.perf_counter()
    symbolic.equal([(r"\sin 2x", r"2\sin x\cos x")])
    startup = time.perf_counter() - start
    made = questions()
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    missed = {"ours": 0, "reference": 0}
    for i in range(ROUNDS):
        part = made[i * PROMPTS : (i + 1) * PROMPTS]
        for name, way in (("ours", ours), ("reference", reference)):
            start = time.perf_counter()
            rewards = way([votes for votes, _ in part])
            seconds[name].append(time.perf_counter() - start)
            missed[name] += sum(not row[j] for row, (_, right) in zip(rewards, part, strict=True) for j in right)
            print(f"round {i + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    right = sum(len(places) for _, places in made)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"\n{'':10} {'seconds':>8}   right votes without reward")
    for name, median in medians.items():
        print(f"{name:10} {median:8.2f}   {missed[name]} of {right}")
    print(f"starting our workers took {startup:.2f} s\n")
    result = {f"{name}_seconds": round(median, 3) for name, median in medians.items()}
    ratio = medians["ours"] / medians["reference"]
    print(json.dumps({**result, "ratio": round(ratio, 4), "startup_seconds": round(startup, 3), "missed": missed}))


if __name__ == "__main__":
    main()
