"""What a run shows while it runs: a panel at the foot of a terminal, plain lines in a file, a pipe or a notebook."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ttrl_jax.run.compiled import lines

# Without a terminal, a phase is a line of its own when there was none for so many seconds, twice as many each time
# within a step: seven lines in a step of 20 minutes.
_PLAIN_SECONDS, _LONGEST_SILENCE = 10.0, 600.0
_RECENT = 10  # steps whose mean duration makes the ETA
_ENOUGH = 0.02  # share of a phase that must be done before the time left is told
# Set where a command runs in a notebook: on a pty of its own, whose cursor does not go up again.
_NOTEBOOKS = ("COLAB_RELEASE_TAG", "COLAB_JUPYTER_TRANSPORT", "JPY_PARENT_PID", "KAGGLE_KERNEL_RUN_TYPE")


class Progress:
    """Progress over the training steps of a run, to stdout.

    On a terminal the last lines are a bar (steps, elapsed, ETA), the summary of the last step and the current
    phase; all else scrolls above. Elsewhere each step is one line, and a phase that lasts is reported now and then.
    """

    def __init__(self, total: int, *, title: str, compiles: bool = False):
        """Prepare for `total` steps. compiles: say of each program that is compiled what its arguments are, also where
        it takes no time."""
        self._total, self._start, self._done, self._title = total, 0, 0, title
        self._compiled = lines(self.line, details=compiles)
        self._summary, self._phase = "", _Phase("")
        self._began = self._last_step = self._last_line = time.monotonic()
        self._compiling, self._silence = 0.0, _PLAIN_SECONDS  # of this step: seconds spent; before its next line
        self._durations: deque[float] = deque(maxlen=_RECENT)
        # Not rich's own idea of a terminal, which FORCE_COLOR in a CI log can turn.
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._live = Live(self, console=self._console, refresh_per_second=4) if _redraws(self._console) else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._phase = _Phase("")
        if self._live is not None:
            self._live.stop()

    def resumed(self, n: int) -> None:
        """Say that `n` steps were finished by an earlier process."""
        self._start = self._done = n

    def step(self, n: int, summary: str) -> None:
        """Report that `n` steps are finished; `summary` is one line on the last of them."""
        now = time.monotonic()
        took = (now - self._last_step - self._compiling) / max(1, n - self._done)
        if self._done > self._start:  # in the first step there is more than in others: a start, an evaluation
            self._durations.append(took)
        self._last_step, self._done, self._summary, self._phase = now, n, summary, _Phase("")
        self._compiling, self._silence = 0.0, _PLAIN_SECONDS
        if self._live is None:
            self.line(f"{self._title} {n}/{self._total} | {summary} | {took:.1f} s/step, ETA {self._eta()}")

    def phase(self, text: str, *, expected: float | None = None) -> None:
        """Say what is going on inside the step. expected: seconds, if it is known how long that takes."""
        self._say(_Phase(text, ends=None if expected is None else time.monotonic() + expected))

    def tokens(self, what: str) -> Callable[[int, float], None]:
        """A function that sampling calls with the tokens drawn so far, and the share of the responses that have ended.
        It shows them as a phase: "sampling 37 %, 4,512 tokens, 812 tokens/s, 0:12 left"."""
        since = time.monotonic()

        def show(count: int, share: float) -> None:
            now = time.monotonic()
            ends = now + (now - since) * (1 - share) / share if share >= _ENOUGH else None
            speed = f"{count:,} tokens, {count / max(now - since, 1e-9):,.0f} tokens/s"
            self._say(_Phase(f"{what} {share:.0%}, {speed}", ends=ends))

        return show

    def compiling(self, program: str, details: str, seconds: float | None) -> None:
        """Show that a program is being compiled, and afterwards a line if that took long. It is no part of the ETA."""
        if seconds is None:
            self._say(_Phase(f"compiling {program}"))
            return
        self._compiling += seconds
        self._compiled(program, details, seconds)

    def line(self, text: str) -> None:
        """Print a line that stays: above the bar on a terminal."""
        self._last_line = time.monotonic()
        if self._live is None:
            print(text, flush=True)
        else:
            self._console.print(Text(text))

    def _say(self, phase: "_Phase") -> None:
        self._phase = phase
        if self._live is None and time.monotonic() - self._last_line >= self._silence:
            self.line(f"  {phase}")
            self._silence = min(2 * self._silence, _LONGEST_SILENCE)

    def _eta(self) -> str:
        if self._done == self._total:
            return "0:00"
        if not self._durations:
            return "after the next step"
        return _clock(sum(self._durations) / len(self._durations) * (self._total - self._done))

    def __rich__(self) -> Group:
        """The lines at the foot of the terminal; rich asks for them four times a second."""
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(self._title, no_wrap=True, overflow="ellipsis"),
            ProgressBar(total=self._total, completed=self._done, width=20),
            Text(f"{self._done}/{self._total}"),
            Text(f"elapsed {_clock(time.monotonic() - self._began)}"),
            Text(f"ETA {self._eta()}"),
        )
        below = [text for text in (self._summary, str(self._phase)) if text]
        return Group(row, *(Padding(Text(text), (0, 0, 0, 2)) for text in below))


class _Phase:
    """What goes on, and until when, as time.monotonic() has it, if that is known."""

    def __init__(self, text: str, *, ends: float | None = None):
        self._text, self._ends = text, ends

    def __str__(self) -> str:
        left = None if self._ends is None else self._ends - time.monotonic()
        return self._text if left is None or left < 0 else f"{self._text}, {_clock(left)} left"


def _redraws(console: Console) -> bool:
    """Whether what has been printed can be printed over."""
    return sys.stdout.isatty() and not console.is_dumb_terminal and not in_notebook()


def in_notebook() -> bool:
    """Whether this command was started from a cell: in Colab, Kaggle, or any kernel of Jupyter's (which sets TERM)."""
    return any(name in os.environ for name in _NOTEBOOKS) or os.environ.get("TERM") == "xterm-color"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
