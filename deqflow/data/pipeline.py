"""Batches from records: shuffled without end for training, every example once for evaluation.

The training stream is the concatenation of one permutation of the examples per epoch, and batch `i` is its `i`-th slice. So each epoch is
exactly a permutation, also where a batch straddles two of them; batch `i` depends on the seed and `i` alone; to resume is to start at `i`.
"""

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator

import numpy as np
from jaxtyping import Int

from deqflow.data.source import Batch, Records
from deqflow.registry import UserError

# Gathering a small batch from memory takes no longer than handing it from one thread to another, and a thread would also compete with the
# computation for the processor, so up to this size the caller gathers for itself. benchmarks/trainer_overhead.py shows what it costs.
_DIRECT_BYTES = 1 << 20
_AHEAD = 2  # batches that the background thread keeps ready


def train_batches(
    records: Records, *, batch_size: int, seed: int, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Generator[Batch, None, None]:
    """Shuffled batches without end, from batch `start`; `close()` them when done.

    Batch `i` holds the examples `stream[i b : (i + 1) b]`, `stream = perm(0) perm(1) ...`, where `perm(epoch)` is the permutation of all
    examples that `seed` and `epoch` draw.

    Args:
      records: the examples of the split.
      batch_size: examples in one batch, over all processes together; the last batch of an epoch takes its remainder from the next.
      seed: of the order.
      start: number of the first batch.
      process_index: which process this is; it gets its contiguous share of every batch.
      process_count: how many processes share a batch.

    Returns:
      A generator of `{"x": (batch_size / process_count, ...), "y": ...}`.

    Raises:
      UserError: if `batch_size` is not a multiple of `process_count`.

    Example:
      >>> from deqflow.data.source import InMemory
      >>> records = InMemory({"x": np.arange(4)}, "an example")
      >>> batches = train_batches(records, batch_size=2, seed=0)
      >>> sorted(np.concatenate([next(batches)["x"], next(batches)["x"]]).tolist())
      [0, 1, 2, 3]
      >>> batches.close()
    """
    share = _share(batch_size, process_index, process_count)
    order = _Order(len(records), seed)

    def batch(number: int) -> Batch:
        return records.gather(order.between(number * batch_size + share.start, number * batch_size + share.stop))

    if records.access == "records":
        return _read_ahead(batch, start)
    numbers = iter(range(start, 2**62))
    example = sum(column.nbytes for column in records.gather(np.zeros(1, np.int64)).values())
    small = example * (share.stop - share.start) <= _DIRECT_BYTES
    return _direct(batch, numbers) if small and records.access == "memory" else _prefetched(batch, numbers)


def eval_batches(records: Records, *, batch_size: int, process_index: int = 0, process_count: int = 1) -> Generator[Batch, None, None]:
    """Every example once and in order; the last batch is filled up with copies of the last example.

    Args:
      records: the examples of the split.
      batch_size: examples in one batch, over all processes together.
      process_index: which process this is; it gets its contiguous share of every batch.
      process_count: how many processes share a batch.

    Returns:
      A generator of batches of one shape, with `mask`, float32: 1 for an example, 0 for a copy.

    Raises:
      UserError: if `batch_size` is not a multiple of `process_count`.

    Example:
      >>> from deqflow.data.source import InMemory
      >>> records = InMemory({"x": np.arange(3)}, "an example")
      >>> [batch["mask"].tolist() for batch in eval_batches(records, batch_size=2)]
      [[1.0, 1.0], [1.0, 0.0]]
    """
    share = _share(batch_size, process_index, process_count)
    total = len(records)

    def batch(number: int) -> Batch:
        wanted = np.arange(number * batch_size + share.start, number * batch_size + share.stop)
        return records.gather(np.minimum(wanted, total - 1)) | {"mask": (wanted < total).astype(np.float32)}

    count = -(-total // batch_size)
    if records.access == "records":
        return _read_ahead(batch, 0, count)
    return _direct(batch, iter(range(count)))


class _Order:
    """The concatenation of every epoch's permutation, by position."""

    def __init__(self, size: int, seed: int):
        self.size = size
        # Readers in several threads straddle at most two epochs.
        self.permutation = functools.lru_cache(maxsize=3)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(size))

    def between(self, start: int, stop: int) -> Int[np.ndarray, " batch"]:
        """The examples at positions `start .. stop - 1` of the stream."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.size)
            parts.append(self.permutation(epoch)[offset : offset + stop - start])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """This process's contiguous share of a batch."""
    if batch_size % process_count:
        raise UserError(f"data.batch_size must be a multiple of the number of processes, {process_count}, got {batch_size}")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _direct(batch: Callable[[int], Batch], numbers: Iterator[int]) -> Generator[Batch, None, None]:
    """The batches, each gathered when it is asked for."""
    for number in numbers:
        yield batch(number)


def _prefetched(batch: Callable[[int], Batch], numbers: Iterator[int]) -> Generator[Batch, None, None]:
    """The batches, gathered ahead by one background thread, which ends with the generator."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def work() -> None:
        try:
            for number in numbers:
                ready.put(batch(number))
                if stopped.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            ready.put(error)

    # A daemon, so that a program which forgets to close its batches still ends.
    thread = threading.Thread(target=work, name="deqflow-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while thread.is_alive():  # the thread may be waiting for room in the queue
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.01)
        thread.join()


def _read_ahead(batch: Callable[[int], Batch], start: int, count: int | None = None) -> Generator[Batch, None, None]:
    """The batches, whose records are read and decoded ahead by Grain's threads."""
    import grain

    threads = min(8, 2 * (os.cpu_count() or 1))
    numbers = grain.MapDataset.range(start, 2**62 if count is None else count)
    batches = iter(numbers.map(batch).to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))
    try:
        yield from batches
    finally:
        batches.close()
