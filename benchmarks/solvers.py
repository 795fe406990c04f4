"""Evaluations to a residual of 1e-6: our solvers beside those of jaxopt, optimistix, TorchDEQ and banax; and the linear solvers.

python benchmarks/solvers.py     # with the extras `train` and `bench`; a library that is not installed leaves a row that says so

From z = 0, in float64, with 64 unknowns, until `‖f(z) - z‖₂ <= 1e-6`; the median over ten seeds. What counts is in `counted.py`, the
settings that the others are given in `peers.py`, the linear systems, beside jax.scipy and lineax, in `linear_systems.py`. Writes
results/solvers.json and results/solvers.png.

Ours have their default settings but for the history in their names; of the others the best of a grid counts, problem by problem.
Anderson(64) and Broyden(64), ours and theirs, keep all that 64 unknowns can use.
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import linear_systems
import numpy as np
import peers
import picture
from common import RESULTS, write_result
from counted import LIMIT, PROBLEMS, SIZE, TOLERANCE, Log, Problem, Run, jax_map, solve

import deqflow
from deqflow.implicit import Anderson, Broyden, Newton, Picard, Solver, Status

_STOP = {"atol": TOLERANCE, "rtol": 0.0, "max_steps": LIMIT}
OURS: dict[str, Solver] = {
    "Picard": Picard(**_STOP),
    "Anderson(5)": Anderson(history=5, **_STOP),
    "Anderson(20)": Anderson(history=20, **_STOP),
    "Anderson(64)": Anderson(history=64, **_STOP),
    "Broyden(10)": Broyden(memory=10, **_STOP),
    "Broyden(64)": Broyden(memory=64, **_STOP),
    "Newton": Newton(**_STOP),
}
LIMITS = {
    "Anderson(5)": {"affine_0.9": 78, "affine_0.99": 160, "tanh_0.9": 24},
    "Anderson(20)": {"affine_0.9": 49, "affine_0.99": 63, "tanh_0.9": 23},
    "Broyden(64)": {"affine_0.9": 48, "affine_0.99": 60, "tanh_0.9": 23},
    "Broyden(10)": dict.fromkeys(PROBLEMS, LIMIT),  # it converges
}


@dataclasses.dataclass
class Row:
    """One solver on one problem."""

    library: str
    solver: str
    problem: str
    settings: dict[str, Any]
    logs: Sequence[Log]
    note: str = ""

    @property
    def evaluations(self) -> list[float]:
        return [log.evaluations for log in self.logs]

    @property
    def median(self) -> float:
        return statistics.median(self.evaluations) if self.logs else math.inf

    def curve(self, length: int) -> np.ndarray:
        """The median over the seeds of the smallest residual so far, after 1, 2, ... evaluations."""
        curves = [np.pad(log.best(), (0, max(0, length - len(log.residuals))), mode="edge")[:length] for log in self.logs]
        return np.median(curves, axis=0)

    def record(self) -> dict[str, Any]:
        known = {"library": self.library, "solver": self.solver, "settings": self.settings, "note": self.note}
        met = [count for count in self.evaluations if math.isfinite(count)]
        if not met:
            return {**known, "median": None, "converged": 0}
        median = self.median if math.isfinite(self.median) else None
        return {**known, "median": median, "fewest": min(met), "most": max(met), "converged": len(met)}


def ours(name: str, solver: Solver, seeds: int) -> list[Row]:
    """Our rows; the statistics of the solver are checked against what was counted."""

    @jax.jit
    def run(A: jax.Array, b: jax.Array, curved: jax.Array) -> Any:
        f = jax_map(A, b, curved)
        return deqflow.fixed_point(lambda z: f(z[0])[None], jnp.zeros((1, SIZE)), solver=solver, batched=True).stats

    rows = []
    for key, problem in PROBLEMS.items():
        logs, notes = [], set()
        for seed in range(seeds):
            log, stats = solve(run, problem, seed)
            logs.append(log)
            if int(stats.status[0]) != Status.CONVERGED:
                notes.add(Status(int(stats.status[0])).name)
            if int(stats.evaluations[0]) != log.evaluations:
                notes.add(f"reports {int(stats.evaluations[0]) - log.evaluations:+} evaluations")
        rows.append(Row("deqflow", name, key, {}, logs, "; ".join(sorted(notes))))
    return rows


def theirs(peer: peers.Peer, seeds: int) -> list[Row]:
    """A row for every problem, with the settings of the grid that need the fewest evaluations there."""
    if peer.missing:
        return [Row(peer.library, peer.solver, key, {}, [], peer.missing) for key in PROBLEMS]
    rows = []
    for key, problem in PROBLEMS.items():
        best, chosen = math.inf, peer.grid[0]
        for settings in peer.grid:
            # Where half of the seeds need more than twice the best median, the median cannot be smaller: they are cut off.
            counts = _counts(peer.run(settings), problem, seeds, cut=min(LIMIT, 2 * best))
            if statistics.median(counts) < best:
                best, chosen = statistics.median(counts), settings
        logs = [solve(peer.run(chosen), problem, seed)[0] for seed in range(seeds)]
        met = sum(log.met for log in logs)
        note = "" if met == seeds else f"{key}: {met} of {seeds} seeds converge"
        rows.append(Row(peer.library, peer.solver, key, chosen, logs, note))
    return rows


def _counts(run: Run, problem: Problem, seeds: int, cut: float) -> list[float]:
    counts: list[float] = []
    for seed in range(seeds):
        counts.append(solve(run, problem, seed, limit=cut)[0].evaluations)
        if 2 * counts.count(math.inf) >= seeds:
            return [math.inf]
    return counts


def judge(rows: Sequence[Row]) -> dict[str, Any]:
    """The limits, and whether anyone needs fewer evaluations than the best of us."""
    limits: dict[str, Any] = {name: {} for name in LIMITS}
    for row in rows:
        if row.library == "deqflow" and row.solver in LIMITS:
            limit = LIMITS[row.solver][row.problem]
            holds = row.median <= limit and all(log.met for log in row.logs)
            limits[row.solver][row.problem] = {"median": row.median, "limit": limit, "holds": holds}
    comparison = {}
    for key in PROBLEMS:
        mine, other = (
            min((row for row in rows if row.problem == key and (row.library == "deqflow") == own), key=lambda row: row.median)
            for own in (True, False)
        )
        comparison[key] = {
            "ours": f"{mine.solver}: {mine.median:g}",
            "theirs": f"{other.library} {other.solver}: {other.median:g}",
            "no_peer_beats_our_best": mine.median <= other.median,
        }
    return {"limits": limits, "comparison": comparison}


def table(rows: Sequence[Row]) -> str:
    """The medians, a line per solver."""
    lines = [f"{'':<38}" + "".join(f"{key:>13}" for key in PROBLEMS)]
    for library, solver in dict.fromkeys((row.library, row.solver) for row in rows):
        mine = {row.problem: row for row in rows if (row.library, row.solver) == (library, solver)}
        cells = ["-" if not row.logs else f"> {LIMIT}" if math.isinf(row.median) else f"{row.median:g}" for row in mine.values()]
        notes = "; ".join(sorted({row.note for row in mine.values() if row.note}))
        lines.append(f"{library:<11}{solver:<27}" + "".join(f"{cell:>13}" for cell in cells) + f"   {notes}".rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds and few repeats; prints, and keeps nothing")
    arguments = parser.parse_args()
    seeds, repeats = (2, 5) if arguments.quick else (10, 50)
    began = time.perf_counter()
    systems = linear_systems.measure(repeats)
    jax.config.update("jax_enable_x64", True)
    rows = [row for name, solver in OURS.items() for row in ours(name, solver, seeds)]
    rows += [row for peer in peers.peers() for row in theirs(peer, seeds)]
    verdict = judge(rows)
    print(table(rows))
    print(linear_systems.table(systems))
    for name, problems in verdict["limits"].items():
        print(f"{name}: " + ", ".join(f"{m['median']:g} <= {m['limit']} on {key}: {m['holds']}" for key, m in problems.items()))
    for key, entry in verdict["comparison"].items():
        print(f"{key}: ours {entry['ours']}, theirs {entry['theirs']}; no peer beats our best: {entry['no_peer_beats_our_best']}")
    if arguments.quick:
        return
    picture.draw(rows, RESULTS / "solvers.png")
    metrics = {
        **verdict,
        "rows": {key: [row.record() for row in rows if row.problem == key] for key in PROBLEMS},
        "linear": systems,
        "peer_versions": peers.versions(),
    }
    expected = {
        "limits": "all hold",
        "comparison": "no_peer_beats_our_best is true for every problem",
        "linear": "ours: independent, worst_relative_residual <= 1.1e-5; no other that reaches what ours reaches is faster",
    }
    write_result("solvers", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
