"""Copies of the model that are spread over several devices."""

import pytest

SLOT_MIB = 12
"""Less than the tiny model's 15 MiB, more than half of it."""


@pytest.fixture(scope="module")
def spread(small_study):
    """Each copy on two slots: two agents on four slots, and two threads on one copy."""
    study = small_study(
        {
            "warm_rounds": 0,
            "devices": {"kind": "slots", "slots": 4, "slot_memory_mib": SLOT_MIB},
            "variants": {"spread": {"devices_per_copy": 2}},
            "runs": [
                {"mode": "shared", "agents": 2},
                {"mode": "shared", "agents": 2, "gpus": 2, "variant": "spread"},
                {"mode": "parallel", "agents": 2, "gpus": 4, "variant": "spread"},
            ],
        }
    )
    results = {}
    for trial_id in study.trials:
        result = study.run(trial_id)
        results[trial_id.split("__r")[0]] = result
    return results


ALONE = "shared__g1__a2__eager__zygote__base"
SHARED = "shared__g2__a2__eager__zygote__spread"
PARALLEL = "parallel__g4__a2__eager__zygote__spread"


def test_a_model_too_big_for_one_device_runs_when_it_is_spread_over_two(spread):
    assert {name: result.trial["status"] for name, result in spread.items()} == {
        ALONE: "oom",
        SHARED: "ok",
        PARALLEL: "ok",
    }


def test_each_device_of_a_copy_has_a_row_with_its_own_share(spread):
    rows = spread[PARALLEL].rows("workers")
    assert [(r["worker"], r["device_uuid"]) for r in rows] == [
        *(("worker0", "slot-0"), ("worker0", "slot-1")),
        *(("worker1", "slot-2"), ("worker1", "slot-3")),
    ]
    assert len({(r["worker"], r["pid"]) for r in rows}) == 2
    for row in rows:
        assert 7 < float(row["allocated_peak_mib"]) <= SLOT_MIB
        assert float(row["allocated_peak_mib"]) == pytest.approx(float(row["predicted_mib"]), rel=0.01)
    assert {r["gpus_used"] for r in spread[PARALLEL].rows("rounds")} == {"4"}


def test_spreading_changes_no_token(spread):
    ids = [[o["output_ids"] for o in spread[name].outputs] for name in (SHARED, PARALLEL)]
    by_agent = [sorted(map(str, answers)) for answers in ids]
    assert len(by_agent[0]) == 2 and by_agent[0] == by_agent[1]
