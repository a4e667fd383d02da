"""A worker, an agent or a zygote that fails becomes a row; no process outlives its trial."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from crewbench.checkpoint import files
from crewbench.devices import procfs
from made_study import Study
from processes import command
from running import Running, hard


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def study(tmp_path, models):
    return lambda config: Study(tmp_path / "study", config, models)


@pytest.mark.parametrize("when", ["load", "ready"])
def test_a_worker_killed_while_loading_or_generating_is_a_row_and_the_others_go_on(study, when):
    running = Running(study(hard("parallel", gpus=2)), rf"worker1 .*: {when}")
    if when == "ready":
        time.sleep(0.2)  # into its 500 tokens; any moment of them will do
    os.kill(running.worker, signal.SIGKILL)
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    result = running.result()
    status = {(r["round"], r["agent"]): r["status"] for r in result.rows("agents")}
    assert status == {
        ("0", "product_manager"): "ok",
        ("0", "system_architect"): "error",
        ("1", "product_manager"): "ok",
        ("1", "system_architect"): "skipped",
    }
    workers = {r["worker"]: r for r in result.rows("workers")}
    assert workers["worker0"]["status"] == "ok"
    assert "SIGKILL" in workers["worker1"]["error"]
    assert result.trial["status"] == "error"


@pytest.mark.parametrize("victim", ["launcher", "guardian", "trial"])
def test_killing_the_harness_leaves_no_process_no_lease_and_no_trial_json(study, victim):
    running = Running(study(hard("parallel", gpus=2)), r"worker1 .*: ready")
    os.kill(running.harness[victim], signal.SIGKILL)
    code, survivors = running.finish()
    assert survivors == []
    assert code != 0
    assert not (running.study.dir(running.trial_id) / "trial.json").exists()
    assert running.devices_are_free()


def zygote(pids):
    """The fork server itself: the oldest process of that command line."""
    return min((p for p in pids if "multiprocessing.forkserver" in command(p)), key=procfs.started)


def test_a_zygote_killed_while_its_workers_run_does_not_take_them_along(study):
    running = Running(study(hard("parallel", gpus=2)), r"worker1 .*: ready")
    os.kill(zygote(running.all()), signal.SIGKILL)
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    assert {r["status"] for r in running.result().rows("agents")} == {"ok"}


def test_a_zygote_killed_between_forks_is_started_again_and_said_so(study):
    running = Running(study(hard("sequential")), r"worker .*: ready")
    os.kill(zygote(running.all()), signal.SIGKILL)
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    assert running.result().taints == ["the zygote died and was started again"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_trial_and_all_its_processes(study, number):
    running = Running(study(hard("shared")), r"worker .*: ready")
    running.process.send_signal(number)
    code, survivors = running.finish()
    assert (code, survivors) == (128 + number, [])
    assert running.devices_are_free()


def test_a_step_over_its_deadline_is_a_timeout_and_its_worker_serves_the_next_round(study):
    running = Running(study({**hard("shared"), "timeouts": {"step_s": 0.5}}), r"worker .*: ready")
    code, _ = running.finish()
    assert code == 0
    result = running.result()
    rows = result.rows("agents")
    assert {r["status"] for r in rows} == {"timeout"} and len(rows) == 4
    assert "deadline" in rows[0]["error"]
    for row in rows:  # what it did until then counts as what it was
        assert int(row["output_tokens"]) > 0 and row["llm_calls"] == "1"
        assert (float(row["decode_s"]) > 0) == (int(row["output_tokens"]) > 1)
    assert {r["status"] for r in result.rows("workers")} == {"ok"}
    assert result.trial["status"] == "timeout"


def test_a_worker_that_overruns_its_loading_is_killed_and_recorded(study):
    # Two seconds are too few for a new process to import torch: a real overrun, without a fake.
    config = {**hard("shared", start="process"), "timeouts": {"load_s": 0.5}}
    running = Running(study(config), r"worker .*: import")
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    result = running.result()
    assert {r["status"] for r in result.rows("workers")} == {"timeout"}
    assert {r["status"] for r in result.rows("agents") if r["round"] == "0"} == {"timeout"}
    assert {r["status"] for r in result.rows("agents") if r["round"] == "1"} == {"skipped"}


def test_an_agent_whose_model_refuses_its_prompt_is_an_error_row(tmp_path, models):
    """A checkpoint whose chat template rejects the conversation: what a real mismatched model does."""
    made = Study(tmp_path / "made", hard("shared"), models)
    broken = tmp_path / "broken"
    shutil.copytree(made.model / "weights", broken)
    (broken / "chat_template.jinja").write_text("{{ raise_exception('only assistants may speak') }}")
    config = {**hard("shared"), "model": {"kind": "local", "path": str(broken)}}
    running = Running(Study(tmp_path / "study", config, tmp_path / "models"), r"worker .*: ready")
    code, _ = running.finish()
    assert code == 0
    result = running.result()
    assert {r["status"] for r in result.rows("agents")} == {"error"}
    assert all("only assistants may speak" in r["error"] for r in result.rows("agents"))
    assert json.loads((result.dir / "trial.json").read_text())["status"] == "error"


def test_an_out_of_memory_without_a_further_attempt_leaves_the_other_agents_running(study):
    config = {"warm_rounds": 1, "runs": [{"mode": "parallel", "gpus": 1, "agents": 5}]}
    running = Running(study(config), r"oom")
    code, _ = running.finish()
    assert code == 0
    cold = [r["status"] for r in running.result().rows("agents") if r["round"] == "0"]
    assert sorted(cold) == ["ok", "ok", "ok", "oom", "oom"]
    warm = [r["status"] for r in running.result().rows("agents") if r["round"] == "1"]
    assert sorted(warm) == ["ok", "ok", "ok", "skipped", "skipped"]


def test_a_long_temporary_directory_leaves_room_for_the_zygotes_socket(study, tmp_path):
    long = tmp_path / ("deep" * 20)
    long.mkdir()
    running = Running(study({**hard("shared"), "warm_rounds": 0}), r"worker .*: ready", TMPDIR=str(long))
    code, survivors = running.finish()
    assert (code, survivors) == (0, [])
    assert running.result().trial["status"] == "ok"


def test_an_unknown_trial_is_named_and_nothing_is_written(study):
    from made_study import run

    made = study(hard("shared"))
    done = run(*made.command("shared__nope"), cwd=made.place, check=False)
    assert done.returncode == 1
    assert "shared__nope" in done.stderr and "Traceback" not in done.stderr
    assert not (made.place / "out").exists()


def test_a_trial_without_its_model_says_what_to_run(study):
    from made_study import run

    made = study(hard("shared"))
    manifest = made.model / "manifest.json"
    manifest.rename(manifest.with_suffix(".away"))
    try:
        done = run(*made.command(made.trials[0]), cwd=made.place, check=False)
    finally:
        manifest.with_suffix(".away").rename(manifest)
    assert done.returncode == 1
    assert "manifest.json" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def without(study, tmp_path):
    """The log of a trial for which a package that its workers import is this text; it must be no result."""

    def run(text, **config):
        (tmp_path / "langchain_huggingface.py").write_text(text)
        made = study(config)
        process = made.start(made.trials[0], ("env", f"PYTHONPATH={tmp_path}"))
        _, log = process.communicate()
        assert process.returncode == 1, log
        assert not (made.dir(made.trials[0]) / "trial.json").exists()
        return log

    return run


def test_a_zygote_that_cannot_import_what_a_worker_needs_is_no_result(without):
    log = without("raise ImportError('half installed')", **hard("shared"))
    assert "half installed" in log
    assert "error: the zygote could not import what eager needs" in log and "Traceback" not in log


def test_nor_is_a_new_process_that_cannot(without):
    log = without("raise ImportError('half installed')", **hard("parallel", gpus=2, start="process"))
    assert "error: no worker could import what it needs: ImportError: half installed" in log


def test_a_zygote_that_hangs_in_an_import_ends_within_the_time_to_load(without):
    config = hard("shared") | {"timeouts": {"load_s": 3}}
    log = without("import time; time.sleep(10**6)", **config)
    assert "error: the zygote did not import what eager needs within 3 s (load_s)" in log


def test_weights_that_left_the_page_cache_before_they_were_loaded_taint_the_trial(study):
    running = Running(study(hard("shared", start="process")), r"worker .*: import")
    files.evict(running.study.model / "weights")
    code, _ = running.finish()
    result = running.result()
    assert (code, result.trial["status"]) == (0, "ok")
    assert "of the weights were in the page cache before they were loaded, not all" in "".join(
        result.trial["taints"]
    )


@pytest.fixture
def tmp_path_of_few_letters():
    """With a longer one, a trial would take /tmp for its sockets' sake."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        yield Path(place)


SMALL = 'mount -t tmpfs -o size=64k tmpfs {0} && exec "$@"'
"""A file system that is full soon, in a mount namespace of its own: gone with the process."""


@pytest.mark.needs("unshare")
@pytest.mark.parametrize("where", ["results", "scratch"])
def test_a_full_disk_is_said_and_no_result(study, tmp_path_of_few_letters, where):
    made = study({**hard("shared"), "sampler": {"hz": 500}})
    small = made.dir(made.trials[0]) if where == "results" else tmp_path_of_few_letters
    small.mkdir(parents=True, exist_ok=True)
    mount = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", SMALL.format(small), "sh")
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    process = made.start(made.trials[0], mount, **({"TMPDIR": str(small)} if where == "scratch" else {}))
    _, log = process.communicate()
    assert process.returncode == 1
    last = log.strip().splitlines()[-1]
    assert last.startswith("error: ") and small.name in last
    assert "free some" in last
