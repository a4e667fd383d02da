"""How far a study's repeats are raised, and where it goes on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewbench import matrix, repeats
from crewbench.config import load
from crewbench.repeats import Width

RUNS = [{"mode": "parallel", "gpus": 2, "agents": 2}, {"mode": "shared", "agents": 2}]
FIXED = {"mode": "sequential", "agents": 2, "repeats": 2}
PARALLEL, SHARED = (f"{m}__a2__eager__zygote__base__r0" for m in ("parallel__g2", "shared__g1"))


def study(count: int, runs=(*RUNS, FIXED)) -> matrix.Matrix:
    return matrix.build(load({"repeats": count, "devices": {"kind": "slots"}, "runs": list(runs)}))


def row(metric: str, half_pct: float | None, n: int = 5, **fields) -> dict:
    half = None if half_pct is None else half_pct / 10
    return {
        **{"mode": "shared", "gpus": 1, "agents": 2, "engine": "eager", "start": "zygote", "variant": "base"},
        **{"host": "box", "compile_cache": "none", "metric": metric, "trials": n, "ok": n, "n": n},
        **{"estimate": 10.0 if n else None, "low": half and 10 - half, "high": half and 10 + half, **fields},
    }


def test_cells_with_repeats_of_their_own_are_not_raised():
    assert repeats.growing(study(3), study(21)) == {PARALLEL, SHARED}
    assert repeats.growing(study(1, [FIXED]), study(21, [FIXED])) == set()


def test_a_study_goes_on_with_the_repeat_that_was_begun():
    larger, cells = study(9), {PARALLEL, SHARED}
    ids = [t.trial_id for t in larger if t.cell.trial_id(0) in cells]
    whole = {i for i in ids if i.endswith(("r1", "r2", "r3"))}
    assert repeats.begun(larger, set(), cells, 3) == 3
    assert repeats.begun(larger, whole, cells, 2) == 3
    assert repeats.begun(larger, {*whole, PARALLEL.replace("r0", "r4")}, cells, 2) == 4
    left = whole - {SHARED.replace("r0", "r2")}
    assert repeats.begun(larger, {*left, SHARED.replace("r0", "r9")}, cells, 1) == 2, "a gap comes first"


def test_a_cell_is_wide_by_its_widest_makespan_and_under_five_repeats_always():
    (cell,) = repeats.widths([row("cold_s", 4.0), row("warm_s", 6.0), row("peak_mib", 90.0)], {SHARED})
    assert cell.half_pct == {"cold_s": pytest.approx(4.0), "warm_s": pytest.approx(6.0)}
    assert cell.wide(5.0) and not cell.wide(6.1)
    (few,) = repeats.widths([row("cold_s", 0.1, n=4), row("warm_s", 0.1, n=4)], {SHARED})
    assert few.wide(5.0)


def test_a_cell_in_which_nothing_worked_has_nothing_to_narrow():
    failed = [row(m, None, n=0, trials=5, ok=0) for m in ("cold_s", "warm_s")]
    (cell,) = repeats.widths(failed, {SHARED})
    assert cell.n == 0 and not cell.wide(5.0)


def test_without_warm_rounds_only_the_cold_makespan_counts():
    (cell,) = repeats.widths([row("cold_s", 3.0), row("warm_s", None, n=0, ok=5, trials=5)], {SHARED})
    assert not cell.wide(5.0)


def test_a_cell_counts_where_it_has_the_most_trials():
    lone = [row(m, None, n=1, compile_cache="empty") for m in ("cold_s", "warm_s")]
    (cell,) = repeats.widths([*lone, row("cold_s", 1.0), row("warm_s", 1.0)], {SHARED})
    assert cell.n == 5 and not cell.wide(5.0)


def test_cells_that_are_not_raised_are_not_looked_at():
    assert repeats.widths([row("cold_s", 50.0)], {PARALLEL}) == []


def test_repeats_go_to_five_first_then_as_far_as_the_widest_interval_needs():
    wide = [Width({}, 5, {"cold_s": 10.0, "warm_s": 1.0}), Width({}, 5, {"cold_s": 6.0})]
    assert repeats.following(2, wide, 5.0, 20) == 5
    assert repeats.following(5, wide[1:], 5.0, 20) == 7  # t(0.975, 6) / √7 is the first within 5/6 of 1.2417
    assert repeats.following(5, wide, 5.0, 20) == 10, "13 would do, but five repeats know too little"
    assert repeats.following(5, wide, 5.0, 8) == 8
    assert repeats.following(8, wide, 5.0, 8) is None
    assert repeats.following(5, [], 5.0, 20) is None


@given(st.integers(1, 30), st.lists(st.floats(0.1, 500), min_size=1, max_size=4), st.integers(1, 30))
def test_a_study_always_comes_to_an_end(now, halves, most):
    wide = [Width({}, now, {"cold_s": half}) for half in halves]
    following = repeats.following(now, wide, 5.0, most)
    assert following is None if now >= most else now < following <= most
