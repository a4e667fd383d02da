"""Where the actors' processes of one host come for their work: a Unix socket with a secret.

    actor -> door    its key
    door -> actor    its Job, the environment, and file descriptors: its ends of a connection and of a pipe
                     whose other ends tell what it says and when it is gone, what it watches, its log, leases

The pipe's end is held by nobody but the actor, so the kernel tells when it is gone.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from crewbench import inert
from crewbench.execute import worker
from crewbench.execute.worker import Job

Key = tuple[int, str]
"""Attempt and worker."""


@dataclass(frozen=True, slots=True)
class Order:
    """A life of a worker. `gpus` is what Ray admits its actor by, `host` which of the trial's hosts it is on,
    the trial's own being 0."""

    key: Key
    job: Job
    gpus: float
    host: int = 0


@dataclass(slots=True)
class Expected:
    """One actor, over all of its processes. `order` and `arrived` wait for each other."""

    order: tuple[Order, list[int]] | None = None
    arrived: Connection | None = None
    pidfd: int | None = None


def send(conn: Connection, message: Any, fds: Sequence[int]) -> None:
    """A message over a Unix socket's connection, with file descriptors."""
    conn.send((message, len(fds)))
    with socket.socket(fileno=os.dup(conn.fileno())) as plain:
        socket.send_fds(plain, [b"."], fds)


def receive(conn: Connection) -> tuple[Any, list[int]]:
    """What `send` sent."""
    message, count = conn.recv()
    with socket.socket(fileno=os.dup(conn.fileno())) as plain:
        dot, fds, _, _ = socket.recv_fds(plain, 1, count)
    if not dot or len(fds) != count:
        raise EOFError("the file descriptors did not come")
    return message, fds


def short(place: Path) -> str:
    """A name of that directory with room after it for the names of Ray's sockets, which take 63 of the 107
    bytes that a socket's path has (unix(7)). It is good for as long as this process lives."""
    return f"/proc/{os.getpid()}/fd/{os.open(place, os.O_PATH)}"


class Actor:
    """What Ray holds: a process that becomes a worker like any other."""

    def run(self, address: str, secret: bytes, key: Key) -> None:
        """A life of the worker. Ray calls it again in the process that takes the place of a dead one."""
        with Client(address, "AF_UNIX", authkey=secret) as conn:
            conn.send(key)
            (job, environment), fds = receive(conn)
        to_trial, _, trial, cluster, log, *_ = fds
        become(environment, log)
        worker.die_with(cluster)
        worker.work(Connection(to_trial), job, trial)


def become(environment: Mapping[str, str], log: int) -> None:
    """Give this process the environment and the log that any worker of the trial has."""
    for name in os.environ.keys() - environment.keys():
        if not name.startswith("RAY_"):
            del os.environ[name]
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))


class Door:
    """One host's door. `place` is a directory for its socket; `held` goes to every actor: what it watches
    (twice), its log and the leases of the devices."""

    def __init__(self, place: Path, environment: Mapping[str, str], held: list[int]) -> None:
        self.environment = environment
        self.held = held
        self.secret = secrets.token_bytes(32)
        self.address = f"{short(place)}/actors"
        self._listener = Listener(self.address, "AF_UNIX", authkey=self.secret)
        self._expected: dict[Key, Expected] = {}

    def fileno(self) -> int:
        return self._listener._listener._socket.fileno()

    def expect(self, order: Order, fds: list[int]) -> None:
        """Work, with the actor's ends, for the process that came or is to come."""
        actor = self._expected.setdefault(order.key, Expected())
        actor.order = (order, fds)
        self._match(actor)

    def meet(self) -> None:
        """An actor's process is at the door."""
        try:
            conn = self._listener.accept()
            key = conn.recv()
        except Exception as error:  # it died, or is somebody else: not authenticated
            said = inert.excerpt(f"nobody came in: {type(error).__name__}: {error}", 500)
            print(said, file=sys.stderr, flush=True)
            return
        actor = self._expected.get(key)
        if actor is None:
            conn.close()
            return
        actor.arrived = conn
        self._match(actor)

    def _match(self, actor: Expected) -> None:
        """Give the process that came the work that waits."""
        if actor.order is None or actor.arrived is None:
            return
        (order, fds), conn = actor.order, actor.arrived
        actor.order = actor.arrived = None
        try:
            pid = peer(conn)
            pidfd = os.pidfd_open(pid)
            with Connection(os.dup(fds[0])) as to_trial:
                to_trial.send(("pid", pid))
            send(conn, (order.job, dict(self.environment)), [*fds, *self.held])
        except OSError as error:  # it died meanwhile; what the trial waits on closes below, and says so
            print(f"an actor went away: {error}", file=sys.stderr, flush=True)
        else:
            if actor.pidfd is not None:
                os.close(actor.pidfd)
            actor.pidfd = pidfd
        finally:
            conn.close()
            for fd in fds:
                os.close(fd)

    def end(self, key: Key) -> None:
        """End the actor's process, if there is one, and expect it no more."""
        actor = self._expected.pop(key, None)
        if actor is None:
            return
        if actor.pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(actor.pidfd, signal.SIGKILL)
            os.close(actor.pidfd)
        if actor.arrived is not None:
            actor.arrived.close()
        if actor.order is not None:
            for fd in actor.order[1]:
                os.close(fd)

    def end_all(self) -> None:
        for key in list(self._expected):
            self.end(key)


def peer(conn: Connection) -> int:
    """The pid of the process at the other end, from the kernel (SO_PEERCRED, unix(7))."""
    with socket.socket(fileno=os.dup(conn.fileno())) as plain:
        told = plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", told)[0]
