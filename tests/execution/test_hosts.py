"""One trial over two hosts: two Ray nodes, each with an address and a name of its own, on this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crewbench.execute import cluster, door
from crewbench.execute.server import free_port
from made_study import Study
from processes import MARK, command, marked, new_mark, wait_gone
from running import Running, hard

OTHER = "other"
"""Ray's name of the second node, which tells it from the first: both have this machine's name."""


class TwoNodes:
    """A head at 127.0.0.2 and a second node at 127.0.0.3, started as a cluster's user would."""

    def __init__(self, place):
        self.mark = new_mark()
        self.place = place
        place.mkdir()
        (place / "ray_bootstrap_config.yaml").write_text("{}")
        self.short = Path(door.short(place))

    def begin(self):
        port = free_port()
        self.address = f"127.0.0.2:{port}"
        self.start("--head", "--port", port, "--ray-client-server-port", free_port(), node="127.0.0.2")
        self.start("--address", self.address, "--node-name", OTHER, node="127.0.0.3")

    def start(self, *words, node):
        env = {
            **os.environ,
            MARK: self.mark,
            "HOME": str(self.place),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        common = {
            "--node-ip-address": node,
            "--num-cpus": 2,
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--dashboard-agent-listen-port": 0,
            "--object-store-memory": cluster.OBJECT_STORE_MIB * 2**20,
        }
        head = {"--include-dashboard": "false", "--dashboard-port": 0, "--temp-dir": self.short}
        given = common | (head if "--head" in words else {})
        start = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *words]
        start += [word for pair in given.items() for word in pair]
        log = self.place / f"{node}.log"
        with log.open("w") as file:  # not a pipe: what it starts would keep it open
            done = subprocess.run(list(map(str, start)), env=env, stdout=file, stderr=file, check=False)
        assert done.returncode == 0, log.read_text()

    def end(self):
        pids = marked(self.mark)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_gone(pids, 60)
        os.close(int(self.short.name))

    def config(self, **changes):
        return {
            "warm_rounds": 1,
            "variants": {"two": {"ray_address": "auto", "hosts": 2}},
            "runs": [{"mode": "actors", "agents": 3, "gpus": 2, "variant": "two"}],
            **changes,
        }

    @property
    def environment(self):
        return {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address}


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
    runs = [*nodes.config()["runs"], {"mode": "shared", "agents": 3, "start": "process"}]
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


def test_nothing_of_the_trials_is_left_in_ray(spanning, nodes):
    ours = [p for p in marked(nodes.mark) if re.search(OURS, command(p))]
    assert wait_gone(ours, 60) == []


def test_a_far_actor_that_is_killed_is_started_again_there(nodes, tmp_path, models):
    study = Study(
        tmp_path / "s", nodes.config(**hard("actors", gpus=2, variant="two") | {"warm_rounds": 0}), models
    )
    running = Running(study, r"worker1 \(pid \d+\): ready", **nodes.environment)
    os.kill(running.worker, signal.SIGKILL)
    code, left = running.finish()
    assert (code, left) == (0, []), "".join(running.log)
    lives = [r for r in running.result().rows("workers") if r["worker"] == "worker1"]
    assert [(r["host"], r["worker_life"], r["status"]) for r in lives] == [
        (OTHER, "0", "error"),
        (OTHER, "1", "ok"),
    ]
    assert all(r["status"] == "ok" for r in running.result().rows("agents"))


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
