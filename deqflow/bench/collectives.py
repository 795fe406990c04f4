"""The communication between devices in a compiled program."""

import math
import re
from typing import NamedTuple

_OPENED = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)={?%?([\w.\-]+)")
_COLLECTIVE = re.compile(r"= (\(.*?\)|\S+) (all-\w+(?:-\w+)?|reduce-scatter|collective-\w+)\(")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
      kind: `all-reduce`, `all-gather`, `reduce-scatter`, `all-to-all` or `collective-permute`.
      shapes: of its results on one device: `f32[3,4]`.
      in_loop: whether it happens in every step of a loop.
    """

    kind: str
    shapes: tuple[str, ...]
    in_loop: bool

    @property
    def bytes(self) -> int:
        """The size of its results on one device."""
        total = 0
        for shape in self.shapes:
            dtype, sides = _SHAPE.findall(shape)[0]
            bits = int(found[0]) if (found := _BITS.search(dtype)) else 8  # pred
            total += math.prod(map(int, filter(None, sides.split(",")))) * bits // 8
        return total


def collectives(program: str) -> list[Collective]:
    """The exchanges between devices in a program that XLA has compiled, in the order in which they stand.

    Args:
      program: the text of the compiled program (`compiled.as_text()`), for CPUs, where no exchange is parted into its start and its end.

    Example:
      >>> collectives('''
      ... ENTRY %main (a: f32[4]) -> f32[4] {
      ...   ROOT %sum = f32[4]{0} all-reduce(%a), to_apply=%add
      ... }''')
      [Collective(kind='all-reduce', shapes=('f32[4]',), in_loop=False)]
    """
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if opened := _OPENED.match(line):
            lines = computations[opened[1]] = []
        else:
            lines.append(line)
    looped: set[str] = set()
    pending = [name for lines in computations.values() for line in lines if " while(" in line for name in _CALLED.findall(line)]
    while pending:
        if (name := pending.pop()) not in looped:
            looped.add(name)
            pending += [called for line in computations[name] for called in _CALLED.findall(line)]
    return [
        Collective(used[2], tuple(f"{dtype}[{sides}]" for dtype, sides in _SHAPE.findall(used[1])), name in looped)
        for name, lines in computations.items()
        for line in lines
        if (used := _COLLECTIVE.search(line))
    ]
