"""Which checkpoint of a run is taken: the one that its certificate returns, the newest, one by its number of steps, or
the one that is chosen by votes, without any truth."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ttrl_jax.errors import InputError
from ttrl_jax.run import folder
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.diagnosis import LIMITS
from ttrl_jax.run.visits import Visits, changed, diversity, read_visits

TRAINED, START = "trained", "start"  # what a certificate returns
LAST, CHOSEN = "last", "chosen"  # values of --step
# Of the labels that were clear; mostly 0.4 and more where models had collapsed, mostly 0 where they learned. As
# `scripts/pool.py --report` fits it on the runs of its calibration half (docs/science.md).
CHANGED = 0.25


@dataclass(frozen=True)
class Candidate:
    """A model after some steps, by the votes of the episode that follows, in which it begins to be trained further."""

    step: int
    share: float  # of the votes for the label, mean over questions
    diversity: float  # entropy of the labels, in nats: ln 2 of as many yes as no; 0 without any
    silent: float  # share of the votes without an answer
    changed: float  # of the labels that were clear before, share of those that are others now; 0 without any


def candidates(visits: Visits, *, episode: int, steps: Iterable[int] | None = None) -> Iterator[Candidate]:
    """Measure the models after 0, `episode`, 2 `episode` ... steps, or after those of `steps`, that have the votes of
    a whole episode. episode: its steps."""
    done = max((visit["step"] for visit in visits), default=-1) + 1
    for step in sorted(range(0, done, episode) if steps is None else set(steps)):
        there = [i for i, visit in enumerate(visits) if step <= visit["step"] < step + episode]
        if not there or step + episode > done:
            continue
        labels = [visits[i]["label"] for i in there if visits[i]["label"] is not None]
        votes = sum(sum(visits[i]["counts"]) + visits[i]["no_answer"] for i in there)
        others = changed(visits, there)
        yield Candidate(
            step=step,
            share=sum(visits[i]["share"] for i in there) / len(there),
            diversity=diversity(labels),
            silent=sum(visits[i]["no_answer"] for i in there) / votes,
            changed=sum(others) / max(1, len(others)),
        )


def ranked(found: Iterable[Candidate], *, most_changed: float = CHANGED) -> list[Candidate]:
    """The candidates that may be taken, the best first; the last of them is the start. None without the start.

    One may be taken if, beside the start, it has more agreement, its labels are at least LIMITS.same times as diverse,
    and at most LIMITS.lost more of its votes have no answer; and if at most `most_changed` of the labels that were
    clear are others now (`visits.changed`). A model that learns what its votes know keeps such labels, whatever happens
    to those that hardly won. Of equal ones the earlier is better.
    """
    start, *others = list(found) or [None]
    if start is None or start.step != 0:
        return []
    fit = [
        each
        for each in others
        if each.share > start.share
        and each.diversity >= LIMITS.same * start.diversity
        and each.silent <= start.silent + LIMITS.lost
        and each.changed <= most_changed
    ]
    return [*sorted(fit, key=lambda each: (-each.share, each.step)), start]


def best(visits: Visits, saved: Collection[int], *, episode: int, most: int) -> list[int]:
    """Of the steps that are saved the best ones, at most `most`. The start is never among them: it is the model that
    the run began with, which costs nothing to keep."""
    order = ranked(candidates(visits, episode=episode, steps={0, *saved}))
    return [each.step for each in order if each.step][:most]


def asked(run: Path, checkpoints: Checkpoints, given: str | None) -> int | None:
    """The step of the checkpoint of `run` that --step asks for; None if there is none yet.

    given: a number, "last", "chosen", or None: the newest, unless the certificate of a finished run returns the start.
    Raises InputError for another value, and where what is asked for is the start.
    """
    steps = checkpoints.steps()
    if given is not None and given.isdecimal():
        return int(given)
    if given not in (None, LAST, CHOSEN):
        raise InputError(f"--step must be a number of steps, {LAST} or {CHOSEN}, got {given!r}")
    if not steps or given == LAST:
        return steps[0] if steps else None
    if given is None:
        if _returned(run) == START:
            raise InputError(
                f"the certificate of {run} returns the start model, which the run began with; add --step {LAST} to "
                "take the trained one all the same"
            )
        return steps[0]
    episode = folder.made_with(run, flag="RUN").episode
    if found := best(read_visits(run), steps, episode=episode, most=1):
        return found[0]
    raise InputError(
        f"by its votes none of the checkpoints of {run} ({', '.join(map(str, steps))}) is better than the start model, "
        f"which the run began with; take that, or add --step {LAST}"
    )


def _returned(run: Path) -> str | None:
    """What the certificate of a finished run returns; None without one. Raises InputError for a damaged summary."""
    try:
        return ((folder.read_summary(run) or {}).get("certificate") or {}).get("returned")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{run / folder.SUMMARY}, which may hold a certificate, is damaged ({error}); the train command makes it "
            f"again, or add --step {LAST}"
        ) from error
