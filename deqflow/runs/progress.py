"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

_REDRAW = 0.25
"""Seconds between two drawings of the bar: often enough to look alive, seldom enough to cost next to nothing."""

_BAR, _WIDE = 20, 100
"""Width of the bar proper, and of the terminals that have the place for it."""

_LINE = 5.0
"""Least number of seconds between two plain lines."""


class Progress:
    """Shows how far training is, with loss, steps per second, solver steps and time left.

    On a terminal that is one line that is redrawn; elsewhere (a file, a pipe, a notebook) a plain line at the first and last
    numbers and at most one every five seconds in between. Speed is that of the training steps alone: the first step, which
    compiles, and what happens inside `pause` do not count.

    Args:
      total: number of the last step.
      start: number of the step that training starts from; not 0 in a resumed run.
      console: where to write; standard error by default.
      quiet: show nothing but warnings.
      clock: seconds since some fixed moment.

    Example:
      >>> import io
      >>> with Progress(total=2, console=Console(file=io.StringIO(), width=80), clock=lambda: 0.0) as progress:
      ...     progress.update(1)
      ...     progress.update(2, {"loss": 0.5})
      ...     progress.message("saved")
      >>> progress.console.file.getvalue().splitlines()
      ['step 2/2  loss 0.5', 'saved']
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        console: Console | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self._total = total
        self._step = start
        self._quiet = quiet
        self._clock = clock
        self._values: dict[str, float] = {}
        self._first: tuple[int, float] | None = None  # step and time from which speed is counted
        self._now = 0.0
        self._shown = -float("inf")
        live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self._bar = self._make_bar() if live else None
        self._bar_task = TaskID(0)

    @property
    def steps_per_second(self) -> float | None:
        """Mean speed so far, or `None` before the second step."""
        if self._first is None or self._step == self._first[0] or self._now <= self._first[1]:
            return None
        return (self._step - self._first[0]) / (self._now - self._first[1])

    def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """Report that `step` steps are done; cheap enough for every step.

        Args:
          step: number of steps done.
          values: numbers to show beside it, at whatever interval they are known; the last ones given stay on the bar.
        """
        self._step, self._now = step, self._clock()
        if self._first is None:
            self._first = (step, self._now)
        if values is not None:
            self._values = {name: float(value) for name, value in values.items()}
        if self._quiet:
            return
        last = step >= self._total
        if self._bar is not None:
            if last or self._now - self._shown >= _REDRAW:
                self._shown = self._now
                self._draw(self._bar)
        elif values is not None and (last or self._now - self._shown >= _LINE):
            self._shown = self._now
            self._print("  ".join([f"step {step}/{self._total}", *self._texts()]))

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if not self._quiet:
            self._print(text)

    def warning(self, text: str) -> None:
        """Print a line that nobody should miss, also when quiet."""
        self._print(text)

    @contextlib.contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Keep what happens inside, such as an evaluation, out of the speed; the bar says `what` meanwhile."""
        began = self._clock()
        if self._bar is not None:
            self._draw(self._bar, what)
        try:
            yield
        finally:
            self._now = self._clock()
            if self._first is not None:
                self._first = (self._first[0], self._first[1] + self._now - began)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
            self._draw(self._bar, "compiling the training step")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._draw(self._bar)
            self._bar.stop()

    def _make_bar(self) -> Bar:
        # Redrawn by `update` alone: a thread that redraws would compete with training for the interpreter.
        bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            *([BarColumn(bar_width=_BAR)] if self.console.width >= _WIDE else []),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self.console,
            auto_refresh=False,
        )
        self._bar_task = bar.add_task("", total=self._total, completed=self._step)
        return bar

    def _draw(self, bar: Bar, what: str | None = None) -> None:
        bar.update(self._bar_task, completed=self._step, description=what or self._fitting(), refresh=True)

    def _fitting(self) -> str:
        """The texts on one line; of what is too long, rich would take the step count away first."""
        texts = self._texts()
        room = self.console.width - len(f"step {self._total}/{self._total} ") - (_BAR + 1 if self.console.width >= _WIDE else 0)
        while len(texts) > 1 and len("  ".join(texts)) > room:
            del texts[1]
        return "  ".join(texts)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _texts(self) -> list[str]:
        texts = [f"{_LABELS[name]} {self._values[name]:.4g}" for name in _LABELS if name in self._values]
        speed = self.steps_per_second
        if speed is not None:
            texts.append(f"{speed:.3g} steps/s" if speed < 100 else f"{speed:.0f} steps/s")
            if self._step < self._total:
                texts.append(f"{_duration((self._total - self._step) / speed)} left")
        return texts


_LABELS = {"loss": "loss", "accuracy": "accuracy", "nats": "nats", "bits_per_dim": "bits/dim", "solver_steps": "solver steps"}
"""The numbers worth a place on one line, in this order."""


def _duration(seconds: float) -> str:
    """`3:05` or `2:03:05`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
