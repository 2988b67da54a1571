"""The metrics of a training step: those of votes and update, and those of length, time and memory."""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ttrl_jax.data.problems import Problem, truths
from ttrl_jax.records import Prompts, Rollouts
from ttrl_jax.reward.audit import audit
from ttrl_jax.reward.history import Visit
from ttrl_jax.reward.judge import Evidence, Verdict
from ttrl_jax.reward.signals import vote_metrics
from ttrl_jax.reward.vote import Ballot
from ttrl_jax.session import Session

WORTH_SAYING = 0.05  # share of responses


class Clock:
    """Seconds between laps, by name. phase: told what comes then, and the seconds that it took a step before."""

    def __init__(self, phase: Callable[..., None]) -> None:
        self.laps: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._phase, self._last = phase, time.monotonic()

    def each(self, steps: Iterable[int]) -> Iterator[int]:
        """The steps, each with laps of its own."""
        for step in steps:
            self._before, self.laps, self._last = self.laps, {}, time.monotonic()
            yield step

    def lap(self, name: str, *, then: str | None = None, next_lap: str = "") -> None:
        """The part `name` is over. then: what comes now, in words; next_lap: what it will be called."""
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now
        if then is not None:
            self._phase(then, expected=self._before.get(next_lap))


@dataclass(frozen=True)
class Seen:
    """What a training step was about."""

    batch: Sequence[Problem]  # P questions
    prompts: Prompts
    rollouts: Rollouts
    ballots: Sequence[Ballot]
    evidence: Evidence
    verdict: Verdict
    chosen: np.ndarray  # int32 [P, G], the votes that were trained on
    visits: Sequence[Visit]


def step_metrics(
    session: Session, seen: Seen, learned: Mapping[str, dict[str, float]], seconds: Mapping[str, float]
) -> dict[str, float]:
    """All metrics of a step; docs/metrics.md says what they mean. learned: the metrics of credit and update, by group.
    seconds: how long each part of the step took."""
    verdict, task = seen.verdict, session.task
    flips, formed = [visit.flipped for visit in seen.visits], seen.evidence.in_format
    votes = vote_metrics(seen.ballots, verdict, seen.chosen, flips, classes=task.classes)
    votes |= {} if formed is None else {"format_rate": float(_counted(formed, seen.rollouts).mean())}
    stopped = session.config.rollout.stop_votes > 0
    if stopped:
        votes["drawn_share"] = drawn_share(seen.ballots, session.config.rollout.votes)
    audited, known = {}, truths(seen.batch)
    if known is not None:
        how = {"selective": verdict.selective, "same": task.same, "stopped": stopped}
        audited = audit(seen.ballots, verdict.labels, verdict.rewards, seen.chosen, known, **how)
    return named(
        vote=votes,
        judge=dict(verdict.found),
        audit=audited,
        **learned,
        length=lengths(seen.prompts, seen.rollouts),
        time={**seconds, "compile": session.compile_seconds},
        speed=speed(seen.rollouts, seconds["sample"]),
        memory=memory(),
    )


def line_of(metrics: Mapping[str, float]) -> str:
    """The main numbers of a step on one line; shares of responses without an answer, or cut, where they are high."""
    shown = {
        "majority ratio": "vote/majority_ratio",
        "reward": "vote/majority_voting_reward",
        "without a label": "judge/unlabelled_rate",  # these three where the rule says so
        "pushed away": "judge/negative_rate",
        "skipped": "judge/skipped_rate",
        "label accuracy": "audit/label_accuracy",
        "reward accuracy": "audit/reward_accuracy",
        "entropy": "update/entropy",  # unknown where no row was computed
        "grad norm": "update/grad_norm",
        "votes drawn": "vote/drawn_share",  # where votes stop
    }
    parts = [f"{title} {metrics[name]:.3f}" for title, name in shown.items() if name in metrics]
    for title, name in (("no answer", "vote/no_answer_rate"), ("cut", "length/truncation_rate")):
        if metrics[name] >= WORTH_SAYING:
            parts.append(f"{title} {metrics[name]:.3f}")
    return ", ".join(parts)


def named(**groups: dict[str, float]) -> dict[str, float]:
    """The numbers of all groups, with names such as "vote/majority_ratio"."""
    return {f"{group}/{name}": value for group, numbers in groups.items() for name, value in numbers.items()}


def drawn_share(ballots: Sequence[Ballot], votes: int) -> float:
    """The votes that count on all questions, of the `votes` on each that might have been cast."""
    return sum(len(ballot.classes) for ballot in ballots) / (votes * len(ballots))


def speed(rollouts: Rollouts, seconds: float) -> dict[str, float]:
    """Tokens that were sampled in a second, and the share of decode steps of all slots that drew a token (missing where
    all samples end at once). Where votes stop, also the share of these tokens that were of votes that do not count."""
    lengths, thrown = _counted(rollouts.lengths, rollouts), rollouts.thrown
    found = {"sample_tokens_per_s": float((lengths.sum() + thrown) / seconds)}
    if rollouts.slot_steps:
        found["slot_use"] = float(((lengths - 1).sum() + thrown) / rollouts.slot_steps)
    if rollouts.counted is not None:
        found["thrown_share"] = float(thrown / (lengths.sum() + thrown))
    return found


def _counted(values: np.ndarray, rollouts: Rollouts) -> np.ndarray:
    """What is of votes that count, of values [P, V]."""
    return values if rollouts.counted is None else values[rollouts.counted]


def lengths(prompts: Prompts, rollouts: Rollouts) -> dict[str, float]:
    """Token counts of prompts and of all responses that count."""
    truncated, own = (_counted(each, rollouts) for each in (rollouts.truncated, rollouts.lengths))
    found = {"truncation_rate": float(truncated.mean()), "generated_tokens": int(own.sum())}
    for name, values in (("response", own), ("prompt", prompts.lengths)):
        numbers = {"mean": np.mean(values), "max": np.max(values), "min": np.min(values)}
        found |= {f"{name}_{which}": float(number) for which, number in numbers.items()}
    return found


def memory() -> dict[str, float]:
    """The most memory held so far, in GB: that of the first device if JAX knows it, else that of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"peak_gb": stats["peak_bytes_in_use"] / 1e9}
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_gb": kib * (1 if sys.platform == "darwin" else 1024) / 1e9}
