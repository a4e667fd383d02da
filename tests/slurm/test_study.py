"""A small real study on the cluster: what a cell and the profile ask for reaches Slurm, a trial has what
Slurm gave it, and where a search runs out of memory it asks for more."""

import csv
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.needs("slurmctld", "munged")

SHARED = "shared__g1__a2__eager__zygote__base__r1"
WITHIN = "auto_expand__g2__a4__eager__zygote__base__r1"
BEYOND = "auto_expand__g2__a4__eager__zygote__asks__r1"
STUDY = {
    "repeats": 1,
    "warm_rounds": 1,
    "replay": False,
    "exclusive": False,
    "generation": {"output_tokens": 4},
    # Three copies fit a slot: four agents need two.
    "devices": {"kind": "slots", "slots": 4, "slot_memory_mib": 56},
    "variants": {"asks": {"allocation": "attempt"}},
    "runs": [
        {"mode": "shared", "agents": 2},
        {"mode": "auto_expand", "gpus": 2, "agents": 4, "variant": ["base", "asks"]},
    ],
}


@pytest.fixture(scope="module")
def ran(study):
    """The study, done, with its jobs by trial."""
    made = study(STUDY)
    made.checkout.edit(
        "profiles/slurm/config.yaml",
        "    # gpu_model: h200\n",
        "    gpu_model: h200\n",
    )
    made.checkout.edit("profiles/slurm/config.yaml", "# constraint: nvlink", "constraint: nvlink")
    ended = made.run()
    assert ended.code == 0, ended.text + made.checkout.logs()
    return SimpleNamespace(study=made, text=ended.text, jobs=made.jobs())


def jobs_of(ran, trial):
    return [fields for fields in ran.jobs.values() if f"/{trial}_" in fields["StdOut"]]


def rows(ran, trial, name):
    (path,) = (ran.study.place / "results/trials" / trial).glob(f"*/{name}.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_gpus_model_memory_time_and_place_reach_slurm(ran):
    (job,) = jobs_of(ran, WITHIN)
    assert job["TresPerJob"] == "gres:gpu:h200:2"
    assert (job["Partition"], job["Features"], job["NumNodes"]) == ("gpu", "nvlink", "1")
    memory, hours = job["MinMemoryNode"], job["TimeLimit"]
    assert 3000 < int(memory.removesuffix("M")) < 16000 and "00:15:00" < hours < "01:00:00"
    assert int(job["NumCPUs"]) < 32, "a trial that is not exclusive leaves the rest of its node alone"


def test_only_what_measures_is_submitted_and_the_rest_runs_here(ran):
    rules = {fields["StdOut"].split("/rule_")[1].split("/")[0] for fields in ran.jobs.values()}
    assert rules == {"model", "trial", "quality"}
    assert (ran.study.place / "results/report.html").exists()
    assert "4 CPU slots" not in ran.text, "how long it takes on this host is not the question"


def test_a_trial_used_the_devices_that_slurm_gave_it(ran):
    record, (job,) = ran.study.record(SHARED), jobs_of(ran, SHARED)
    (allocation,) = record["allocations"]
    assert record["identity"]["host"] == job["NodeList"] == allocation["host"]
    assert len(record["devices"]) == len(allocation["devices"]) == 1
    assert {row["device_uuid"] for row in rows(ran, SHARED, "workers")} == set(allocation["devices"])


def test_the_time_in_the_queue_is_told_and_is_no_part_of_a_round(ran):
    record = ran.study.record(SHARED)
    (allocation,) = record["allocations"]
    assert allocation["queue_s"] >= 0
    assert allocation["submitted_wall_s"] <= allocation["started_wall_s"] <= record["anchor"]["zero_wall_s"]
    with (ran.study.place / "results/tables/trials.csv").open(newline="") as file:
        told = {row["trial_id"]: row for row in csv.DictReader(file)}
    assert float(told[SHARED]["slurm_queue_s"]) == allocation["queue_s"]
    assert told[BEYOND]["allocations"] == "2" and told[WITHIN]["allocations"] == "1"


def test_within_one_allocation_all_attempts_run_on_its_devices(ran):
    assert len(jobs_of(ran, WITHIN)) == 1
    assert [(r["attempt"], r["status"]) for r in rows(ran, WITHIN, "rounds")] == ATTEMPTS


ATTEMPTS = [("1", "oom"), ("2", "ok"), ("2", "ok")]
"""Of a search from one device to two with a warm round: attempt and status of each round."""


def test_after_an_out_of_memory_the_trial_asks_slurm_for_one_gpu_more(ran):
    first, second = sorted(jobs_of(ran, BEYOND), key=lambda fields: int(fields["JobId"]))
    assert [job["TresPerJob"] for job in (first, second)] == ["gres:gpu:h200:1", "gres:gpu:h200:2"]
    assert (first["JobState"], second["JobState"]) == ("FAILED", "COMPLETED")
    assert f"crewbench: {BEYOND} ran out of memory on 1 and asks for 2" in ran.text
    assert "Error in rule" not in ran.text


def test_the_rows_of_the_smaller_allocation_are_in_the_trials_files(ran):
    assert [(r["attempt"], r["status"]) for r in rows(ran, BEYOND, "rounds")] == ATTEMPTS
    assert {row["attempt"] for row in rows(ran, BEYOND, "ooms")} == {"1"}
    assert {row["attempt"] for row in rows(ran, BEYOND, "workers")} == {"1", "2"}
    assert not list((ran.study.place / "results/allocations" / BEYOND).glob("*"))


def test_the_rounds_of_both_allocations_adjoin_on_one_axis_of_time(ran):
    (first, second, _) = rows(ran, BEYOND, "rounds")
    assert float(second["started_at_s"]) == pytest.approx(float(first["ended_at_s"]), abs=1e-5)
    samples = [float(row["t_at_s"]) for row in rows(ran, BEYOND, "gpu")]
    assert samples == sorted(samples)
    assert [a["attempt"] for a in ran.study.record(BEYOND)["allocations"]] == [1, 2]


def test_a_second_call_has_nothing_to_do(ran):
    again = ran.study.run("-n")
    assert again.code == 0 and again.jobs == {}, again.text
