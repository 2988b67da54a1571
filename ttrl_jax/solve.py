"""Answer a stream of questions: many responses to each, the most common answer wins. The model may learn meanwhile.

    python -m ttrl_jax.solve --model OWNER/MODEL questions.txt [--config.a.b=value ...]

QUESTIONS is a file as data.path takes it (.txt, .jsonl, .json, .csv ...), a folder of such files, or -, which is
standard input with a JSON object or a text on each line. --follow waits for more in a folder, or in a file that grows.
Answers are JSON Lines, in the order of the questions, on stdout or in --out FILE; all else is said on stderr. With
--out, the same command again goes on after the last answer, also after a kill.

--mode=learn takes a training step on each batch once it is answered. What is learned is in --workdir.
--mode=adapt takes a few steps of adapters on each question alone, and keeps what it answers then if its votes have
become clearer. The next question finds the model as it began.
"""

from ttrl_jax import commands

if __name__ == "__main__":  # before the other imports, which take seconds
    ARGUMENTS = commands.begin(commands.SOLVE, doc=__doc__)

import contextlib
import dataclasses
import itertools
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ttrl_jax import cli
from ttrl_jax.data.ahead import Ahead
from ttrl_jax.data.stream import STDIN, Asked, Waiting, read_stream
from ttrl_jax.errors import InputError
from ttrl_jax.inputs import Inputs, identity, introduce, read_inputs
from ttrl_jax.origin import Origin, find_origin, with_model
from ttrl_jax.prepare import prepare
from ttrl_jax.run import distributed, folder, places
from ttrl_jax.run.checkpoint import Checkpoints
from ttrl_jax.run.interrupt import Interrupt, Interrupted
from ttrl_jax.session import Session, open_session, restore
from ttrl_jax.stream.adapting import begin, for_adapting
from ttrl_jax.stream.keep import keeping
from ttrl_jax.stream.learning import require_learnable
from ttrl_jax.stream.log import Log
from ttrl_jax.stream.loop import Stream, answer_all
from ttrl_jax.stream.votes import require_same_question

MODES = ("vote", "learn", "adapt")
ANSWER = '{"id": '  # what each line of answers begins with


@dataclass(frozen=True)
class Wanted:
    """What the flags ask for."""

    questions: str
    mode: str  # of MODES
    origin: Origin | None  # None where the model is trained
    inputs: Inputs
    out: Path | None  # None: stdout
    workdir: Path | None  # None where nothing is learned


def main(questions: str) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for answers alone
        distributed.require_alone("solve")
        distributed.devices()
        try:
            return solve(find_inputs(questions))
        except Interrupted as signalled:
            return 128 + signalled.args[0]
        except BrokenPipeError:
            say("nobody reads the answers any more")
            return 128 + signal.SIGPIPE


def solve(wanted: Wanted) -> int:
    """Answer all there is. Returns the exit code; raises Interrupted for a signal before the first question."""
    inputs, stop = wanted.inputs, threading.Event()
    with (
        Log(wanted.out, begins=ANSWER, flag="--out", say=say) as log,
        Interrupt() as interrupt,
        contextlib.ExitStack() as opened,
    ):
        with interrupt.at_once():
            introduce(inputs, say)
            asked = places_of(wanted, log, Waiting(flags.FLAGS.follow, stop))
            kept = opened.enter_context(keeping(inputs, wanted.workdir, log, say=say)) if wanted.workdir else None
            session = kept.session if kept else open_keeping_nothing(wanted)
            prepare(session, say=say)
            earlier = log.rows()
            skip(asked, earlier, kept.memory.taken if kept else log.there, where=str(wanted.out))
        count = inputs.config.rollout.prompts - (inputs.config.solve.replay if kept else 0)
        whole = not flags.FLAGS.follow and wanted.questions != STDIN
        ahead = Ahead(asked, most=2 * count)
        where = str(wanted.out)
        start = begin(session) if wanted.mode == "adapt" else None
        totals = answer_all(session, Stream(ahead, log, earlier, where, interrupt, say, count, whole), kept, start)
        stop.set()
        say(f"{'done' if interrupt.signum is None else 'stopped'}      {totals}")
        if wanted.workdir:
            say(f"learned   {wanted.workdir}; ttrl export {wanted.workdir} --out FOLDER makes a model of it")
        return 0 if interrupt.signum is None else 128 + interrupt.signum


def find_inputs(questions: str) -> Wanted:
    """What the flags ask for, checked. Raises InputError."""
    config, given, asked = commands.config(), commands.given(), flags.FLAGS
    learn, trains = asked.mode == "learn", asked.mode != "vote"
    if asked.mode not in MODES:
        raise InputError(f"--mode must be one of {', '.join(MODES)}, got {asked.mode!r}")
    if trains and asked.checkpoint:
        raise InputError(
            f"--mode={asked.mode} begins with a model; export what is in --checkpoint, and give that as --model"
        )
    if asked.workdir and not learn:
        raise InputError("--workdir is for what is learned; add --mode=learn, or leave it out")
    whole = ConfigDict(config)
    whole_sets = ("data.level", "data.limit", "data.order", "eval.tasks", "eval.scorer", "canary.path")
    if ignored := [key for key in whole_sets if key in given]:
        raise InputError(f"{', '.join(ignored)} is for data that is there as a whole; leave it out")
    whole.data.path, whole.data.level, whole.data.limit, whole.data.order = questions, 0, 0, "given"
    whole.eval.tasks, whole.eval.scorer, whole.canary.path = (), "", ""
    if not trains:
        whole.train.samples = whole.train.minibatch_prompts = 1  # nothing is trained: votes may stop after any number
    if asked.model and not asked.checkpoint:
        whole.model.path = asked.model
    if not whole.model.path and not asked.checkpoint:
        raise InputError("no model given; add --model with a hub name, a model folder or a .gguf file")
    origin, changed = None, {}
    if not trains:
        moved = asked.model if asked.checkpoint else ""
        origin = find_origin(asked.checkpoint, whole.model.path, moved=moved, step=asked.step)
        whole = ConfigDict(with_model(whole, origin, given=given))
    if asked.mode == "adapt":
        whole, changed = for_adapting(whole, given=given)
    out = find_out(questions)
    workdir = places.run_folder(asked.workdir or "runs/solve", flag="--workdir") if learn else None
    if workdir is not None and places.in_bucket(workdir):
        raise InputError(f"--workdir: {workdir} is in a bucket, where no file can grow; give a folder on this machine")
    inputs = read_inputs(whole, training=trains, given=given, stream=True)
    inputs = dataclasses.replace(inputs, sources=changed | inputs.sources)
    if learn:
        require_learnable(inputs.config)
    elif origin is not None and origin.run is not None:
        folder.require_same_model(origin.run, identity(inputs).model, flag="--checkpoint")
    return Wanted(questions, asked.mode, origin, inputs, out, workdir)


def find_out(questions: str) -> Path | None:
    """The file of the answers, None for stdout. Raises InputError if it would be read as questions."""
    if not flags.FLAGS.out:
        return None
    out, given = places.local(flags.FLAGS.out, flag="--out"), Path(questions).expanduser()
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give a file")
    if given.exists() and given.resolve() in (out.resolve(), out.resolve().parent):
        raise InputError(f"--out {out} would be read as questions; choose another place")
    return out


def open_keeping_nothing(wanted: Wanted) -> Session:
    """The session of a model that is the same for all questions."""
    origin = wanted.origin
    session = open_session(wanted.inputs, say=say, begin=origin is None or origin.run is None)
    if origin is not None and origin.run is not None and origin.step is not None:
        with Checkpoints(origin.run / folder.CHECKPOINTS, keep=None) as checkpoints:
            session = restore(session, checkpoints, origin.step)
    return session


def places_of(wanted: Wanted, log: Log, waiting: Waiting) -> Iterator[Asked]:
    """All places of the stream; the files of a folder in the order in which they were answered."""
    data, seed = wanted.inputs.config.data, wanted.inputs.config.seed
    order = tuple(dict.fromkeys(row["source"] for row in log.rows() if "source" in row))
    way = {"column": data.question_column, "split": data.split, "subset": data.subset or None, "seed": seed}
    return read_stream(wanted.questions, **way, waiting=waiting, say=say, order=order)


def skip(asked: Iterator[Asked], earlier: Iterator[dict[str, Any]], count: int, *, where: str) -> None:
    """Pass over the first `count` places, which have been answered. Raises InputError if they are others."""
    for number, before in enumerate(itertools.islice(earlier, count)):
        place = next(asked, None)
        if place is None:
            raise InputError(f"{where} has {count} answers, and there are {number} questions; give those it began with")
        now = {"number": place.number, "id": place.id, "sha256": place.digest}
        require_same_question(now, before, where=where)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.leave(cli.run(main, commands.SOLVE, arguments=ARGUMENTS))
