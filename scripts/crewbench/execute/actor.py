"""The runner `actor`: workers are long-lived Ray actors, on a Ray that the trial starts or on one that runs.

An actor does what any worker does, with the same engines (worker.py); Ray starts its process, and starts it
again when it dies. The trial speaks with the actor itself; with Ray it speaks through a process of its own
(cluster.py).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import Any

from crewbench.checkpoint.files import PageCacheError
from crewbench.deployment import Worker
from crewbench.devices.inventory import Device
from crewbench.execute import cluster, made
from crewbench.execute.cluster import Settings
from crewbench.execute.door import Order, send
from crewbench.execute.outpost import Begin, Plan
from crewbench.execute.process import PassedFd
from crewbench.execute.setup import RunnerError, Setup
from crewbench.runners import RUNNERS

AUTO, AUTO_ADDRESS = "auto", "RAY_ADDRESS"
"""As Ray has it: that value means the address in that variable."""

RESTARTS = 3
"""How often an actor is started again: one that its work kills would never stop dying."""

START_S, ANSWER_S = 120.0, 10.0
GONE = "Ray is gone"


class Handle:
    """A life of an actor as the trial sees it. `pid` is known once the actor has it told."""

    def __init__(self, runner: ActorRunner, order: Order, conn: Connection, gone: int) -> None:
        self.runner = runner
        self.key = order.key
        self.host = order.host
        self.conn = conn
        self.pidfd = gone
        self.asked_s = order.job.asked_s
        self.counted = order.job.made
        self.pid: int | None = None
        self._killed = False

    def send(self, message: tuple[Any, ...]) -> None:
        with suppress(OSError):
            self.conn.send(message)

    def kill(self) -> None:
        """Ask Ray's process to end the actor. Called again, because it did not: end both, and all others."""
        if self._killed:
            self.runner.end()
            if self.host == 0 and self.pid is not None:  # a process that hangs may not see that Ray's is gone
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
        self._killed = True
        self.runner.tell("end", self.key, [])

    def end(self) -> str:
        os.close(self.pidfd)
        self.conn.close()
        return self.runner.gone(self.host) or "was lost by Ray, which tells no exit code,"

    @property
    def restarts(self) -> int:
        return 0 if self.runner.gone(self.host) else RESTARTS

    def made(self) -> int | None:
        return made.read(self.counted)


class Elsewhere:
    """The trial's part on another host (outpost.py), as host.py uses it. `record` is what trial.json says."""

    def __init__(self, runner: ActorRunner, number: int, plan: Plan) -> None:
        self._runner = runner
        self._number = number
        self.name = plan.name or f"host {number} of the trial"
        facts = self._ask("prepare", plan)
        self.name: str = facts["host"]
        self.devices: tuple[Device, ...] = facts["devices"]
        self.record: dict[str, Any] = {**facts, "devices": [asdict(d) for d in self.devices]}

    def begin(self, wanted: Begin) -> None:
        """Bring the start state about there and start its sampler. PageCacheError if it cannot be had."""
        self.record["anchor"] = self._ask(
            "begin", replace(wanted, elapsed_s=time.monotonic() - wanted.zero_s)
        )

    def finish(self, pids: set[int]) -> Mapping[str, Any]:
        """Stop its sampler: what that found, and the rows of gpu.csv as text without their header."""
        found = self._ask("finish", pids)
        self.record["pressure"] = found["pressure"]
        return found

    def _ask(self, what: str, argument: Any) -> Any:
        answer, *rest = self._runner.ask(self._number, what, argument)
        if answer == "answer":
            return rest[0]
        kind, why = rest
        raise (PageCacheError if kind == "PageCacheError" else RunnerError)(f"{self.name}: {why}")


class ActorRunner:
    """Starts actors. `runner_s` is what a Ray of the trial's own took to start, or another to join."""

    zygote_s: float | None = None
    taints: tuple[str, ...] = ()

    def __init__(self, setup: Setup) -> None:
        began = time.monotonic()
        self._setup = setup
        spec = setup.spec
        place = setup.scratch / "ray"
        place.mkdir()
        options = {name: spec.cell.options.get(name) for name in RUNNERS["actor"].options}
        address = options["ray_address"]
        if address == AUTO and not (address := os.environ.get(AUTO_ADDRESS)):
            raise RunnerError(
                f"ray_address is {AUTO} and {AUTO_ADDRESS} is not set: set it to Ray's host:port"
            )
        hosts = spec.hosts
        settings = Settings(
            address, str(place), spec.cell.gpus if spec.device_kind == "gpu" else 0, RESTARTS, hosts
        )
        self._conn, theirs = multiprocessing.Pipe()
        trial = PassedFd(os.pidfd_open(os.getpid()))
        leases = [PassedFd(fd) for fd in setup.lease_fds]
        self._process = multiprocessing.get_context("spawn").Process(
            target=cluster.main, args=(theirs, settings, trial, leases), name="ray", daemon=True
        )
        self._process.start()
        theirs.close()
        said: str = "failed"
        why: Any = f"it was not ready within {START_S:g} s"
        try:
            if self._conn.poll(START_S):
                said, why = self._conn.recv()
        except EOFError:
            why = "it ended; the lines above say why"
        if said == "failed":
            where = f"at {settings.address}" if settings.address else "of the trial's own"
            raise RunnerError(f"no Ray {where}: {why}")
        self._lost = False
        self._lost_hosts: Sequence[int] = ()
        self.elsewhere = tuple(
            Elsewhere(self, number, self._plan(name)) for number, name in enumerate(why or (), 1)
        )
        self.runner_s = time.monotonic() - began

    def _plan(self, name: str | None) -> Plan:
        spec, slots = self._setup.spec, self._setup.spec.device_kind == "slot"
        if spec.memory_mib is not None and not slots:
            raise RunnerError("a memory budget of GPUs is kept on the trial's own host only: leave it out")
        return Plan(
            name=name,
            kind=spec.device_kind,
            listed=spec.device_count if slots else None,
            count=spec.cell.gpus // spec.hosts,
            memory_mib=spec.memory_mib,
            exclusive=spec.exclusive,
            holder=spec.trial_id,
            model_dir=os.path.abspath(spec.model_dir),
            stage=self._setup.stage,
            scratch=str(self._setup.scratch),
            environment=dict(os.environ),
        )

    def ask(self, number: int, what: str, argument: Any) -> tuple[Any, ...]:
        """Ask a part on another host something, and wait for what it says."""
        if self._lost:
            return "wrong", "RunnerError", GONE
        self.tell("ask", (number, what, argument), [])
        try:
            answer = self._conn.recv()
        except (EOFError, OSError):
            answer = ("lost",)
        if answer == ("lost",):
            self._lost = True
            return "wrong", "RunnerError", GONE
        return answer

    def gone(self, host: int) -> str | None:
        """How an actor of this host (0: the trial's own) ended if it cannot live again: Ray or its host is
        gone. Ray's process is asked: an actor's death may be seen before that of either is. One that does not
        answer in time is never listened to again: what it says late would be taken for another answer."""
        if not self._lost:
            self.tell("here?", (0, ""), [])
            try:
                what, *rest = self._conn.recv() if self._conn.poll(ANSWER_S) else ("lost",)
            except (EOFError, OSError):
                what = "lost"
            if what == "here":
                (self._lost_hosts,) = rest
            else:
                self._lost = True
        if self._lost:
            return "ended with Ray itself"
        return f"was lost with its host {self.elsewhere[host - 1].name}" if host in self._lost_hosts else None

    def end(self) -> None:
        """End the process that speaks with Ray. Every actor watches it, and ends too."""
        self._lost = True
        self._process.kill()

    def start(self, held: Worker, devices: tuple[Device, ...], life: int, attempt: int) -> Handle:
        """Ask for an actor, or for the next life of one that died; returns at once."""
        job = self._setup.job(held, devices, life, attempt)
        ours, theirs = multiprocessing.Pipe()
        gone, alive = os.pipe()
        host = next((n for n, far in enumerate(self.elsewhere, 1) if devices[0] in far.devices), 0)
        job = replace(job, asked_s=time.monotonic())
        order = Order((attempt, held.name), job, self._share(attempt), host)
        self.tell("start", order, [theirs.fileno(), alive])
        theirs.close()
        os.close(alive)
        return Handle(self, order, ours, gone)

    def tell(self, what: str, order: Any, fds: list[int]) -> None:
        with suppress(OSError):
            send(self._conn, (what, order), fds)

    def _share(self, attempt: int) -> float:
        """GPUs that Ray admits each actor by. All alike, so that any packing of Ray's admits all of them."""
        spec = self._setup.spec
        if spec.device_kind != "gpu":
            return 0.0
        return share(len(self._setup.attempts[attempt - 1].workers), spec.cell.gpus)


def share(actors: int, gpus: int) -> float:
    """GPUs of each of so many actors: whole ones, or a fraction of which one GPU holds a whole number. Ray
    counts in ten-thousandths."""
    if actors <= gpus:
        return float(gpus // actors)
    return math.floor(10_000 / math.ceil(actors / gpus)) / 10_000
