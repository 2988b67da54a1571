"""TTRL-Guard (arXiv 2605.19444): trust a label by how it came about, from vote to vote. Nothing here can see a truth.

Its three parts, as `ttrl_utils.py` of its code has them. A label flips where it differs from the one at the question's
last visit. The majority ratio is its share of all votes.

  scale  FRS. Half for a label that flipped, and of that 0.7 if its majority ratio is above 0.6. 0.85 for one that never
         flipped while its mean ratio over 5 visits was above 0.6, at 5 visits of a question at most.
  skip   RCSU. A question whose label flipped once, and whose mean ratio over 5 visits is above 0.7, is at risk. It is
         skipped with a chance of 0.7, and of a step's questions a quarter at most (one, of three and fewer).
  bonus  MPS. Where a label flips, the other answers that a quarter of the votes are for share 0.3 by their votes, and a
         response without an answer gets a twentieth of their mean.

All of it follows from the history, so that nothing has to keep count. Their code never has the vote counts that the
bonus needs. Here it has them: all V votes are counted, and the quarter is one of V. Its floor of the scale, 0.1, is
below all that the factors make. Its scripts set the 0.7 of `skip` to 0.5, and switch `scale` off for two of three
models.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ttrl_jax.reward.history import Visit
from ttrl_jax.reward.rules import majority
from ttrl_jax.reward.score import padded
from ttrl_jax.reward.verdict import Case, Draw, Verdict
from ttrl_jax.reward.vote import Ballot

_WINDOW = 5  # visits, this one too
_FLIPPED, _SURE, _NEVER = 0.5, 0.7, 0.85  # factors of the scale
_HIGH = 0.6  # a majority ratio
_RISKY, _SKIP, _MOST_SKIPPED = 0.7, 0.7, 0.25  # a mean majority ratio, a chance, a share of the questions
_BONUS, _CANDIDATE, _SILENT = 0.3, 0.25, 0.05  # in all; a share of the votes; of the mean bonus, without an answer


def guard(case: Case) -> Verdict:
    """The majority's reward, with the scale and the bonus of TTRL-Guard."""
    lengths, ids = case.evidence.lengths, case.draw.ids
    now = case.history.visits_of(case.draw.step, ids, case.ballots, case.labels, lengths, same=case.same)
    visits = [(*case.history.of_question.get(visit.question, ()), visit) for visit in now]
    risky = [at_risk(each) for each in visits]
    skipped = _skipped(risky, case.draw)
    scale = np.where(skipped, 0, [trust(each) for each in visits]).astype(np.float32)
    labelled = zip(case.ballots, case.labels, now, strict=True)
    bonus = padded([_bonus(ballot, label, flipped=visit.flipped is True) for ballot, label, visit in labelled])
    found = {
        "scale": float(scale.mean()),
        "at_risk_rate": float(np.mean(risky)),
        "skipped_rate": float(skipped.mean()),
        "bonus_rate": float(bonus.any(1).mean()),
    }
    return replace(majority(case), scale=scale, bonus=bonus, found=found)


def trust(visits: Sequence[Visit]) -> float:
    """The scale of a question, by its visits, the last of which is now."""
    now = visits[-1]
    if now.flipped:
        return _FLIPPED * (_SURE if now.share > _HIGH else 1.0)
    if _has_flipped(visits):
        return 1.0
    locked = [_locked(visits[:k], _HIGH) for k in range(1, len(visits) + 1)]
    return _NEVER if locked[-1] and sum(locked) <= _WINDOW else 1.0


def at_risk(visits: Sequence[Visit]) -> bool:
    """Whether answers competed once, and one of them is now sure of the vote."""
    return _has_flipped(visits) and _locked(visits, _RISKY)


def _has_flipped(visits: Sequence[Visit]) -> bool:
    return any(visit.flipped for visit in visits)


def _locked(visits: Sequence[Visit], ratio: float) -> bool:
    """Whether the last visits are enough, and their mean majority ratio is above `ratio`."""
    return len(visits) >= _WINDOW and float(np.mean([visit.share for visit in visits[-_WINDOW:]])) > ratio


def _skipped(risky: Sequence[bool], draw: Draw) -> np.ndarray:
    """Which questions are skipped, bool [P]: of those at risk, drawn one by one in their order, until it is enough."""
    skipped, most = np.zeros(len(risky), bool), max(1, int(len(risky) * _MOST_SKIPPED))
    for p, question in enumerate(draw.ids):
        # The last number keeps this draw apart from those of `judge.winners` and `score.random_classes`.
        rng = np.random.default_rng(np.random.SeedSequence(draw.seed, spawn_key=(draw.step, int(question), 2)))
        skipped[p] = risky[p] and skipped.sum() < most and rng.random() < _SKIP
    return skipped


def _bonus(ballot: Ballot, label: int | None, *, flipped: bool) -> list[float]:
    """[V], of each vote, in units of the question's mean absolute advantage."""
    enough = max(1, int(len(ballot.classes) * _CANDIDATE))
    candidates = {k: count for k, count in enumerate(ballot.counts) if count >= enough and k != label}
    if not flipped or not candidates:
        return [0.0] * len(ballot.classes)
    shares: dict[int | None, float] = {k: _BONUS * count / sum(candidates.values()) for k, count in candidates.items()}
    shares[None] = _SILENT * _BONUS / len(candidates)
    return [shares.get(k, 0.0) for k in ballot.classes]
