"""Whether CUDA shows a worker the devices that it was given."""

import pytest

from crewbench.execute.worker import unchecked

A, B = "11111111-aaaa-4aaa-8aaa-111111111111", "22222222-bbbb-4bbb-8bbb-222222222222"


def test_gpus_that_cuda_shows_in_order_are_the_ones_given():
    assert unchecked([f"GPU-{A}", f"GPU-{B}"], [A, B]) == []


@pytest.mark.parametrize("seen", [[B], [B, A], [A], [], [A, B, B]])
def test_other_gpus_fewer_or_more_are_an_error_that_names_both(seen):
    with pytest.raises(RuntimeError) as raised:
        unchecked([f"GPU-{A}", f"GPU-{B}"], seen)
    assert f"CUDA shows devices {seen}" in str(raised.value)
    assert f"given ['GPU-{A}', 'GPU-{B}']" in str(raised.value)


def test_a_mig_instance_is_known_by_its_own_uuid():
    assert unchecked([f"MIG-{A}"], [A]) == []


@pytest.mark.parametrize("uuid", [f"MIG-{A}", f"MIG-GPU-{B}/1/0"])
def test_a_mig_instance_of_which_cuda_tells_the_gpus_uuid_is_not_checked_and_named(uuid):
    assert unchecked([uuid], [B]) == [uuid]


def test_a_mig_instance_that_is_not_shown_at_all_is_an_error():
    with pytest.raises(RuntimeError, match=r"CUDA shows devices \[\]"):
        unchecked([f"MIG-{A}"], [])
