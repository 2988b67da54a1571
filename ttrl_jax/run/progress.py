"""What a run shows while it runs: a bar on a terminal, plain lines in a file or a pipe."""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_PLAIN_SECONDS = 10.0  # without a terminal, a phase is a line of its own at most this often
_RECENT = 10  # steps whose mean duration makes the ETA: the first ones hold the compiles


class Progress:
    """Progress over the training steps of a run, to stdout.

    On a terminal the last lines are a bar (steps, elapsed, ETA), the summary of the last step and the current
    phase; all else scrolls above. Elsewhere each step is one line, and a phase that lasts is reported every
    ten seconds.
    """

    def __init__(self, total: int, *, start: int, title: str):
        """Prepare for `total` steps, of which `start` were finished by an earlier process."""
        self._total, self._done, self._title = total, start, title
        self._summary = self._phase = ""
        self._began = self._last_step = self._last_line = time.monotonic()
        self._durations: deque[float] = deque(maxlen=_RECENT)
        # Not rich's own idea of a terminal, which FORCE_COLOR in a CI log can turn.
        self._console = Console(highlight=False, markup=False, emoji=False)
        bar = sys.stdout.isatty() and not self._console.is_dumb_terminal
        self._live = Live(self, console=self._console, refresh_per_second=4) if bar else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._phase = ""
        if self._live is not None:
            self._live.stop()

    def step(self, n: int, summary: str) -> None:
        """Report that `n` steps are finished; `summary` is one line on the last of them."""
        now = time.monotonic()
        self._durations.append((now - self._last_step) / max(1, n - self._done))
        self._last_step, self._done, self._summary, self._phase = now, n, summary, ""
        if self._live is None:
            times = f"{self._durations[-1]:.1f} s/step, ETA {self._eta()}"
            self.line(f"{self._title} {n}/{self._total} | {summary} | {times}")

    def phase(self, text: str) -> None:
        """Say what is going on inside the step: "sampling 37 %, 812 tok/s". Replaces the phase before."""
        self._phase = text
        if self._live is None and time.monotonic() - self._last_line >= _PLAIN_SECONDS:
            self.line(f"  {text}")

    def tokens(self, what: str) -> Callable[[int], None]:
        """A function that sampling calls with the tokens drawn so far; it shows them as a phase, with their speed."""
        since = time.monotonic()
        return lambda count: self.phase(f"{what}: {count} tokens, {count / (time.monotonic() - since):.0f} tokens/s")

    def line(self, text: str) -> None:
        """Print a line that stays: above the bar on a terminal."""
        self._last_line = time.monotonic()
        if self._live is None:
            print(text, flush=True)
        else:
            self._console.print(Text(text))

    def _eta(self) -> str:
        if not self._durations:
            return "?"
        return _clock(sum(self._durations) / len(self._durations) * (self._total - self._done))

    def __rich__(self) -> Group:
        """The lines at the foot of the terminal; rich asks for them four times a second."""
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(self._title),
            ProgressBar(total=self._total, completed=self._done, width=30),
            Text(f"{self._done}/{self._total}"),
            Text(f"elapsed {_clock(time.monotonic() - self._began)}"),
            Text(f"ETA {self._eta()}"),
        )
        below = [text for text in (self._summary, self._phase) if text]
        return Group(row, *(Text(f"  {text}", no_wrap=True, overflow="ellipsis") for text in below))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
