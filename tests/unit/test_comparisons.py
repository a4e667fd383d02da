"""Modes against each other: who is compared with whom, and what may be said of it."""

import pytest

from crewbench import cells, comparisons
from crewbench.comparisons import COLUMNS
from crewbench.records import Status
from crewbench.report.comparisons import compared, family
from crewbench.tables import frames

SETTING = {"agents": 8, "engine": "eager", "start": "zygote", "variant": "base", "compile_cache": "none",
           "host": "box"}  # fmt: skip


def trial(mode: str, repeat: int, cold_s: float | None, gpus: int = 1, **fields) -> dict:
    return {
        **SETTING,
        **{"mode": mode, "gpus": gpus, "repeat": repeat, "status": Status.OK, "workload": "explain"},
        **{"cold_s": cold_s, "warm_s": cold_s and cold_s / 4, **fields},
    }


def block(repeats: int, **seconds: float) -> list[dict]:
    """Each mode in each repeat, which slows or hurries all of them alike, and each a little by itself."""
    return [
        trial(mode, r, s * (1 + 0.3 * (r % 2)) * (1 + 0.001 * ((r * 7 + i) % 5)))
        for r in range(1, repeats + 1)
        for i, (mode, s) in enumerate(seconds.items())
    ]


def rows(trials: list[dict]) -> dict[tuple, dict]:
    found = comparisons.of_trials(trials)
    assert all(list(row) and set(row) == set(COLUMNS) for row in found)
    return {(r["a_mode"], r["a_gpus"], r["b_mode"], r["b_gpus"], r["phase"]): r for r in found}


def test_every_pair_of_modes_is_compared_in_each_phase_paired_by_repeat():
    found = rows(block(5, parallel=10.0, sequential=20.0, shared=10.0))
    assert len(found) == 3 * 2
    row = found["parallel", 1, "sequential", 1, "cold"]
    assert row["as_fast"] == pytest.approx(2.0, rel=0.01)
    assert row["low"] < row["as_fast"] < row["high"] < 2.02, "what a repeat has in common cancels"
    assert (row["n"], row["pairs"], row["significant"]) == (5, 3, "yes")
    assert row["p_corrected"] >= row["p"]
    assert found["parallel", 1, "shared", 1, "warm"]["as_fast"] == pytest.approx(1.0, rel=0.01)


def test_equal_modes_are_not_told_apart():
    wobbly = [trial(m, r, 10 + (r * k) % 7) for r in range(1, 7) for m, k in (("parallel", 3), ("shared", 5))]
    assert {row["significant"] for row in rows(wobbly).values()} == {"no"}


def test_under_five_repeats_there_is_a_ratio_with_an_interval_and_no_claim():
    row = rows(block(4, parallel=10.0, sequential=20.0))["parallel", 1, "sequential", 1, "cold"]
    assert row["low"] is not None and row["p"] is None and row["p_corrected"] is None
    assert (row["significant"], row["pairs"]) == ("too few repeats", 0)


def test_other_work_another_setting_and_another_host_are_never_paired():
    trials = block(5, parallel=10.0)
    trials += [trial("cooperative", r, 10.0, workload="contribute") for r in range(1, 6)]
    trials += [trial("shared", r, 10.0, host="other") for r in range(1, 6)]
    trials += [trial("sequential", r, 10.0, start="disk") for r in range(1, 6)]
    assert rows(trials) == {}


def test_a_mode_is_compared_on_each_number_of_devices_but_not_with_itself():
    trials = block(5, shared=10.0) + [trial("parallel", r, 9.0, gpus=g) for r in range(1, 6) for g in (2, 4)]
    assert {key[:4] for key in rows(trials)} == {("parallel", 2, "shared", 1), ("parallel", 4, "shared", 1)}


def test_trials_that_failed_or_lack_a_phase_leave_their_pair():
    trials = block(6, parallel=10.0, shared=20.0)
    trials[0]["status"] = Status.OOM
    trials[3]["warm_s"] = None
    found = rows(trials)
    assert found["parallel", 1, "shared", 1, "cold"]["n"] == 5
    assert found["parallel", 1, "shared", 1, "warm"]["n"] == 4


def test_modes_without_a_common_repeat_are_not_estimable_and_say_so():
    trials = [trial("parallel", 1, 10.0), trial("shared", 2, 10.0)]
    row = rows(trials)["parallel", 1, "shared", 1, "cold"]
    assert (row["as_fast"], row["n"], row["significant"]) == (None, 0, "too few repeats")
    assert "no repeat in common" in row["note"]


def test_the_report_names_the_faster_mode_first_and_says_what_is_significant():
    trials = block(5, parallel=20.0, sequential=10.0, shared=10.0)
    frame = frames.typed(comparisons.of_trials(trials), COLUMNS)
    said = compared(frame, SETTING, "explain", "gpu")
    assert family(frame, SETTING, "explain") == 3
    first = said[0]
    assert (first["name"], first["other"], first["n"]) == ("Sequential, 1 GPU", "Parallel, 1 GPU", 5)
    assert first["phases"][0][0].startswith("2.0") and "significant, p " in first["phases"][0][1]
    assert {row["name"] for row in said} == {"Sequential, 1 GPU", "Shared, 1 GPU"}
    assert first["phases"][0][1].endswith("p < 0.001")
    assert compared(frame, {**SETTING, "host": "nowhere"}, "explain", "gpu") == []


def test_a_setting_is_all_that_a_cell_has_but_mode_and_devices():
    assert {*cells.SETTING, "mode", "gpus", "workload"} == set(cells.WHERE)
