"""The loop over a stream: take a batch, let it vote, answer, and learn from it or adapt to it if the model is to."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ttrl_jax.data.ahead import Ahead
from ttrl_jax.data.stream import Asked
from ttrl_jax.errors import InputError
from ttrl_jax.measure.generations import undecided
from ttrl_jax.measure.step import step_metrics
from ttrl_jax.run.interrupt import Interrupt, Interrupted
from ttrl_jax.session import Session, step_key
from ttrl_jax.stream.adapting import Start, adapt
from ttrl_jax.stream.keep import Kept, save_all
from ttrl_jax.stream.learning import Memory, learn, remember, replayed
from ttrl_jax.stream.log import Log
from ttrl_jax.stream.votes import Row, Voted, answers, askable, differing, poll, vote_key

_SPEAKS = 10.0  # seconds between two lines on how far it is


@dataclass(frozen=True)
class Totals:
    """What has been done by this process, for its last line."""

    answered: int = 0
    without: int = 0  # answers without a label
    errors: int = 0
    again: int = 0  # places that had been answered before, which were learned from again
    changed: int = 0  # of these, answers that would be other ones now
    adapted: int = 0  # questions to which the model has adapted
    kept: int = 0  # of these, answers of the adapted model
    tokens: int = 0  # that were generated, also for questions asked again and for votes that do not count
    since: float = 0.0  # as time.monotonic() has it

    def add(self, rows: Sequence[Row], tokens: int, *, again: int, changed: int) -> "Totals":
        new = rows[again:]
        adapted = [row["adapted"] for row in new if "adapted" in row]
        return replace(
            self,
            answered=self.answered + sum("error" not in row for row in new),
            without=self.without + sum(row.get("label", "") is None for row in new),
            errors=self.errors + sum("error" in row for row in new),
            again=self.again + again,
            changed=self.changed + changed,
            adapted=self.adapted + sum(each["steps"] > 0 for each in adapted),
            kept=self.kept + sum(each["kept"] for each in adapted),
            tokens=self.tokens + tokens,
        )

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.since, 1e-9)
        parts = [f"{self.errors} errors"] if self.errors else []
        parts += [f"{self.without} without a label"] if self.without else []
        parts += [f"{self.adapted} adapted to, of which {self.kept} are kept"] if self.adapted else []
        parts += [f"{self.again} learned from again"] if self.again else []
        parts += [f"{self.changed} of these would be answered otherwise now"] if self.changed else []
        return (
            f"{self.answered} answered{''.join(f', {part}' for part in parts)}; {seconds:.0f} s, "
            f"{self.answered / seconds:.2f} answers/s, {self.tokens:,} tokens, {self.tokens / seconds:,.0f} tokens/s"
        )


@dataclass(frozen=True)
class Stream:
    """What is open while a stream is answered."""

    ahead: Ahead[Asked]
    log: Log  # of the answers
    earlier: Iterator[Row]  # answers of an earlier process, from the first place that is taken on
    where: str  # their file
    interrupt: Interrupt
    say: Callable[[str], None]
    count: int  # places of a batch, at most
    whole: bool  # whether to wait until a batch has so many, where more may come


def answer_all(session: Session, stream: Stream, kept: Kept | None = None, start: Start | None = None) -> Totals:
    """Answer all that comes, until the end of the stream or a signal, after which the batch in hand is finished. With
    `kept` the model learns from each batch; what there is in the end is saved. The arrays of `session` are used up.
    With `start`, that of the session, the model adapts to each question, of which there is one in a batch."""
    totals, memory, spoken = Totals(since=time.monotonic()), kept.memory if kept else Memory(), time.monotonic()
    for batch in batches(stream, kept):
        since = time.monotonic()
        problems, errors = askable(session, batch)
        voted, more, tokens = None, {}, 0
        if problems and start is not None:
            found = adapt(start, *problems, progress=ticking(stream, problems, so_far=totals))
            voted, more, tokens = found.voted, found.row(), found.tokens
        elif problems:
            voted = ask(session, stream, problems, memory, kept, so_far=totals)
            more = {"step": session.step} if kept else {}
            tokens = int(voted.rollouts.lengths.sum()) + voted.rollouts.thrown
        rows = answers(batch, voted, errors, seconds=time.monotonic() - since, more=more)
        before = list(itertools.islice(stream.earlier, len(rows)))
        changed = differing(rows, before, where=stream.where)
        stream.log.add(rows[len(before) :])
        totals = totals.add(rows, tokens, again=len(before), changed=changed)
        if kept is not None:
            if voted is not None:
                session, memory = train(session, voted, memory, kept, seconds=time.monotonic() - since)
            memory = remember(memory, len(batch), problems, window=session.config.solve.window)
            save_all(session, memory, kept)
        if time.monotonic() - spoken >= _SPEAKS:
            spoken = time.monotonic()
            stream.say(f"so far    {totals}")
    if kept is not None:
        save_all(session, memory, kept, now=True)
    return totals


def batches(stream: Stream, kept: Kept | None) -> Iterator[list[Asked]]:
    """What is asked together: where a run goes on, as it was asked together before; then up to `count` places that are
    there. It ends with the stream, and when a signal has come."""
    sizes = iter(kept.sizes if kept else ())
    while True:
        size = next(sizes, None)
        try:
            with stream.interrupt.at_once():
                batch = stream.ahead.take(size or stream.count, whole=stream.whole or size is not None)
        except Interrupted:
            return
        if not batch:
            return
        if size is None and kept is not None:
            kept.batches.add([{"count": len(batch)}])  # before the answers, so that they are never without it
        elif size is not None and len(batch) < size:
            raise InputError(f"{stream.where} has answers to more questions than there are; give those it began with")
        yield batch


def ask(
    session: Session, stream: Stream, problems: list, memory: Memory, kept: Kept | None, *, so_far: Totals
) -> Voted:
    """Let the model vote on the questions of a batch; where it learns, on earlier ones again as well."""
    tick = ticking(stream, problems, so_far=so_far)
    if kept is None:
        return poll(session, problems, vote_key(session), progress=tick)
    way = {"seed": session.config.seed, "step": session.step, "count": session.config.solve.replay}
    asked = [*problems, *replayed(memory, **way)]
    return poll(session, asked, step_key(session, session.step), step=session.step, tokens=True, progress=tick)


def ticking(stream: Stream, problems: list, *, so_far: Totals) -> Callable[[int, float], None]:
    """What says now and then how far a batch is."""
    last = [time.monotonic()]

    def tick(tokens: int, share: float) -> None:
        if time.monotonic() - last[0] >= _SPEAKS:
            last[0] = time.monotonic()
            stream.say(f"so far    {so_far.answered} answered; {len(problems)} are {share:.0%} done, {tokens:,} tokens")

    return tick


def train(session: Session, voted: Voted, memory: Memory, kept: Kept, *, seconds: float) -> tuple[Session, Memory]:
    """A training step on what has been voted on, with its metrics written down. seconds: that sampling took."""
    began = time.monotonic()
    session, memory, seen, learned = learn(session, voted, memory, kept.judge)
    laps = {"sample": seconds, "update": time.monotonic() - began}
    metrics: dict[str, Any] = step_metrics(session, seen, learned, laps)
    kept.files.undecided(undecided(seen.batch, seen.ballots, step=session.step - 1))
    kept.files.write(session.step - 1, metrics, [vars(visit) for visit in seen.visits])
    return session, memory
