"""Many trials at once: packed on nodes without sharing a device, never more jobs than the profile says."""

from itertools import combinations

import pytest

pytestmark = pytest.mark.needs("slurmctld", "munged")

AT_ONCE, PER_JOB = 40, 10
STUDY = {
    "repeats": 50,
    "warm_rounds": 0,
    "exclusive": False,
    "devices": {"kind": "slots", "slots": 4},
    "runs": [{"mode": "parallel", "gpus": [1, 2], "agents": 4}],
}
# Any two of them fit on a node of four.
TRIALS = [f"parallel__g{g}__a4__eager__zygote__base__r{n}" for g in (1, 2) for n in range(1, 51)]


def in_batches(made, per_job):
    made.checkout.edit("profiles/slurm/config.yaml", "trials_per_job: 1", f"trials_per_job: {per_job}")


@pytest.fixture(scope="module")
def records(study):
    made = study(STUDY, toys=True)
    in_batches(made, PER_JOB)
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
    again = made.run("--until", "trial")
    assert again.code == 0 and made.jobs().keys() == jobs.keys(), "a rerun submits nothing\n" + again.text
    for record in found:
        (allocation,) = record["allocations"]
        record["job"] = jobs[allocation["job_id"]]
    return found


def overlap(one, other, began="began", ended="ended"):
    return one[began] < other[ended] and other[began] < one[ended]


def test_each_trial_has_as_many_devices_as_its_cell_asks_for(records):
    assert len(records) == 100
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


def test_slurm_never_has_more_trials_than_the_profile_allows(records):
    spans = [(int(record["job"]["SubmitTime"]), int(record["job"]["EndTime"])) for record in records]
    most = max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)
    assert 1 < most <= AT_ONCE


def test_trials_share_jobs_of_slurm_and_run_in_them_one_after_another(records):
    together = {}
    for record in records:
        together.setdefault(record["job"]["JobId"], []).append(record)
    assert len(together) <= 40
    assert max(map(len, together.values())) <= PER_JOB
    for batch in together.values():
        assert len({record["gpus"] for record in batch}) == 1
        assert not [1 for one, other in combinations(batch, 2) if overlap(one, other)]
        minutes = int(batch[0]["job"]["TimeLimit"].split(":")[1]) + 60 * int(
            batch[0]["job"]["TimeLimit"].split(":")[0].split("-")[-1]
        )
        assert minutes >= 15 * len(batch), "the time of all"


def test_what_a_job_of_several_trials_finished_is_kept_and_the_rest_runs_again(study):
    trials = [f"shared__g1__a2__eager__zygote__base__r{n}" for n in range(1, 5)]
    made = study({"repeats": 4, "warm_rounds": 0, "runs": [{"mode": "shared", "agents": 2}]}, toys=True)
    in_batches(made, 4)
    made.checkout.edit("profiles/slurm/config.yaml", "latency-wait: 20", "latency-wait: 3")
    made.toys = {trials[1]: "wait"}
    with made.started("--until", "trial") as call:
        call.until(lambda: "began on" in made.log(trials[1]), "the second trial at work")
        (job,) = made.cluster.jobs("RUNNING")
        assert made.done == trials[:1]
        made.cluster.run("scancel", job)
        ended = call.finish()
    assert ended.code != 0
    assert "JobState=CANCELLED" in ended.text
    assert made.done == trials[:1]

    made.toys = {trials[2]: "fail"}
    ended = made.run("--until", "trial")
    assert ended.code != 0
    assert made.done == [trials[0], trials[1], trials[3]]
    first = made.record(trials[0])

    made.toys = {}
    ended = made.run("--until", "trial")
    assert ended.code == 0, ended.text
    assert made.done == trials
    assert made.record(trials[0]) == first
    assert len(made.jobs()) == 4 - 1 + 1  # the model's, and one for each call


def test_ctrl_c_keeps_what_a_job_of_several_trials_finished(study, cluster):
    trials = [f"shared__g1__a2__eager__zygote__base__r{n}" for n in range(1, 4)]
    made = study({"repeats": 3, "warm_rounds": 0, "runs": [{"mode": "shared", "agents": 2}]}, toys=True)
    in_batches(made, 3)
    made.toys = {trials[1]: "wait"}
    with made.started("--until", "trial") as call:
        call.until(lambda: "began on" in made.log(trials[1]), "the second trial at work")
        call.interrupt()
        assert call.finish().code != 0
    cluster.wait_empty()
    assert made.done == trials[:1]
    first = made.record(trials[0])

    made.toys = {}
    ended = made.run("--until", "trial")
    assert ended.code == 0, ended.text
    assert made.done == trials
    assert made.record(trials[0]) == first
