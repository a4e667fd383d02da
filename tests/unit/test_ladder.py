"""The ladder of start states, on numbers worked out by hand."""

import pandas as pd
import pytest

from crewbench import ladder

NAN = float("nan")
CELL = {
    "mode": "parallel",
    "gpus": 2,
    "agents": 2,
    "engine": "eager",
    "variant": "base",
    "workload": "explain",
    "host": "box",
}


def trial(start, repeat, cold, warm, *, cache="none", status="ok", zygote=None, **other):
    """Its first token comes after half of the round."""
    times = {"cold_s": cold, "warm_s": warm, "cold_ttft_s": cold / 2, "warm_ttft_s": warm / 2}
    return {
        **CELL,
        "start": start,
        "repeat": repeat,
        "compile_cache": cache,
        "status": status,
        "zygote_s": zygote,
        **times,
        **other,
    }


def one_ladder(*trials):
    (found,) = ladder.ladders(pd.DataFrame(trials))
    return found, {rung.name: rung for rung in found.rungs}


def test_every_start_state_is_a_rung_and_what_was_not_run_says_so():
    found, rungs = one_ladder(trial("process", 1, 8.0, 1.0), trial("zygote", 1, 3.0, 1.0, zygote=5.5))
    assert list(rungs) == ["disk", "process", "zygote", "resident"]
    assert rungs["disk"].outcome == "not run"
    assert rungs["disk"].mean("makespan_s") is None
    assert rungs["zygote"].zygote_s == (5.5,)
    assert rungs["process"].zygote_s == ()


def test_a_difference_is_paired_by_repeat_and_leaves_out_what_has_no_pair():
    found, rungs = one_ladder(
        trial("process", 1, 8.0, 1.0),
        trial("process", 2, 9.0, 1.0),
        trial("process", 3, 90.0, 1.0),
        trial("zygote", 1, 3.0, 1.0),
        trial("zygote", 2, 5.0, 1.0),
    )
    assert found.below(rungs["process"], "makespan_s") is rungs["zygote"]
    assert ladder.difference(rungs["process"], rungs["zygote"], "makespan_s") == {1: 5.0, 2: 4.0}
    assert ladder.difference(rungs["process"], rungs["zygote"], "ttft_s") == {1: 2.5, 2: 2.0}


def test_a_rung_is_a_geometric_mean_and_a_difference_a_mean_each_with_students_interval():
    _, rungs = one_ladder(
        *(trial("process", n, cold, 1.0) for n, cold in enumerate((8.0, 10.0, 12.5))),
        *(trial("zygote", n, cold, 1.0) for n, cold in enumerate((3.0, 4.0, 5.5))),
    )
    assert rungs["process"].mean("makespan_s").value == pytest.approx(10)
    more = ladder.more(rungs["process"], rungs["zygote"], "makespan_s")  # 5, 6, 7 s
    half = 4.3027 / 3**0.5  # t of 2 degrees of freedom, a deviation of 1 s
    assert (more.value, more.low, more.high) == pytest.approx((6, 6 - half, 6 + half), rel=1e-4)


def test_one_repeat_in_common_has_a_difference_without_an_interval():
    _, rungs = one_ladder(trial("process", 1, 8.0, 1.0), trial("zygote", 1, 3.0, 1.0))
    more = ladder.more(rungs["process"], rungs["zygote"], "makespan_s")
    assert (more.value, more.has_interval, more.n) == (5.0, False, 1)


def test_resident_is_the_warm_rounds_of_the_last_start_states_own_trials():
    found, rungs = one_ladder(
        trial("process", 1, 8.0, 1.5), trial("zygote", 1, 3.0, 1.0), trial("zygote", 2, 4.0, 2.0)
    )
    assert rungs["resident"].values["makespan_s"] == {1: 1.0, 2: 2.0}
    assert ladder.difference(rungs["zygote"], rungs["resident"], "makespan_s") == {1: 2.0, 2: 2.0}
    assert found.below(rungs["resident"], "makespan_s") is None


def test_what_lay_compiled_is_a_rung_of_its_own_and_compared_with_its_like():
    found, rungs = one_ladder(
        trial("disk", 1, 50.0, 1.0, cache="empty"),
        trial("disk", 2, 51.0, 1.0, cache="empty"),
        trial("process", 1, 48.0, 1.0, cache="empty"),
        trial("process", 2, 16.0, 1.0, cache="filled"),
        trial("zygote", 2, 10.0, 1.0, cache="filled"),
    )
    assert list(rungs) == [
        "disk, compile cache empty",
        "process, compile cache empty",
        "process, compile cache filled",
        "zygote, compile cache filled",
        "resident",
    ]
    below = {name: found.below(rung, "makespan_s") for name, rung in rungs.items()}
    assert below["disk, compile cache empty"].name == "process, compile cache empty"
    assert below["process, compile cache filled"].name == "zygote, compile cache filled"
    # Its repeat ran from no zygote: there is nothing to pair it with.
    assert below["process, compile cache empty"] is None


def test_a_start_state_that_could_not_be_had_says_how_it_ended():
    found, rungs = one_ladder(
        trial("disk", 1, NAN, NAN, status="skipped"),
        trial("disk", 2, NAN, NAN, status="skipped"),
        trial("process", 1, 8.0, 1.0),
        trial("zygote", 1, 3.0, 1.0),
    )
    assert rungs["disk"].outcome == "skipped (2 of 2)"
    assert found.below(rungs["disk"], "makespan_s") is None


@pytest.mark.parametrize(
    "other", [{"host": "other"}, {"variant": "fast"}, {"gpus": 1}, {"engine": "compiled"}]
)
def test_cells_that_differ_in_more_than_the_start_state_make_no_ladder(other):
    assert (
        ladder.ladders(pd.DataFrame([trial("process", 1, 8.0, 1.0), trial("zygote", 1, 3.0, 1.0, **other)]))
        == []
    )
