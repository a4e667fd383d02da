"""How long a trial is thought to take: by hand, and against what was measured on real machines."""

import csv
import json

import pytest

from crewbench.estimate import PACES, Wave, estimate_s, expected_s, fits, in_words, waves
from crewbench.modes import MODES
from crewbench.runners import RUNNERS
from crewbench.trial import Cell

REFERENCE = "results/reference/2x-h200-core"


def cell(mode, gpus=1, agents=8, start="zygote", engine="eager", **options):
    return Cell(mode, gpus, agents, engine, start, "base", options)


def deployments(of):
    return tuple(MODES[of.mode].attempts(of))


def seconds(of, **changes):
    known = {"device_kind": "gpu", "warm_rounds": 1, "tokens": 32, "weights_mib": 13825}
    known |= {"memory_mib": None, "cores": 16}
    return estimate_s(of, deployments(of), **(known | changes))


def test_waves_are_what_must_follow_one_another_with_what_runs_at_once():
    found = {
        (mode, gpus): waves(deployments(cell(mode, gpus))[-1])
        for mode, gpus in (
            *(("parallel", 1), ("parallel", 8), ("sequential", 1), ("shared", 1)),
            *(("cooperative", 1), ("hierarchical", 4)),
        )
    }
    assert found["parallel", 1] == [Wave(on_copy=1, on_device=8, copies=8)]
    assert found["parallel", 8] == [Wave(1, 1, 8)]
    assert found["shared", 1] == [Wave(8, 1, 1)]
    assert found["sequential", 1] == found["cooperative", 1] == 8 * [Wave(1, 1, 1)]
    assert found["hierarchical", 4] == [Wave(1, 1, 1), Wave(2, 1, 4), Wave(1, 1, 1)]


def test_an_estimate_is_the_sum_of_its_parts():
    pace = PACES["gpu"]
    load = 13825 / 1024 * pace.gib_s
    step = pace.step_s + 32 * pace.token_s
    alone = pace.start_s + load + pace.stop_s
    fixed = pace.around_s + pace.zygote_s
    assert seconds(cell("cooperative")) == pytest.approx(fixed + alone + 2 * 8 * step)
    assert seconds(cell("sequential")) == pytest.approx(fixed + 8 * alone + 2 * 8 * step)
    new = seconds(cell("cooperative", start="process")) - seconds(cell("cooperative"))
    assert new == pytest.approx(pace.import_s - pace.zygote_s)
    disk = seconds(cell("cooperative", start="disk")) - seconds(cell("cooperative", start="process"))
    assert disk == pytest.approx(13825 / 1024 * pace.disk_gib_s)


def test_what_a_runner_takes_before_it_can_start_workers_is_in_the_estimate():
    alike = {name: seconds(cell(name, 2, start="process")) for name in ("actors", "parallel")}
    assert RUNNERS["actor"].ready_s > 0
    assert alike["actors"] - alike["parallel"] == pytest.approx(RUNNERS["actor"].ready_s)


def test_attempts_that_cannot_fit_cost_their_start_and_those_after_the_one_that_fits_nothing():
    wide, narrow = cell("auto_expand", 8), cell("auto_expand", 3)
    # 47104 MiB hold three copies with their contexts: eight agents need three GPUs.
    assert seconds(wide, memory_mib=47104) == pytest.approx(seconds(narrow, memory_mib=47104))
    assert seconds(wide, memory_mib=47104) > seconds(cell("parallel", 3), memory_mib=47104) + 4
    assert seconds(wide) == pytest.approx(seconds(cell("parallel", 1)))


def test_a_spread_copy_fits_where_a_whole_one_does_not():
    whole, spread = (deployments(cell("parallel", 2, 1, **o))[0] for o in ({}, {"devices_per_copy": 2}))
    assert not fits(whole, 1000, 100, 700)
    assert fits(spread, 1000, 100, 700)
    assert fits(whole, 1000, 100, None)


def test_slots_share_the_cores_and_gpus_do_not():
    parallel = cell("parallel", 8)
    slots = {"device_kind": "slot", "weights_mib": 16}
    assert seconds(parallel, **slots, cores=2) > seconds(parallel, **slots, cores=8)
    assert seconds(parallel, cores=2) == seconds(parallel, cores=8)


def test_a_compiled_engine_takes_longer_to_be_ready_and_then_less():
    slow, fast = cell("sequential"), cell("sequential", engine="compiled")
    assert seconds(fast, tokens=1) > seconds(slow, tokens=1) + 100
    assert seconds(fast, tokens=2000) < seconds(slow, tokens=2000)


def test_every_trial_of_the_reference_study_took_about_its_estimate(root):
    """From its start to its last round's end; what was reckoned for each trial is within a fifth."""
    manifest = json.loads((root / REFERENCE / "matrix.json").read_text())
    ended = {}
    with open(root / REFERENCE / "tables/rounds.csv", newline="") as file:
        for row in csv.DictReader(file):
            ended[row["trial_id"]] = max(ended.get(row["trial_id"], 0.0), float(row["ended_at_s"]))
    off = []
    for row in manifest["trials"]:
        of = Cell(**{name: row[name] for name in Cell.__slots__})
        estimate = seconds(
            of, warm_rounds=row["warm_rounds"], memory_mib=of.options.get("memory_mib"), tokens=32
        )
        off.append(estimate / ended[row["trial_id"]])
    assert len(off) == 24
    assert 0.8 < min(off) and max(off) < 1.2


CELLS = {
    "a__r1": cell("parallel", 1),
    "a__r2": cell("parallel", 1),
    "b__r1": cell("parallel", 8),
    "c__r1": cell("shared"),
}
ESTIMATED = {"a__r1": 10.0, "a__r2": 10.0, "b__r1": 20.0, "c__r1": 40.0}


def test_without_measurements_the_estimate_is_expected():
    assert expected_s(CELLS, ESTIMATED, {}) == ESTIMATED


def test_a_cells_own_trials_come_before_its_modes_and_those_before_all_others():
    expected = expected_s(CELLS, ESTIMATED, {"a__r1": 15.0})
    assert expected["a__r2"] == 15.0
    assert expected["b__r1"] == pytest.approx(20 * 1.5)
    assert expected["c__r1"] == pytest.approx(40 * 1.5)
    expected = expected_s(CELLS, ESTIMATED, {"a__r1": 15.0, "a__r2": 25.0, "c__r1": 20.0})
    assert expected["a__r1"] == 20.0
    assert expected["b__r1"] == pytest.approx(20 * 2.0)
    assert expected["c__r1"] == 20.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *((0.2, "1 s"), (89, "89 s"), (90, "2 min"), (14 * 60 + 20, "14 min"), (89 * 60, "89 min")),
        *((120 * 60, "2 h"), (199 * 60, "3 h 20 min"), (50 * 3600 + 100, "50 h")),
    ],
)
def test_a_rough_duration_in_words(given, words):
    assert in_words(given) == words
