"""The examples of the README and of the documentation run, and say what is said there."""

import doctest
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


PAGES = [path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if ">>> " in path.read_text()]


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in PAGES])
def test_examples(page):
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    assert tried > 3
