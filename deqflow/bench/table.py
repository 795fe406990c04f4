"""The table of the memory benchmark."""

from collections.abc import Sequence

from rich.table import Column, Table

from deqflow.bench.compare import Record


def table(records: Sequence[Record]) -> Table:
    """A row for every record; a dash for what could not be measured."""
    names = ("steps", "compiled memory", "measured memory", "seconds", "gradient error")
    made = Table("method", *(Column(name, justify="right") for name in names), Column("status", overflow="fold"))
    for record in records:
        sizes = (None if size is None else size_in_words(size) for size in (record["compiled_bytes"], record["peak_bytes"]))
        numbers = (None if number is None else f"{number:.3g}" for number in (record["seconds"], record["gradient_error"]))
        made.add_row(record["method"], str(record["steps"]), *(cell or "-" for cell in (*sizes, *numbers)), record["status"])
    return made


def size_in_words(count: float) -> str:
    """A number of bytes in the unit in which it has few digits.

    Example:
      >>> size_in_words(3 * 2**20)
      '3 MiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
