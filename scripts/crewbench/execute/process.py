"""The runner `process`: a worker is a process of this host, spawned anew or forked from a zygote.

Both come from multiprocessing: its `spawn` is the start state `process` (and `disk`), its fork server,
with the imports preloaded, is the zygote.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import forkserver, reduction
from multiprocessing.connection import Connection
from typing import Any

from crewbench.deployment import Worker
from crewbench.devices.inventory import Device
from crewbench.engines import Engine
from crewbench.execute import made, preload, worker
from crewbench.execute.setup import RunnerError, Setup

REAPED_S = 30.0
"""How long the zygote may take to tell how a process that it forked has ended, on a busy host."""


def _rebuild(duplicate: Any) -> PassedFd:
    return PassedFd(duplicate.detach())


class PassedFd:
    """A file descriptor that may be an argument of a process: the child gets a duplicate."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _rebuild, (reduction.DupFd(self.fd),)


class Handle:
    """A worker process as the trial sees it. `asked_s` is when it was asked for (CLOCK_MONOTONIC); `counted`
    the file in which it counts tokens (made.py), or None. A worker that dies is not started again."""

    restarts = 0

    def __init__(self, process: Any, conn: Connection, asked_s: float, counted: str | None = None) -> None:
        self.process = process
        self.counted = counted
        self.conn = conn
        self.asked_s = asked_s
        self.pid: int = process.pid
        self.pidfd = os.pidfd_open(process.pid)

    def send(self, message: tuple[Any, ...]) -> None:
        """Tell the worker something; one that is gone, or closed its end, is found out otherwise."""
        with suppress(OSError):
            self.conn.send(message)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def made(self) -> int | None:
        return made.read(self.counted)

    def end(self) -> str:
        """Reap a process that has ended; says how, for an error message."""
        self.process.join(REAPED_S)
        code = self.process.exitcode
        os.close(self.pidfd)
        self.conn.close()
        if code is None or code == 255:  # 255: the fork server is gone and its child's code with it
            return "ended, its exit status was lost with the zygote"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"


class ProcessRunner:
    """Starts workers. From a zygote they are forked from one process that has done the imports. `entry` is a
    worker's whole life."""

    entry = staticmethod(worker.main)
    runner_s: float | None = None
    elsewhere: tuple[Any, ...] = ()

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._context = multiprocessing.get_context("forkserver" if setup.start.zygote else "spawn")
        self._lease_fds = [PassedFd(fd) for fd in setup.lease_fds]
        self._trial = PassedFd(os.pidfd_open(os.getpid()))
        self.zygote_s = self._start_zygote() if setup.start.zygote else None

    def _start_zygote(self) -> float:
        """Start the fork server and wait until it has preloaded. Returns the seconds it took. RunnerError
        if it could not: what no worker of this trial can do is no result.

        The environment keeps naming what to preload, so that a fork server that was killed, and that
        multiprocessing starts again, is a zygote again.
        """
        began = time.monotonic()
        os.environ[preload.ENGINE] = self._setup.spec.cell.engine
        os.environ[preload.MODEL] = str(self._setup.model_path)
        self._context.set_forkserver_preload([preload.__name__])
        forkserver.ensure_running()
        engine, limit_s = self._setup.spec.cell.engine, self._setup.spec.load_timeout_s
        ended: list[int | None] = []

        def probe() -> None:
            child = self._context.Process(target=preload.check)
            child.start()  # served only after the preload
            child.join()
            ended.append(child.exitcode)

        # Neither start nor join has a limit, and an import can hang: on a network's file system, say.
        waiting = threading.Thread(target=probe, name="zygote", daemon=True)
        waiting.start()
        waiting.join(limit_s)
        if not ended:
            raise RunnerError(f"the zygote did not import what {engine} needs within {limit_s:g} s (load_s)")
        if ended[0]:
            raise RunnerError(f"the zygote could not import what {engine} needs; the line above says why")
        self._zygote_pid = forkserver._forkserver._forkserver_pid
        return time.monotonic() - began

    @property
    def taints(self) -> list[str]:
        """What happened to this runner that a reader of the trial must know."""
        if self.zygote_s is not None and forkserver._forkserver._forkserver_pid != self._zygote_pid:
            return ["the zygote died and was started again"]
        return []

    def start(self, held: Worker, devices: tuple[Device, ...], life: int, attempt: int) -> Handle:
        """Start a worker; returns at once. The worker then speaks execute/worker.py's protocol."""
        job = self._setup.job(held, devices, life, attempt)
        ours, theirs = multiprocessing.Pipe()
        asked = time.monotonic()
        args = (theirs, replace(job, asked_s=asked), self._trial, self._lease_fds)
        process = self._context.Process(target=self.entry, args=args, name=held.name, daemon=True)
        process.start()
        theirs.close()
        return self._hold(process, ours, asked, job)

    def _hold(self, process: Any, conn: Connection, asked_s: float, job: worker.Job) -> Handle:
        return Handle(process, conn, asked_s, job.made)


@contextmanager
def held(job: worker.Job) -> Iterator[Engine]:
    """The job's engine in this very process, loaded, without agents. Raises what loading raises."""
    torch_devices = worker.pin(job.devices)
    import torch

    torch.set_num_threads(job.threads)
    engine = worker.make_engine(job, torch_devices)
    engine.load()
    worker.check_pinned(job.devices)
    yield engine
