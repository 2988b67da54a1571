"""How a run is resumed: what it remembers, which process may write it, and which checkpoint it continues from."""

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from ttrl_jax.errors import InputError
from ttrl_jax.inputs import Inputs
from ttrl_jax.reward.history import History
from ttrl_jax.run import distributed, folder, places
from ttrl_jax.run.checkpoint import Checkpoints, Damaged
from ttrl_jax.run.compiled import Announce
from ttrl_jax.run.files import ROLLOUTS
from ttrl_jax.run.lock import WriterLock
from ttrl_jax.session import Session, open_session, restore

Evaluations = Sequence[Mapping[str, Any]]  # each {"step": ..., set of questions: numbers, ...}


@dataclass(frozen=True)
class Past:
    """What a run remembers beside its arrays; it is saved with each checkpoint."""

    history: History = History()
    evaluations: Evaluations = ()
    seconds: float = 0.0  # of all processes that worked on the run

    def meta(self) -> dict[str, Any]:
        return {"history": self.history.rows(), "evaluations": list(self.evaluations), "seconds": self.seconds}

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Past":
        """The inverse of `meta`. What was saved before there was a history has none: flips are then unknown until each
        question's second visit from there."""
        return cls(History.of(saved.get("history", [])), saved["evaluations"], saved["seconds"])


def as_begun(config: FrozenConfigDict, workdir: Path, *, given: Collection[str]) -> FrozenConfigDict:
    """The config of a run that may have begun in `workdir` before there were some of the keys: those go on as what it
    did then, but for `given` ones, set on the command line, which are then refused. Raises InputError if the folder is
    damaged."""
    whole = ConfigDict(config.as_configdict())
    for key, value in folder.as_begun(workdir, flag="--workdir").items():
        if key not in given:
            section, leaf = key.split(".")
            whole[section][leaf] = value
    return FrozenConfigDict(whole)


def finished(workdir: Path) -> dict[str, Any] | None:
    """The summary of a run that came to its end; a damaged one is said, and made again."""
    try:
        return folder.read_summary(workdir)
    except ValueError as error:
        print(f"{workdir / folder.SUMMARY} is damaged ({error}); it is made again from the last checkpoint", flush=True)
        return None


def take(workdir: Path, run: folder.Identity) -> contextlib.AbstractContextManager[Any]:
    """Make the folder one of this run, and let no other process write there, until what is returned is left. Process 0
    does, for all."""
    with contextlib.ExitStack() as taken:
        if distributed.leader() and places.in_bucket(workdir):
            _say(f"lock      {workdir} is in a bucket: nothing keeps a second process from writing there")
        elif distributed.leader():
            taken.enter_context(WriterLock(workdir, flag="--workdir", say=_say))
        folder.claim(workdir, run, leader=distributed.leader())
        return taken.pop_all()


def resume(
    inputs: Inputs, checkpoints: Checkpoints, *, say: Callable[[str], None], compiling: Announce
) -> tuple[Session, Past]:
    """The session at the newest checkpoint that can be read, or at the start. One that cannot be is named, and moved
    away. say: gets lines; compiling: told of each compile. Raises InputError if there are checkpoints, and no run can
    go on from any."""
    steps = checkpoints.steps()
    distributed.require_same({"the checkpoints in --workdir": steps})
    session = open_session(inputs, say=say, compiling=compiling, begin=not steps)
    damaged = []
    for step in steps:
        try:
            saved = distributed.together(functools.partial(checkpoints.meta, step))
            if saved.get("weights_only"):
                say(f"checkpoint {step} has weights alone (checkpoint.weights_only), which no run can go on from")
                continue
            session = distributed.together(functools.partial(restore, session, checkpoints, step))
        except Damaged as error:
            damaged.append(step)
            say(str(error).removesuffix(": delete it to use the one before"))
            continue
        for each in damaged:
            say(f"checkpoint {each} is now in {checkpoints.set_aside(each)}; the run goes on after step {step}")
        return session, Past.of(saved)
    if steps:
        raise InputError(
            f"the run cannot go on from any of its checkpoints ({', '.join(map(str, steps))}), see above; choose "
            "another --workdir, or delete them to begin it anew"
        )
    return session, Past()


def nothing_left(summary: Mapping[str, Any], *, total: int, patience: int, changes: folder.Changes) -> bool:
    """Whether a finished run stays finished: all `total` steps are done, or it has stopped early, and neither has it
    more `patience` now nor more episodes."""
    stopped = summary.get("stopped")
    waits = stopped is not None and (patience == 0 or patience > stopped["patience"] or "episodes" in changes.keys)
    return summary["steps"] >= total or (stopped is not None and not waits)


def go_on(workdir: Path, run: folder.Identity, lines: Sequence[str], *, step: int, longer: bool = False) -> int:
    """Let the folder be of a run that goes on after `step` steps; longer: with more episodes. Process 0 writes ->
    after how many steps it was last made longer."""
    if not distributed.leader():
        return 0
    folder.renew(workdir, run, lines, step=step, longer=longer)
    (workdir / folder.SUMMARY).unlink(missing_ok=True)
    for path in (workdir / ROLLOUTS).glob(f"eval_*_{step:06}.jsonl") if step else ():
        path.unlink()  # of what was the end, whose evaluation is no row of metrics.jsonl any more
    return folder.longer_since(workdir)


def _say(line: str) -> None:
    print(line, flush=True)
