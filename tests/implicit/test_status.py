import pytest

from deqflow.implicit import Status


@pytest.mark.parametrize("status", Status)
def test_every_status_says_what_happened_and_every_bad_one_what_to_do(status):
    assert status.message
    assert bool(status.remedy) == (status is not Status.CONVERGED)


def test_failed_are_those_without_a_usable_value():
    assert {s for s in Status if s.failed} == {Status.DIVERGED, Status.INVALID_INPUT}
