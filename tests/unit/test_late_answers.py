"""What a trial makes of answers of Ray's process that come late. A real pipe, and a thread at its end."""

import multiprocessing
import threading

import pytest

from crewbench.execute import actor
from crewbench.execute.actor import ActorRunner, Elsewhere
from crewbench.execute.door import receive
from crewbench.execute.setup import RunnerError


@pytest.fixture
def slow(monkeypatch):
    """A runner whose Ray says how its hosts are only when it is let go, and anything else at once."""
    monkeypatch.setattr(actor, "ANSWER_S", 0.05)
    ours, theirs = multiprocessing.Pipe()
    let_go, said = threading.Event(), threading.Event()

    def ray():
        while True:
            try:
                (what, _), _ = receive(theirs)
            except (EOFError, OSError):
                return
            if what == "here?":
                let_go.wait()
                theirs.send(("here", []))
                said.set()
            else:
                theirs.send(("answer", {"pressure": {}}))

    thread = threading.Thread(target=ray)
    thread.start()
    runner = object.__new__(ActorRunner)
    runner._conn, runner._lost, runner._lost_hosts, runner.elsewhere = ours, False, (), ()
    yield runner, let_go, said
    let_go.set()
    ours.close()
    thread.join()
    theirs.close()


def test_a_late_answer_of_rays_is_not_taken_for_that_of_another_host(slow):
    runner, let_go, said = slow
    assert runner.gone(0) == "ended with Ray itself"
    let_go.set()
    assert said.wait(60)
    far = object.__new__(Elsewhere)
    far._runner, far._number, far.name, far.record = runner, 1, "n2", {}
    with pytest.raises(RunnerError, match="n2: Ray is gone"):
        far.finish({1})


def test_an_answer_in_time_is_that_of_the_other_host(slow):
    runner, let_go, _ = slow
    let_go.set()
    far = object.__new__(Elsewhere)
    far._runner, far._number, far.name, far.record = runner, 1, "n2", {}
    assert far.finish({1}) == {"pressure": {}}
