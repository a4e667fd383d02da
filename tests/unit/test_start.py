"""What workers found of the weights in the page cache against what the start state says."""

import pytest

from crewbench.start import STARTS, taints

FROM_DISK, CACHED = STARTS["disk"], STARTS["process"]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_no_worker_that_loaded_says_nothing(start):
    assert taints(start, []) == []


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.9995]])
def test_all_weights_in_the_page_cache_is_what_a_cached_start_says(shares):
    assert taints(CACHED, shares) == []


def test_the_worker_that_found_least_of_them_tells():
    said = ["93.0 % of the weights were in the page cache before they were loaded, not all"]
    assert taints(CACHED, [1.0, 0.93, 0.97]) == said


def test_from_disk_the_first_to_load_tells_for_the_others_find_what_it_has_read():
    assert taints(FROM_DISK, [0.4, 0.0, 1.0]) == []
    assert taints(FROM_DISK, [0.4, 0.25]) == [
        "25.0 % of the weights were in the page cache before they were loaded, not none"
    ]


@pytest.mark.parametrize("shares", [[None], [1.0, None]])
def test_what_the_kernel_does_not_tell_is_said(shares):
    (said,) = taints(CACHED, shares)
    assert said.startswith("whether the weights were in the page cache is not known")
