"""Workers that are HTTP servers: each has a process that starts it and runs the agents as its clients.

That process speaks execute/worker.py's protocol, as any worker does. The server itself is looked after by its
keeper (keeper.py), the agents' Python runs in clients (clients.py), and this one only passes steps on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from crewbench import inert
from crewbench.checkpoint.files import cached_share
from crewbench.devices.budget import Ledger, OutOfMemory
from crewbench.devices.companion import CompanionError
from crewbench.engines import create
from crewbench.engines.openai import LOCAL, Server, Start, tail
from crewbench.execute import keeper, preload
from crewbench.execute.clients import CLIENTS
from crewbench.execute.ports import free_port, taken
from crewbench.execute.process import Handle, ProcessRunner
from crewbench.execute.worker import (
    Failure,
    Job,
    Stages,
    StepOrder,
    StepResult,
    account_of,
    die_with,
    failure,
    pin,
    run_step,
)
from crewbench.records import Status

METRICS_HZ = 4.0
"""How often a server's metrics are read: each reading takes a moment of the server's own time."""


class ServerFailed(Exception):
    """The server did not get ready, or ended by itself."""

    def __init__(self, how: str, log: str = "", status: Status = Status.ERROR) -> None:
        self.status = status
        super().__init__(f"the server {how}; its log ends: {log[-1500:] or '(empty)'}")


def port_of(job: Job) -> int:
    """The port for a job's server.

    ServerFailed where somebody has the one that it is to be: who answers there would pass for the server.
    """
    wanted = job.runner_options.get("port", 0)
    if wanted and (why := taken(wanted)):
        raise ServerFailed(f"was not started: port {wanted} of {LOCAL} is taken ({why})")
    return wanted or free_port()


def log_of(job: Job) -> Path:
    """Where the log of a job's server is kept as long as its trial runs."""
    return Path(job.storage + ".log")


def describe(job: Job, devices: list[str]) -> Server:
    """The job's engine, told where to listen and what it may take."""
    return create(
        job.engine,
        path=job.model_path,
        dtype=job.dtype,
        devices=devices,
        length=job.length,
        tokens=job.tokens,
        account=account_of(job),
        port=port_of(job),
        log=log_of(job),
        concurrency=job.concurrency,
        threads=job.threads,
        budget_mib=job.budget_mib or None,
        device_mib=min(d.memory_mib for d in job.devices),
        options=job.engine_options,
    )


def keeper_of(server: Server, ready_by_s: float, fds: Sequence[int] = ()) -> keeper.Kept:
    """Who will start the server, which must be ready by that CLOCK_MONOTONIC second, watch it and end it."""
    return keeper.Kept(
        keeper.__name__,
        {
            "command": server.command(),
            "environment": server.environment(),
            "log": str(server.log),
            "port": server.port,
            "health": server.health,
            "metrics": server.metrics,
            "names": server.names,
            "hz": METRICS_HZ,
            "ready_by_s": ready_by_s,
        },
        fds=fds,
    )


def check_alive(server: Server, said: dict[str, Any], limit_s: float, phase: str = "load") -> None:
    """Raise what the keeper says has happened to the server: OutOfMemory, ServerFailed."""
    if "died" not in said:
        return
    log = "\n".join(line for _, line in said["lines"])
    if (oom := server.out_of_memory(log, phase)) is not None:
        raise oom
    if said["late"]:
        raise ServerFailed(f"was not ready within {limit_s:g} s", log, Status.TIMEOUT)
    raise ServerFailed(said["died"], log)


@contextmanager
def held(job: Job) -> Iterator[Server]:
    """The job's server, ready, without agents; it is ended on leaving. Raises ServerFailed, OutOfMemory,
    CompanionError."""
    server = describe(job, pin(job.devices))
    beside = keeper_of(server, time.monotonic() + job.load_timeout_s)
    beside.start()
    try:
        check_alive(server, beside.ready(job.load_timeout_s + 10.0), job.load_timeout_s)
        yield server
    finally:
        with suppress(CompanionError):
            beside.stop(keeper.END_S)


class Host:
    """The process beside one server, from the server's start to its end."""

    def __init__(self, job: Job, began_s: float, lease_fds: Sequence[int] = ()) -> None:
        self.job = job
        self.began_s = began_s
        self.phase = "load"
        self.server = describe(job, pin(job.devices))
        self.keeper = keeper_of(self.server, job.asked_s + job.load_timeout_s, lease_fds)
        self.started = Start()

    def start(self) -> Stages:
        """Start the server and, while it starts, the agents' clients. Raises ServerFailed, OutOfMemory."""
        job = self.job
        self.server.account.weights()
        cached = cached_share(job.weight_files, every=16) if job.weight_files else None
        self.keeper.start()
        preload.imports(job.engine, job.model_path)
        clients = CLIENTS[job.runner_options.get("clients", "processes")]
        self.clients = clients(job.concurrency, self.run, self.prepare)
        said = self.keeper.ready(job.load_timeout_s + 10.0)
        self.check(said)
        self.phase = "decode"
        self.started = self.server.understood([tuple(line) for line in said["lines"]])
        self.show(self.keeper.processes)
        ended = time.monotonic()
        named = (self.started.load_s or 0.0) + (self.started.compile_s or 0.0)
        return Stages(
            began_s=self.began_s,
            # Importing, starting processes, opening the port: what the server does not name.
            import_s=max(0.0, ended - self.began_s - named),
            load_s=self.started.load_s,
            compile_s=self.started.compile_s,
            cached_share=cached,
            ended_s=ended,
            pids=tuple(self.keeper.processes),
            facts={"command": self.server.command(), **self.started.facts},
        )

    def check(self, said: dict[str, Any]) -> None:
        """Raise what the keeper says has happened to the server."""
        check_alive(self.server, said, self.job.load_timeout_s, self.phase)

    def lost(self) -> tuple[Exception, list[dict[str, float]]]:
        """Why the server is gone while nobody asked it to end, and the readings of its metrics until then."""
        try:
            said = self.keeper.hear(1.0)
            self.check(said)
        except CompanionError as error:
            self.keeper.kill()
            return self.alone(error), []
        except (ServerFailed, OutOfMemory) as error:
            return error, said["rows"]
        raise AssertionError(f"the keeper said {said}")

    def alone(self, error: CompanionError) -> ServerFailed:
        return ServerFailed(f"lost its keeper ({error})", tail(self.server.log, 1500))

    def show(self, pids: Iterable[int]) -> None:
        """Make the server and its clients known to the sampler of CPU slots."""
        if self.job.ledger is not None:
            ledger = Ledger(Path(self.job.ledger))
            for pid in (*pids, *self.clients.pids):
                with suppress(ProcessLookupError):
                    ledger.charge(self.job.devices[0].uuid, pid, "server", 0.0, self.job.budget_mib)

    def prepare(self, number: int) -> None:
        """First thing in each client."""
        from crewbench import crews

        crews.isolate(Path(f"{self.job.storage}-{number}"))

    def run(self, order: StepOrder) -> StepResult:
        return run_step(self.server, self.job, order)

    def stop(self, tell: Callable[[tuple[Any, ...]], None]) -> None:
        """End the server. Its peak memory by device and the readings of its metrics are told before. Raises
        ServerFailed or OutOfMemory where it had ended by itself, or its keeper does not end it."""
        self.clients.close()
        try:
            said = self.keeper.stop(keeper.END_S, lambda rows: tell(("stopped", self.peaks(rows), rows)))
        except CompanionError as error:
            raise self.alone(error) from error
        self.check(said)

    def say_log(self) -> None:
        """The server's own words, into the trial's log."""
        name = self.job.worker
        said = inert.lines(tail(self.server.log, 200_000))
        sys.stderr.write(f"---- log of the server of {name}\n{said}\n----\n")
        sys.stderr.flush()

    def peaks(self, rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
        """MiB of weights and of the KV cache that was in use, not what the server reserved for it."""
        shares = [row["kv_used_share"] for row in rows if "kv_used_share" in row]
        if self.started.weights_mib is None or self.started.kv_tokens is None or not shares:
            return {}
        devices = self.job.devices
        kv_mib = max(shares) * self.started.kv_tokens * self.job.kv_mib_per_token / len(devices)
        return {d.uuid: {"allocated_peak_mib": self.started.weights_mib + kv_mib} for d in devices}


def failed(error: Exception, job: Job) -> Failure:
    if isinstance(error, ServerFailed):
        return Failure(error.status, str(error))
    return failure(error, job.devices)


def main(conn: Connection, job: Job, trial_pidfd: Any, lease_fds: Any) -> None:
    """The whole life of the process beside a server. `lease_fds` keep the devices leased."""
    began = time.monotonic()
    die_with(trial_pidfd.fd)
    sending = threading.Lock()

    def tell(message: tuple[Any, ...]) -> None:
        with sending:
            conn.send(message)

    tell(("stage", "import", began))
    host = None
    try:
        host = Host(job, began, [passed.fd for passed in lease_fds])
        stages = host.start()
    except Exception as error:
        ended = time.monotonic()
        tell(("failed", Stages(began_s=began, import_s=ended - began, ended_s=ended), failed(error, job)))
        traceback.print_exc()
        if host is not None:
            with suppress(CompanionError):
                host.keeper.stop(keeper.END_S)
            host.say_log()
        os._exit(0)
    tell(("ready", stages))

    def run(order: StepOrder) -> None:
        tell(("done", host.clients.run(order)))

    with ThreadPoolExecutor(job.concurrency) as pool:
        while True:
            ready = wait([conn, host.keeper.fileno()])
            if host.keeper.fileno() in ready:
                error, rows = host.lost()
                tell(("stopped", host.peaks(rows), rows))
                tell(("failed", stages, failed(error, job)))
                host.say_log()
                os._exit(0)
            message = conn.recv()
            if message[0] == "stop":
                break
            pool.submit(run, message[1])
    try:
        host.stop(tell)
    except (ServerFailed, OutOfMemory) as error:
        tell(("failed", stages, failed(error, job)))
    host.say_log()
    os._exit(0)


class ServerHandle(Handle):
    """The process beside a server as the trial sees it; `log` is the server's."""

    def __init__(self, process: Any, conn: Connection, asked_s: float, log: Path) -> None:
        super().__init__(process, conn, asked_s)
        self.log = log

    def end(self) -> str:
        return f"{super().end()} (its server's log ends: {tail(self.log, 1000)})"


class ServerRunner(ProcessRunner):
    """Starts the process beside each server."""

    entry = staticmethod(main)

    def _hold(self, process: Any, conn: Connection, asked_s: float, job: Job) -> Handle:
        return ServerHandle(process, conn, asked_s, log_of(job))
