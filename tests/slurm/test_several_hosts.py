"""A trial over two nodes of one Slurm job, by the script that a user of a cluster copies."""

import csv
import glob
import os
import signal
import sys
from types import SimpleNamespace

import pytest

import slow_agent
from private_slurm import processes
from processes import command

pytestmark = pytest.mark.needs("slurmctld", "munged", "ray")

TRIAL = "actors__g2__a2__eager__process__two__r1"
STUDY = {
    "repeats": 1,
    "warm_rounds": 1,
    "replay": False,
    "generation": {"output_tokens": 4},
    "devices": {"kind": "slots", "slots": 1},
    "variants": {"two": {"ray_address": "auto", "hosts": 2}},
    "runs": [{"mode": "actors", "gpus": 2, "agents": 2, "variant": "two"}],
}
SCRIPT = ("profiles/slurm/several-hosts.sbatch", "--configfile", "study.json", "--until", "trial")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
LONG_S = 400.0


class Job:
    """A job that was submitted from a checkout, as a user does it."""

    def __init__(self, study, *words):
        self.study, self.cluster = study, study.cluster
        self.before = directories_of_ray()
        said = self.cluster.run("sbatch", "--parsable", *words, cwd=study.place, **study.environment)
        self.id = said.strip()

    @property
    def text(self):
        """What the job said, and its trials."""
        log = self.study.place / f"several-hosts-{self.id}.log"
        return (log.read_text() if log.exists() else "") + self.study.checkout.logs()

    def until(self, look, what):
        def look_twice():
            over = self.id in self.cluster.jobs(*ENDED)
            found = look()
            assert found or not over, f"{what}: not seen\n{self.text}"
            return found

        self.cluster.until(look_twice, what, LONG_S)

    def finish(self):
        """How it ended, where, the first node being its script's, what it said, and which directories of Ray
        it left. That no process of it is left is waited for."""
        self.cluster.until(lambda: self.id in self.cluster.jobs(*ENDED), "the job's end", LONG_S)
        self.cluster.until(self.has_no_process, "the end of the job's processes")
        job = self.cluster.jobs()[self.id]
        nodes = self.cluster.run("scontrol", "show", "hostnames", job["NodeList"]).split()
        return SimpleNamespace(
            state=job["JobState"],
            nodes=sorted(nodes, key=lambda node: node != job["BatchHost"]),
            text=self.text,
            left=directories_of_ray() - self.before,
        )

    def has_no_process(self):
        return not processes(self.cluster.place, f"SLURM_JOB_ID={self.id}")


def directories_of_ray():
    return set(glob.glob("/tmp/crewbench-*/session_latest"))


@pytest.fixture(scope="module")
def made(study):
    found = study(STUDY)
    (found.place / ".venv").symlink_to(sys.prefix)
    return found


@pytest.fixture(scope="module")
def cancelled(made):
    """The job that was cancelled while the trial's workers started on both nodes."""
    job = Job(made, *SCRIPT)
    job.until(lambda: all(f"worker{n} (pid" in job.text for n in (0, 1)), "workers on both nodes")
    made.cluster.run("scancel", job.id)
    ended = job.finish()
    ended.done = list(made.done)
    return ended


@pytest.fixture(scope="module")
def ran(made, cancelled):
    """The same job again, to its end."""
    ended = Job(made, *SCRIPT).finish()
    assert ended.state == "COMPLETED", ended.text
    return ended


def wrapped(made, command, *words):
    """A job over two nodes that runs a command on the first."""
    log = ("--output", f"{made.place}/several-hosts-%j.log")
    return Job(made, "--nodes=2", "--ntasks-per-node=1", "--exclusive", *log, *words, "--wrap", command)


def rows(made, name):
    (path,) = (made.place / "results/trials" / TRIAL).glob(f"*/{name}.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_cancelled_job_leaves_no_process_and_no_trial_that_looks_measured(cancelled):
    """Its processes are gone, or it would not have been seen to finish."""
    assert cancelled.state == "CANCELLED", cancelled.text
    assert cancelled.done == []


def test_the_script_runs_the_trial_on_both_nodes_at_their_own_addresses(ran, made):
    here, there = ran.nodes
    assert f"Ray at {made.cluster.address(here)}:" in ran.text and f" on {here}, {there}" in ran.text
    workers = rows(made, "workers")
    assert [(r["worker"], r["host"], r["device_uuid"]) for r in workers] == [
        ("worker0", here, "slot-0"),
        ("worker1", there, f"{there}/slot-0"),
    ]
    hosts = {r["worker"]: r["host"] for r in workers}
    agents = rows(made, "agents")
    assert [r["status"] for r in agents] == ["ok"] * 4
    assert all(r["host"] == hosts[r["worker"]] for r in agents)
    assert {(r["host"], r["device_uuid"]) for r in rows(made, "gpu")} == {
        (here, "slot-0"),
        (there, f"{there}/slot-0"),
    }


def test_each_node_has_its_clocks_anchor_under_slurms_name(ran, made):
    record = made.record(TRIAL)
    (far,) = record["hosts"]
    here, there = ran.nodes
    assert record["identity"]["host"] == record["anchor"]["host"] == here
    assert far["host"] == far["anchor"]["host"] == there
    assert far["anchor"].keys() == record["anchor"].keys()
    assert record["status"] == "ok"


def test_no_process_and_no_directory_of_ray_is_left_on_a_node(ran):
    assert ran.left == set()


def test_a_node_that_does_not_join_in_time_ends_the_job_with_its_name(made):
    ended = wrapped(made, f"{sys.executable} scripts/hosts.py --join-s 0 touch began").finish()
    assert ended.state == "FAILED" and f"error: {ended.nodes[0]} did not join within 0 s" in ended.text
    assert ended.left == set() and not (made.place / "began").exists()


def test_a_node_where_ray_is_too_slow_to_start_starts_it_again(made):
    seen = slow_agent.once(made.place / "scripts")
    try:
        ended = wrapped(made, f"{sys.executable} scripts/hosts.py touch joined").finish()
    finally:
        (made.place / "scripts/sitecustomize.py").unlink()
    assert ended.state == "COMPLETED", ended.text
    assert seen.exists() and f"Ray on {ended.nodes[0]} took too long to start, and starts again" in ended.text
    assert ended.left == set() and (made.place / "joined").exists()


def test_a_head_that_ends_while_others_join_ends_the_job_with_its_name_and_its_words(made):
    job = wrapped(made, f"{sys.executable} scripts/hosts.py touch began")

    def commands():
        return {pid: command(pid) for pid in processes(made.cluster.place, f"SLURM_JOB_ID={job.id}")}

    def joining():
        return any("--node-name" in said and "--head" not in said for said in commands().values())

    job.until(joining, "a node that joins")
    (head,) = (pid for pid, said in commands().items() if "gcs_server" in said.partition(" ")[0])
    os.kill(head, signal.SIGKILL)
    ended = job.finish()
    assert ended.state == "FAILED"
    assert f"error: {ended.nodes[0]} joined and has ended: srun ended with 1" in ended.text
    assert "gcs_server [exit code=-9]" in ended.text
    assert ended.left == set() and not (made.place / "began").exists()


def test_a_nodes_address_that_slurm_has_as_a_name_is_looked_up_on_another_node(made):
    node, other = made.cluster.nodes[-2:]
    at = made.cluster.address(node)
    both = f"address('{node}', '{other}'), address('{other}', '{node}')"
    ask = f"from crewbench.several_hosts import address; print({both})"
    made.cluster.run("scontrol", "update", f"NodeName={node}", "NodeAddr=localhost")
    try:
        code = f'PYTHONPATH=scripts {sys.executable} -c "{ask}"'
        ended = wrapped(made, code, f"--nodelist={node},{other}").finish()
    finally:
        made.cluster.run("scontrol", "update", f"NodeName={node}", f"NodeAddr={at}")
    assert ended.text.split()[:2] == ["127.0.0.1", made.cluster.address(other)]
