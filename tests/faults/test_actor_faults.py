"""What becomes of a trial whose actors, or whose Ray, are killed."""

import os
import select
import signal
import tempfile
from pathlib import Path

import pytest

import slow_agent
from crewbench.devices import procfs
from crewbench.execute import made
from crewbench.records import STAGES
from made_study import Study
from processes import GONE_S, MARK, marked, new_mark, wait_gone
from running import Running, hard

pytestmark = pytest.mark.needs("ray")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def study(tmp_path, models):
    return lambda config: Study(tmp_path / "study", config, models)


@pytest.fixture
def place():
    """For a trial's scratch directory, with room for a socket's name after it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def wait_for_tokens(place, worker, count):
    """Wait until the worker has made that many tokens of its step, as its own counter has it."""
    (path,) = place.glob(f"crewbench-*/made-1-{worker}-0")
    while (made.read(str(path)) or 0) < count:
        select.select([], [], [], 0.002)


def test_an_actor_killed_while_it_generates_is_started_again_and_its_step_with_it(study, place):
    running = Running(study(hard("actors", gpus=2)), r"worker1 .*: ready", TMPDIR=str(place))
    victim = running.worker
    wait_for_tokens(place, "worker1", 64)
    os.kill(victim, signal.SIGKILL)
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    result = running.result()
    rows = {(r["round"], r["step"]): r for r in result.rows("agents")}
    assert {r["status"] for r in rows.values()} == {"ok"}
    again = rows["0", "agent1"]
    assert (again["reruns"], again["worker_life"], again["output_tokens"]) == ("1", "1", "500")
    assert 64 <= int(again["lost_tokens"]) < 500
    others = [r for key, r in rows.items() if key != ("0", "agent1")]
    assert {(r["reruns"], r["lost_tokens"]) for r in others} == {("0", "0")}
    # The next round is as any other: the new life has the model.
    assert rows["1", "agent1"]["worker_life"] == "1"
    lives = {(r["worker"], r["worker_life"]): r for r in result.rows("workers")}
    dead, new = lives["worker1", "0"], lives["worker1", "1"]
    assert (dead["pid"], dead["status"], new["status"]) == (str(victim), "error", "ok")
    assert "was lost by Ray" in dead["error"]
    assert dead["recovery_s"] == lives["worker0", "0"]["recovery_s"] == ""
    assert new["pid"] != dead["pid"] and new["device_uuid"] == dead["device_uuid"] == "slot-1"
    recovery = float(new["ready_at_s"]) - float(dead["stopped_at_s"])
    assert float(new["recovery_s"]) == pytest.approx(recovery, abs=1e-6)
    assert float(new["recovery_s"]) >= sum(float(new[f"{s}_s"]) for s in ("spawn", "import", "load")) > 0
    cold = result.rows("rounds")[0]
    assert float(cold["makespan_s"]) == pytest.approx(sum(float(cold[f"{s}_s"]) for s in STAGES), abs=1e-5)
    # What was lost is waiting: the step had no worker that would finish it.
    assert float(cold["queue_s"]) > 0 and float(cold["idle_s"]) < 0.02 * float(cold["makespan_s"])
    assert result.taints == ["workers died and were started again: 1"]
    assert result.trial["status"] == "ok"


@pytest.mark.parametrize("victim", ["launcher", "guardian", "trial"])
def test_killing_the_harness_leaves_no_process_of_rays(study, victim):
    running = Running(study(hard("actors", gpus=2)), r"worker1 .*: import")
    assert running.named("gcs_server") and running.named("raylet/raylet")
    os.kill(running.harness[victim], signal.SIGKILL)
    code, survivors = running.finish()
    assert survivors == []
    assert code != 0
    assert not (running.study.dir(running.trial_id) / "trial.json").exists()
    assert running.devices_are_free()


def test_a_ray_that_is_too_slow_to_start_is_started_again_and_nothing_of_the_first_is_left(study, tmp_path):
    seen, mark = slow_agent.once(tmp_path), new_mark()
    made = study({"warm_rounds": 0, "runs": [{"mode": "actors", "gpus": 1, "agents": 1}]})
    result = made.run(made.trials[0], **{MARK: mark, "PYTHONPATH": str(tmp_path)})
    assert seen.exists() and "Ray took too long to start, and starts again" in result.log
    assert "Traceback" not in result.log
    assert [row["status"] for row in result.rows("agents")] == ["ok"]
    assert wait_gone(marked(mark), GONE_S) == []


@pytest.mark.parametrize("victim", ["gcs_server", "raylet/raylet", "the process that speaks with Ray"])
def test_a_ray_that_is_killed_takes_its_actors_along_and_every_step_is_a_row(study, victim):
    running = Running(study(hard("actors", gpus=2)), r"worker1 .*: import")
    speaker = procfs.parent(running.named("gcs_server"))
    os.kill(speaker if " " in victim else running.named(victim), signal.SIGKILL)
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    assert marked(running.mark) == []
    result = running.result()
    status = {(r["round"], r["step"]): (r["status"], r["reruns"]) for r in result.rows("agents")}
    assert status == {
        ("0", "agent0"): ("error", "0"),
        ("0", "agent1"): ("error", "0"),
        ("1", "agent0"): ("skipped", "0"),
        ("1", "agent1"): ("skipped", "0"),
    }
    workers = result.rows("workers")
    assert [r["worker_life"] for r in workers] == ["0", "0"]
    assert all("ended with Ray itself" in r["error"] for r in workers)
    assert result.trial["status"] == "error"


def test_an_actor_that_hangs_is_ended_where_the_process_that_speaks_with_ray_hangs_too(study):
    running = Running(study({**hard("actors", gpus=2), "timeouts": {"step_s": 5}}), r"worker1 .*: ready")
    hung = running.worker
    os.kill(hung, signal.SIGSTOP)  # first: looking for the other takes time, in which it works
    os.kill(procfs.parent(running.named("gcs_server")), signal.SIGSTOP)
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    result = running.result()
    rows = {(r["round"], r["step"]): r for r in result.rows("agents")}
    assert set(rows) == {(number, step) for number in ("0", "1") for step in ("agent0", "agent1")}
    assert rows["0", "agent0"]["status"] in ("ok", "timeout")  # as fast as this machine is
    assert rows["0", "agent1"]["error"] == "worker worker1 overran its steps; killed"
    assert rows["1", "agent1"]["status"] == "skipped"
    # All actors end with it, and none is started again.
    assert rows["1", "agent0"]["status"] in ("error", "skipped")
    workers = {r["worker"]: r for r in result.rows("workers")}
    assert [(r["worker_life"], r["status"]) for r in workers.values()] == [("0", "error"), ("0", "timeout")]
    assert "ended with Ray itself" in workers["worker0"]["error"]
    assert workers["worker1"]["pid"] == str(hung)
    assert result.trial["status"] == "timeout"
