"""Workers that are HTTP servers: each has a process that starts it and runs the agents as its clients.

That process speaks execute/worker.py's protocol, as any worker does. The server itself is looked after by its
keeper (keeper.py), the agents' Python runs in clients (clients.py), and this one only passes steps on.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from crewbench.checkpoint.files import cached_share
from crewbench.devices.budget import Ledger, OutOfMemory
from crewbench.devices.companion import Companion, CompanionError
from crewbench.engines import ENGINES
from crewbench.engines.account import CountedByDevice, SimulatedAccount
from crewbench.engines.openai import LOCAL, Server, Start
from crewbench.execute import keeper, preload
from crewbench.execute.clients import CLIENTS
from crewbench.execute.process import ProcessRunner
from crewbench.execute.worker import (
    Failure,
    Job,
    Stages,
    StepOrder,
    StepResult,
    die_with,
    failure,
    pin,
    run_step,
)
from crewbench.records import Status

METRICS_HZ = 4.0
"""How often a server's metrics are read: each reading takes a moment of the server's own time."""


class ServerFailed(Exception):
    """The server did not get ready, or ended by itself. `text` is the end of its log."""

    def __init__(self, how: str, text: str) -> None:
        self.text = text
        super().__init__(f"the server {how}; its log ends: {text[-1500:] or '(empty)'}")


def free_port() -> int:
    """A TCP port of the loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return probe.getsockname()[1]


def describe(job: Job, devices: list[str]) -> Server:
    """The job's engine, told where to listen and what it may take."""
    info = ENGINES[job.engine]
    account = CountedByDevice()
    if job.ledger is not None:
        slots = tuple(d.uuid for d in job.devices)
        account = SimulatedAccount(
            Ledger(Path(job.ledger)), slots, job.budget_mib, job.weights_mib, job.kv_mib_per_token
        )
    return getattr(importlib.import_module(info.module), info.cls)(
        path=job.model_path,
        dtype=job.dtype,
        devices=devices,
        length=job.length,
        tokens=job.tokens,
        account=account,
        port=job.runner_options.get("port") or free_port(),
        log=Path(job.storage + ".log"),
        concurrency=job.concurrency,
        threads=job.threads,
        budget_mib=job.budget_mib or None,
        device_mib=min(d.memory_mib for d in job.devices),
        options=job.engine_options,
    )


class Host:
    """The process beside one server, from the server's start to its end."""

    def __init__(self, job: Job, began_s: float) -> None:
        self.job = job
        self.began_s = began_s
        self.server = describe(job, pin(job.devices))
        self.keeper = Companion(
            keeper.__name__,
            {
                "command": self.server.command(),
                "environment": self.server.environment(),
                "log": str(self.server.log),
                "port": self.server.port,
                "health": self.server.health,
                "metrics": self.server.metrics,
                "names": self.server.names,
                "hz": METRICS_HZ,
                "ready_within_s": job.load_timeout_s,
            },
        )
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
        self.started = self.server.understood([tuple(line) for line in said["lines"]])
        self.show(said["pids"])
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
            pids=tuple(said["pids"]),
            facts={"command": self.server.command(), **self.started.facts},
        )

    def check(self, said: dict[str, Any]) -> None:
        """Raise what the keeper says has happened to the server."""
        if "died" not in said:
            return
        text = "\n".join(line for _, line in said["lines"])
        if self.server.out_of_memory(text):
            raise OutOfMemory("load", message=f"the server {said['died']}: {text[-1500:]}")
        raise ServerFailed(said["died"], text)

    def show(self, pids: list[int]) -> None:
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

    def stop(self) -> tuple[dict[str, Any], list[dict[str, float]]]:
        """End the server: its peak memory by device, and the samples of its metrics."""
        self.clients.close()
        try:
            rows = self.keeper.stop(keeper.STOP_S + 1.0).get("rows", [])
        except CompanionError:
            rows = []
        return self.peaks(rows), rows

    def peaks(self, rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
        """MiB of weights and of the KV cache that was in use, not what the server reserved for it."""
        shares = [row["kv_used_share"] for row in rows if "kv_used_share" in row]
        if self.started.weights_mib is None or self.started.kv_tokens is None or not shares:
            return {}
        devices = self.job.devices
        kv_mib = max(shares) * self.started.kv_tokens * self.job.kv_mib_per_token / len(devices)
        return {d.uuid: {"allocated_peak_mib": self.started.weights_mib + kv_mib} for d in devices}


def failed(error: Exception, job: Job) -> Failure:
    if isinstance(error, ServerFailed) and "not ready within" in str(error):
        return Failure(Status.TIMEOUT, str(error))
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
        host = Host(job, began)
        stages = host.start()
    except Exception as error:
        ended = time.monotonic()
        tell(("failed", Stages(began_s=began, import_s=ended - began, ended_s=ended), failed(error, job)))
        traceback.print_exc()
        if host is not None:
            with suppress(CompanionError):
                host.keeper.stop(keeper.STOP_S + 1.0)
        os._exit(0)
    tell(("ready", stages))

    def run(order: StepOrder) -> None:
        tell(("done", host.clients.run(order)))

    with ThreadPoolExecutor(job.concurrency) as pool:
        while True:
            ready = wait([conn, host.keeper.fileno()])
            if host.keeper.fileno() in ready:
                _lost(host, tell, stages)
            message = conn.recv()
            if message[0] == "stop":
                break
            pool.submit(run, message[1])
    peaks, rows = host.stop()
    tell(("stopped", peaks, rows))
    sys.stderr.write(f"---- log of the server of {job.worker}\n{host.server.tail(200_000)}\n----\n")
    sys.stderr.flush()
    os._exit(0)


def _lost(host: Host, tell: Any, stages: Stages) -> None:
    """The server has ended by itself: say so, and end."""
    try:
        host.check(host.keeper.hear(1.0))
        error: Exception = ServerFailed("is gone", host.server.tail())
    except (ServerFailed, OutOfMemory, CompanionError) as found:
        error = found
    tell(("failed", stages, failed(error, host.job)))
    host.clients.close()
    os._exit(0)


class ServerRunner(ProcessRunner):
    """Starts the process beside each server."""

    entry = staticmethod(main)
