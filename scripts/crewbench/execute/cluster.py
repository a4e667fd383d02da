"""The process of a trial that speaks with Ray: it starts or joins a Ray, and makes the actors and ends them.

A process of its own, because Ray ends whoever drives it when its own parts are gone, and a trial has rows to
write even then. Ray starts an actor's process, and starts it again when it dies; the process then comes to
this one for its work (execute/actor.py has the trial's side):

    trial -> here    ("start", Order) with the actor's ends of a connection and of a pipe, ("end", key), and
                     ("here?", any key), which is answered ("here",)
    actor -> here    its key, over a Unix socket with a secret
    here -> actor    its Job, the trial's environment, and those ends, so that it speaks with the trial itself
    here -> trial    ("pid", pid) on that connection, before the actor has it; ("lost",) when Ray is gone

The pipe's end is held by nobody but the actor, so the kernel tells the trial when it is gone. It also means
that actors live on this host, whatever else the cluster has.
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
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from typing import Any

from crewbench import inert
from crewbench.devices import procfs
from crewbench.execute import worker
from crewbench.execute.guardian import PR_SET_CHILD_SUBREAPER, children, end_descendants, prctl
from crewbench.execute.worker import Job

Key = tuple[int, str]
"""Attempt and worker."""

OBJECT_STORE_MIB = 80
"""Ray's least is 75; nothing goes through it here."""

CONNECT_S = 10.0

LOOPBACK = {
    # Without it Ray takes the address by which others reach this host. The name is about systems on which
    # Ray forms no clusters; what it does there is to stay on the loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

LOCAL = {
    **LOOPBACK,
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # An actor's process is new when it is asked for, as the start state says.
    "RAY_prestart_worker_first_driver": "0",
    # No other runner has somebody who kills workers when the host's memory is nearly full.
    "RAY_memory_monitor_refresh_ms": "0",
    # A slow host with many actors must not be taken for one whose actors do not start.
    "RAY_worker_register_timeout_seconds": "600",
}
"""The environment of a Ray that the trial starts."""

BINDING = {
    # The Deployment's device binds, by UUID (worker.pin); Ray would give out its own numbers.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """`address` names a Ray that runs, None starts one; `place` a directory that goes with the trial; `gpus`
    how many a Ray that is started has; `restarts` how often Ray starts an actor again."""

    address: str | None
    place: str
    gpus: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Order:
    """A life of a worker. `gpus` is what Ray admits its actor by."""

    key: Key
    job: Job
    gpus: float


@dataclass(slots=True)
class _Actor:
    """One actor, over all of its processes. `order` and `arrived` wait for each other."""

    handle: Any
    order: tuple[Order, list[int]] | None = None
    arrived: Connection | None = None
    pidfd: int | None = None
    over: bool = False


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


# ---------------------------------------------------------------- in an actor


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


# ---------------------------------------------------------------- beside the trial


def main(conn: Connection, settings: Settings, trial_pidfd: Any, lease_fds: Any) -> None:
    """The whole life of the process. It says ("ready", "") or ("failed", why) first."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    worker.die_with(trial_pidfd.fd, first=end_descendants)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = dict(os.environ)
    try:
        node = join(settings)
    except BaseException as error:
        conn.send(("failed", f"{type(error).__name__}: {error}"[:2000]))
        end_descendants()
        os._exit(1)
    held = [trial_pidfd.fd, os.pidfd_open(os.getpid()), 2, *(fd.fd for fd in lease_fds)]
    cluster = Cluster(conn, settings, node, environment, held)
    conn.send(("ready", ""))
    try:
        cluster.run()
    finally:
        end_descendants()
        os._exit(1)


def join(settings: Settings) -> str:
    """Start or join a Ray. Returns this host's node in it."""
    os.environ.update(BINDING)
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if settings.address is None:
        place = Path(settings.place)
        # Ray asks cloud providers' addresses what it runs on, unless this says.
        (place / "ray_bootstrap_config.yaml").write_text("{}\n", encoding="utf-8")
        os.environ.update(LOCAL, HOME=str(place))
        import ray

        ray.init(
            address="local",
            num_gpus=settings.gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_MIB * 2**20,
            _plasma_directory=str(place),
            _temp_dir=short(place),
            **quiet,
        )
    else:
        host, _, port = settings.address.rpartition(":")
        # Where nobody listens, Ray would try for ever.
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        # Ray looks for its node here under this host's address, which must be the one that the node has.
        os.environ.update(token(), **(LOOPBACK if host in ("127.0.0.1", "localhost") else {}))
        import ray

        ray.init(address=settings.address, **quiet)
    return ray.get_runtime_context().get_node_id()


def short(place: Path) -> str:
    """A name of that directory with room after it for the names of Ray's sockets, which take 63 of the 107
    bytes that a socket's path has (unix(7)). It is good for as long as this process lives."""
    return f"/proc/{os.getpid()}/fd/{os.open(place, os.O_PATH)}"


def token() -> dict[str, str]:
    """Where the user's Ray token is: Ray looks in the home directory, and a trial has another one."""
    import pwd

    path = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ray/auth_token"
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return {"RAY_AUTH_TOKEN_PATH": str(path)} if path.exists() and not given else {}


class Cluster:
    """The actors of one trial, and who waits for what. `held` goes to every actor: what it watches, its log
    and the trial's leases."""

    def __init__(
        self, trial: Connection, settings: Settings, node: str, environment: dict[str, str], held: list[int]
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.trial = trial
        self.settings = settings
        self.environment = environment
        self.held = held
        self.secret = secrets.token_bytes(32)
        self.address = f"{short(Path(settings.place))}/actors"
        self.listener = Listener(self.address, "AF_UNIX", authkey=self.secret)
        self.here = NodeAffinitySchedulingStrategy(node, soft=False)
        self.actors: dict[Key, _Actor] = {}
        self.over: list[_Actor] = []
        self.wake = os.eventfd(0, os.EFD_CLOEXEC)
        names = {pid: procfs.name(pid) for pid in children(os.getpid())}
        # Either takes the actors with it, but Ray may need a minute to notice.
        self.vital = [os.pidfd_open(pid) for pid, name in names.items() if name in ("raylet", "gcs_server")]

    def run(self) -> None:
        """Until the trial closes its end, or Ray is gone."""
        door = self.listener._listener._socket
        while True:
            ready = wait([self.trial, door, self.wake, *self.vital])
            if any(fd in ready for fd in self.vital):
                self.trial.send(("lost",))
                return
            if self.wake in ready:
                os.eventfd_read(self.wake)
                while self.over:
                    self.end(self.over.pop())
            if self.trial in ready:
                try:
                    (what, order), fds = receive(self.trial)
                except (EOFError, OSError):
                    return
                if what == "start":
                    self.ask(order, fds)
                elif what == "end":
                    self.end(self.actors.get(order))
                else:
                    self.trial.send(("here",))
            if door in ready:
                self.meet()

    def ask(self, order: Order, fds: list[int]) -> None:
        """Wait for the order's actor; make it, unless Ray starts it again by itself."""
        actor = self.actors.get(order.key)
        if actor is None or actor.over:
            actor = self.actors[order.key] = self.make(order)
        actor.order = (order, fds)
        self.match(actor)

    def make(self, order: Order) -> _Actor:
        import ray

        times = self.settings.restarts
        remote = ray.remote(Actor).options(
            num_cpus=0,
            num_gpus=order.gpus,
            max_restarts=times,
            max_task_retries=times,
            scheduling_strategy=self.here,
        )
        actor = _Actor(remote.remote())
        call = actor.handle.run.remote(self.address, self.secret, order.key)

        def done(future: Any) -> None:  # in a thread of Ray's
            if not actor.over and (error := future.exception()) is not None:
                print(
                    f"Ray on {order.key[1]}: {inert.excerpt(str(error), 2000)}", file=sys.stderr, flush=True
                )
            self.over.append(actor)
            os.eventfd_write(self.wake, 1)

        call.future().add_done_callback(done)
        return actor

    def meet(self) -> None:
        """An actor's process is at the door."""
        try:
            conn = self.listener.accept()
            key = conn.recv()
        except Exception as error:  # it died, or is somebody else: not authenticated
            said = inert.excerpt(f"nobody came in: {type(error).__name__}: {error}", 500)
            print(said, file=sys.stderr, flush=True)
            return
        actor = self.actors.get(key)
        if actor is None or actor.over:
            conn.close()
            return
        actor.arrived = conn
        self.match(actor)

    def match(self, actor: _Actor) -> None:
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
            send(conn, (order.job, self.environment), [*fds, *self.held])
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

    def end(self, actor: _Actor | None) -> None:
        """End an actor for good: first Ray is told, so that it does not start it again."""
        if actor is None or actor.over:
            return
        import ray

        actor.over = True
        with suppress(Exception):
            ray.kill(actor.handle, no_restart=True)
        if actor.pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(actor.pidfd, signal.SIGKILL)
        if actor.arrived is not None:
            actor.arrived.close()
        if actor.order is not None:
            for fd in actor.order[1]:
                os.close(fd)
        actor.order = actor.arrived = None


def peer(conn: Connection) -> int:
    """The pid of the process at the other end, from the kernel (SO_PEERCRED, unix(7))."""
    with socket.socket(fileno=os.dup(conn.fileno())) as plain:
        told = plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", told)[0]
