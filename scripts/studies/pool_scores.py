"""What the runs of a pool say of the limits: of verdicts, of the choice of a checkpoint, of how likely a label is
right, and of the certificate. Truths score here, and decide nothing."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ttrl_jax.measure.certificate import capitals
from ttrl_jax.run.choice import CHANGED, candidates, ranked
from ttrl_jax.run.diagnosis import LIMITS, Diagnosis, Limits, diagnose

from .pool import Seen, Vote

MOVED = 0.05  # of the accuracy on questions held out: less is no change
FALLEN = 0.1  # below the best accuracy of a run: it has collapsed
GOOD = 0.9  # of the accuracy of the best candidate: a good choice
EPS, DELTA, CANARIES, DRAWS = 0.05, 0.05, 32, 1000
GAINED = 0.2  # a gain that a certificate should see
SHARES = (0.1, 0.25, 0.5, 1.0)  # of a run
FITTED = (0.25, 0.5, 1.0)  # those that limits are fitted on
SILENT = "too short"

# ---------------------------------------------------------------------- (a) verdicts


def verdict(seen: Seen, share: float, limits: Limits = LIMITS) -> Diagnosis:
    """What is said of a run after a share of its steps."""
    cut = round(share * seen.steps)
    early = [[row for row in rows if row["step"] < cut] for rows in (seen.rows, seen.visits)]
    return diagnose(early[0], early[1], limits=limits)


def collapsed(seen: Seen) -> bool:
    """Whether a run ends worse than it was: than its start by MOVED, or than its best by FALLEN."""
    start, end = _ends(seen)
    return end <= start - MOVED or end <= max(seen.held_out.values()) - FALLEN


def holds(said: str, seen: Seen, share: float) -> bool | None:
    """Whether a verdict after a share of the steps is what the truth says at the end; None of one that claims nothing.

    By the accuracy on the questions held out: learning, the end is above the start by MOVED; stuck, it is nearer than
    MOVED to it; collapsing, see `collapsed`; converged, the run has not collapsed, and its end is nearer than MOVED to
    what it was at the last evaluation before the verdict.
    """
    start, end = _ends(seen)
    there = max(step for step in seen.held_out if step <= round(share * seen.steps))
    return {
        "learning": end - start >= MOVED,
        "stuck": abs(end - start) < MOVED,
        "collapsing": collapsed(seen),
        "converged": not collapsed(seen) and abs(end - seen.held_out[there]) < MOVED,
    }.get(said)


def _ends(seen: Seen) -> tuple[float, float]:
    return seen.held_out[min(seen.held_out)], seen.held_out[max(seen.held_out)]


def hits(runs: Sequence[Seen], share: float, limits: Limits = LIMITS) -> dict[str, tuple[int, int]]:
    """verdict -> (how often it was right, how often it was said); of `too short` none is right."""
    found: dict[str, tuple[int, int]] = {}
    for seen in runs:
        said = verdict(seen, share, limits).verdict
        right, count = found.get(said, (0, 0))
        found[said] = right + bool(holds(said, seen, share)), count + 1
    return found


def fit(runs: Sequence[Seen], grids: Mapping[str, Sequence[float]]) -> Limits:
    """The limits by which verdicts are right more often than wrong on these runs, one limit after the other, twice.
    The one that is there stays where none is better by a verdict that is right in the place of a wrong one."""
    best, most = LIMITS, _won(runs, LIMITS)
    for name, value in [(name, value) for _ in range(2) for name, values in grids.items() for value in values]:
        tried = dataclasses.replace(best, **{name: value})
        if tried != best and (won := _won(runs, tried)) >= most + 2:
            best, most = tried, won
    return best


GRIDS: Mapping[str, Sequence[float]] = {
    "rise": (0.02, 0.03, 0.04, 0.05, 0.07, 0.1),
    "agreed": (0.8, 0.85, 0.9, 0.95),
    "still": (0.02, 0.03, 0.05, 0.08),
    "wide": (0.04, 0.06, 0.08, 0.1, 0.15),
    "fall": (0.1, 0.15, 0.2, 0.3),
    "lost": (0.05, 0.1, 0.2, 0.3),
    "same": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "kept": (0.05, 0.1, 0.2, 0.3),
    "turned": (0.3, 0.35, 0.4, 0.5, 0.6),
    "sure": (16, 24, 32, 48, 64),
}


def _won(runs: Sequence[Seen], limits: Limits) -> int:
    """Verdicts that are right less those that are wrong."""
    found = [(said, count) for share in FITTED for said, count in hits(runs, share, limits).items()]
    return sum(2 * right - count for said, (right, count) in found if said != SILENT)


# ---------------------------------------------------------------------- (b) the choice of a checkpoint


@dataclass(frozen=True)
class Choice:
    """The model that is chosen of a run, beside the others that could be."""

    step: int
    chosen: float  # its accuracy on the questions trained on
    best: float  # that of the best candidate
    start: float
    last: float  # of the last candidate

    @property
    def good(self) -> bool:
        return self.chosen >= GOOD * self.best


def choice(seen: Seen, most_changed: float = CHANGED) -> Choice | None:
    """Of the models that were evaluated, those are candidates that have the votes of a whole episode; None where the
    start alone has. most_changed: as of `ranked`."""
    found = list(candidates(seen.visits, episode=seen.episode, steps=seen.own))
    if len(found) < 2:
        return None
    step, accuracies = ranked(found, most_changed=most_changed)[0].step, [seen.own[each.step] for each in found]
    return Choice(step, seen.own[step], max(accuracies), accuracies[0], accuracies[-1])


CHANGES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # of `ranked`, that are tried


def fit_choice(runs: Sequence[Seen]) -> float:
    """The `most_changed` with which the chosen models of these runs have the highest accuracy, summed as shares of the
    best candidates'; CHANGED where none is better, of equal others the lowest."""
    return max((CHANGED, *CHANGES), key=lambda limit: round(sum(_worth(choice(seen, limit)) for seen in runs), 9))


def _worth(made: Choice | None) -> float:
    return made.chosen / made.best if made and made.best else 1.0


# ---------------------------------------------------------------------- (c) how likely a label is right


def clarity(votes: Sequence[Vote]) -> np.ndarray:
    """z of `rules.chance`, float [N]: log(c1 + 1/2) - (log(n - c1 + 1/2) + log(c2 + 1/2)) / 2."""
    mine, runner_up, count = (
        np.array([getattr(v, name) for v in votes], float) for name in ("mine", "runner_up", "votes")
    )
    return np.log(mine + 0.5) - (np.log(count - mine + 0.5) + np.log(runner_up + 0.5)) / 2


def labels(runs: Sequence[Seen]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, whether the label is right, and the weight of all visits of the runs, float [N] each: each run weighs 1."""
    known = [seen for seen in runs if seen.votes]
    if not known:
        return (np.zeros(0),) * 3
    right = [np.array([vote.right for vote in seen.votes], float) for seen in known]
    weights = [np.full(len(seen.votes), 1 / len(seen.votes)) for seen in known]
    return np.concatenate([clarity(seen.votes) for seen in known]), np.concatenate(right), np.concatenate(weights)


def logistic(z: np.ndarray, right: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope and offset of 1 / (1 + exp(-(slope z + offset))) with the highest weighted likelihood, by Newton's steps,
    and a prior as weak as one visit of a run: a slope of 1 and an offset of 0, with a variance of 100."""
    features, prior = np.stack([z, np.ones_like(z)], 1), np.array([1.0, 0.0])
    found = prior.copy()
    for _ in range(50):
        chance = 1 / (1 + np.exp(-features @ found))
        gradient = features.T @ (weights * (right - chance)) - (found - prior) / 100
        curvature = (features * (weights * chance * (1 - chance))[:, None]).T @ features + np.eye(2) / 100
        found += np.linalg.solve(curvature, gradient)
    return float(found[0]), float(found[1])


def isotonic(z: np.ndarray, right: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The non-decreasing function of z that is nearest to `right`, by pooling neighbours that are out of order (pool
    adjacent violators) -> where its levels begin, and the levels, ascending."""
    blocks: list[list[float]] = []  # begin, weight, weighted sum
    for begin, group in itertools.groupby(np.argsort(z, kind="stable"), key=lambda i: z[i]):
        places = list(group)
        blocks.append([begin, weights[places].sum(), (weights * right)[places].sum()])
        while len(blocks) > 1 and blocks[-2][2] / blocks[-2][1] >= blocks[-1][2] / blocks[-1][1]:
            _, weight, total = blocks.pop()
            blocks[-1][1] += weight
            blocks[-1][2] += total
    return np.array([block[0] for block in blocks]), np.array([block[2] / block[1] for block in blocks])


def level(z: np.ndarray, begins: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The value of `isotonic` at z."""
    return levels[np.maximum(np.searchsorted(begins, z, side="right") - 1, 0)]


def brier(chance: np.ndarray | float, right: np.ndarray, weights: np.ndarray) -> float:
    """The mean squared error of a probability."""
    return float(np.average((chance - right) ** 2, weights=weights))


def reliability(
    chance: np.ndarray, right: np.ndarray, weights: np.ndarray, bins: int = 10
) -> list[tuple[float, float, float, float]]:
    """Of each tenth of the probabilities with any: where it begins, its share of the weight, the mean probability, and
    the share of right labels."""
    place = np.minimum((chance * bins).astype(int), bins - 1)
    found = []
    for i in np.unique(place):
        those = place == i
        means = [float(np.average(values[those], weights=weights[those])) for values in (chance, right)]
        found.append((i / bins, float(weights[those].sum() / weights.sum()), *means))
    return found


# ---------------------------------------------------------------------- (d) the certificate


@dataclass(frozen=True)
class Certified:
    """Draws of canaries out of the questions held out."""

    draws: int
    worse: int  # models that are worse than their start by more than EPS on the other questions
    worse_returned: int
    better: int  # draws of runs that gain GAINED
    better_returned: int


def certified(runs: Sequence[Seen], *, draws: int = DRAWS, canaries: int = CANARIES, seed: int = 0) -> Certified:
    """Draw canaries again and again, of one run after the other, and see what the certificate returns. Runs with no
    other questions than canaries are left out."""
    rng, counts = np.random.default_rng(seed), np.zeros(4, int)
    runs = [seen for seen in runs if len(seen.changes) > canaries]
    draws = draws if runs else 0
    for i in range(draws):
        changes = runs[i % len(runs)].changes
        order = rng.permutation(len(changes))
        returned = capitals(changes[order[:canaries]], eps=EPS).max() >= 1 / DELTA
        worse, better = changes[order[canaries:]].mean() < -EPS, changes.mean() >= GAINED
        counts += np.array([worse, worse and returned, better, better and returned], int)
    return Certified(draws, *(int(count) for count in counts))
