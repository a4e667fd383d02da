"""A server's keeper: what it says of a start and an end, and that nothing of a server outlives it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import toys
from crewbench.devices import procfs
from crewbench.devices.companion import CompanionError
from crewbench.execute import keeper
from processes import MARK, command, kill, marked, new_mark, wait_gone


@pytest.fixture
def mark(monkeypatch):
    """What every process of the test carries; whoever is left at its end is ended."""
    made = new_mark()
    monkeypatch.setenv(MARK, made)
    yield made
    kill(marked(made))


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def spec(tmp_path):
    """What a keeper is told, for a toy server that starts so."""

    def make(start="ready", ready_within_s=30.0, **changes):
        number = port()
        command = [sys.executable, str(toys.SERVER), "--port", str(number), "--start", start]
        return {
            "command": command,
            "environment": {},
            "log": str(tmp_path / "server.log"),
            "port": number,
            "health": "/health",
            "metrics": "/metrics",
            "names": {"running": "toy:running"},
            "hz": 50.0,
            "ready_by_s": time.monotonic() + ready_within_s,
            **changes,
        }

    return make


@pytest.fixture
def keep(mark, spec):
    made = []

    def start(*args, fds=(), **changes):
        companion = keeper.Kept(keeper.__name__, spec(*args, **changes), fds=fds)
        companion.start()
        made.append(companion)
        return companion

    yield start
    for companion in made:
        companion.kill()


def texts(said):
    return [text for _, text in said["lines"]]


def test_a_ready_server_is_told_with_its_log_and_all_its_processes(keep, tmp_path):
    before = time.monotonic()
    companion = keep()
    said = companion.ready(30.0)
    assert before < said["ready_s"] < time.monotonic()
    child = int(texts(said)[1].removeprefix("child "))
    server, *below = [pid for pid, _ in said["pids"]]
    assert below == [child]
    assert texts(said)[0] == "toy server loads"
    assert all(before < at < said["ready_s"] for at, _ in said["lines"])
    rows = []
    assert companion.stop(keeper.END_S, rows.extend) == {"ended": -signal.SIGTERM}
    assert rows and {row["running"] for row in rows} == {3.0}
    assert [row["t_s"] for row in rows] == sorted(row["t_s"] for row in rows)
    assert wait_gone([server, child], 10.0) == []
    assert (tmp_path / "server.log").read_text().startswith("toy server loads\nchild ")


def test_a_server_that_ends_by_itself_is_told_and_its_children_are_ended(keep):
    companion = keep()
    pids = [pid for pid, _ in companion.ready(30.0)["pids"]]
    os.kill(pids[0], signal.SIGKILL)
    said = companion.hear(10.0)
    assert said["died"] == "was killed by SIGKILL" and not said["late"]
    assert wait_gone(pids, 10.0) == []


def test_of_a_server_that_fails_early_its_code_and_its_cause_far_up_the_log_are_told(keep):
    said = keep("no-memory").ready(30.0)
    assert said["died"] == "exited with code 1"
    assert any("Tried to allocate 2.00 GiB" in text for text in texts(said))
    assert texts(said)[-1] == "the engine failed, see above"


def test_a_server_that_is_never_ready_is_given_up_and_ended(keep, mark):
    companion = keep("never", ready_within_s=1.0)
    said = companion.ready(30.0)
    assert said["late"]
    with pytest.raises(CompanionError):  # it has said all, and ends
        companion.hear(30.0)
    assert wait_gone([pid for pid in marked(mark) if pid != os.getpid()], 10.0) == []


def test_a_command_that_cannot_be_run_is_told(keep):
    said = keep(command=["/no/such/program"]).ready(30.0)
    assert said["died"].startswith("could not be started") and "/no/such/program" in said["died"]


@pytest.fixture
def stubborn(keep):
    """A keeper whose server does not end when it is asked to, and the server's processes."""
    program = "import signal, runpy, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.argv.pop(0); "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    number = port()
    command = [sys.executable, "-c", program, str(toys.SERVER), "--port", str(number)]
    companion = keep(command=command, port=number)
    return companion, [pid for pid, _ in companion.ready(30.0)["pids"]]


def test_a_server_that_ignores_being_asked_to_end_is_killed(stubborn):
    companion, pids = stubborn
    assert companion.stop(keeper.END_S) == {"ended": -signal.SIGKILL}
    assert wait_gone(pids, 10.0) == []


def test_a_servers_metrics_are_told_before_it_ends_however_long_that_takes(stubborn):
    companion, pids = stubborn
    seen = []

    def take(rows):
        assert rows and all(procfs.started(pid) for pid in pids)
        seen.append(time.monotonic())

    companion.stop(keeper.END_S, take)
    (told,) = seen
    assert time.monotonic() - told > keeper.STOP_S / 2


def test_a_reading_that_a_server_does_not_answer_is_one_that_says_nothing(keep, monkeypatch):
    monkeypatch.setattr(keeper, "TOLD_S", 20.0)
    companion = keep()
    pids = [pid for pid, _ in companion.ready(30.0)["pids"]]
    os.kill(pids[0], signal.SIGSTOP)
    time.sleep(1.5 * keeper.ANSWER_S)
    rows = []
    assert companion.stop(30.0, rows.extend) == {"ended": -signal.SIGKILL}
    # One while it is not asked to end, and the last one.
    assert len([row for row in rows if list(row) == ["t_s"]]) >= 2
    assert wait_gone(pids, 10.0) == []


def test_a_keeper_that_does_not_answer_is_ended_with_all_of_its_server(keep):
    companion = keep()
    pids = [companion.pid, *(pid for pid, _ in companion.ready(30.0)["pids"])]
    assert len(pids) == 3
    os.kill(companion.pid, signal.SIGSTOP)
    with pytest.raises(CompanionError, match="did not answer within 0.5 s"):
        companion.stop(0.5)
    assert wait_gone(pids, 10.0) == []


def test_so_is_one_that_does_not_say_in_time_that_its_server_is_ready(keep, mark):
    companion = keep("never")
    while not any("sleep" in command(pid) for pid in marked(mark)):  # the server's child
        time.sleep(0.02)
    os.kill(companion.pid, signal.SIGSTOP)
    with pytest.raises(CompanionError):
        companion.ready(0.5)
    assert wait_gone([pid for pid in marked(mark) if pid != os.getpid()], 10.0) == []


def test_a_keeper_that_is_killed_takes_its_server_along(keep):
    companion = keep()
    said = companion.ready(30.0)
    server, child = [pid for pid, _ in said["pids"]]
    os.kill(companion.pid, signal.SIGKILL)
    assert wait_gone([server], 10.0) == []
    # What the server had started in a session of its own is for whoever knows it.
    assert procfs.started(child)
    companion.kill()
    assert wait_gone([child], 10.0) == []


def test_only_the_very_processes_are_ended_and_none_with_a_used_pid():
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        keeper.end({sleeper.pid: 1})
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


OWNER = """
import json, sys, time
from crewbench.execute import keeper
companion = keeper.Kept(keeper.__name__, json.loads(sys.argv[1]), fds=[int(fd) for fd in sys.argv[2:]])
companion.start()
print(json.dumps([companion.pid, *(pid for pid, _ in companion.ready(30.0)["pids"])]), flush=True)
time.sleep(600)
"""


def test_nothing_outlives_who_started_the_keeper_and_the_leases_last_as_long_as_the_server(spec, mark):
    lease, held = os.pipe()
    os.set_inheritable(held, True)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, json.dumps(spec()), str(held)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        pass_fds=[held],
    )
    os.close(held)
    pids = json.loads(owner.stdout.readline())
    assert len(pids) == 3
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert os.read(lease, 1) == b""  # returns when nobody holds the other end any more
    os.close(lease)
    keeper_pid, server, child = pids
    assert wait_gone([server, child], 10.0) == []
    assert wait_gone([keeper_pid], 10.0) == []
