"""Many trials at once: packed on nodes without sharing a device, never more jobs than the profile says."""

from itertools import combinations

import pytest

pytestmark = pytest.mark.needs("slurmctld", "munged")

AT_ONCE = 6
STUDY = {
    "repeats": 4,
    "warm_rounds": 0,
    "exclusive": False,
    "devices": {"kind": "slots", "slots": 4},
    "runs": [{"mode": "parallel", "gpus": [1, 2, 3], "agents": 3}],
}
TRIALS = [f"parallel__g{g}__a3__eager__zygote__base__r{n}" for g in (1, 2, 3) for n in range(1, 5)]


@pytest.fixture(scope="module")
def records(study):
    made = study(STUDY, toys=True)
    made.checkout.edit("profiles/slurm/config.yaml", "jobs: 100", f"jobs: {AT_ONCE}")
    made.checkout.edit(
        "profiles/slurm/config.yaml", "# constraint: nvlink", "constraint: nvlink"
    )  # two nodes
    made.toys = dict.fromkeys(TRIALS, "wait")
    with made.started("--until", "trial") as call:
        call.until(lambda: len(made.at_work) > len(set(made.at_work)), "two trials on a node")
        for trial in TRIALS:
            made.go(trial)
        ended = call.finish()
    assert ended.code == 0, ended.text + made.checkout.logs()
    found = [made.record(trial) for trial in made.done]
    jobs = made.jobs()
    for record in found:
        (allocation,) = record["allocations"]
        record["job"] = jobs[allocation["job_id"]]
    return found


def overlap(one, other, began="began", ended="ended"):
    return one[began] < other[ended] and other[began] < one[ended]


def test_each_trial_has_as_many_devices_as_its_cell_asks_for(records):
    assert len(records) == 12
    assert all(len(record["devices"]) == record["gpus"] for record in records)


def test_trials_are_packed_on_a_node_and_never_share_a_device(records):
    together = [
        (one, other)
        for one, other in combinations(records, 2)
        if one["host"] == other["host"] and overlap(one, other)
    ]
    assert together, "no two trials met on a node: the test shows nothing"
    assert not [1 for one, other in together if set(one["devices"]) & set(other["devices"])]
    assert max(record["lease_waited_s"] for record in records) < 1.0, "leases had to part what Slurm gave"


def test_slurm_never_has_more_jobs_than_the_profile_allows(records):
    spans = [(int(record["job"]["SubmitTime"]), int(record["job"]["EndTime"])) for record in records]
    most = max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)
    assert 1 < most <= AT_ONCE
