"""The canaries of a run: labelled questions that it never trains on. The start model is measured on them before the
first step and the trained one after the last, with the same random numbers, and a certificate is made of the changes.

What was measured is in canary.json. So a run that goes on needs no start model, and each look at the end is counted.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ttrl_jax.data.problems import truths
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import Inputs
from ttrl_jax.measure.certificate import certify, fewest
from ttrl_jax.programs import sampling_of
from ttrl_jax.reward.audit import truth_classes
from ttrl_jax.run import distributed
from ttrl_jax.run.choice import START, TRAINED
from ttrl_jax.run.metrics import write_jsonl
from ttrl_jax.session import Session, encode, sample
from ttrl_jax.tasks.voting import cast_votes

FILE = "canary.json"
NO_CERTIFICATE = "certificate: none, as there are no canaries (canary.path); nothing is promised of new questions"
_KEY = 2**31 - 1  # apart from training's, 0, and those of the evaluations, which count from 1
_ORDER = (0, 1)  # spawn key of the order; those of training's episodes have one number

Progress = Callable[[int, float], None]  # as of `session.sample`


def require_enough(inputs: Inputs) -> None:
    """Raise InputError where there are so few canaries that no model could ever be accepted."""
    if inputs.canaries is None:
        return
    own, count = inputs.config.canary, len(inputs.canaries.items)
    if count < (least := fewest(eps=own.eps, delta=own.delta)):
        raise InputError(
            f"canary.path={own.path} has {count} questions, with which no model could be accepted; give at least "
            f"{least}, better 16 to 64 (canary.eps={own.eps:g}, canary.delta={own.delta:g})"
        )


def begin(session: Session, workdir: Path, *, progress: Progress) -> None:
    """Measure the start model on the canaries, before the first step; later, only see to it that this is known. Does
    nothing without canaries and steps. Raises InputError if a run that goes on has lost canary.json."""
    if not _wanted(session):
        return
    if session.step:
        _read(session, workdir)
        return
    made = {"ids": [problem.id for problem in session.inputs.canaries.items], "samples": session.config.canary.samples}
    made |= {"start": _correct(session, progress), "looks": []}
    distributed.alone(lambda: write_jsonl(workdir / FILE, [made]))


def end(session: Session, workdir: Path, *, progress: Progress) -> None:
    """Measure the trained model on the canaries, after the last step, and keep what the certificate says. Of a run that
    goes on after such a look, the next one is another look at the same canaries."""
    if not _wanted(session):
        return
    kept, own = _read(session, workdir), session.config.canary
    trained, order = _correct(session, progress), _order(len(kept["start"]), seed=session.config.seed)
    changes = [(trained[i] - kept["start"][i]) / own.samples for i in order]
    found = certify(changes, eps=own.eps, delta=own.delta)
    looks = [each for each in kept["looks"] if each["step"] < session.step]
    outcome = {
        "returned": TRAINED if found.accepted else START,
        "canaries": len(changes),
        "samples": own.samples,
        "eps": own.eps,
        "delta": own.delta,
        "capital": found.capital,
        "threshold": found.threshold,
        "before": sum(kept["start"]) / own.samples / len(changes),
        "after": sum(trained) / own.samples / len(changes),
        "needed": found.needed,
        "look": len(looks) + 1,
    }
    looks.append({"step": session.step, "trained": trained, "outcome": outcome})
    distributed.alone(lambda: write_jsonl(workdir / FILE, [kept | {"looks": looks}]))


def outcome(workdir: Path, *, step: int) -> dict[str, Any] | None:
    """What the look after `step` steps has found; None where there was none."""
    path = workdir / FILE
    looks = json.loads(path.read_text(encoding="utf-8"))["looks"] if path.is_file() else []
    return next((each["outcome"] for each in looks if each["step"] == step), None)


def sentence(found: Mapping[str, Any] | None) -> str:
    """What an outcome means, in sentences of one line."""
    if found is None:
        return NO_CERTIFICATE
    count, samples = found["canaries"], found["samples"]
    gain = f"accuracy on {count} canaries, {samples} responses each: {found['before']:.3f} -> {found['after']:.3f}"
    bet = f"the bet reached {found['capital']:.3g}, and {found['threshold']:.3g} were needed"
    if found["returned"] == TRAINED:
        chance = found["delta"] * found["look"]
        over = f", over all {found['look']} looks at these canaries" if found["look"] > 1 else ""
        return (
            f"certificate: the trained model is returned; {gain}; {bet}, which took {found['needed']} canaries. One "
            f"that is worse by more than {found['eps']:g} on such questions is returned with a chance of at most "
            f"{chance:.3g}{over}"
        )
    if found["needed"] is None:
        more = "no number of canaries would do, were their changes like these"
    else:
        more = f"about {found['needed']} canaries would have been needed, were the others like these (an estimate)"
    return f"certificate: the start model is returned; {gain}; {bet}; {more}"


def _wanted(session: Session) -> bool:
    return session.inputs.canaries is not None and session.inputs.total_steps > 0


def _order(count: int, *, seed: int) -> Sequence[int]:
    """The order in which the bets are made: it must not depend on what the models answer."""
    sequence = np.random.SeedSequence(seed, spawn_key=_ORDER)
    return np.random.Generator(np.random.PCG64(sequence)).permutation(count).tolist()


def _correct(session: Session, progress: Progress) -> list[int]:
    """How many of the responses to each canary are right, of canary.samples, sampled as in evaluations. The random
    numbers are the same whatever the model. Truths are read here to measure; nothing is trained on it."""
    canaries, config = session.inputs.canaries, session.config
    key = jax.random.fold_in(jax.random.key(config.seed), _KEY)
    prompts = encode(session, canaries.items, task=canaries.task)
    way = dict(votes=config.canary.samples, sampling=sampling_of(config.eval), tokens=False)
    rollouts = sample(session, prompts, key, **way, progress=progress)
    asked = [problem.question for problem in canaries.items]
    ballots = cast_votes(canaries.task, rollouts.texts, questions=asked)
    right = truth_classes(ballots, truths(canaries.items), same=canaries.task.same)
    found = [0 if c is None else ballot.counts[c] for ballot, c in zip(ballots, right, strict=True)]
    return distributed.first(found)  # comparing formulas has deadlines, which not every host keeps


def _read(session: Session, workdir: Path) -> dict[str, Any]:
    """What canary.json has, for all processes. Raises InputError if it has not the start of these canaries."""
    path = workdir / FILE
    text = distributed.gather(lambda: _text(path) if distributed.leader() else "")[0]
    try:
        kept = json.loads(text)
        ids = [problem.id for problem in session.inputs.canaries.items]
        whole = kept["ids"] == ids and len(kept["start"]) == len(ids) and isinstance(kept["looks"], list)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            f"{path} is missing or damaged, which has how the start model did on the canaries; put it back, or begin a "
            "new run"
        )
    return kept


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
