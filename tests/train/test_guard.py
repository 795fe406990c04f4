"""Updates that are refused, runs that go back, and what is told of them; all of it the same after an interruption."""

import dataclasses
import json
import math
import os
import signal
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from deqflow.config import parse
from deqflow.data.densities import Moons
from deqflow.data.pipeline import train_batches
from deqflow.data.source import InMemory, Records
from deqflow.deq import Cell
from deqflow.implicit import Status
from deqflow.optim import Schedule
from deqflow.registry import FromRuntime, UserError, register
from deqflow.runs.checkpoint import Checkpoints
from deqflow.runs.metrics import read_rows
from deqflow.train import run
from deqflow.train.guard import fresh, judge, reason, solves_in_words
from deqflow.train.settings import Guard
from tests.train.conftest import assert_same

LIMIT = 3


class Spoilt(Records):
    """Records some of which are NaN."""

    def __init__(self, records, spoilt):
        self.records, self.spoilt, self.access = records, spoilt, records.access

    def __len__(self):
        return len(self.records)

    def gather(self, indices):
        batch = self.records.gather(indices)
        return batch | {"x": np.where(np.isin(indices, self.spoilt)[:, None], np.float32(np.nan), batch["x"])}


@register("data", "spoilt_moons")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpoiltMoons(Moons):
    """Moons with some training examples that are NaN.

    Args:
      spoilt: their numbers.
    """

    spoilt: tuple[int, ...] = ()

    def split(self, name):
        records = super().split(name)
        return Spoilt(records, self.spoilt) if name == "train" else records


@register("schedule", "surge")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Surge(Schedule):
    """A constant that is a thousand times itself for three steps.

    Args:
      value: the constant.
      at: the first of the three.
    """

    value: float
    at: int

    def function(self, steps):
        return lambda count: self.value * jnp.where((count >= self.at) & (count < self.at + 3), 1000.0, 1.0)


@register("cell", "growing")
class GrowingCell(Cell):
    """A cell that no plain iteration solves: `f(z, x) = 3 z + x`."""

    def __init__(self, width: Annotated[int, FromRuntime], *, rngs: Annotated[nnx.Rngs, FromRuntime]) -> None:
        self.gain = nnx.Param(jnp.full(width, 3.0))

    def prepare(self, x, key=None):
        return lambda z: self.gain[...] * z + x

    def initial(self, x):
        return jnp.zeros_like(x)


def events(directory):
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def train_rows(directory):
    return [row for row in read_rows(directory / "metrics.jsonl") if row["split"] == "train"]


def interrupted_after(text):
    """A console whose reader presses ctrl-C when it reads a text."""

    class Alarm:
        def write(self, written):
            if text in written:
                os.kill(os.getpid(), signal.SIGINT)

        def flush(self):
            pass

    return Console(file=Alarm(), width=200)


def numbers(loss=1.0, gradient_norm=1.0, **rest):
    return {name: jnp.float32(value) for name, value in {"loss": loss, "gradient_norm": gradient_norm, **rest}.items()}


def judged(guard, steps, first=False):
    """Whether each of some steps updates, and the leaves at the end."""
    state = fresh(guard, steps[0])
    made = []
    for step in steps:
        updated, leaves = judge(guard, LIMIT, step, state, jnp.asarray(first))
        assert leaves.keys() == state.keys()
        assert {name: leaf.dtype for name, leaf in leaves.items()} == {name: leaf.dtype for name, leaf in state.items()}
        state = leaves
        made.append(bool(updated))
    return made, state


@pytest.mark.parametrize(
    "bad",
    [
        *(numbers(loss=value, solver_failures=0.0) for value in (math.nan, math.inf, -math.inf)),
        *(numbers(gradient_norm=value, solver_failures=0.0) for value in (math.nan, math.inf)),
        numbers(solver_failures=0.6),
    ],
)
def test_what_is_refused(bad):
    good = numbers(solver_failures=0.5)
    made, state = judged(Guard(), [good, bad, bad, good, bad])
    assert made == [True, False, False, True, False]
    assert int(state["guard/in_a_row"]) == 1
    assert int(state["guard/since_row"]) == 3
    np.testing.assert_array_equal(state["refused/loss"], bad["loss"])


def test_after_the_limit_nothing_is_made_until_the_trainer_knows():
    made, state = judged(Guard(), [numbers(), *[numbers(loss=math.nan)] * 3, numbers(loss=7.0)])
    assert made == [True, False, False, False, False]
    assert int(state["guard/in_a_row"]) == 4
    assert math.isnan(state["refused/loss"])


def test_a_loss_that_stands_out_is_refused_once_losses_are_known():
    calm = [numbers(loss=2 + 0.1 * (-1) ** step) for step in range(50)]
    made, state = judged(Guard(spike=8.0), [*calm, numbers(loss=2.5), numbers(loss=5.0), numbers(loss=2.1)])
    assert made == [True] * 51 + [False, True]
    assert 1.9 < state["guard/mean"] < 2.1
    assert all(judged(Guard(), [*calm, numbers(loss=5.0)])[0])  # no limit by default


def test_reasons_and_remedies():
    def told(**values):
        return "; ".join(reason(Guard(spike=2.0), {"loss": 1.0, "gradient_norm": 1.0, **values}))

    assert told(loss=math.nan).startswith("the training loss became nan; lower the learning rate")
    assert told(gradient_norm=math.inf).startswith("the gradient's norm became inf at a loss of 1; ")
    assert told(solver_failures=0.75).startswith("75% of the solves failed; ")
    assert "train.guard.spike" in told()
    words = solves_in_words({Status.CONVERGED: 0.2, Status.DIVERGED: 0.5, Status.INVALID_INPUT: 0.3})
    assert words.startswith("of its solves 50% ended DIVERGED: the iteration grew")
    assert "30% ended INVALID_INPUT" in words
    assert words.endswith("damp the solver, use another one, or make the map more contractive")
    assert solves_in_words({Status.CONVERGED: 0.5, Status.STEP_LIMIT: 0.5}) == ""


def first_epoch(config):
    """The numbers of the training examples in the order in which they come."""
    data = config["data"]
    count = data["examples"]
    batches = train_batches(InMemory({"x": np.arange(count)}, "numbers"), batch_size=data["batch_size"], seed=config["seed"])
    return np.concatenate([next(batches)["x"] for _ in range(count // data["batch_size"])])


def test_a_batch_that_is_not_finite_is_left_out(tiny, tmp_path):
    """One spoilt example, once an epoch: the run learns from all other batches, and an interruption changes nothing."""
    example = int(first_epoch(tiny)[40])  # not in the first batch, from which the parameters start
    tiny["data"] |= {"kind": "spoilt_moons", "spoilt": [example]}
    result = run(parse(tiny), tmp_path / "run", quiet=True)
    order = np.concatenate([np.random.default_rng([3, epoch]).permutation(200) for epoch in range(4)])[: 24 * 32]
    spoilt = len(np.unique(np.flatnonzero(order == example) // 32))
    rows = train_rows(result.directory)
    assert sum(row["refused"] for row in rows) == spoilt >= 3
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert math.isfinite(result.test["nats"])
    assert {event["event"] for event in events(result.directory)} == {"refused"}
    assert "the training loss became nan" in events(result.directory)[0]["message"]
    assert run(parse(tiny), tmp_path / "again", console=interrupted_after("step 5/")).interrupted
    assert_same(run(parse(tiny), tmp_path / "again", resume=True, quiet=True).directory, result.directory, 24)


def test_a_run_goes_back_and_on_to_other_batches(tiny, tmp_path):
    """Three spoilt batches in a row end in a divergence; what is done then is the same after an interruption and after a kill."""
    tiny["data"]["examples"] = 1000
    tiny["data"] |= {"kind": "spoilt_moons", "spoilt": first_epoch(tiny)[9 * 32 : 12 * 32].tolist()}
    tiny["train"]["guard"] = {"in_a_row": 3}
    result = run(parse(tiny), tmp_path / "run", quiet=True)
    told = events(result.directory)
    assert [(event["step"], event["event"]) for event in told] == [(10, "refused"), (15, "refused"), (15, "went back")]
    assert "the run goes back to the parameters of step 8 and on to other batches" in told[-1]["message"]
    assert [row["refused"] for row in train_rows(result.directory)] == [0, 1, 5, 0, 0]
    assert math.isfinite(result.test["nats"])
    with Checkpoints(result.directory / "checkpoints") as checkpoints:
        state, record = checkpoints.restore()
        assert (int(state["guard/retries"]), record.sound_step) == (1, 24)
    # The row of step 15 is read while step 16 is under way; this interruption comes before, and just after.
    for name, text in (("before", "updates refused before step 15"), ("after", "goes back")):
        assert run(parse(tiny), tmp_path / name, console=interrupted_after(text)).interrupted
        assert_same(run(parse(tiny), tmp_path / name, resume=True, quiet=True).directory, result.directory, 24)


def test_a_run_that_diverges_whenever_it_goes_on_ends(tiny, tmp_path):
    """The learning rate is a thousand times too high for a while, after so many updates; which comes again whenever the run goes back."""
    tiny["optim"] = {"kind": "adamw", "lr": {"kind": "surge", "value": 1e-2, "at": 60}}
    tiny["train"] |= {"steps": 90, "eval_every": 50, "checkpoint_every": 50, "guard": {"spike": 20.0, "in_a_row": 3, "retries": 1}}
    message = r"training diverged: the training loss.* and \d updates in a row .*; going back 1 times did not help: lower the learning rate"
    with pytest.raises(UserError, match=message):
        run(parse(tiny), tmp_path / "run", quiet=True)
    kinds = [event["event"] for event in events(tmp_path / "run")]
    assert [kind for kind in kinds if kind != "refused"] == ["went back", "diverged"]


def test_a_solver_that_cannot_converge_is_named_with_its_remedy(tiny, tmp_path):
    tiny["data"] = {"kind": "digits", "batch_size": 16}
    tiny["model"] = {"kind": "deq_classifier", "width": 8, "cell": "growing", "solver": {"kind": "picard", "max_steps": 200}}
    tiny["task"] = {"kind": "classification"}
    tiny["train"] |= {"ema": None, "guard": {"in_a_row": 2}}
    with pytest.raises(UserError, match=r"100% of the solves failed and .* of its solves 100% ended DIVERGED: .*; damp the solver"):
        run(parse(tiny), tmp_path / "run", quiet=True)
    assert [event["event"] for event in events(tmp_path / "run")] == ["refused", "diverged"]
    assert [row["refused"] for row in train_rows(tmp_path / "run")] == [5]
