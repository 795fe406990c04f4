"""The examples of the README run."""

import doctest
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_examples_of_the_readme():
    results = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert results.attempted >= 5
    assert results.failed == 0
