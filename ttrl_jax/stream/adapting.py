"""Adapt to each question of a stream alone: a few steps of adapters, and an answer that is taken back unless the votes
have become clearer. The next question finds the start again, whatever was learned."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ttrl_jax import commands
from ttrl_jax.data.problems import Problem
from ttrl_jax.errors import InputError
from ttrl_jax.model.sharding import on_devices
from ttrl_jax.programs import resting
from ttrl_jax.records import TrainState
from ttrl_jax.reward.adoption import Poll, hopeless, refusal
from ttrl_jax.reward.judge import Judge
from ttrl_jax.session import Session, step_key
from ttrl_jax.stream.learning import Memory, learn, require_own_labels
from ttrl_jax.stream.votes import Row, Voted, poll, vote_key
from ttrl_jax.tasks.voting import judge_of

NOT_FINITE = "not_finite"  # why an answer is taken back, beside the reasons of adoption.py
# What few steps on one question need, where neither the command line nor the config file says otherwise: the rates of
# whole runs hardly move adapters in four steps.
OWN = {"lora.rank": 16, "train.learning_rate": 5e-5}
ALONE = {"rollout.prompts": 1, "train.minibatch_prompts": 1}  # a step is about one question
WHY = "for --mode=adapt"


@dataclass(frozen=True)
class Start:
    """A model as it begins each question. Its arrays are never used up."""

    session: Session
    copy: Callable[[TrainState], TrainState]
    judge: Judge


@dataclass(frozen=True)
class Adapted:
    """How one question went."""

    voted: Voted  # what is answered: the votes after the last step, or those of the start
    before: Poll
    after: Poll | None  # None where nothing was voted on after the last step
    steps: int  # that were taken
    why: str | None  # the start's answer stands; None: the adapted one is kept
    tokens: int  # of all responses

    def row(self) -> Row:
        """What the answer says of it."""
        after = None if self.after is None else _said(self.after)
        kept = {"steps": self.steps, "kept": self.why is None, "why": self.why}
        return {"tokens": self.tokens, "adapted": kept | {"before": _said(self.before), "after": after}}


def begin(session: Session) -> Start:
    """Let a session that was opened for training, and has taken no step, be what each question begins with."""
    # A function of its own, so that it is compiled once. Without the copies the first update would use the start up.
    copied = jax.jit(
        lambda state: jax.tree.map(lambda x: jnp.array(x, copy=True), state),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, session.layout),
    )
    config = session.config
    copy = (lambda state: resting(config, on_devices(state))) if config.mesh.offload else copied
    return Start(session, copy, judge_of(config, session.task))


def adapt(
    start: Start, problem: Problem, *, progress: Callable[[int, float], None] = lambda tokens, share: None
) -> Adapted:
    """Answer a question: by votes of the start, then solve.steps training steps on this question alone, the first on
    these votes and each other one on new ones, and votes of the model after them. What is answered depends on the seed,
    the question, its number and the start, and on no other question. progress: as in `sample`.

    No step is taken where the start's answer would stand whatever came. Where a step makes numbers that are not finite,
    it stands too. Raises FloatingPointError where those of the start are not.
    """
    count, tokens = start.session.config.solve.steps, 0

    def told(drawn: int, share: float) -> None:
        progress(tokens + drawn, (session.step + share) / (count + 1))

    session = start.session
    voted = first = poll(session, [problem], vote_key(session), tokens=True, progress=told)
    before, tokens = _poll_of(first), _spent(first)
    if why := hopeless(before):
        return Adapted(first, before, None, 0, why, tokens)
    session, memory = _again(start), Memory()
    try:
        while session.step < count:
            session, memory, _, _ = learn(session, voted, memory, start.judge)
            key, more = step_key(session, session.step), session.step < count
            voted = poll(session, [problem], key, step=session.step, tokens=more, progress=told)
            tokens += _spent(voted)
    except FloatingPointError:
        return Adapted(first, before, None, session.step, NOT_FINITE, tokens)
    after = _poll_of(voted)
    why = refusal(before, after, same=session.task.same)
    return Adapted(first if why else voted, before, after, session.step, why, tokens)


def for_adapting(config: ConfigDict, *, given: Collection[str]) -> tuple[ConfigDict, dict[str, str]]:
    """The config as adapting needs it, and which keys that has changed, in words. given: the keys set on the command
    line. A key of OWN keeps what it was given there or in the config file. Raises InputError for what does not go with
    adapting."""
    if config.rollout.stop_votes:
        raise InputError(
            f"rollout.stop_votes={config.rollout.stop_votes} ends votes early, and --mode=adapt compares ballots of "
            "one size; set it to 0"
        )
    if "solve.replay" in given:
        raise InputError("solve.replay is for --mode=learn: --mode=adapt learns from no other question; leave it out")
    require_own_labels(config)
    whole, defaults, said = copy.deepcopy(config), commands.flat(commands.defaults()), {}
    for key, value in (OWN | ALONE).items():
        section, leaf = key.split(".")
        before = whole[section][leaf]
        chosen = key in given or before != defaults[key] or (key == "lora.rank" and config.model.adapter)
        if before != value and not (key in OWN and chosen):
            whole[section][leaf], said[key] = value, f"{before} before, {WHY}"
    whole.solve.replay = 0
    if not whole.lora.rank and not config.model.adapter:
        raise InputError(
            f"lora.rank=0 leaves no adapters, which --mode=adapt trains; leave it out for {OWN['lora.rank']}, or give "
            "another"
        )
    return whole, said


def _again(start: Start) -> Session:
    """The start with arrays that may be used up."""
    with jax.set_mesh(start.session.inputs.mesh):
        return replace(start.session, state=start.copy(start.session.state))


def _poll_of(voted: Voted) -> Poll:
    return Poll(voted.ballots[0], voted.winners[0], int(voted.rollouts.truncated[0].sum()))


def _spent(voted: Voted) -> int:
    return int(voted.rollouts.lengths.sum())


def _said(votes: Poll) -> dict[str, Any]:
    """What an answer says of votes."""
    label, shares = votes.label, {"share": votes.top, "no_answer": votes.silent, "cut": votes.cut}
    return {"label": None if label is None else label.text} | {
        name: round(count / votes.votes, 6) for name, count in shares.items()
    }
