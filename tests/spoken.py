"""Workers that speak the protocol of execute/worker.py, each with one fault; real processes, no model."""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from multiprocessing import Pipe, get_context

from crewbench.deployment import Deployment, Step, Worker
from crewbench.devices.budget import OutOfMemory
from crewbench.devices.inventory import slots
from crewbench.execute.made import Made
from crewbench.execute.process import Handle
from crewbench.execute.run import Bench, execute
from crewbench.execute.worker import Failure, Stages, StepResult
from crewbench.records import STAGES, Status
from crewbench.trial import AgentSpec, TaskSpec

NO_ROOM = OutOfMemory("load", device_uuid="slot-0", requested_mib=30.0, free_mib=8.0, simulated=True)
OOM = Failure(Status.OOM, "simulated budget: no room", NO_ROOM.to_dict())


def wait_for_end(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([fd], [], [])
    os.close(fd)


def works(conn, oom_in_step: int | None = None) -> None:
    """Loads at once and serves; its step number `oom_in_step`, counted from 0, runs out of memory."""
    began = time.monotonic()
    conn.send(("stage", "import", began))
    conn.send(("stage", "load", time.monotonic()))
    conn.send(("ready", Stages(began, import_s=0.0, load_s=0.0, ended_s=time.monotonic())))
    served = 0
    while (message := conn.recv())[0] == "step":
        now = time.monotonic()
        status, oom = Status.OK, None
        if served == oom_in_step:
            status = Status.OOM
            oom = OutOfMemory("decode", requested_mib=2.0, holders={os.getpid(): 40.0, 1: None}).to_dict()
        served += 1
        conn.send(("done", StepResult(message[1].step, status, now, time.monotonic(), oom=oom)))
    conn.send(("stopped", {}, []))


def dies_in_a_step(conn, counted, tokens: int) -> None:
    """Is killed in its first step, when it has made so many tokens; `counted` is where it counts them."""
    began = time.monotonic()
    conn.send(("stage", "import", began))
    conn.send(("ready", Stages(began, import_s=0.0, load_s=0.0, ended_s=time.monotonic())))
    count = Made(counted)
    conn.recv()
    for _ in range(tokens):
        count.one_more()
    os.kill(os.getpid(), signal.SIGKILL)


def loads_late(conn, after: int) -> None:
    """Is ready only once process `after` is gone, or the trial says something meanwhile."""
    conn.send(("stage", "import", time.monotonic()))
    wait_for_end(after)
    conn.poll(0.5)
    works(conn)


def dies(conn) -> None:
    os._exit(3)


def is_killed_in_a_message(conn) -> None:
    """The header says 1000 bytes; ten come."""
    conn.send(("stage", "import", time.monotonic()))
    os.write(conn.fileno(), struct.pack("!i", 1000) + b"0123456789")
    os.kill(os.getpid(), signal.SIGKILL)


def closes_its_end(conn) -> None:
    conn.close()
    signal.pause()


def never_speaks(conn) -> None:
    signal.pause()


def fails_loading(conn, seconds: float = 0.0) -> None:
    began = time.monotonic()
    conn.send(("stage", "import", began))
    conn.send(("stage", "load", began))
    time.sleep(seconds)  # its loading
    ended = time.monotonic()
    conn.send(("failed", Stages(began, import_s=0.0, load_s=ended - began, ended_s=ended), OOM))


class Trial:
    """Runs Deployments with `worker(name, life, attempt)` -> (function, its further arguments)."""

    def __init__(
        self, worker, *, warm_rounds=1, load_timeout_s=60.0, all_gone_before=False, restarts=0, counted=None
    ):
        self.worker = worker
        self.options = {"warm_rounds": warm_rounds, "load_timeout_s": load_timeout_s}
        self.restarts = restarts
        self.counted = counted
        self.all_gone_before = all_gone_before
        self.pids: list[int] = []

    def start(self, worker, devices, life, attempt):
        target, *arguments = self.worker(worker.name, life, attempt, self)
        ours, theirs = Pipe()
        asked = time.monotonic()
        process = get_context("spawn").Process(target=target, args=(theirs, *arguments), daemon=True)
        process.start()
        theirs.close()
        self.pids.append(process.pid)
        handle = Handle(process, ours, asked, self.counted)
        handle.restarts = self.restarts
        if self.all_gone_before:
            wait_for_end(process.pid)
        return handle

    def run(self, *attempts):
        names = {step.agent for attempt in attempts for step in attempt.steps}
        agents = tuple(AgentSpec(f"agent{i}", "role", "goal", "story") for i in range(max(names) + 1))
        tasks = {s.task: TaskSpec(s.task, "do", "done") for attempt in attempts for s in attempt.steps}
        bench = Bench(
            devices=tuple(slots(2, 56)),
            start=self.start,
            memory_free=lambda: None,
            agents=agents,
            tasks=tasks,
            step_timeout_s=60.0,
            zero_s=time.monotonic(),
            **self.options,
        )
        records = execute(attempts, bench)
        for row in records.rounds:
            assert abs(sum(getattr(row, f"{s}_s") for s in STAGES) - row.makespan_s) < 1e-3
        return records


def alone(lifetime="trial", steps=1):
    """One worker and its independent steps."""
    return Deployment(
        (Worker("worker", (0,), "eager"),),
        tuple(Step(f"step{i}", "worker", i, "explain") for i in range(steps)),
        lifetime,
    )


def pair(leads=False):
    """Two workers with a step each; `leads`: the second waits for the first."""
    return Deployment(
        (Worker("worker0", (0,), "eager"), Worker("worker1", (0,), "eager")),
        (
            Step("step0", "worker0", 0, "explain"),
            Step("step1", "worker1", 1, "explain", after=("step0",) if leads else ()),
        ),
    )
