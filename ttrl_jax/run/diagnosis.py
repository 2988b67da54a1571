"""Judge a run by metrics that need no truth: does it learn, has it converged, is it stuck, or does it collapse?

Only votes, lengths and updates are read, never `audit/*` or `eval/*`. What the votes agree on may still be wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttrl_jax.run.metrics import finite
from ttrl_jax.run.visits import Visits, changed, diversity


@dataclass(frozen=True)
class Limits:
    """What decides. `scripts/pool.py --report` fits the first group on the runs of its calibration half, and prints it:
    42 runs of three models, of which 14 collapsed (docs/science.md)."""

    rise: float = 0.05  # of the majority ratio
    agreed: float = 0.9  # a majority ratio from which a run that does not rise had nothing left to learn
    still: float = 0.05  # as near to the last majority ratio as its means over 1/12 of the steps keep by chance
    wide: float = 0.1  # what chance makes of the difference of two ends; beyond it no rise is no sign of none
    fall: float = 0.2  # of the highest majority ratio, lost again
    lost: float = 0.1  # more responses without an answer than at first
    same: float = 0.5  # times the entropy of the first labels; less is a loss
    kept: float = 0.2  # of the labels that were clear, changed: no more is no collapse, unless one label is left
    turned: float = 0.5  # of the labels that were clear, changed: as many are a collapse

    sure: int = 24  # training steps; with fewer no run is said to stay where it is, as most of it may be to come

    few: int = 16  # training steps; with fewer there are no two ends of 4 steps to compare
    ends: int = 12  # the first and the last 1/12 of the steps are compared: a few episodes of those runs
    voted: int = 16  # questions that voted, at least, in an end: 4 steps of 4 questions, or 16 steps of one
    labels: int = 8  # at each end, without which nothing is said of how different they are
    one: float = 0.97  # of the last labels, for one answer: then it is left alone, but for 1 question in 32


LIMITS = Limits()
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
    """A metric over the steps that have it, smoothed: the mean of each stretch of them."""

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


def diagnose(rows: Sequence[Mapping[str, Any]], visits: Visits = (), *, limits: Limits = LIMITS) -> Diagnosis:
    """Judge a run by its metrics so far.

    Args:
      rows: those of metrics.jsonl, in the order of steps. Rows without a vote (the last evaluation), and values that
        are missing or not finite, are passed over.
      visits: those of votes.jsonl. Without them, as of an older run, nothing is said of how different labels are, and a
        step counts as four questions or more.

    Returns the first of these verdicts that fits, m being the mean majority ratio of 1/12 of the steps, at least 4, in
    which at least 16 questions vote, or half of the steps where those are fewer:
      too short   fewer than 16 steps, or m is below 0.9, and it may have risen or not: by 0.05 or more, but by no more
                  than chance gives, or by less where chance gives more than 0.1
      collapsing  at the end m has lost a fifth of its highest value, 0.05 and twice what chance gives, or a tenth more
                  of the responses have no answer than at the start, or half of the labels that were clear are others
                  (`_turned_labels`), or the labels of an episode have less than half of the entropy that those of the
                  first had (`_lost_labels`)
      stuck       m has not risen by 0.05, or by no more than chance gives where nearly all questions had equal
                  rewards, and is below 0.9
      converged   m has been where it is at the end, but for chance, since half of the steps were done, when the
                  learning rate was still half of its peak; or m is 0.9 or more, and has risen by less than 0.05
      learning    m has risen, and came near its end only in the second half
    With fewer than 24 steps no run is stuck or has converged: if m has risen it learns, else it is too short to tell.
    """
    steps = [row for row in map(finite, rows) if {"step", "vote/majority_ratio"} <= row.keys()]
    if len(steps) < limits.few:
        return Diagnosis("too short", f"Training steps so far: {len(steps)}; it takes {limits.few} to tell a trend.")
    least = _least(len(steps), visits, limits)
    ratio = _signal(steps, "vote/majority_ratio", least)
    course = f"from {ratio.first:.3f} to {ratio.last:.3f} (means of the first and the last {ratio.width} steps)"
    if text := _collapse(steps, visits, ratio, limits):
        return Diagnosis("collapsing", text)
    risen = ratio.last - ratio.first
    brief = f"it takes {limits.sure} steps to tell whether it stays there." if len(steps) < limits.sure else ""
    high = ratio.last >= limits.agreed
    rise = limits.rise if high else max(limits.rise, ratio.chance)
    if brief and risen < rise:
        return Diagnosis("too short", f"The majority ratio went {course}, and {brief}")
    if not high and risen < rise:
        nothing = _last(steps, "vote/zero_advantage_groups", least) > 1 - MANY
        unsure = ratio.chance > limits.wide if risen < limits.rise else True
        if unsure and not nothing:
            text = f"The majority ratio went {course}, and chance may make a difference of {ratio.chance:.3f}"
            return Diagnosis("too short", f"{text}: it takes more steps to tell whether it rises.")
        text = f"The majority ratio went {course}, and chance may make a difference of {ratio.chance:.3f}."
        if risen < limits.rise:
            text = f"The majority ratio rose by less than {limits.rise:g}: it went {course}."
        return Diagnosis("stuck", f"{text} {_why_stuck(steps, least)}")
    near = max(limits.still, 2 * math.hypot(ratio.errors[1], ratio.errors[1]))
    away = np.flatnonzero(np.abs(ratio.means - ratio.last) > near)
    since = int(ratio.steps[away[-1] + 1 if len(away) else 0])
    said = [*_labels(steps, least, limits), _NOT_TRUTH]
    if not brief and since <= (steps[0]["step"] + steps[-1]["step"]) / 2:
        text = f"The majority ratio went {course}, and has stayed within {near:.2f} of that since step {since}."
        return Diagnosis("converged", " ".join([text, *said]))
    if risen < limits.rise:  # from so high that there was little to rise
        text = f"The majority ratio went {course}: from {limits.agreed:g} on little is left to agree on."
        return Diagnosis("converged", " ".join([text, *said]))
    text = brief or f"came within {near:.2f} of that only at step {since}: more episodes may teach more."
    return Diagnosis("learning", " ".join([f"The majority ratio rose {course}, and {text}", *said]))


def _least(steps: int, visits: Visits, limits: Limits) -> int:
    """Steps of an end at least: in which enough questions vote, for they differ, and one step may have one of them."""
    least = limits.few // 4
    if visits:
        questions = len(visits) / len({visit["step"] for visit in visits})  # of a step
        least = max(least, min(math.ceil(limits.voted / questions), steps // 2))
    return max(least, steps // limits.ends)


def _signal(steps: Sequence[Mapping[str, float]], name: str, least: int) -> _Signal | None:
    """The metric `name`, in stretches of `least` steps that have it; None if no step has it."""
    found = [(row["step"], row[name]) for row in steps if name in row]
    if not found:
        return None
    at, values = np.array([step for step, _ in found]), np.array([value for _, value in found], np.float64)
    width = min(len(values), least)
    means = np.convolve(values, np.full(width, 1 / width), "valid")
    errors = tuple(float(end.std()) / math.sqrt(width) for end in (values[:width], values[-width:]))
    return _Signal(at[width // 2 :][: len(means)], means, width, errors)


def _last(steps: Sequence[Mapping[str, float]], name: str, least: int) -> float:
    """The metric `name` at the end; 0 if no step has it."""
    signal = _signal(steps, name, least)
    return signal.last if signal else 0.0


def _collapse(steps: Sequence[Mapping[str, float]], visits: Visits, ratio: _Signal, limits: Limits) -> str | None:
    """What has been lost, if much was; else None."""
    lost = []
    best = int(ratio.means.argmax())
    fallen = float(ratio.means[best]) - ratio.last
    # Twice: the best of many means is high by chance too.
    if fallen > max(limits.fall * ratio.means[best], limits.rise, 2 * ratio.chance):
        lost.append(
            f"The majority ratio fell to {ratio.last:.3f} from {ratio.means[best]:.3f} around step {ratio.steps[best]}."
        )
    silent = _signal(steps, "vote/no_answer_rate", ratio.width)
    if silent and silent.last - silent.first > limits.lost:
        lost.append(f"Responses without an answer rose from {silent.first:.1%} to {silent.last:.1%}.")
    if said := _turned_labels(visits, limits):
        lost.append(f"{said}: what is learned now is something else than the votes knew.")
    if said := _lost_labels(visits, limits):
        lost.append(f"{said}, while the majority ratio went from {ratio.first:.3f} to {ratio.last:.3f}.")
    if not lost:
        return None
    for name, what in (("length/truncation_rate", "Responses cut off"), ("update/kl", "The KL from the start")):
        signal = _signal(steps, name, ratio.width)
        if signal and signal.last > signal.first:
            lost.append(f"{what} went from {signal.first:.3f} to {signal.last:.3f}.")
    return " ".join([*lost, "Take an earlier checkpoint; learn more slowly or with a greater train.kl_coef."])


def _turned_labels(visits: Visits, limits: Limits) -> str | None:
    """How many labels that were clear are others in the last visits, one for each question, if they are too many; else
    None."""
    questions = len({visit["question"] for visit in visits})
    others = changed(visits, range(len(visits) - min(questions, len(visits) // 2), len(visits)))
    if len(others) < limits.labels or sum(others) < limits.turned * len(others):
        return None
    return f"Of {len(others)} labels that were clear, {sum(others)} are others now"


def _lost_labels(visits: Visits, limits: Limits) -> str | None:
    """How labels have become alike, if they have; else None.

    The first and the last labels are compared, as many as there are questions, so of an episode each, or of half of the
    visits where those are fewer. What counts is their entropy beside that at the start: of yes and no there are two at
    most, and a step may have one question. Labels that were clear and are kept are no loss, however alike they become,
    as where nearly all answers are no. But a run that has one label left for all questions has collapsed.
    """
    questions = len({visit["question"] for visit in visits})
    count = min(max(questions, 2 * limits.labels), len(visits) // 2)
    begin, end = ([v["label"] for v in part if v["label"] is not None] for part in (visits[:count], visits[-count:]))
    if min(len(begin), len(end)) < limits.labels or diversity(end) >= limits.same * diversity(begin):
        return None
    shares = [max(map(labels.count, {*labels})) / len(labels) for labels in (begin, end)]
    others = changed(visits, range(len(visits) - count, len(visits)))
    if shares[1] < limits.one and others and sum(others) <= limits.kept * len(others):
        return None
    return (
        f"Different questions have come to share their labels: of the first {len(begin)} labels {len({*begin})} were "
        f"different, and the most common one had {shares[0]:.1%}; of the last {len(end)} it is {len({*end})} and "
        f"{shares[1]:.1%}"
    )


def _why_stuck(steps: Sequence[Mapping[str, float]], least: int) -> str:
    """The reasons that the metrics give, each with what to change."""
    names = ("vote/no_answer_rate", "length/truncation_rate", "vote/tie_rate", "vote/flip_rate")
    silent, cut, ties, flips = (_last(steps, name, least) for name in names)
    equal, unlabelled = (_last(steps, name, least) for name in ("vote/zero_advantage_groups", "judge/unlabelled_rate"))
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
    entropy = _signal(steps, "update/entropy", least)
    if entropy:
        reasons.append(f"The entropy of the next token went from {entropy.first:.3f} to {entropy.last:.3f} nats.")
    return " ".join(reasons)


def _labels(steps: Sequence[Mapping[str, float]], least: int, limits: Limits) -> list[str]:
    """What the votes say beside the majority ratio."""
    said = []
    entropy, flips = (_signal(steps, name, least) for name in ("vote/vote_entropy", "vote/flip_rate"))
    if entropy:
        said.append(f"The vote entropy went from {entropy.first:.2f} to {entropy.last:.2f} nats.")
    if flips:
        said.append(f"Labels that changed since the last visit: {flips.first:.1%} at first, {flips.last:.1%} at last.")
    clear = [
        row["vote/flip_rate"]
        for row in steps
        if "vote/flip_rate" in row and row.get("vote/runner_up_margin", 0) >= CLEAR
    ]
    if len(clear) >= limits.few and np.mean(clear) > DRIFT:
        said.append(
            f"But {np.mean(clear):.1%} of the labels changed while votes were clear (a margin of {CLEAR} and more), "
            "which is seldom chance: the model may be learning something that no vote was about. Look at the labels "
            "that flipped."
        )
    return said
