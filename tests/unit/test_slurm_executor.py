"""What the Slurm plugin gets wrong is right here, on answers as Slurm gives them."""

import asyncio
import errno
import logging
import threading
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin

from crewbench import slurm_executor, slurm_step
from crewbench.slurm_executor import (
    FORGOTTEN_S,
    Executor,
    asks_for_more,
    lasting,
    never_starting,
    step_options,
    words,
)

LOGGER = logging.getLogger("a workflow")


def answer(tmp_path, text):
    """What is made of a query that prints `text`."""
    path = tmp_path / "answer"
    path.write_text(text)
    return asyncio.run(slurm_executor.query_job_status(f"cat {path}", LOGGER))[0]


def test_a_job_that_somebody_cancelled_is_cancelled(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_executor, "LASTING_S", 0.0)
    assert answer(tmp_path, "5|CANCELLED by 0\n6|RUNNING\n") == {"5": "CANCELLED", "6": "RUNNING"}


def test_a_failure_counts_when_it_lasts_and_not_while_slurm_puts_the_job_back():
    since = {}
    seen = [
        lasting({"5": state}, since, at_s)["5"]
        for at_s, state in [(0, "FAILED"), (1, "PENDING"), (9, "FAILED"), (11, "FAILED"), (12, "FAILED")]
    ]
    assert seen == ["COMPLETING", "PENDING", "COMPLETING", "COMPLETING", "FAILED"]


def test_a_preempted_job_failed_unless_slurm_queues_it_again():
    since = {}
    seen = [
        lasting({"5": state}, since, at_s)["5"]
        for at_s, state in [(0, "PREEMPTED"), (1, "PENDING"), (9, "PREEMPTED"), (12, "PREEMPTED")]
    ]
    assert seen == ["COMPLETING", "PENDING", "COMPLETING", "CANCELLED"]


def test_jobs_that_slurm_can_never_start_are_told_from_those_that_wait(tmp_path, monkeypatch):
    said = "5|Priority\n6|PartitionTimeLimit\n7|(null)\n8|Resources\n9|BadConstraints"
    answering(tmp_path, monkeypatch, said, name="squeue")
    assert never_starting("--name=x") == {"6": "PartitionTimeLimit", "9": "BadConstraints"}
    (tmp_path / "bin" / "squeue").unlink()
    assert never_starting("--name=x") == {}


@pytest.mark.parametrize(
    ("extra", "cpus"), [("--exclusive", []), ("--exclusive --nodelist=n2", []), (None, ["--cpus-per-task=4"])]
)
def test_the_step_of_an_exclusive_job_has_all_cores_whatever_the_mode_starts(extra, cpus):
    resources = {"nodes": 1} | ({"slurm_extra": extra} if extra else {})
    job = SimpleNamespace(threads=4, resources=resources)
    assert [word for word in step_options(job) if "cpus" in word] == cpus


def test_jobs_that_could_not_be_cancelled_are_told_with_the_command_for_later(
    executor, tmp_path, monkeypatch, caplog
):
    answering(
        tmp_path, monkeypatch, "Unable to contact slurm controller >&2; exit 1", name="scancel", quote=""
    )
    executor.run_uuid = "a-call"
    executor._cancel_all()
    assert "`scancel --name=a-call` failed" in caplog.text
    assert "Slurm: Unable to contact slurm controller" in caplog.text


def test_no_answer_is_another_thing_than_no_jobs(tmp_path):
    assert answer(tmp_path, "") == {}
    assert asyncio.run(slurm_executor.query_job_status("false", LOGGER)) == (None, None)


def test_srun_is_told_whose_job_it_is_and_where_slurm_is_and_nothing_of_the_jobs_shape():
    given = {
        "PATH": "/bin",
        "SLURM_JOB_ID": "5",
        "SLURM_CONF": "/etc/other/slurm.conf",
        "SLURM_SUBMIT_DIR": "/a",
        "SLURM_TMPDIR": "/local/5",
    }
    shape = {"SLURM_GPUS": "2", "SLURM_CPUS_PER_TASK": "4", "SRUN_DEBUG": "3", "SBATCH_GRES": "gpu:2"}
    assert slurm_step.environment(given | shape) == given


def test_what_slurms_programs_complain_of_in_a_log_is_told_once(tmp_path):
    log = tmp_path / "17.log"
    log.write_text(
        "rule trial:\n"
        "srun: cluster configuration lacks support for cpu binding\n"
        "slurmstepd-n2: error: Exceeded job memory limit\n"
        "slurmstepd-n2: error: Exceeded job memory limit\n"
        "error: a trial's own\n"
    )
    assert words(None, log) == "\n    Slurm: slurmstepd-n2: error: Exceeded job memory limit"


def test_only_a_trial_that_says_so_asks_for_more(tmp_path):
    assert asks_for_more(SimpleNamespace(params={})) == ""
    trial = SimpleNamespace(params={"kept": str(tmp_path)})
    assert asks_for_more(trial) == ""
    (tmp_path / "more").write_text("it ran out of memory on 1 and asks for 2")
    assert asks_for_more(trial) == "it ran out of memory on 1 and asks for 2"


class Job:
    """What the executor asks of Snakemake's job of a trial."""

    jobid, restart_times = 3, 1

    def __init__(self, place):
        self.output = [str(place / "trial.json")]
        self.params = {"kept": str(place)}

    def is_group(self):
        return False


@pytest.fixture
def executor(monkeypatch, tmp_path):
    """An executor whose controller answers and whose plugin submits nothing. `said`: what it reported."""
    answering(tmp_path, monkeypatch, "Slurmctld(primary) at a is UP")
    monkeypatch.setattr(plugin.Executor, "run_job", lambda self, job: None)
    made = object.__new__(Executor)
    made._over, made._away, made._unseen_since, made._left_before = threading.Event(), False, {}, {}
    made._main_event_loop, made.logger, made.said = None, LOGGER, []
    made.report_job_success = lambda job: made.said.append("done")
    made.report_job_error = lambda job, msg: made.said.append(msg)
    return made


def answering(place, monkeypatch, text, name="scontrol", quote="'"):
    """Let the only program in PATH be one of Slurm's, which prints `text`."""
    (place / "bin").mkdir(exist_ok=True)
    program = place / "bin" / name
    program.write_text(f"#!/bin/sh\necho {quote}{text}{quote}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_what_an_earlier_allocation_asked_for_is_no_wish_of_the_next_one_that_fails(executor, tmp_path):
    job = Job(tmp_path)
    (tmp_path / "more").write_text("it ran out of memory on 1 and asks for 2")
    executor.run_job(job)
    assert asks_for_more(job) == ""


def test_a_job_that_cannot_even_ask_the_controller_is_told_as_failed(executor, tmp_path):
    (tmp_path / "bin" / "scontrol").unlink()
    executor.run_job(Job(tmp_path))
    (said,) = executor.said
    assert said.startswith("It could not be submitted: ") and "scontrol" in said


def test_a_host_that_lacks_a_process_for_a_moment_asks_the_controller_again(monkeypatch):
    def lacking(*words, **more):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(slurm_executor.subprocess, "run", lacking)
    assert not slurm_executor.answers()


@pytest.fixture
def looking(executor, monkeypatch, tmp_path):
    """An executor that waits for job 17, and what it said of it. Its clock is `now`."""
    now = [0.0]
    monkeypatch.setattr(slurm_executor.time, "monotonic", lambda: now[0])
    output = tmp_path / "trial.json"
    output.write_text("what older code measured")
    job = SimpleNamespace(external_jobid="17", job=Job(tmp_path))
    executor.run_job(job.job)

    def look(states, at_s):
        now[0] = at_s
        monkeypatch.setattr(slurm_executor, "_states", states)
        if states is None:
            executor._note(away=True)
        return states is not None and executor._forgotten(job), executor.said

    return look, output


def test_a_job_that_slurm_has_forgotten_failed_if_it_left_no_result(looking):
    look, _ = looking
    assert look({"17": "RUNNING"}, 0) == (False, [])
    assert look({}, 10) == (False, [])
    assert look({}, 10 + FORGOTTEN_S - 1) == (False, [])
    over, said = look({}, 10 + FORGOTTEN_S)
    assert over and "knows nothing of job 17 any more" in said[0]


def test_a_job_that_slurm_has_forgotten_is_done_if_its_result_is_there(looking):
    look, output = looking
    new = output.with_name("trial.json.new")
    new.touch()
    new.replace(output)
    look({}, 0)
    assert look({}, FORGOTTEN_S) == (True, ["done"])


def test_a_job_that_is_seen_again_starts_anew(looking):
    look, _ = looking
    look({}, 0)
    look({"17": "RUNNING"}, FORGOTTEN_S - 1)
    assert look({}, FORGOTTEN_S) == (False, [])


def test_a_controller_that_does_not_answer_has_forgotten_no_job(looking):
    look, _ = looking
    look({}, 0)
    look(None, 10)
    assert look({}, FORGOTTEN_S) == (False, [])
    assert look({"17": "RUNNING"}, FORGOTTEN_S + 1) == (False, [])
