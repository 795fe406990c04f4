"""The table of components: `(family, kind)` names a class, which is imported only when it is asked for.

A *family* is a role in a config (`solver`, `model`, `data`, ...), a *kind* one way to fill it (`anderson`, `picard`). The class
behind a kind is its own schema: the typed keyword arguments of its `__init__` are what a config may say. This module imports
nothing else of deqflow, so that every package may use it.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T", bound=type)
_UNIONS = (typing.Union, types.UnionType)


class UserError(ValueError):
    """A mistake that the user can mend; the command line prints its message alone and exits with code 2."""


class FromRuntime:
    """Marks an `__init__` argument that no config sets: `classes: Annotated[int, FromRuntime]`.

    It is filled by name when the component is built, from the random streams (`rngs`) and the data's static `DataSpec`
    (`input_shape`, `classes`, `levels`, ...). A `None` there is passed on only where the annotation allows `None`.
    """


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers an argument may take: `rtol: Annotated[float, Range(gt=0)]`.

    The config schema shows and checks it, and `check_ranges` checks it for those who call the class from Python.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __str__(self) -> str:
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        bounds = {sign: bound for sign, bound in dataclasses.asdict(self).items() if bound is not None}
        return " and ".join(f"{signs[k]} {f'{v:g}' if float(f'{v:g}') == v else v}" for k, v in bounds.items())

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )


def check_ranges(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Raise `ValueError` for the first of `arguments` that lies outside the `Range` in `function`'s annotations.

    `None`, and anything else that is not a plain number, passes: types are the type checker's business.

    Example:
      >>> from typing import Annotated
      >>> def solve(rtol: Annotated[float, Range(gt=0)] = 1e-5): ...
      >>> check_ranges(solve, {"rtol": 0.0})
      Traceback (most recent call last):
      ValueError: rtol must be > 0, got 0.0
    """
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        value = arguments.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        for marker in markers(hint):
            if isinstance(marker, Range) and value not in marker:
                raise ValueError(f"{name} must be {marker}, got {value!r}")


def markers(hint: object) -> list[object]:
    """What `Annotated` says in an annotation, also inside a union: `[Range(gt=0)]` for `Annotated[float, Range(gt=0)] | None`."""
    found = list(getattr(hint, "__metadata__", ()))
    inner = typing.get_args(hint)[:1] if found else typing.get_args(hint) if typing.get_origin(hint) in _UNIONS else ()
    return found + [marker for part in inner for marker in markers(part)]


@dataclasses.dataclass(frozen=True)
class _Family:
    base: str  # "module:Class" that annotations of this family name
    summary: str
    kinds: dict[str, str | type]


_FAMILIES: dict[str, _Family] = {
    "data": _Family(
        "deqflow.data.source:Source",
        "where examples come from",
        {
            "digits": "deqflow.data.digits:Digits",
            "moons": "deqflow.data.densities:Moons",
            "checkerboard": "deqflow.data.densities:Checkerboard",
            "eight_gaussians": "deqflow.data.densities:EightGaussians",
            "pinwheel": "deqflow.data.densities:Pinwheel",
            "two_spirals": "deqflow.data.densities:TwoSpirals",
            "rings": "deqflow.data.densities:Rings",
            "swiss_roll": "deqflow.data.densities:SwissRoll",
            "mazes": "deqflow.data.mazes:Mazes",
            "arrays": "deqflow.data.arrays:Arrays",
            "text": "deqflow.data.text:Text",
            "tfds": "deqflow.data.tfds:TFDS",
        },
    ),
    "model": _Family(
        "flax.nnx:Module",
        "the network that is trained",
        {
            "deq_classifier": "deqflow.models.deq_classifier:DEQClassifier",
            "deq_segmenter": "deqflow.models.deq_segmenter:DEQSegmenter",
            "deq_transformer": "deqflow.models.deq_transformer:DEQTransformer",
            "image_flow": "deqflow.models.image_flow:ImageFlow",
            "implicit_flow": "deqflow.models.residual_flow:ImplicitNormalizingFlow",
            "mdeq_classifier": "deqflow.models.mdeq_classifier:MDEQClassifier",
            "realnvp": "deqflow.models.realnvp:RealNVP",
            "residual_flow": "deqflow.models.residual_flow:ResidualFlow",
            "spline_flow": "deqflow.models.spline_flow:SplineFlow",
            "transformer": "deqflow.models.transformer:Transformer",
        },
    ),
    "task": _Family(
        "deqflow.tasks.task:Task",
        "what the model is trained for",
        {
            "classification": "deqflow.tasks.classification:Classification",
            "density": "deqflow.tasks.density:Density",
            "language_modelling": "deqflow.tasks.language_modelling:LanguageModelling",
            "segmentation": "deqflow.tasks.segmentation:Segmentation",
        },
    ),
    "cell": _Family(
        "deqflow.deq.cell:Cell",
        "what an equilibrium layer iterates",
        {
            "conv": "deqflow.deq.conv_cell:ConvCell",
            "mlp": "deqflow.deq.mlp_cell:MLPCell",
            "monotone_conv": "deqflow.deq.monotone_cell:MonotoneConvCell",
            "monotone_dense": "deqflow.deq.monotone_cell:MonotoneDenseCell",
            "residual_conv": "deqflow.deq.residual_conv_cell:ResidualConvCell",
        },
    ),
    "solver": _Family(
        "deqflow.implicit.solver:Solver",
        "how an equation is solved",
        {
            "anderson": "deqflow.implicit.anderson:Anderson",
            "broyden": "deqflow.implicit.broyden:Broyden",
            "jaxopt_anderson": "deqflow.implicit.from_jaxopt:JaxoptAnderson",
            "jaxopt_broyden": "deqflow.implicit.from_jaxopt:JaxoptBroyden",
            "jaxopt_fixed_point": "deqflow.implicit.from_jaxopt:JaxoptFixedPoint",
            "newton": "deqflow.implicit.newton:Newton",
            "picard": "deqflow.implicit.picard:Picard",
            "reversible": "deqflow.implicit.reversible:Reversible",
        },
    ),
    "gradient": _Family(
        "deqflow.implicit.gradient:Gradient",
        "how a solution is differentiated",
        {
            "implicit": "deqflow.implicit.gradient:Implicit",
            "jacobian_free": "deqflow.implicit.truncated:JacobianFree",
            "phantom": "deqflow.implicit.phantom:Phantom",
            "reversible": "deqflow.implicit.reversible:ReversibleAdjoint",
            "shine": "deqflow.implicit.shine:Shine",
            "truncated_neumann": "deqflow.implicit.truncated:TruncatedNeumann",
            "unrolled": "deqflow.implicit.unrolled:Unrolled",
        },
    ),
    "linear": _Family(
        "deqflow.implicit.linear:LinearSolver",
        "how a linear system is solved, matrix-free",
        {
            "bicgstab": "deqflow.implicit.bicgstab:BiCGStab",
            "dense": "deqflow.implicit.dense:Dense",
            "fixed_point": "deqflow.implicit.stationary:LinearFixedPoint",
            "gmres": "deqflow.implicit.gmres:GMRES",
            "neumann": "deqflow.implicit.stationary:Neumann",
        },
    ),
    "log_det": _Family(
        "deqflow.flows.log_determinant:LogDet",
        "how log-determinants of residual blocks are computed",
        {
            "arnoldi": "deqflow.flows.arnoldi_quadrature:ArnoldiQuadrature",
            "exact": "deqflow.flows.log_determinant:Exact",
            "power_series": "deqflow.flows.power_series:PowerSeries",
            "russian_roulette": "deqflow.flows.power_series:RussianRoulette",
        },
    ),
    "step": _Family(
        "deqflow.models.image_steps:ImageStep",
        "what an image flow repeats at every scale",
        {
            "glow": "deqflow.models.image_steps:GlowStep",
            "implicit": "deqflow.models.image_steps:ImplicitStep",
            "realnvp": "deqflow.models.image_steps:RealNVPStep",
            "residual": "deqflow.models.image_steps:ResidualStep",
        },
    ),
    "optim": _Family(
        "deqflow.optim:Optimizer",
        "how parameters are updated",
        {
            "adamw": "deqflow.optim:AdamW",
        },
    ),
    "schedule": _Family(
        "deqflow.optim:Schedule",
        "a number that changes with the training step",
        {
            "constant": "deqflow.optim:Constant",
            "cosine": "deqflow.optim:Cosine",
            "linear": "deqflow.optim:Linear",
        },
    ),
}


def families() -> dict[str, str]:
    """Every family's name with its one-line summary."""
    return {name: family.summary for name, family in _FAMILIES.items()}


def kinds(family: str) -> list[str]:
    """The kinds that a config may name in `family`, in table order."""
    return list(_lookup(family).kinds)


def resolve(family: str, kind: str) -> type:
    """The class behind `kind`, imported now.

    Raises:
      UserError: if there is no such family or kind; the message names the nearest one.
    """
    table = _lookup(family).kinds
    if kind not in table:
        raise UserError(f"unknown {family} {kind!r}{suggest(kind, table)} (known: {', '.join(sorted(table))})")
    target = table[kind]
    if isinstance(target, str):
        module, _, name = target.partition(":")
        try:
            target = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == __name__.partition(".")[0]:
                raise
            raise UserError(
                f"{family} {kind!r} needs the package {error.name!r}, which is not installed; "
                "pip install 'deqflow[train,flows]' brings what the components need"
            ) from error
    return typing.cast(type, target)


def kind_of(cls: type) -> tuple[str, str] | None:
    """The family and kind that `cls` is registered under, or `None`."""
    here = _address(cls)
    return next(((name, kind) for name, family in _FAMILIES.items() for kind, c in family.kinds.items() if _address(c) == here), None)


def register(family: str, kind: str) -> Callable[[T], T]:
    """Class decorator that adds a user's component to the table: `@register("solver", "mine")`.

    Importing the module that holds the class registers it, which is what `plugins: [my_package.solvers]` in a config does.

    Raises:
      ValueError: if another class already has that name.
    """

    def add(cls: T) -> T:
        table = _lookup(family).kinds
        there = table.get(kind)
        if there is not None and _address(there) != _address(cls):
            raise ValueError(f"{family} {kind!r} is already registered, as {_address(there)}")
        table[kind] = cls
        return cls

    return add


def family_of(annotation: object) -> str | None:
    """The family whose base class `annotation` is, or `None`; a class is recognised by its name, without importing others."""
    if not isinstance(annotation, type):
        return None
    return next((family for family, entry in _FAMILIES.items() if entry.base == _address(annotation)), None)


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'history'?"`, or nothing when no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _address(cls: str | type) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}:{cls.__qualname__}"


def _lookup(family: str) -> _Family:
    if family not in _FAMILIES:
        raise UserError(f"unknown family {family!r}{suggest(family, _FAMILIES)} (known: {', '.join(_FAMILIES)})")
    return _FAMILIES[family]
