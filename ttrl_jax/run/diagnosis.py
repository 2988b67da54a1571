"""Judge a run by metrics that need no truth: does it learn, has it converged, is it stuck, or does it collapse?

Only votes, lengths and updates are read, never `audit/*` or `eval/*`. What the votes agree on may still be wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttrl_jax.run.metrics import finite

# Calibrated on runs of the quickstart (16 and 64 votes, temperature 1 to 2, random labels, faster rates) and of
# SmolLM2. One collapsed, at 30 times the quickstart's rate: it gave every question the same answer, in full agreement.
# FALL and LOST only keep clear of what all runs did.
FEWEST = 16  # training steps; with fewer there are no two ends of 4 steps to compare
ENDS = 12  # the first and the last 1/12 of the steps are compared: a few episodes of those runs
RISE = 0.05  # of the majority ratio; random labels moved it by 0.02, learning by 0.13 and more
FALL = 0.2  # of the highest majority ratio, lost again; random labels lost 0.1 of it
LOST = 0.1  # more responses without an answer than at first; runs that learned lost under 0.01
SAME = 0.5  # of the different labels among a step's questions, lost; it was 0.85 where the model collapsed
STILL = 0.03  # as near to the last majority ratio as its means over 1/12 of the steps keep by chance
AGREED = 0.9  # a majority ratio from which a run that does not rise had nothing left to learn
MANY = 0.2  # of the votes or labels: enough to name as a reason
CLEAR = 0.5  # winner minus runner-up, mean of a step, of all votes: few winners change there by chance
DRIFT = 0.01  # of the labels that were clear, changed; where wrong answers were taught it was 0.01 and 0.017, else less

_NOT_TRUTH = (
    "Agreement is not truth: wrong answers that everybody agrees on look the same from here, and only questions with "
    "known answers tell."
)


@dataclass(frozen=True)
class Diagnosis:
    verdict: str  # learning | converged | stuck | collapsing | too short
    text: str  # one paragraph: the evidence, and what to make of it

    def __str__(self) -> str:
        return f"{self.verdict}. {self.text}"


@dataclass(frozen=True)
class _Signal:
    """A metric over the steps that have it, smoothed: the mean of each 1/12 of them, at least 4, that lie together."""

    steps: np.ndarray  # int [M], the middle of each stretch
    means: np.ndarray  # float [M]; the first is the start, the last is the end
    width: int  # steps in a stretch
    errors: tuple[float, float]  # standard errors of the first and the last mean

    @property
    def first(self) -> float:
        return float(self.means[0])

    @property
    def last(self) -> float:
        return float(self.means[-1])

    @property
    def chance(self) -> float:
        """Two standard errors of the difference of the two ends."""
        return 2 * math.hypot(*self.errors)


def diagnose(rows: Sequence[Mapping[str, Any]]) -> Diagnosis:
    """Judge a run by its metrics so far.

    Args:
      rows: those of metrics.jsonl, in the order of steps. Rows without a vote (the last evaluation), and values that
        are missing or not finite, are passed over.

    Returns the first of these verdicts that fits, m being the mean majority ratio of 1/12 of the steps, at least 4:
      too short   fewer than 16 steps, or m has risen by 0.05, but by no more than chance gives, and is below 0.9
      collapsing  at the end m has lost a fifth of its highest value, 0.05 and twice what chance gives, or a tenth more
                  of the responses have no answer than at the start, or the questions of a step have half as many
                  different labels
      stuck       m has not risen by 0.05, or by no more than chance gives where nearly all questions had equal
                  rewards, and is below 0.9
      converged   m has been where it is at the end, but for chance, since half of the steps were done. The learning
                  rate was still half of its peak then, so that it was not the schedule that stopped it
      learning    m has risen, and came near its end only in the second half
    """
    steps = [row for row in map(finite, rows) if {"step", "vote/majority_ratio"} <= row.keys()]
    if len(steps) < FEWEST:
        return Diagnosis("too short", f"Training steps so far: {len(steps)}; it takes {FEWEST} to tell a trend.")
    ratio = _signal(steps, "vote/majority_ratio")
    course = f"from {ratio.first:.3f} to {ratio.last:.3f} (means of the first and the last {ratio.width} steps)"
    if text := _collapse(steps, ratio):
        return Diagnosis("collapsing", text)
    risen = ratio.last - ratio.first
    if risen < RISE and ratio.last < AGREED:
        return Diagnosis("stuck", f"The majority ratio did not rise: it went {course}. {_why_stuck(steps)}")
    if risen < ratio.chance and ratio.last < AGREED:
        text = f"The majority ratio went {course}, and chance may make a difference of {ratio.chance:.3f}"
        if _last(steps, "vote/zero_advantage_groups") > 1 - MANY:
            return Diagnosis("stuck", f"{text}. {_why_stuck(steps)}")
        return Diagnosis("too short", f"{text}: it takes more steps to tell whether it rises.")
    near = max(STILL, 2 * math.hypot(ratio.errors[1], ratio.errors[1]))
    away = np.flatnonzero(np.abs(ratio.means - ratio.last) > near)
    since = int(ratio.steps[away[-1] + 1 if len(away) else 0])
    if since <= (steps[0]["step"] + steps[-1]["step"]) / 2:
        text = f"The majority ratio went {course}, and has stayed within {near:.2f} of that since step {since}."
        return Diagnosis("converged", " ".join([text, *_labels(steps), _NOT_TRUTH]))
    text = f"The majority ratio rose {course}, and came within {near:.2f} of that only at step {since}: more episodes"
    return Diagnosis("learning", " ".join([text, "may teach more.", *_labels(steps), _NOT_TRUTH]))


def _signal(steps: Sequence[Mapping[str, float]], name: str) -> _Signal | None:
    """The metric `name`; None if no step has it."""
    found = [(row["step"], row[name]) for row in steps if name in row]
    if not found:
        return None
    at, values = np.array([step for step, _ in found]), np.array([value for _, value in found], np.float64)
    width = min(len(values), max(FEWEST // 4, len(values) // ENDS))
    means = np.convolve(values, np.full(width, 1 / width), "valid")
    errors = tuple(float(end.std()) / math.sqrt(width) for end in (values[:width], values[-width:]))
    return _Signal(at[width // 2 :][: len(means)], means, width, errors)


def _last(steps: Sequence[Mapping[str, float]], name: str) -> float:
    """The metric `name` at the end; 0 if no step has it."""
    signal = _signal(steps, name)
    return signal.last if signal else 0.0


def _collapse(steps: Sequence[Mapping[str, float]], ratio: _Signal) -> str | None:
    """What has been lost, if much was; else None."""
    lost = []
    best = int(ratio.means.argmax())
    fallen = float(ratio.means[best]) - ratio.last
    if fallen > max(
        FALL * ratio.means[best], RISE, 2 * ratio.chance
    ):  # twice: the best of many means is high by chance too
        lost.append(
            f"The majority ratio fell to {ratio.last:.3f} from {ratio.means[best]:.3f} around step {ratio.steps[best]}."
        )
    silent = _signal(steps, "vote/no_answer_rate")
    if silent and silent.last - silent.first > LOST:
        lost.append(f"Responses without an answer rose from {silent.first:.1%} to {silent.last:.1%}.")
    labels = _signal(steps, "vote/distinct_labels")
    if labels and labels.last < SAME * labels.first:
        lost.append(
            f"Different questions have come to share their labels: at first {labels.first:.1%} of the labels of a step "
            f"were different, now {labels.last:.1%}, while the majority ratio went from {ratio.first:.3f} to "
            f"{ratio.last:.3f}."
        )
    if not lost:
        return None
    for name, what in (("length/truncation_rate", "Responses cut off"), ("update/kl", "The KL from the start")):
        signal = _signal(steps, name)
        if signal and signal.last > signal.first:
            lost.append(f"{what} went from {signal.first:.3f} to {signal.last:.3f}.")
    return " ".join([*lost, "Take an earlier checkpoint; learn more slowly or with a greater train.kl_coef."])


def _why_stuck(steps: Sequence[Mapping[str, float]]) -> str:
    """The reasons that the metrics give, each with what to change."""
    silent, cut = _last(steps, "vote/no_answer_rate"), _last(steps, "length/truncation_rate")
    ties, flips = _last(steps, "vote/tie_rate"), _last(steps, "vote/flip_rate")
    equal, unlabelled = _last(steps, "vote/zero_advantage_groups"), _last(steps, "judge/unlabelled_rate")
    reasons = []
    if silent > MANY:
        reasons.append(
            f"{silent:.1%} of the responses have no answer and so no vote, {cut:.1%} were cut off: look at the "
            "prompt, reward.extract and rollout.max_tokens."
        )
    if ties > MANY or flips > MANY:
        reasons.append(
            f"Labels are luck: {ties:.1%} of the votes were ties, and {flips:.1%} of the labels changed since the last "
            "visit. Lower rollout.temperature or raise rollout.votes; questions that the model hardly knows teach "
            "nothing."
        )
    if unlabelled > 1 - MANY:
        reasons.append(
            f"{unlabelled:.1%} of the questions had no label: their votes did not pass judge.gate_share and "
            "judge.gate_margin. Lower these, or take another judge.rule."
        )
    elif equal > 1 - MANY:
        reasons.append(f"In {equal:.1%} of the questions all rewards were equal: there was nothing to learn from.")
    if not reasons:
        reasons.append(
            "The votes have winners, but the model does not move towards them: too few steps, too low a learning rate, "
            "or rewards that do not follow the votes."
        )
    entropy = _signal(steps, "update/entropy")
    if entropy:
        reasons.append(f"The entropy of the next token went from {entropy.first:.3f} to {entropy.last:.3f} nats.")
    return " ".join(reasons)


def _labels(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """What the votes say beside the majority ratio."""
    said = []
    entropy, flips = _signal(steps, "vote/vote_entropy"), _signal(steps, "vote/flip_rate")
    if entropy:
        said.append(f"The vote entropy went from {entropy.first:.2f} to {entropy.last:.2f} nats.")
    if flips:
        said.append(f"Labels that changed since the last visit: {flips.first:.1%} at first, {flips.last:.1%} at last.")
    clear = [
        row["vote/flip_rate"]
        for row in steps
        if "vote/flip_rate" in row and row.get("vote/runner_up_margin", 0) >= CLEAR
    ]
    if len(clear) >= FEWEST and np.mean(clear) > DRIFT:
        said.append(
            f"But {np.mean(clear):.1%} of the labels changed while votes were clear (a margin of {CLEAR} and more), "
            "which is seldom chance: the model may be learning something that no vote was about. Look at the labels "
            "that flipped."
        )
    return said
