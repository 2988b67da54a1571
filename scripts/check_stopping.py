"""Measure by simulation what votes that stop promise, and what they save.

    python scripts/check_stopping.py [--ballots 40000] [--seed 0]
    python scripts/check_stopping.py --runs RUN,RUN

Needs nothing but the package; takes about a minute. The first table has the share of ballots, of 64 votes that may stop
from the first on, in which an answer was certified that is not the one most common answer. In a tie every certificate
is wrong. The second has the share of 64 votes that is saved, of which 32 are cast in any case. It stands in
docs/algorithms.md.

The way of the program (reward/stopping.py) is `leader`. Two others are beside it. `ranked`: one against one as well,
each answer with a capital of its own from its first vote on, and the k-th answer to appear with 1 / (k (k + 1)) of the
error. `rest`: so, against all others together. `newest` is no valid test, and stands in the first table alone: it puts
today's estimate of a rate into all votes of the past, as a public implementation of such a test does.

--runs takes runs that cast all votes and kept them (rollout.stop_votes=0, log.generations_every=1): how many of their
labels other votes would have had that stop, and how many votes that saves.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout

from ttrl_jax.reward.extract import Answer  # noqa: E402
from ttrl_jax.reward.stopping import Race, wins_needed  # noqa: E402
from ttrl_jax.run.files import ROLLOUTS  # noqa: E402

VOTES, TRAINED = 64, 32
SCATTERED = 20  # different errors
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
ERRORS = (0.05, 0.01)
NULLS = {  # what no certificate may say: all of it where two lead, the second answer where it is just behind
    "2 tied": [0.5, 0.5],
    "2 tied, 2 votes in 10 scattered": [0.4, 0.4] + [0.2 / SCATTERED] * SCATTERED,
    "3 tied": [1 / 3] * 3,
    "10 tied": [0.1] * 10,
    "64 tied": [1 / 64] * 64,
    "0.51 to 0.49": [0.51, 0.49],
    "0.36, 0.32, 0.32": [0.36, 0.32, 0.32],
}

Found = tuple[np.ndarray, np.ndarray]  # int [B] votes that count; int [B] the answer that is certified, or -1
Way = Callable[..., Found]


def draw(chances: list[float], *, ballots: int, rng: np.random.Generator) -> np.ndarray:
    """Votes, int [B, VOTES], the numbers of the answers."""
    edges = np.cumsum(chances) / sum(chances)
    return np.searchsorted(edges[:-1], rng.random((ballots, VOTES)), side="right")


def leader(votes: np.ndarray, *, error: float, least: int) -> Found:
    """The way of the program: of answers that are all told apart, and that all are answers."""
    race = Tally(votes, least)
    needed, led = np.array(wins_needed(error, votes.shape[1])), np.zeros_like(race.counts)
    for now in race:
        led[race.rows, now] += race.ahead == now
        race.count(now)
        race.certify(led.sum(1, keepdims=True) - led >= needed[race.counts - led])
    return race.votes, race.winner


def ranked(votes: np.ndarray, *, error: float, least: int) -> Found:
    """One against one, with the error divided over the answers in the order in which they appear."""
    race = Tally(votes, least)
    since = np.zeros((*race.counts.shape, race.counts.shape[1]), np.int16)  # votes for each since each appeared
    needed = by_rank(error, votes.shape[1])
    for now in race:
        since[race.rows[:, None], np.arange(since.shape[1]), now[:, None]] += race.rank > 0
        race.count(now)
        losses = since[race.rows, race.ahead]
        race.certify(race.of_ahead(losses)[:, None] >= needed[race.of_ahead(race.rank)[:, None], losses])
    return race.votes, race.winner


def rest(votes: np.ndarray, *, error: float, least: int) -> Found:
    """Each answer against all others together, with the error divided in the same way."""
    race = Tally(votes, least)
    needed, wins, age = by_rank(error, votes.shape[1]), np.zeros_like(race.counts), np.zeros_like(race.counts)
    for now in race:
        age += race.rank > 0
        wins[race.rows, now] += race.rank[race.rows, now] > 0
        race.count(now)
        own = race.of_ahead(wins)
        enough = own >= needed[race.of_ahead(race.rank), race.of_ahead(age) - own]
        race.certify(np.broadcast_to(enough[:, None], wins.shape))
    return race.votes, race.winner


def newest(votes: np.ndarray, *, error: float, least: int) -> Found:
    """One against one, by the likelihood ratio with the rate that is estimated now: of no bound."""
    race = Tally(votes, least)
    for now in race:
        race.count(now)
        wins, losses = race.of_ahead(race.counts)[:, None], race.counts
        rate = np.clip((wins + 0.5) / (wins + losses + 1), 0.5, None)
        race.certify(wins * np.log(2 * rate) + losses * np.log(2 * (1 - rate)) >= np.log(1 / error))
    return race.votes, race.winner


class Tally:
    """Ballots whose votes are counted one after the other, all at once."""

    def __init__(self, votes: np.ndarray, least: int) -> None:
        self.rows, self._given, self._least, self._at = np.arange(len(votes)), votes, least, 0
        self.counts = np.zeros((len(votes), votes.max() + 2), np.int32)  # of each answer, and of one that nobody gives
        self.rank = np.zeros_like(self.counts)  # of each answer, as which one it appeared; 0: not yet
        self.ahead = np.full(len(votes), -1)  # the answer that leads, of equal ones the first to appear
        self.votes, self.winner = np.full(len(votes), votes.shape[1]), np.full(len(votes), -1)

    def __iter__(self):
        """The votes of each time, int [B]."""
        yield from self._given.T

    def count(self, now: np.ndarray) -> None:
        new = self.counts[self.rows, now] == 0
        self.rank[self.rows[new], now[new]] = (self.rank > 0).sum(1)[new] + 1
        self.counts[self.rows, now] += 1
        self.ahead = np.argmax(self.counts * (self.counts.shape[1] + 1) - self.rank, axis=1)
        self._at += 1

    def of_ahead(self, values: np.ndarray) -> np.ndarray:
        """Of values [B, K] those of the answer that leads."""
        return values[self.rows, self.ahead]

    def certify(self, beaten: np.ndarray) -> None:
        """Stop where all others are beaten, bool [B, K]."""
        beaten = beaten & (self.counts < self.of_ahead(self.counts)[:, None])
        beaten[self.rows, self.ahead] = True
        new = beaten.all(1) & (self.winner < 0) & (self._at >= self._least)
        self.votes[new], self.winner[new] = self._at, self.ahead[new]


def by_rank(error: float, votes: int) -> np.ndarray:
    """Wins needed, int [rank, losses], with 1 / (k (k + 1)) of the error for rank k."""
    # `wins_needed` asks for 2 / error, these for 1 / error.
    return np.array([wins_needed(2 * error / max(2, k * (k + 1)), votes) for k in range(votes + 2)])


WAYS: dict[str, Way] = {"leader": leader, "ranked": ranked, "rest": rest}


def wrong(chances: list[float], found: Found) -> float:
    """The share of ballots in which an answer is certified that is not the one most common answer."""
    _, winner = found
    tied = sum(chance == max(chances) for chance in chances) > 1
    return float(((winner >= 0) & (tied | (winner != int(np.argmax(chances))))).mean())


def answers(share: float, errors: str) -> list[float]:
    """The chances of an answer and of its errors; with a rival of three quarters of its share, if so much is left."""
    rival = min(1 - share, 0.75 * share) if errors == "one rival" else 0.0
    return [share, rival] + [(1 - share - rival) / SCATTERED] * SCATTERED


def of_run(run: Path, *, error: float) -> tuple[int, int, float]:
    """Labels of a run that cast all votes: how many, how many would be others with votes that stop, and the share of
    votes that is saved. Raises SystemExit if the run did not keep its votes."""
    labels = changed = cast = drawn = 0
    for path in sorted((run / ROLLOUTS).glob("train_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            samples = json.loads(line)["samples"]
            answers = [None if each["answer"] is None else Answer(str(each["class"])) for each in samples]
            race = Race(wins_needed(error, len(answers)), lambda a, b: a == b)
            for count, answer in enumerate(answers, 1):
                race.add(answer)
                if count >= min(TRAINED, len(answers)) and race.certified:
                    break
            labels += 1
            changed += most_common(answers[:count]) != most_common(answers)
            cast, drawn = cast + count, drawn + len(answers)
    if not labels:
        raise SystemExit(f"{run} has no votes; train it with --config.log.generations_every=1")
    return labels, changed, 1 - cast / drawn


def of_runs(runs: Sequence[Path]) -> None:
    """Print what votes that stop would change in runs, and save."""
    print(f"| run | labels | {' | '.join(f'changed, saved at error {error}' for error in ERRORS)} |\n|---|---|---|---|")
    for run in runs:
        found = [of_run(run, error=error) for error in ERRORS]
        cells = (f"{changed} ({changed / labels:.2%}), {saved:.3f}" for labels, changed, saved in found)
        print(f"| {run} | {found[0][0]} | {' | '.join(cells)} |", flush=True)


def most_common(answers: Sequence[Answer | None]) -> Answer | None:
    """Of equal ones the first to appear; None where nobody answered."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ballots", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default="", help="run folders, with commas between, in place of the simulation")
    given = parser.parse_args()
    if given.runs:
        of_runs([Path(run) for run in given.runs.split(",")])
        return
    rng, failed = np.random.default_rng(given.seed), False

    print(f"wrong certificates, of {given.ballots:,} ballots of {VOTES} votes that may stop from the first on\n")
    titles = [f"error {error}{name}" for error in ERRORS for name in ("", ", newest")]
    print("| answers | " + " | ".join(titles) + " |\n|---|" + "---|" * len(titles))
    for name, chances in NULLS.items():
        votes = draw(chances, ballots=given.ballots, rng=rng)
        cells = []
        for error in ERRORS:
            own, other = (wrong(chances, way(votes, error=error, least=1)) for way in (leader, newest))
            failed |= own > error
            cells += [f"{own:.4f}", f"{other:.4f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)

    print(f"\nvotes saved, of {VOTES}, {TRAINED} of them cast in any case\n")
    titles = [f"{name}, {error}" for error in ERRORS for name in WAYS]
    print("| share | errors | " + " | ".join(titles) + " |\n|---|---|" + "---|" * len(titles))
    for share in SHARES:
        for errors in ("scattered", "one rival"):
            votes = draw(answers(share, errors), ballots=given.ballots // 10, rng=rng)
            found = [way(votes, error=error, least=TRAINED)[0] for error in ERRORS for way in WAYS.values()]
            saved = [1 - float(each.mean()) / VOTES for each in found]
            print(f"| {share} | {errors} | " + " | ".join(f"{each:.3f}" for each in saved) + " |", flush=True)
    if failed:
        raise SystemExit("an error rate is exceeded")


if __name__ == "__main__":
    main()
