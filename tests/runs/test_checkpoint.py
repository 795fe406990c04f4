"""Checkpoints: what is kept, what comes back, and what is said when it cannot."""

import gc
import logging
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as orbax

from deqflow.registry import UserError
from deqflow.runs import checkpoint
from deqflow.runs.checkpoint import Checkpoints, Damaged, Record


def state(step, value=0.0):
    return {
        "step": jnp.int32(step),
        "params/blocks.0.kernel": jnp.full((64, 64), value) + jnp.arange(64.0),
        "optimizer/0.mu.params/blocks.0.kernel": jnp.full((2,), value, jnp.bfloat16),
    }


def shapes(leaves):
    return jax.eval_shape(lambda: leaves)


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints: the two newest and the best."""
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(state(step, step / 7), Record(best_step=10, best_value=1 / 3, stale=step // 10 - 1))
    return tmp_path / "checkpoints"


def test_newest_and_best_are_kept(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps == [10, 30, 40]


@pytest.mark.parametrize(("step", "number"), [(None, 40), (10, 10), (30, 30)])
def test_restored_bitwise(saved, step, number):
    with Checkpoints(saved) as checkpoints:
        leaves, record = checkpoints.restore(shapes(state(0)), step)
    assert record == Record(10, 1 / 3, number // 10 - 1)
    for name, leaf in state(number, number / 7).items():
        assert leaves[name].dtype == leaf.dtype
        np.testing.assert_array_equal(leaves[name], leaf)


def test_small_arrays_are_stored_together(tmp_path):
    """Orbax takes its time for each array, however small."""
    leaves = {"step": jnp.int32(3), "params/large": jnp.arange(1e5), "params/empty": jnp.zeros((0, 3)), "model/flag": jnp.array(True)}
    types = (np.float32, jnp.bfloat16)
    leaves |= {f"params/{index}": jnp.asarray(np.full((index, 2), index, types[index % 2])) for index in range(300)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(leaves, Record())
    stored = orbax.metadata(str(tmp_path / "checkpoints" / "3")).metadata
    assert stored.keys() == {"params/large", "small"}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        back, _ = checkpoints.restore(shapes(leaves))
    assert back.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert (back[name].shape, back[name].dtype) == (leaf.shape, leaf.dtype)
        np.testing.assert_array_equal(back[name], leaf)


def test_saved_state_may_be_donated_at_once(tmp_path):
    """The next step reuses the memory of the state while the checkpoint is being written."""
    update = jax.jit(lambda leaves: {name: leaf + 1 for name, leaf in leaves.items()}, donate_argnums=0)
    leaves = {"step": jnp.int32(0), "params/a": jnp.zeros(1_000_000)}
    with Checkpoints(tmp_path / "checkpoints", keep=5) as checkpoints:
        for _ in range(5):
            checkpoints.save(leaves, Record())
            leaves = update(leaves)
        leaves = jax.block_until_ready(update(leaves))
    with Checkpoints(tmp_path / "checkpoints", keep=5) as checkpoints:
        for step in range(5):
            np.testing.assert_array_equal(checkpoints.restore(step=step)[0]["params/a"], np.float32(step))


def test_a_step_on_disk_is_left_as_it_is(saved):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(state(40, 99.0), Record())
    with Checkpoints(saved) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore()[0]["params/blocks.0.kernel"], state(40, 40 / 7)["params/blocks.0.kernel"])


def test_the_sound_one_is_kept(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(state(step), Record(best_step=10, sound_step=20))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == [10, 20, 30]


def test_missing(tmp_path, saved):
    with Checkpoints(tmp_path / "empty") as checkpoints, pytest.raises(UserError, match="there is no checkpoint in"):
        checkpoints.restore()
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError, match="no checkpoint of step 20 .* there are 10, 30, 40"):
        checkpoints.restore(step=20)


def test_another_model(saved):
    other = state(0) | {"params/blocks.0.kernel": jnp.zeros((3, 64))}
    message = r"belongs to another model: params/blocks.0.kernel is float32\[64, 64\] there and float32\[3, 64\] here"
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(shapes(other))
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError, match=r"params/extra is nothing there and float32\[1\] here"):
        checkpoints.restore(shapes(state(0) | {"params/extra": jnp.zeros(1)}))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()], ids=["flipped", "cut", "gone"]
)
def test_damage_is_named_with_its_remedy(saved, damage):
    for path in (saved / "40" / "state" / "d").iterdir():
        damage(path)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(UserError, match="40 is damaged .*; use that of step 30"):
            checkpoints.restore(shapes(state(0)))


def garble(path):
    path.write_bytes(bytes(range(256)) * 20)


BROKEN = {
    "data cut": ("**/d/*", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "data gone": ("**/d/*", lambda path: path.unlink()),
    "data garbled": ("**/d/*", garble),
    "manifest": ("**/manifest.ocdbt", garble),
    "names of the arrays": ("**/_METADATA", garble),
    "record": ("**/_CHECKPOINT_METADATA", garble),
}


@pytest.mark.parametrize("name", BROKEN)
def test_damage_is_told_once(name, saved, caplog, capfd):
    """Nothing else is printed or logged: Orbax reports one damaged file in dozens of tracebacks."""
    pattern, damage = BROKEN[name]
    for path in (saved / "40").glob(pattern):
        damage(path)
    with Checkpoints(saved) as checkpoints, pytest.raises(UserError) as raised:
        checkpoints.restore(shapes(state(0)))
    gc.collect()
    assert f"{saved / '40'} is damaged (" in str(raised.value)
    assert "NoneType" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert capfd.readouterr() == ("", "")


def test_a_flipped_bit_in_what_comes_back_is_told(saved, monkeypatch):
    """Of large arrays Orbax itself keeps no checksum, so the bit is flipped behind its back."""
    copy = checkpoint.checksum_of

    def flipped(stored, index, record):
        bits = stored["small"].copy()
        bits[197] ^= 1 << 3
        return copy(stored | {"small": bits}, index, record)

    with Checkpoints(saved) as checkpoints:
        monkeypatch.setattr(checkpoint, "checksum_of", flipped)
        with pytest.raises(Damaged, match="40 is damaged .its checksum is not that of what was saved.; use that of step 30"):
            checkpoints.restore(shapes(state(0)))


def test_a_flipped_bit_in_the_record_is_told(saved):
    path = saved / "40" / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"stale": 3', '"stale": 7'))
    with Checkpoints(saved) as checkpoints, pytest.raises(Damaged, match="checksum"):
        checkpoints.restore(shapes(state(0)))


def test_the_newest_sound_one_is_restored_and_damaged_ones_make_room(saved):
    for path in (saved / "40" / "state" / "d").iterdir():
        flip(path)
    shutil.rmtree(saved / "30" / "state")
    with Checkpoints(saved) as checkpoints:  # one who only reads removes nothing
        assert checkpoints.restore_newest(shapes(state(0)))[1].stale == 0
        assert {path.name for path in saved.iterdir()} == {"10", "30", "40"}
    with Checkpoints(saved, clean=True) as checkpoints:
        leaves, record = checkpoints.restore_newest(shapes(state(0)))
        assert (int(leaves["step"]), record.stale) == (10, 0)
        assert [complaint.partition(" is damaged")[0][-2:] for complaint in checkpoints.complaints] == ["40", "30"]
        assert checkpoints.steps == [10]
        assert {path.name for path in saved.iterdir()} == {"10", "damaged-30", "damaged-40"}
        checkpoints.save(state(40, 1.0), Record())
    with Checkpoints(saved) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore()[0]["params/blocks.0.kernel"], state(40, 1.0)["params/blocks.0.kernel"])


def test_metadata_that_orbax_does_not_know(saved):
    path = saved / "40" / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace("commit_", "c/mmit_"))
    with Checkpoints(saved) as checkpoints, pytest.raises(Damaged, match="40 is damaged .*; use that of step 30"):
        checkpoints.record()
    with Checkpoints(saved, clean=True) as checkpoints:
        leaves, _ = checkpoints.restore_newest(shapes(state(0)))
    assert int(leaves["step"]) == 30
    assert "40 is damaged (" in checkpoints.complaints[0]


def test_where_none_is_sound_all_stay(saved):
    for path in saved.glob("*/state/manifest.ocdbt"):
        garble(path)
    with Checkpoints(saved, clean=True) as checkpoints:
        with pytest.raises(Damaged, match="40 is damaged"):
            checkpoints.restore_newest(shapes(state(0)))
        assert checkpoints.steps == [10, 30, 40]


def test_a_checkpoint_that_cannot_be_saved_is_told_and_leaves_no_thread(open_path, as_nobody, capfd, caplog):
    before = set(threading.enumerate())
    folder = open_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state(1), Record())
    folder.chmod(0o555)
    with as_nobody(), pytest.raises(UserError, match="checkpoint of step 2 cannot be saved in .* .Permission denied.; see to free space"):
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(state(2), Record())
            checkpoints.wait()
    assert [path.name for path in folder.iterdir()] == ["1"]
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in left:  # one that waits for ever would keep the process from ending
        thread.join(5)
    assert not any(thread.is_alive() for thread in left)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert capfd.readouterr().err == ""


def test_what_is_not_there_after_all_is_not_taken_for_saved(tmp_path, monkeypatch):
    """Orbax logs some failures without raising them."""
    with pytest.raises(UserError, match="checkpoint of step 1 cannot be saved"), Checkpoints(tmp_path / "checkpoints") as checkpoints:
        monkeypatch.setattr("pathlib.Path.is_dir", lambda path: path.name != "1")
        checkpoints.save(state(1), Record())


def test_a_reader_leaves_alone_what_is_being_written(saved):
    half, dropped = saved / "50.orbax-checkpoint-tmp", saved / "dropped-20"
    half.mkdir()
    dropped.mkdir()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.steps == [10, 30, 40]
    assert half.is_dir() and dropped.is_dir()
    with Checkpoints(saved, clean=True):
        pass
    assert not half.exists() and not dropped.exists()


def test_what_is_killed_while_it_is_removed_is_no_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state(1), Record())
        checkpoints.wait()
        monkeypatch.setattr(shutil, "rmtree", lambda path, **_: next(path.rglob("manifest.ocdbt")).unlink())
        checkpoints.save(state(2), Record())
    monkeypatch.undo()
    assert {path.name for path in folder.iterdir()} == {"2", "dropped-1"}
    with Checkpoints(folder, clean=True) as checkpoints:
        assert checkpoints.steps == [2]
    assert {path.name for path in folder.iterdir()} == {"2"}
