"""The solvers of other libraries, each with the small grid of settings of which `solvers.py` keeps the best, problem by problem.

Every solver is given tolerances below the one that is measured, and 5000 steps: where it stops is decided by the log of `counted.py`.
Libraries are imported when their solvers are built, so that one that is not installed costs its own rows only.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from counted import LIMIT, SIZE, Over, Run, jax_map, torch_map

TIGHT = 1e-9
LIBRARIES = {
    "jaxopt": ("jaxopt",),
    "optimistix": ("optimistix", "lineax", "equinox"),
    "TorchDEQ": ("torchdeq", "torch"),
    "banax": ("banax", "equinox"),
}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A solver of another library.

    Attributes:
      library: its name.
      solver: its name.
      grid: settings to choose from, the most promising first.
      build: makes of settings what solves.
      missing: why it cannot run; empty if it can.
    """

    library: str
    solver: str
    grid: tuple[dict[str, Any], ...] = ()
    build: Callable[[dict[str, Any]], Run] | None = None
    missing: str = ""

    def run(self, settings: dict[str, Any]) -> Run:
        return _built(self.build, tuple(settings.items()))


@functools.cache
def _built(build: Callable[[dict[str, Any]], Run], settings: tuple[tuple[str, Any], ...]) -> Run:
    return build(dict(settings))


def versions() -> dict[str, str]:
    """Of all the packages concerned, where they are installed."""
    found = {}
    for package in sorted({package for packages in LIBRARIES.values() for package in packages}):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def peers() -> Iterator[Peer]:
    """Every solver of every library, or one row for a library that is not there."""
    for library, solvers in (("jaxopt", _jaxopt), ("optimistix", _optimistix), ("TorchDEQ", _torchdeq), ("banax", _banax)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt announces that it is no longer maintained
                rows = list(solvers())
        except ImportError as error:
            yield Peer(library, "-", missing=f"not installed ({error})")
        else:
            yield from (Peer(library, *row) for row in rows)


def grid(**choices: tuple) -> tuple[dict[str, Any], ...]:
    """All combinations, the first choices first."""
    combinations: list[dict[str, Any]] = [{}]
    for name, values in choices.items():
        combinations = [{**known, name: value} for known in combinations for value in values]
    return tuple(combinations)


def compiled(solve: Callable[[dict[str, Any], Callable], Any]) -> Callable[[dict[str, Any]], Run]:
    """`build` for a library in JAX, from `solve(settings, f)`."""
    return lambda settings: jax.jit(lambda A, b, curved: solve(settings, jax_map(A, b, curved)))


def start() -> jax.Array:
    return jnp.zeros(SIZE)


def _jaxopt() -> list[tuple]:
    import jaxopt

    common = {"maxiter": LIMIT, "tol": TIGHT, "implicit_diff": False}

    @compiled
    def picard(settings: dict[str, Any], f: Callable) -> Any:
        return jaxopt.FixedPointIteration(f, **common).run(start()).params

    @compiled
    def anderson(settings: dict[str, Any], f: Callable) -> Any:
        return jaxopt.AndersonAcceleration(f, beta=1.0, mixing_frequency=1, **common, **settings).run(start()).params

    @compiled
    def broyden(settings: dict[str, Any], f: Callable) -> Any:
        # Of z - f(z), as the inverse Jacobian begins as the identity: the first step is one of plain iteration.
        return jaxopt.Broyden(lambda z: z - f(z), **common, **settings).run(start()).params

    # A history of m points spans m - 1 differences; what we call Anderson(m) keeps m. Both are tried.
    ridge = (1e-14, 0.0, 1e-10, 1e-8, 1e-5)
    return [
        ("FixedPointIteration", ({},), picard),
        ("AndersonAcceleration(5)", grid(history_size=(6, 5), ridge=ridge), anderson),
        ("AndersonAcceleration(20)", grid(history_size=(21, 20), ridge=ridge), anderson),
        ("AndersonAcceleration(64)", grid(history_size=(65,), ridge=ridge[:2]), anderson),
        ("Broyden(10)", grid(stepsize=(1.0, 0.0), history_size=(10,)), broyden),  # 0: with its line search
        ("Broyden(64)", grid(stepsize=(1.0, 0.0), history_size=(64,)), broyden),
    ]


def _optimistix() -> list[tuple]:
    import lineax
    import optimistix

    two = {"rtol": TIGHT, "atol": TIGHT, "norm": optimistix.two_norm}

    def solving(solver: Callable[..., Any]) -> Callable[[dict[str, Any]], Run]:
        @compiled
        def solve(settings: dict[str, Any], f: Callable) -> Any:
            return optimistix.fixed_point(lambda z, _: f(z), solver(**settings), start(), max_steps=LIMIT, throw=False).value

        return solve

    def linear(krylov: int) -> Any:
        # Tolerances that one cycle of GMRES always meets: an inexact Newton step of so many products. With tolerances to meet it
        # would go on to a second cycle, as it also asks that the solution has stopped changing.
        return lineax.GMRES(rtol=1e9, atol=1e9, restart=krylov) if krylov else lineax.AutoLinearSolver(well_posed=None)

    def newton(krylov: int) -> Any:
        return optimistix.Newton(linear_solver=linear(krylov), **two)

    def chord() -> Any:  # its matrix-free form fails: it stops the gradient of a function
        return optimistix.Chord(**two)

    krylov = (48, 44, 42, 40, 56, 32, 16, 8, 6, 4)
    return [
        ("FixedPointIteration", grid(damp=(0.0, 0.1, 0.2)), solving(lambda damp: optimistix.FixedPointIteration(damp=damp, **two))),
        ("Newton, dense", ({"krylov": 0},), solving(newton)),
        ("Newton, GMRES", grid(krylov=krylov), solving(newton)),
        ("Chord, dense", ({},), solving(chord)),
        ("GaussNewton", ({},), solving(lambda: optimistix.GaussNewton(**two))),
        ("LevenbergMarquardt", ({},), solving(lambda: optimistix.LevenbergMarquardt(**two))),
        ("Dogleg", ({},), solving(lambda: optimistix.Dogleg(**two))),
        ("BFGS", ({},), solving(lambda: optimistix.BFGS(**two))),
        ("LBFGS", grid(history_length=(64, 10)), solving(lambda history_length: optimistix.LBFGS(history_length=history_length, **two))),
    ]


def _torchdeq() -> list[tuple]:
    import torch  # pyright: ignore[reportMissingImports]
    import torchdeq  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)

    def solving(name: str) -> Callable[[dict[str, Any]], Run]:
        deq = torchdeq.get_deq(f_solver=name, f_max_iter=LIMIT, f_tol=TIGHT, f_stop_mode="abs").eval()

        def build(settings: dict[str, Any]) -> Run:
            def run(A: np.ndarray, b: np.ndarray, curved: bool) -> None:
                f = torch_map(torch.from_numpy(A), torch.from_numpy(b), curved)
                singular = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
                with contextlib.suppress(singular, Over):
                    deq(f, torch.zeros(1, SIZE, dtype=torch.float64), solver_kwargs=settings)

            return run

        return build

    lam = (1e-14, 0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
    return [
        ("fixed_point_iter", grid(tau=(1.0, 0.9, 0.8)), solving("fixed_point_iter")),
        ("simple_fixed_point_iter", grid(tau=(1.0, 0.9, 0.8)), solving("simple_fixed_point_iter")),
        ("anderson(5)", grid(m=(6, 5), lam=lam), solving("anderson")),
        ("anderson(20)", grid(m=(21, 20), lam=lam), solving("anderson")),
        ("anderson(64)", grid(m=(65,), lam=lam[:4]), solving("anderson")),
        ("broyden(10)", grid(ls=(False, True), LBFGS_thres=(10,)), solving("broyden")),
        ("broyden(64)", grid(ls=(False, True), LBFGS_thres=(64,)), solving("broyden")),
    ]


def _banax() -> list[tuple]:
    from banax import adjoint, solver  # pyright: ignore[reportMissingImports]

    def solving(kind: Callable[..., Any]) -> Callable[[dict[str, Any]], Run]:
        @compiled
        def solve(settings: dict[str, Any], f: Callable) -> Any:
            return adjoint.JFB(kind(atol=TIGHT, rtol=0.0, max_steps=LIMIT, **settings))(f, start()).value

        return solve

    # Its differences are those to the current point, and the first of them is zero: a depth of m holds m - 1.
    ridge = (1e-16, 1e-12, 1e-10, 1e-6)
    return [
        ("Picard", ({},), solving(solver.Picard)),
        ("Relaxed", grid(damp=(0.9, 0.8)), solving(solver.Relaxed)),
        ("Reversible", grid(damp=(0.9, 0.8, 0.5)), solving(solver.Reversible)),
        ("Anderson(5)", grid(depth=(6, 5), ridge=ridge), solving(solver.Anderson)),
        ("Anderson(20)", grid(depth=(21, 20), ridge=ridge), solving(solver.Anderson)),
        ("Anderson(64)", grid(depth=(65,), ridge=ridge[:2]), solving(solver.Anderson)),
        ("Broyden(10)", grid(spectral_clip=(1.5, None), ls_steps=(0, 8), history_size=(10,)), solving(solver.Broyden)),
        ("Broyden(64)", grid(spectral_clip=(None, 1.5), ls_steps=(0, 8), history_size=(64,)), solving(solver.Broyden)),
    ]
