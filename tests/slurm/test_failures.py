"""What goes wrong on a cluster, all at once in one study: each failure is an error in Slurm's own words or a
row, and the next call does only what is missing.
"""

import shutil
import time
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.needs("slurmctld", "munged")

FINE, CANCELLED, OVER_TIME, NODE_LOST, HUNGRY, LATE = (
    TRIALS := [f"parallel__g2__a2__eager__zygote__base__r{n}" for n in range(1, 7)]
)
STUDY = {
    "repeats": len(TRIALS),
    "warm_rounds": 0,
    "exclusive": True,
    "runs": [{"mode": "parallel", "gpus": 2, "agents": 2}],
}
OUTAGE_S = 60.0


@pytest.fixture(scope="module")
def failed(study, cluster):
    """A study to which everything happens, and what was there afterwards."""
    made = study(STUDY, toys=True)
    limit = 'MATRIX.resources(wildcards.trial)["runtime"]'
    made.checkout.edit(
        "workflow/rules/trial.smk", limit, f'1 if wildcards.trial == "{OVER_TIME}" else {limit}'
    )
    made.checkout.edit("workflow/rules/trial.smk", 'MATRIX.resources(wildcards.trial)["mem_mb"]', "900")
    made.toys = {t: "wait" for t in TRIALS if t != FINE} | {HUNGRY: "hog"}
    with made.started("--until", "trial") as call:
        jobs = {t: call.running(t) for t in (CANCELLED, NODE_LOST, LATE)}
        call.until(lambda: made.job(FINE, "COMPLETED") and made.job(HUNGRY, "FAILED"), "the quick ones")
        seen = {t: cluster.jobs()[job] for t, job in jobs.items()}
        cluster.run("scancel", jobs[CANCELLED])
        lost = seen[NODE_LOST]["NodeList"]
        cluster.lose_node(lost)
        cluster.until(lambda: made.job(NODE_LOST, "NODE_FAIL"), "the lost node's job")
        told = ("JobState=CANCELLED", "JobState=NODE_FAIL", "exceeded memory limit")
        call.until(lambda: all(words in call.text for words in told), "what failed told")
        cluster.stop_controller()
        gone_at = time.monotonic()
        try:
            made.go(LATE)
            call.until(lambda: LATE in made.done, "a trial that ends while the controller is away")
            call.until(lambda: "does not answer" in call.text, "that it was noticed")
            call.until(lambda: time.monotonic() - gone_at > OUTAGE_S, "a long outage")
        finally:
            cluster.start_controller()
            cluster.regain_node(lost)
        ended = call.finish()
    return SimpleNamespace(study=made, code=ended.code, text=ended.text, jobs=seen, done=made.done)


def error_of(failed, trial):
    """What Snakemake says of a trial's job that failed, here and in the job, whose log is shown."""
    errors = (part.split("shell:")[0] for part in failed.text.split("Error in rule trial:")[1:])
    return "".join(error for error in errors if f"/{trial}/" in error)


def test_a_study_with_failed_trials_fails_and_keeps_what_was_measured(failed):
    assert failed.code == 1
    assert failed.done == [FINE, LATE]


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        (CANCELLED, "JobState=CANCELLED"),
        (OVER_TIME, "JobState=TIMEOUT Reason=TimeLimit"),
        (NODE_LOST, "JobState=NODE_FAIL Reason=NodeDown"),
        (HUNGRY, "exceeded memory limit"),
    ],
)
def test_each_failure_is_told_in_slurms_own_words(failed, trial, words):
    assert words in error_of(failed, trial)


def test_jobs_outlive_an_outage_of_the_controller_and_are_seen_to_end(failed):
    assert failed.text.count("crewbench: Slurm's controller does not answer") == 1
    assert failed.text.count("crewbench: Slurm's controller answers again") == 1
    assert "6 of 6 trials done (4 not measured)" in failed.text
    assert "'sacct'" not in failed.text.replace("(status command is not 'sacct')", "")


def test_exclusive_trials_ask_for_a_node_each(failed):
    nodes = [fields["NodeList"] for fields in failed.jobs.values()]
    assert len(set(nodes)) == len(nodes)
    assert all(int(fields["NumCPUs"]) == 32 for fields in failed.jobs.values())


def started_again(made, job):
    """Whether a job that was put back runs again. Slurm would let it wait for two minutes."""
    made.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
    return made.cluster.jobs()[job]["JobState"] == "RUNNING"


def test_a_rerun_does_what_is_missing_and_a_requeued_job_says_so_in_its_record(failed, cluster):
    made = failed.study
    made.checkout.edit("profiles/slurm/config.yaml", "slurm-no-requeue: true", "slurm-requeue: true")
    made.toys = {NODE_LOST: "wait"}
    # What the last call's trial said is not this one's word that it is at work: a job that is put back in the
    # second in which it was started is refused by its node.
    shutil.rmtree(made.place / "results/logs/trial" / NODE_LOST)
    with made.started("--until", "trial") as call:
        first = call.running(NODE_LOST)
        call.until(lambda: call.text.count("has been submitted with SLURM jobid") == 4, "all four submitted")
        cluster.run("scontrol", "requeue", first)
        call.until(lambda: int(cluster.jobs()[first]["Restarts"]) == 1, "the job in the queue again")
        call.until(lambda: started_again(made, first), "the job at work again")
        made.go(NODE_LOST)
        ended = call.finish()
    assert ended.code == 0, ended.text
    assert made.done == TRIALS
    (allocation,) = made.record(NODE_LOST)["allocations"]
    assert (allocation["job_id"], allocation["restarts"]) == (first, 1)


def test_ctrl_c_cancels_what_runs_and_what_waits_and_submits_nothing_more(study, cluster):
    made = study(STUDY, toys=True)
    made.toys = dict.fromkeys(TRIALS, "wait")
    with made.started("--until", "trial") as call:
        call.running(FINE)
        call.interrupt()
        ended = call.finish()
    assert ended.code != 0
    cluster.wait_empty()
    assert made.done == []


def test_a_job_that_cannot_be_submitted_is_told_with_sbatchs_words(study):
    made = study(STUDY, toys=True)
    made.checkout.edit("profiles/slurm/config.yaml", "slurm_partition: gpu", "slurm_partition: nosuch")
    ended = made.run("--until", "trial")
    assert ended.code == 1
    assert "invalid partition specified: nosuch" in ended.text


def test_a_job_that_slurm_can_never_start_is_told_with_slurms_reason_and_leaves_the_queue(study, cluster):
    made = study(STUDY, toys=True)
    made.toys = {}
    cluster.run("scontrol", "update", "PartitionName=gpu", "MaxTime=1")
    try:
        ended = made.run("--until", "trial")
    finally:
        cluster.run("scontrol", "update", "PartitionName=gpu", "MaxTime=INFINITE")
    assert ended.code == 1
    assert "Slurm can never start job" in ended.text and "PartitionTimeLimit" in ended.text
    cluster.wait_empty()


def test_jobs_of_an_earlier_call_are_found_by_their_directory(cluster, study):
    made = study(STUDY, toys=True)
    comment = ["--comment", "rule_trial_wildcards_x"]
    words = ["sbatch", "--parsable", *comment, "--chdir", str(made.place), "--wrap", "sleep 600"]
    job = cluster.run(*words, "--output", "/dev/null").strip()
    try:
        ended = made.run("--until", "trial")
        assert ended.code == 1 and f"scancel {job}" in ended.text
    finally:
        cluster.run("scancel", job)
