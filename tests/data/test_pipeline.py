"""Batches: every epoch a permutation, every batch a function of seed and number, every thread gone after close."""

import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from deqflow.data import pipeline
from deqflow.data.pipeline import eval_batches, train_batches
from deqflow.data.source import InMemory, Records
from deqflow.registry import UserError

SIZE = 23


class Slow(Records):
    """Records as a disk gives them: `access` decides which of the three readers of the pipeline serves them."""

    def __init__(self, access, size=SIZE, broken=None):
        self.access, self.size, self.broken = access, size, broken

    def __len__(self):
        return self.size

    def gather(self, indices):
        if self.broken in indices:
            raise UserError(f"example {self.broken} cannot be read")
        return {"x": np.stack([indices, 10 * indices], axis=1).astype(np.float32), "y": indices.astype(np.int32)}


READERS = {
    "direct": lambda: InMemory(Slow("memory").gather(np.arange(SIZE)), "test"),
    "thread": lambda: Slow("mapped"),
    "grain": lambda: Slow("records"),
}


@pytest.fixture(params=READERS)
def records(request):
    return READERS[request.param]()


def take(records, count, **options):
    batches = train_batches(records, **({"batch_size": 5, "seed": 0} | options))
    taken = [next(batches)["y"] for _ in range(count)]
    batches.close()
    return np.concatenate(taken)


def test_every_epoch_is_a_permutation_and_none_leaks_into_the_next(records):
    stream = take(records, SIZE * 4)[: SIZE * 20].reshape(20, SIZE)
    assert np.array_equal(np.sort(stream), np.broadcast_to(np.arange(SIZE), (20, SIZE)))
    assert len({tuple(epoch) for epoch in stream}) == 20


def test_the_readers_give_the_same_batches():
    streams = [take(make(), 30) for make in READERS.values()]
    assert np.array_equal(streams[0], streams[1])
    assert np.array_equal(streams[0], streams[2])


def test_batches_hold_whole_examples(records):
    batches = train_batches(records, batch_size=4, seed=3)
    batch = next(batches)
    batches.close()
    assert {role: (column.shape, column.dtype.name) for role, column in batch.items()} == {"x": ((4, 2), "float32"), "y": ((4,), "int32")}
    assert np.array_equal(batch["x"][:, 1], 10 * batch["y"])


@pytest.mark.parametrize("start", [1, 4, 5, 17])
def test_resuming_at_a_batch_continues_the_stream(records, start):
    assert np.array_equal(take(records, 8, start=start), take(records, start + 8)[5 * start :])


def test_the_seed_decides_the_order(records):
    assert np.array_equal(take(records, 9, seed=7), take(records, 9, seed=7))
    assert not np.array_equal(take(records, 9, seed=7), take(records, 9, seed=8))


def test_a_batch_may_be_larger_than_the_data(records):
    stream = take(records, 2, batch_size=3 * SIZE)
    assert np.array_equal(np.sort(stream.reshape(6, SIZE)), np.broadcast_to(np.arange(SIZE), (6, SIZE)))


def test_processes_share_every_batch(records):
    shares = [take(records, 7, batch_size=6, process_index=i, process_count=3).reshape(7, 2) for i in range(3)]
    assert np.array_equal(np.concatenate(shares, axis=1).reshape(-1), take(records, 7, batch_size=6))


def test_a_batch_that_processes_cannot_share_is_refused(records):
    with pytest.raises(UserError, match=r"multiple of the number of processes, 3, got 5"):
        train_batches(records, batch_size=5, seed=0, process_count=3)
    with pytest.raises(UserError, match=r"multiple of the number of processes, 2, got 5"):
        eval_batches(records, batch_size=5, process_count=2)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 40])
def test_evaluation_sees_every_example_once_and_in_order(records, batch_size):
    batches = list(eval_batches(records, batch_size=batch_size))
    assert {batch["x"].shape for batch in batches} == {(batch_size, 2)}
    assert {batch["mask"].dtype.name for batch in batches} == {"float32"}
    seen = np.concatenate([batch["y"][batch["mask"] == 1] for batch in batches])
    assert np.array_equal(seen, np.arange(SIZE))
    assert all(set(batch["y"][batch["mask"] == 0]) <= {SIZE - 1} for batch in batches)


def test_processes_share_evaluation(records):
    shares = [list(eval_batches(records, batch_size=8, process_index=i, process_count=4)) for i in range(4)]
    assert {len(share) for share in shares} == {3}
    seen = [batch["y"][batch["mask"] == 1] for share in shares for batch in share]
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(SIZE))


@pytest.mark.parametrize("access", ["mapped", "records"])
def test_a_failure_in_the_background_reaches_the_consumer(access):
    batches = train_batches(Slow(access, broken=11), batch_size=1, seed=0)
    with pytest.raises(UserError, match="example 11 cannot be read"):
        for _ in range(SIZE):
            next(batches)


@pytest.fixture
def running():
    """The background threads that the test itself has started: Grain does not wait for those of the tests before."""
    before = set(threading.enumerate())
    named = ("deqflow-batches", "grain-prefetch")
    return lambda: [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith(named)]


def gone(running):
    deadline = time.monotonic() + 20
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running()


@pytest.mark.parametrize("access", ["mapped", "records"])
@pytest.mark.parametrize("end", ["close", "forget"])
def test_background_threads_end_with_the_batches(running, access, end):
    batches = train_batches(Slow(access), batch_size=4, seed=0)
    assert not running()  # nothing starts before it is asked for
    next(batches)
    assert running()
    if end == "close":
        batches.close()
        assert next(batches, None) is None
    else:
        del batches
        gc.collect()
    assert gone(running)


def test_small_batches_from_memory_need_no_thread(running, monkeypatch):
    records = READERS["direct"]()
    small = train_batches(records, batch_size=4, seed=0)
    next(small)
    assert not running()
    monkeypatch.setattr(pipeline, "_DIRECT_BYTES", 4 * (8 + 4) - 1)  # one byte less than such a batch has
    large = train_batches(records, batch_size=4, seed=0)
    next(large)
    assert running()
    large.close()
    assert gone(running)


@pytest.mark.parametrize("access", ["mapped", "records"])
def test_a_program_that_forgets_to_close_still_ends(access):
    program = f"""
import numpy as np
from deqflow.data import Records, train_batches

class Endless(Records):
    access = {access!r}
    def __len__(self): return 10
    def gather(self, indices): return {{"x": indices}}

batches = train_batches(Endless(), batch_size=2, seed=0)
next(batches)
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
