"""Agents on Ray actors: a Ray of the trial's own, and one that runs already."""

import os
import re
from pathlib import Path

import pytest

import rays
from crewbench.devices import procfs
from crewbench.execute import cluster
from crewbench.execute.actor import RESTARTS, share
from made_study import Study
from processes import MARK, command, kill, marked, new_mark, wait_gone

DAEMONS = "gcs_server|raylet/raylet"
"""What a Ray that runs is: the rest of it comes and goes."""


def test_every_actor_is_on_the_device_of_its_deployment(results):
    rows = results["actors"].rows("workers")
    assert [(r["worker"], r["device_uuid"], r["runner"]) for r in rows] == [
        ("worker0", "slot-0", "actor"),
        ("worker1", "slot-1", "actor"),
        ("worker2", "slot-0", "actor"),
    ]
    assert len({r["pid"] for r in rows}) == 3


def test_an_actor_starts_in_the_stages_of_any_worker_and_recovers_from_nothing(results):
    for row in results["actors"].rows("workers"):
        assert min(float(row[f"{stage}_s"]) for stage in ("spawn", "import", "load", "stop")) > 0
        assert row["recovery_s"] == ""
    for row in results["actors"].rows("agents"):
        assert (row["reruns"], row["lost_tokens"]) == ("0", "0")


def test_an_agent_gets_the_prompt_and_gives_the_answer_that_it_does_in_a_process(results):
    def said(mode):
        return {o["agent"]: (o["prompt_ids"], o["output_ids"]) for o in results[mode].outputs}

    assert said("actors") == said("parallel")


def test_what_ray_took_to_start_is_recorded_and_no_part_of_a_round(results):
    trial = results["actors"].trial
    assert trial["runner_s"] > 0.5 and trial["zygote_s"] is None
    assert float(results["actors"].rows("rounds")[0]["started_at_s"]) > trial["runner_s"]
    assert results["parallel"].trial["runner_s"] is None


def test_the_log_is_the_trials_own_lines_and_nothing_of_rays(results):
    lines = results["actors"].log.strip().splitlines()
    own = r"\[ *[0-9.]+\] attempt 1 round \d: |Ray took too long to start, and starts again$"
    assert [line for line in lines if not re.match(own, line)] == [
        f"{results['actors'].trial['trial_id']}: ok"
    ]


@pytest.mark.parametrize(
    ("actors", "gpus", "each"),
    [(8, 8, 1.0), (2, 8, 4.0), (3, 8, 2.0), (8, 2, 0.25), (8, 3, 0.3333), (3, 2, 0.5), (7, 1, 0.1428)],
)
def test_gpus_are_shared_so_that_ray_admits_every_actor_however_it_packs_them(actors, gpus, each):
    assert share(actors, gpus) == each
    holds = int(1 / each) * gpus if each < 1 else gpus // int(each)
    assert holds >= actors
    assert RESTARTS > 0


@pytest.fixture
def running_ray(tmp_path):
    """The address of a Ray that somebody else has started, and its processes' mark."""
    place, mark = tmp_path / "ray", new_mark()
    place.mkdir()
    (place / "ray_bootstrap_config.yaml").write_text("{}")
    env = {
        **os.environ,
        **cluster.LOOPBACK,
        MARK: mark,
        "HOME": str(place),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    short = Path(cluster.short(place))
    try:
        rays.start(tmp_path / "ray.log", env, {"--port": 0, "--num-cpus": 2, "--temp-dir": short}, head=True)
        yield (short / "ray_current_cluster").read_text().strip(), mark
    finally:
        pids = marked(mark)
        kill(pids)
        wait_gone(pids, 20)
        os.close(int(short.name))


@pytest.mark.needs("ray")
def test_a_ray_that_runs_is_used_and_left_as_it_was(tmp_path, models, running_ray):
    address, mark = running_ray
    before = set(marked(mark))
    daemons = {pid for pid in before if re.search(DAEMONS, command(pid))}
    # A child that has not become another program yet looks like its parent.
    daemons = {pid for pid in daemons if procfs.parent(pid) not in daemons}
    config = {
        "warm_rounds": 0,
        "variants": {"near": {"ray_address": address}},
        "runs": [{"mode": "actors", "agents": 2, "variant": "near"}],
    }
    study = Study(tmp_path / "study", config, models)
    result = study.run(study.trials[0], RAY_AUTH_MODE="disabled")
    assert [r["status"] for r in result.rows("agents")] == ["ok", "ok"]
    assert result.trial["runner_s"] > 0
    held = {int(r["pid"]) for r in result.rows("workers")}
    assert not held & before
    # Ray keeps or starts workers of its own; the actors are gone.
    assert not held & set(marked(mark))
    assert daemons <= set(marked(mark)), [command(p) for p in daemons - set(marked(mark))]


@pytest.mark.needs("ray")
def test_an_address_where_no_ray_is_stops_the_trial_with_its_name(tmp_path, models):
    config = {
        "variants": {"near": {"ray_address": "127.0.0.1:1"}},
        "runs": [{"mode": "actors", "agents": 2, "variant": "near"}],
    }
    study = Study(tmp_path / "study", config, models)
    process = study.start(study.trials[0])
    _, log = process.communicate()
    assert process.returncode == 1
    assert "error: no Ray at 127.0.0.1:1: ConnectionRefusedError" in log and "Traceback" not in log
    assert not (study.dir(study.trials[0]) / "trial.json").exists()
