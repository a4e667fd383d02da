"""The agents' Python in threads and in processes of its own."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest

from crewbench.config import Variant
from crewbench.execute.clients import CLIENTS, Processes, Threads
from crewbench.execute.worker import StepOrder, StepResult
from crewbench.records import Status
from crewbench.trial import AgentSpec, TaskSpec
from processes import wait_gone

# Python 3.12 warns of every fork in a process with threads, whatever the child does then.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def order(word):
    return StepOrder(word, AgentSpec("a", "r", "g", "b"), TaskSpec("t", "d", "e"))


def run(asked):
    """What a client does: says which process it is, or ends it."""
    if asked.step == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.step == "ends":
        sys.exit(3)
    return StepResult(asked.step, Status.OK, 1.0, 2.0, text=f"{os.getpid()} {os.environ.get('NUMBER', '')}")


def prepare(number):
    os.environ["NUMBER"] = str(number)


@pytest.fixture
def processes():
    made = []

    def start(count):
        made.append(Processes(count, run, prepare))
        return made[-1]

    yield start
    for clients in made:
        clients.close()


def test_each_process_is_prepared_with_a_number_of_its_own_and_is_none_of_ours(processes):
    clients = processes(3)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(clients.run, map(order, "abc")))
    assert [r.step for r in results] == ["a", "b", "c"]
    told = dict(r.text.split() for r in results)
    assert set(map(int, told)) <= set(clients.pids) and os.getpid() not in clients.pids
    assert [told[str(pid)] for pid in clients.pids if str(pid) in told] == [
        str(n) for n, pid in enumerate(clients.pids) if str(pid) in told
    ]
    assert "NUMBER" not in os.environ


def test_more_steps_than_processes_take_turns(processes):
    clients = processes(2)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(clients.run, map(order, "abcdefgh")))
    assert [r.status for r in results] == [Status.OK] * 8
    assert {int(r.text.split()[0]) for r in results} <= set(clients.pids)


@pytest.mark.parametrize("word", ["is killed", "ends"])
def test_a_process_that_goes_away_is_an_error_of_its_step_and_of_no_other(processes, word):
    clients = processes(2)
    lost = clients.run(order(word))
    assert (lost.step, lost.status) == (word, Status.ERROR)
    assert "is gone" in lost.error and lost.started_s <= lost.ended_s
    gone = int(lost.error.split("process ")[1].split()[0].rstrip(","))
    first, second = clients.run(order("next")), clients.run(order("after"))
    # The other one works on, and the lost one is not replaced: a repair would be measured as work.
    assert {first.status, second.status} == {Status.OK, Status.ERROR}
    (worked,) = [r for r in (first, second) if r.status is Status.OK]
    assert int(worked.text.split()[0]) != gone


def test_closing_leaves_no_process(processes):
    clients = processes(3)
    clients.close()
    assert wait_gone(clients.pids, 10.0) == []


def test_the_processes_end_with_the_one_that_forked_them():
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        clients = Processes(2, run, prepare)
        os.write(writer, " ".join(map(str, clients.pids)).encode() + b"\n")
        signal.pause()
    os.close(writer)
    with os.fdopen(reader) as said:
        pids = [int(word) for word in said.readline().split()]
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    assert len(pids) == 2 and wait_gone(pids, 10.0) == []


def test_threads_run_where_they_are_asked(monkeypatch):
    monkeypatch.delenv("NUMBER", raising=False)
    numbers = []
    clients = Threads(3, run, numbers.append)
    assert numbers == [0] and clients.pids == []
    assert int(clients.run(order("a")).text) == os.getpid()
    clients.close()


def test_a_variants_clients_are_these():
    named = get_args(get_args(Variant.model_fields["clients"].annotation)[0])
    assert set(named) == set(CLIENTS)
