"""What is kept of a model that learns from a stream: a run folder, with checkpoints and with how questions were put
together in batches. So what came after a checkpoint is learned again, from the same batches."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttrl_jax import commands
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import Inputs, identity
from ttrl_jax.resume import Past, go_on, resume, take
from ttrl_jax.reward.judge import Judge
from ttrl_jax.run import folder
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.compiled import lines
from ttrl_jax.run.files import Files, require_files
from ttrl_jax.session import Session, save
from ttrl_jax.stream.learning import Memory
from ttrl_jax.stream.log import Log
from ttrl_jax.tasks.voting import judge_of

BATCHES = "batches.jsonl"  # how many places of the stream each batch has


@dataclass(frozen=True)
class Kept:
    """What is open while a model learns from a stream."""

    session: Session  # where it begins
    memory: Memory  # likewise
    sizes: Sequence[int]  # of the batches that are learned from again
    batches: Log
    checkpoints: Checkpoints
    files: Files
    judge: Judge
    seconds: float  # of all processes before this one
    since: float  # when this one began, as time.monotonic() has it


@contextlib.contextmanager
def keeping(inputs: Inputs, workdir: Path, answered: Log, *, say: Callable[[str], None]) -> Iterator[Kept]:
    """Open the run folder, new or of a run that goes on, with the session at its newest checkpoint. answered: the file
    of the answers. Raises InputError if the folder is another run's, or if the answers are not those of its run."""
    run, config = identity(inputs), inputs.config
    changes = folder.require_same(workdir, run, defaults=commands.defaults(), flag="--workdir")
    logs = {"tensorboard": config.log.tensorboard, "wandb_project": config.log.wandb_project or None}
    require_files(workdir, flag="--workdir", wandb_project=logs["wandb_project"])
    begun = (workdir / BATCHES).is_file()
    if answered.path is None and begun:
        raise InputError(f"{workdir} has been begun; give --out with the file of its answers, or another --workdir")
    if answered.there and not begun:
        raise InputError(f"{answered.path} has answers, and {workdir} is not their run; choose another --out")
    with (
        take(workdir, run),
        Log(workdir / BATCHES, begins='{"count": ', flag="--workdir", say=say) as batches,
        Checkpoints(workdir / folder.CHECKPOINTS, keep=config.checkpoint.keep) as checkpoints,
    ):
        session, past = resume(inputs, checkpoints, say=say, compiling=lines(say, details=config.log.compiles))
        saved = checkpoints.meta(session.step)["stream"] if session.step else {"taken": 0, "window": []}
        memory = Memory.of(saved, past.history)
        sizes = _sizes(batches, memory.taken, workdir)
        if answered.there < memory.taken and answered.path is not None:
            raise InputError(
                f"{answered.path} has {answered.there} answers, and {workdir} has learned from {memory.taken} "
                "questions; put the former file back, or begin with another --workdir"
            )
        go_on(workdir, run, changes.lines(step=session.step, total=session.step), step=session.step)
        if session.step or sizes:
            say(f"resumed   after step {session.step}; {len(sizes)} batches after it are learned from again")
        with Files(workdir, start_step=session.step, config=commands.flat(run.config), **logs) as files:
            judge = judge_of(config, session.task)
            yield Kept(session, memory, sizes, batches, checkpoints, files, judge, past.seconds, time.monotonic())


def _sizes(batches: Log, taken: int, workdir: Path) -> list[int]:
    """The sizes of the batches after the first `taken` places."""
    sizes, before = [], 0
    for row in batches.rows():
        if before >= taken:
            sizes.append(int(row["count"]))
        before += int(row["count"])
        if before > taken and not sizes:
            break
    if before < taken or (before > taken and not sizes):
        raise InputError(f"{workdir / BATCHES} does not go with the newest checkpoint; choose another --workdir")
    return sizes


def save_all(session: Session, memory: Memory, kept: Kept, *, now: bool = False) -> None:
    """Save a checkpoint where the last one is longer ago than checkpoint.every; `now`: in any case, and wait for it."""
    every = session.config.checkpoint.every
    if session.step and (now or (every and kept.checkpoints.seconds_since() >= 60 * every)):
        kept.files.flush()
        past = Past(memory.history, (), kept.seconds + time.monotonic() - kept.since)
        save(session, kept.checkpoints, past.meta() | {"stream": memory.meta()})
    if now:
        kept.checkpoints.wait()
