"""The progress display: a bar on a terminal, few plain lines elsewhere, and an honest speed."""

import io
import itertools

import pytest
from rich.console import Console

from deqflow.runs.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def console(terminal=False, width=100):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def output(progress):
    assert isinstance(progress.console.file, io.StringIO)
    return progress.console.file.getvalue()


def lines(progress):
    return output(progress).splitlines()


def train(progress, clock, steps, seconds=0.1, every=10):
    for step in steps:
        clock.now += seconds
        progress.update(step, {"loss": 1 / step, "solver_steps": 12.34, "gradient_norm": 3.0} if step % every == 0 else None)


def test_plain_lines_come_first_last_and_at_most_every_five_seconds():
    clock = Clock()
    with Progress(1000, console=console(), clock=clock) as progress:
        train(progress, clock, range(1, 1001))  # 100 s
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in lines(progress)]
    assert shown[0] == 10
    assert shown[-1] == 1000
    assert all(b - a >= 50 for a, b in itertools.pairwise(shown[:-1]))
    assert 16 <= len(shown) <= 22


def test_a_plain_line_says_what_matters():
    clock = Clock()
    with Progress(200, console=console(), clock=clock) as progress:
        train(progress, clock, range(1, 11))
    assert lines(progress) == ["step 10/200  loss 0.1  solver steps 12.34  10 steps/s  0:19 left"]


def test_the_last_line_has_no_time_left():
    clock = Clock()
    with Progress(20, console=console(), clock=clock) as progress:
        train(progress, clock, range(1, 21))
    assert lines(progress)[-1] == "step 20/20  loss 0.05  solver steps 12.34  10 steps/s"


def test_speed_leaves_out_compilation_and_pauses():
    clock = Clock()
    with Progress(100, console=console(), clock=clock) as progress:
        assert progress.steps_per_second is None
        train(progress, clock, [1], seconds=30.0)  # compiles
        assert progress.steps_per_second is None
        train(progress, clock, range(2, 12))
        with progress.pause("validating"):
            clock.now += 50
        assert progress.steps_per_second == pytest.approx(10)
        train(progress, clock, range(12, 22))
        assert progress.steps_per_second == pytest.approx(10)


def test_speed_of_a_resumed_run_is_its_own():
    clock = Clock()
    with Progress(1000, start=500, console=console(), clock=clock) as progress:
        train(progress, clock, range(501, 512), seconds=0.5)
    assert progress.steps_per_second == pytest.approx(2)


def test_a_pause_before_the_first_step_does_no_harm():
    clock = Clock()
    with Progress(10, console=console(), clock=clock) as progress:
        with progress.pause("validating"):
            clock.now += 5
        train(progress, clock, [1, 2])
    assert progress.steps_per_second == pytest.approx(10)


def test_messages_are_printed_as_they_are():
    with Progress(10, console=console(width=40)) as progress:
        progress.message("validation [bold]accuracy[/bold] 0.98 " + "x" * 60)
    assert lines(progress) == ["validation [bold]accuracy[/bold] 0.98 " + "x" * 60]


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing_and_still_measures(terminal):
    clock = Clock()
    with Progress(20, console=console(terminal), quiet=True, clock=clock) as progress:
        train(progress, clock, range(1, 21))
        with progress.pause("validating"):
            progress.message("nothing")
    assert output(progress) == ""
    assert progress.steps_per_second == pytest.approx(10)


def test_a_terminal_shows_a_bar_with_all_numbers():
    clock = Clock()
    with Progress(100, console=console(terminal=True), clock=clock) as progress:
        train(progress, clock, range(1, 51))
        with progress.pause("validating"):
            clock.now += 1
        progress.message("validation accuracy 0.98")
    shown = output(progress)
    for text in ["compiling the training step", "50/100", "loss 0.02", "solver steps 12.34", "10 steps/s", "0:05 left", "validating"]:
        assert text in shown
    assert "gradient_norm" not in shown
    assert "validation accuracy 0.98\n" in shown


def test_the_bar_is_drawn_a_few_times_per_second_however_fast_the_steps_are():
    clock = Clock()
    with Progress(100_000, console=console(terminal=True), clock=clock) as progress:
        train(progress, clock, range(1, 10_001), seconds=1e-4, every=10**9)  # 1 s
    assert output(progress).count("\r") <= 8


def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    with Progress(20, console=console(terminal=True), clock=clock) as progress:
        train(progress, clock, range(1, 21))
    assert len(lines(progress)) == 2


def test_the_bar_ends_when_training_does_not():
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), Progress(100, console=console(terminal=True), clock=clock) as progress:
        train(progress, clock, range(1, 11))
        raise KeyboardInterrupt
    assert output(progress).endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(("seconds", "text"), [(59, "0:59"), (61, "1:01"), (3 * 3600 + 62, "3:01:02")])
def test_time_left(seconds, text):
    clock = Clock()
    with Progress(seconds + 2, console=console(), clock=clock) as progress:
        train(progress, clock, [1, 2], seconds=1.0, every=2)
    assert f"{text} left" in lines(progress)[0]


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_step_count_is_shown_on_every_terminal(width):
    clock = Clock()
    with Progress(100_000, console=console(terminal=True, width=width), clock=clock) as progress:
        clock.now += 1
        progress.update(12344)
        clock.now += 1
        progress.update(12346, {"loss": 0.12345, "accuracy": 0.98765, "solver_steps": 12.345})
    shown = output(progress).split("\r")[-1]
    for text in ["step", "12346/100000", "loss 0.1235", "2 steps/s", " left"]:
        assert text in shown
    assert ("accuracy" in shown) == (width == 120)
