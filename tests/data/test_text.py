"""The `text` source: vocabulary, windows, splits, and the refusal of files that are no text."""

import itertools

import numpy as np
import pytest

from deqflow.data.pipeline import eval_batches, train_batches
from deqflow.data.text import Text
from deqflow.registry import UserError

POEM = "".join(f"line {index} of the poem\n" for index in range(40))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poem.txt").write_text(POEM)
    return tmp_path


def decoded(source, split, join=""):
    """The text of a split, put together from its windows."""
    records, vocabulary = source.split(split), source.spec().vocabulary
    x = records.gather(np.arange(len(records)))["x"]
    assert np.array_equal(x[1:, 0], x[:-1, -1])  # each window begins where the one before has ended
    return join.join(vocabulary[token] for token in [x[0, 0], *x[:, 1:].ravel()])


def test_characters_of_one_file(here):
    source = Text(path="poem.txt", context=7, validation_fraction=0.2, test_fraction=0.1)
    spec = source.spec()
    assert spec.vocabulary == ("<unk>", *sorted(set(POEM)))
    assert (spec.input_shape, spec.dtype, spec.levels) == ((8,), "int32", len(spec.vocabulary))
    start = 0
    for split, share in {"train": 0.7, "validation": 0.2, "test": 0.1}.items():
        text, size = decoded(source, split), round(share * len(POEM))
        assert text == POEM[start : start + len(text)]
        assert size - 7 <= len(text) <= size
        start += size


def test_words_of_a_file_for_each_split(here):
    (here / "new.txt").write_text("the poem\n\nof a new line\n")
    source = Text(path="poem.txt", validation="new.txt", test="new.txt", level="word", context=3)
    assert source.spec().vocabulary[:3] == ("<unk>", "0", "1")
    assert decoded(source, "train", " ").startswith("line 0 of the poem <eos> line 1 of")
    assert decoded(source, "test", " ") == "the poem <eos> <eos> of <unk> <unk>"


def test_the_vocabulary_is_that_of_the_training_part_alone(here):
    (here / "late.txt").write_text("abab" * 20 + "zzzz")
    source = Text(path="late.txt", context=2)
    assert source.spec().vocabulary == ("<unk>", "a", "b")
    assert source.split("test").gather(np.array([0]))["x"].tolist() == [[0, 0, 0]]


def test_the_most_frequent_tokens_are_kept(here):
    (here / "words.txt").write_text("b b b a a c c <unk> <unk> <unk> <unk> d\n")
    source = Text(path="words.txt", validation="poem.txt", test="poem.txt", level="word", context=2, vocabulary_size=3)
    assert source.spec().vocabulary == ("<unk>", "a", "b")


def test_an_epoch_is_a_permutation_and_resumes(here):
    records = Text(path="poem.txt", context=7).split("train")
    count, size = len(records), 5
    stream = list(itertools.islice(train_batches(records, batch_size=size, seed=3), count))
    every = np.concatenate([batch["x"] for batch in stream])[:count]  # one epoch of the `size` that these batches hold
    windows = records.gather(np.arange(count))["x"]
    assert not np.array_equal(every, windows)
    assert np.array_equal(every[np.lexsort(every.T)], windows[np.lexsort(windows.T)])
    resumed = next(train_batches(records, batch_size=size, seed=3, start=9))
    assert np.array_equal(resumed["x"], stream[9]["x"])
    assert sum(batch["mask"].sum() for batch in eval_batches(records, batch_size=size)) == count


def test_line_ends_are_all_the_same(here):
    (here / "dos.txt").write_bytes(POEM.replace("\n", "\r\n").encode())
    assert Text(path="dos.txt").spec() == Text(path="poem.txt").spec()


REFUSED = {
    "missing": ({"path": "peom.txt"}, r"peom.txt: no such file; did you mean 'poem.txt'\?"),
    "missing folder": ({"path": "data/poem.txt"}, "there is no directory data"),
    "a folder": ({"path": "."}, "cannot be read"),
    "empty": ({"path": "empty.txt"}, "empty.txt is empty"),
    "not UTF-8": ({"path": "latin.txt"}, r"latin.txt is not UTF-8: byte 2 is 0xe9; convert it"),
    "short": ({"path": "poem.txt", "context": 100}, r"poem.txt: its validation part has \d+ chars, fewer than one window .* = 101"),
    "short test": ({"path": "poem.txt", "test": "tiny.txt", "context": 8}, "tiny.txt: its test part has 3 chars"),
    "nothing left": ({"path": "poem.txt", "validation_fraction": 0.6, "test_fraction": 0.6}, "its train part has 0 chars"),
    "context": ({"path": "poem.txt", "context": 0}, "context must be >= 1"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_unusable_files_are_refused(here, options, message):
    (here / "empty.txt").write_text(" \n")
    (here / "latin.txt").write_bytes("été".encode("latin-1").replace(b"\xe9t", b"\x74\x74", 1))
    (here / "tiny.txt").write_text("abc")
    with pytest.raises(ValueError, match=message) as caught:
        source = Text(**options)
        for split in ("train", "validation", "test"):
            source.split(split)
    assert "context" in options or isinstance(caught.value, UserError)


def test_penn_treebank_and_tiny_shakespeare_have_their_known_sizes(shared_data, tmp_path):
    import zipfile

    tiny = Text(path=str(shared_data / "tinyshakespeare" / "input.txt"))
    assert len(tiny.spec().vocabulary) == 66  # 65 characters and <unk>
    with zipfile.ZipFile(shared_data / "ptb" / "ptb.zip") as archive:
        archive.extractall(tmp_path)
    files = {
        name: str(tmp_path / "ptb" / f"ptb.{part}.txt") for name, part in {"path": "train", "validation": "valid", "test": "test"}.items()
    }
    words = Text(**files, level="word")
    assert len(words.spec().vocabulary) == 10_000
    assert len(words.split("validation").tokens) == 73_760
