"""One trial over two hosts: two Ray nodes, each with an address and a name of its own, on this machine."""

import os
import re
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

import rays
from crewbench.execute import door
from crewbench.execute.ports import free_port
from made_study import Study
from processes import MARK, command, kill, marked, new_mark, wait_gone
from running import Running, hard

OTHER = "other"
"""Ray's name of the second node, which tells it from the first: both have this machine's name."""
LOST = "a-third"
"""The name of a third one, which comes before the second where a trial wants but two hosts."""


class TwoNodes:
    """A head at 127.0.0.2 and a second node at 127.0.0.3, started as a cluster's user would. Variables name
    each one's own disk."""

    def __init__(self, place):
        self.mark = new_mark()
        self.place = place
        for name in ("here", OTHER, LOST):
            (place / name / "tmp").mkdir(parents=True)
        (place / "ray_bootstrap_config.yaml").write_text("{}")
        self.short = Path(door.short(place))
        self.memory = Path(tempfile.mkdtemp(dir="/dev/shm"))

    def begin(self):
        port = free_port()
        self.address = f"127.0.0.2:{port}"
        self.start({"--port": port, "--temp-dir": self.short}, node="127.0.0.2", head=True)
        self.join(OTHER, "127.0.0.3")

    def join(self, name, node, **environment):
        disk = {"TMPDIR": f"{self.short}/{name}/tmp", "NODE_DISK": str(self.place / name)}
        named = {"--address": self.address, "--node-name": name}
        self.start(named, node=node, **disk, NODE_MEMORY=str(self.memory), **environment)

    def start(self, options, node, head=False, **environment):
        env = {
            **os.environ,
            MARK: self.mark,
            **environment,
            "HOME": str(self.place),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        given = {"--node-ip-address": node, "--num-cpus": 2, **options}
        rays.start(self.place / f"{node}.log", env, given, head)

    def end(self):
        kill_all(self.mark)
        os.close(int(self.short.name))
        shutil.rmtree(self.memory)

    def config(self, **changes):
        return {
            "warm_rounds": 1,
            "model": {"stage": "$NODE_DISK"},
            "variants": {"two": {"ray_address": "auto", "hosts": 2}},
            "runs": [{"mode": "actors", "agents": 3, "gpus": 2, "variant": "two"}],
            **changes,
        }

    @property
    def environment(self):
        disk = {name: str(self.place / "here") for name in ("NODE_DISK", "NODE_MEMORY", "ONLY_HERE")}
        return {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address, **disk}


def kill_all(mark):
    """What a host's power cut does to its processes."""
    pids = marked(mark)
    kill(pids)
    assert wait_gone(pids, 60) == []


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    made = TwoNodes(tmp_path_factory.mktemp("nodes") / "ray")
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def both(nodes, tmp_path_factory, models):
    """mode -> Result of a trial over both hosts, and of one that is here alone."""
    (over_both,) = nodes.config()["runs"]
    runs = [{**over_both, "start": "disk"}, {"mode": "shared", "agents": 3, "start": "process"}]
    study = Study(tmp_path_factory.mktemp("study") / "s", nodes.config(runs=runs), models)
    return {trial.partition("__")[0]: study.run(trial, **nodes.environment) for trial in study.trials}


@pytest.fixture(scope="module")
def spanning(both):
    return both["actors"]


pytestmark = pytest.mark.needs("ray")
HERE = socket.gethostname()
OURS = r"^ray::(Outpost|Actor)|devices\.sampler"
"""What a trial has in Ray's processes."""


def test_every_row_names_the_host_that_it_was_on(spanning):
    workers = spanning.rows("workers")
    assert [(r["worker"], r["host"], r["device_uuid"]) for r in workers] == [
        ("worker0", HERE, "slot-0"),
        ("worker1", OTHER, f"{OTHER}/slot-0"),
        ("worker2", HERE, "slot-0"),
    ]
    hosts = {r["worker"]: r["host"] for r in workers}
    agents = spanning.rows("agents")
    assert [r["status"] for r in agents] == ["ok"] * 6
    assert all(r["host"] == hosts[r["worker"]] for r in agents)
    samples = {(r["host"], r["device_uuid"]) for r in spanning.rows("gpu")}
    assert samples == {(HERE, "slot-0"), (OTHER, f"{OTHER}/slot-0")}
    assert {r["gpus_used"] for r in spanning.rows("rounds")} == {"2"}


def test_each_host_has_its_clocks_anchor_and_its_devices(spanning):
    trial = spanning.trial
    (far,) = trial["hosts"]
    assert (trial["anchor"]["host"], far["anchor"]["host"]) == (HERE, OTHER)
    assert far["anchor"].keys() == trial["anchor"].keys()
    assert [(d["host"], d["uuid"]) for d in trial["devices"]] == [
        (HERE, "slot-0"),
        (OTHER, f"{OTHER}/slot-0"),
    ]
    assert far["devices"] == trial["devices"][1:]


def test_what_a_far_worker_did_lies_inside_the_rounds_as_the_trial_saw_them(spanning):
    rounds = {r["round"]: (float(r["started_at_s"]), float(r["ended_at_s"])) for r in spanning.rows("rounds")}
    for row in spanning.rows("agents"):
        began, ended = rounds[row["round"]]
        assert began <= float(row["queued_at_s"]) <= float(row["started_at_s"]) < float(row["ended_at_s"])
        assert float(row["ended_at_s"]) <= ended + 1e-6
        assert float(row["queue_s"]) >= 0 and float(row["decode_s"]) > 0
    for row in spanning.rows("workers"):
        assert min(float(row[f"{stage}_s"]) for stage in ("spawn", "import", "load", "stop")) > 0
        assert float(row["allocated_peak_mib"]) > 0


def test_a_far_agent_gets_the_prompt_and_gives_the_answer_that_it_does_here(both):
    def said(result):
        return {o["agent"]: (o["prompt_ids"], o["output_ids"]) for o in result.outputs}

    assert said(both["actors"]) == said(both["shared"])


def test_each_host_has_a_copy_of_the_checkpoint_on_its_own_disk(spanning, nodes):
    (far,) = spanning.trial["hosts"]
    for name, staged in (("here", spanning.trial["staged"]), (OTHER, far["staged"])):
        assert staged["path"].startswith(f"{nodes.place}/{name}/crewbench-")
        assert staged["bytes"] > spanning.trial["model"]["weights_bytes"]
        assert staged["seconds"] > 0 and staged["file_system"]
    assert far["staged"]["copied"]


def test_a_disk_start_evicts_the_copy_of_each_host(spanning):
    found = [(r["host"], float(r["cached_share"])) for r in spanning.rows("workers")]
    for host in (HERE, OTHER):
        first = min(share for at, share in found if at == host)  # the next one there finds what it has read
        assert first < 0.5


def test_nothing_of_the_trials_is_left_in_ray_and_on_the_other_hosts_disk(spanning, nodes):
    ours = [p for p in marked(nodes.mark) if re.search(OURS, command(p))]
    assert wait_gone(ours, 60) == []
    until = time.monotonic() + 60
    while left := list((nodes.place / OTHER / "tmp").iterdir()):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_a_killed_trial_leaves_no_process_and_no_lease_on_any_host(nodes, tmp_path, models):
    before = set(marked(nodes.mark))
    study = Study(
        tmp_path / "s", nodes.config(**hard("actors", gpus=2, variant="two") | {"warm_rounds": 0}), models
    )
    running = Running(study, r"worker1 \(pid \d+\): ready", **nodes.environment)
    far = running.worker
    started = set(marked(nodes.mark)) - before
    mine = [p for p in started if re.search(OURS, command(p))]
    assert far in started and len(mine) >= 3
    os.kill(running.harness["trial"], signal.SIGKILL)
    code, left = running.finish()
    assert code != 0 and left == []
    assert wait_gone([*mine, far], 60) == []
    assert running.devices_are_free()


def test_more_hosts_than_ray_has_are_refused_with_their_number(nodes, tmp_path, models):
    config = nodes.config(
        variants={"two": {"ray_address": "auto", "hosts": 3}},
        runs=[{"mode": "actors", "agents": 3, "gpus": 3, "variant": "two"}],
    )
    study = Study(tmp_path / "s", config, models)
    process = study.start(study.trials[0], **nodes.environment)
    _, log = process.communicate()
    assert process.returncode == 1
    assert "this Ray has 2 hosts and the trial spans 3" in log and "Traceback" not in log


def last_line(nodes, study):
    process = study.start(study.trials[0], **nodes.environment)
    _, log = process.communicate()
    assert process.returncode == 1 and "Traceback" not in log
    return log.strip().splitlines()[-1]


def test_a_host_without_the_directory_to_stage_into_stops_the_trial_with_its_name(nodes, tmp_path, models):
    study = Study(tmp_path / "s", nodes.config(model={"stage": "$ONLY_HERE"}), models)
    told = f"error: {OTHER}: model.stage is $ONLY_HERE, and ONLY_HERE is not set on this node"
    assert last_line(nodes, study).startswith(told)


def test_a_disk_start_that_another_host_cannot_have_is_a_row_with_its_name(nodes, tmp_path, models):
    (over_both,) = nodes.config()["runs"]
    config = nodes.config(model={"stage": "$NODE_MEMORY"}, runs=[{**over_both, "start": "disk"}])
    result = (study := Study(tmp_path / "s", config, models)).run(study.trials[0], **nodes.environment)
    assert [r["status"] for r in result.rows("agents")] == ["skipped"] * 3
    (error,) = {r["error"] for r in result.rows("agents")}
    assert error.startswith(f"{OTHER}: 100.0% of the weights in {nodes.memory}/")
    assert "stay in the page cache" in error and error in result.log
    assert result.rows("workers") == []


@pytest.fixture(scope="module")
def struck(nodes, tmp_path_factory, models):
    """A trial over a third host: its actor there was killed in round 0, and then, after that round, the host.

    The last of this file: Ray takes a while to know that the host is gone.
    """
    mark = new_mark()
    nodes.join(LOST, "127.0.0.4", **{MARK: mark})
    try:
        config = nodes.config(**hard("actors", gpus=2, variant="two") | {"warm_rounds": WARM})
        study = Study(tmp_path_factory.mktemp("study") / "s", config, models)
        running = Running(study, r"worker1 \(pid \d+\): ready", **nodes.environment)
        os.kill(running.worker, signal.SIGKILL)
        running.read_until(r"round 0: worker1: agent1 ok")
    finally:
        kill_all(mark)
    code, left = running.finish()
    assert (code, left) == (0, []), "".join(running.log)
    return running


WARM = 4
"""So many that not all are over when the host is lost."""


def told(rows, worker):
    return [(r["host"], r["worker_life"], r["status"], r["error"]) for r in rows if r["worker"] == worker]


def test_a_far_actor_that_is_killed_is_started_again_there_and_does_its_step(struck):
    rows = struck.result().rows
    killed, again = told(rows("workers"), "worker1")
    assert killed[:3] == (LOST, "0", "error") and "was lost by Ray" in killed[3]
    assert told(rows("agents"), "worker1")[0] == (LOST, "1", "ok", "")
    assert again[:2] == (LOST, "1")


def test_a_host_that_is_lost_is_an_error_that_says_so_and_is_not_tried_again(struck):
    rows = struck.result().rows
    error = f"worker worker1 was lost with its host {LOST} while it ran"
    assert told(rows("workers"), "worker1")[1:] == [(LOST, "1", "error", error)]
    first, *later = told(rows("agents"), "worker1")
    words = " ".join(status for _, _, status, _ in later)
    assert len(later) == WARM and re.fullmatch(r"(ok )*error( skipped)*", words), words
    assert {said for *_, status, said in later if status == "error"} == {error}
    assert struck.result().trial["status"] == "error"


def test_what_the_other_hosts_did_is_kept_when_one_is_lost(struck):
    result = struck.result()
    assert told(result.rows("agents"), "worker0") == [(HERE, "0", "ok", "")] * (1 + WARM)
    assert told(result.rows("workers"), "worker0") == [(HERE, "0", "ok", "")]
    assert {r["host"] for r in result.rows("gpu")} == {HERE}
    assert result.trial["hosts"][0]["anchor"]["host"] == LOST
    assert result.taints == [
        f"what was sampled on another host is lost: {LOST}: it was lost",
        "workers died and were started again: 1",
    ]
    assert struck.devices_are_free()
