"""The files of numbers: deterministic, valid JSON, exact after a resume, and readable by TensorBoard."""

import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboardX.proto.event_pb2 import Event, SessionLog

from deqflow.registry import UserError
from deqflow.runs.metrics import MetricsWriter, read_rows

ROWS = [
    (20, "train", {"loss": 1.5, "accuracy": 0.25}),
    (40, "train", {"loss": math.nan, "accuracy": 0.5}),
    (40, "validation", {"loss": 1.25, "residual_max": math.inf}),
    (60, "train", {"loss": -math.inf, "accuracy": 0.75}),
]


def write(directory, rows, resume_step=None):
    with MetricsWriter(directory, resume_step) as writer:
        for row in rows:
            writer.write(*row)
            writer.timing(row[0], 0.5 * row[0], {"steps_per_second": 40.0})
        writer.sync()


def events(directory):
    """Every TensorBoard event, file by file: a record is its length, two checksums and the bytes in between."""
    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


def test_rows_come_back_as_they_were_written(tmp_path):
    write(tmp_path, ROWS)
    rows = read_rows(tmp_path / "metrics.jsonl")
    np.testing.assert_equal(rows, [{"step": step, "split": split, **values} for step, split, values in ROWS])
    assert read_rows(tmp_path / "timing.jsonl")[1] == {"step": 40, "seconds": 20.0, "steps_per_second": 40.0}


def test_every_line_is_strict_json_with_keys_in_a_fixed_order(tmp_path):
    write(tmp_path, ROWS)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [list(json.loads(line, parse_constant=refuse)) for line in lines] == [
        ["step", "split", "accuracy", "loss"],
        ["step", "split", "accuracy", "loss"],
        ["step", "split", "loss", "residual_max"],
        ["step", "split", "accuracy", "loss"],
    ]


def test_a_row_is_on_the_disk_when_the_call_returns(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(*ROWS[0])
        assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


NUMBERS = {
    "float": (0.1, 0.1),
    "int": (3, 3),
    "bool": (True, 1),
    "numpy float32": (np.float32(0.1), float(np.float32(0.1))),
    "numpy int": (np.int64(7), 7),
    "jax float32": (jnp.float32(0.5), 0.5),
    "jax bfloat16": (jnp.bfloat16(1.5), 1.5),
    "jax int": (jnp.int32(7), 7),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_of_every_origin(case, tmp_path):
    value, expected = NUMBERS[case]
    write(tmp_path, [(1, "train", {"number": value})])
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["number"] == expected
    assert type(row["number"]) is (float if isinstance(expected, float) else int)


@pytest.mark.parametrize("value", [np.ones(2), "high", None], ids=["array", "text", "none"])
def test_what_is_no_number_is_refused_and_writes_nothing(value, tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="must be one number"):
        writer.write(1, "train", {"loss": 1.0, "other": value})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_killed_at_any_byte_and_resumed_has_the_file_of_one_never_killed(tmp_path):
    write(tmp_path, ROWS)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    done = whole.index(b"\n") + 1  # the checkpoint of step 20 is saved after its row
    for cut in range(done, len(whole), 7):
        path.write_bytes(whole[:cut])
        write(tmp_path, ROWS[1:], resume_step=20)
        assert path.read_bytes() == whole
    assert not list(tmp_path.glob("*.tmp"))


def test_rows_of_the_restored_step_stay_but_not_its_test(tmp_path):
    write(tmp_path, [*ROWS[:3], (40, "test", {"loss": 1.0})])
    write(tmp_path, [], resume_step=40)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in rows] == [(20, "train"), (40, "train"), (40, "validation")]
    assert [row["step"] for row in read_rows(tmp_path / "timing.jsonl")] == [20, 40, 40, 40]


def test_starting_from_nothing_drops_what_a_run_without_checkpoint_left(tmp_path):
    write(tmp_path, ROWS)
    write(tmp_path, [])
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_a_damaged_file_is_reported_with_its_line_and_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1, "split": "train"}\n[1, 2]\n{"step": 2, "split": "train"}\n'
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: expected a row with a step, got '\[1, 2\]'"):
        read_rows(path)
    with pytest.raises(UserError, match="line 2"):
        MetricsWriter(tmp_path, 1)
    assert path.read_text() == text


def test_tensorboard_shows_the_finite_numbers_by_split(tmp_path):
    write(tmp_path, ROWS)
    scalars = [(event.step, value.tag, value.simple_value) for event in events(tmp_path) for value in event.summary.value]
    assert (20, "train/loss", 1.5) in scalars
    assert (40, "validation/loss", 1.25) in scalars
    assert (20, "time/steps_per_second", 40.0) in scalars
    assert all(math.isfinite(value) for _, _, value in scalars)
    assert {tag for _, tag, _ in scalars} == {"train/loss", "train/accuracy", "validation/loss", "time/steps_per_second"}


def test_tensorboard_is_told_from_which_step_on_a_resumed_run_replaces(tmp_path):
    write(tmp_path, ROWS)
    write(tmp_path, [], resume_step=40)
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [0, 41]


def test_tensorboard_shows_events(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.event(40, "went back", "training diverged")
    (text,) = [(event.step, value) for event in events(tmp_path) for value in event.summary.value]
    assert (text[0], text[1].tag, text[1].metadata.plugin_data.plugin_name) == (40, "events/went back/text_summary", "text")
    assert text[1].tensor.string_val == [b"training diverged"]


def test_tensorboard_shows_pictures(tmp_path):
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().plot([0, 1])
    with MetricsWriter(tmp_path) as writer:
        writer.picture(60, "curves", figure)
    (image,) = [value for event in events(tmp_path) for value in event.summary.value]
    assert image.tag == "plots/curves"
    assert (image.image.width, image.image.height) == (100, 50)


def test_a_speed_that_is_not_known_yet_is_left_out(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.timing(1, 2.5, {"steps_per_second": None})
    assert read_rows(tmp_path / "timing.jsonl") == [{"step": 1, "seconds": 2.5}]
