"""Measure by simulation what votes that stop promise, and what they save.

    python scripts/check_stopping.py [--ballots 40000] [--seed 0]

Needs nothing but the package; takes about a minute. The first table has the share of ballots, of 64 votes that may stop
from the first on, in which an answer was certified that is not the one most common answer. In a tie every certificate
is wrong. The second has the share of 64 votes that is saved, of which 32 are cast in any case. It stands in
docs/algorithms.md.

The way of the program (reward/stopping.py) is `leader`. Two others are beside it. `ranked`: one against one as well,
each answer with a capital of its own from its first vote on, and the k-th answer to appear with 1 / (k (k + 1)) of the
error. `rest`: so, against all others together.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package of this checkout

from ttrl_jax.reward.stopping import wins_needed  # noqa: E402

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ballots", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, failed = np.random.default_rng(given.seed), False

    print(f"wrong certificates, of {given.ballots:,} ballots of {VOTES} votes that may stop from the first on\n")
    print("| answers | " + " | ".join(f"error {error}" for error in ERRORS) + " |\n|---|" + "---|" * len(ERRORS))
    for name, chances in NULLS.items():
        votes = draw(chances, ballots=given.ballots, rng=rng)
        shares = [wrong(chances, leader(votes, error=error, least=1)) for error in ERRORS]
        failed |= any(share > error for share, error in zip(shares, ERRORS, strict=True))
        print(f"| {name} | " + " | ".join(f"{share:.4f}" for share in shares) + " |", flush=True)

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
