"""The process of a trial that speaks with Ray: it starts or joins a Ray, and makes the actors and ends them.

A process of its own, because Ray ends whoever drives it when its own parts are gone, and a trial has rows to
write even then. Ray starts an actor's process, and starts it again when it dies; the process then comes to
its host's door for its work (door.py). On the trial's host that is here, elsewhere an outpost's (outpost.py).
execute/actor.py has the trial's side:

    trial -> here    ("start", Order) with the actor's ends of a connection and of a pipe, ("end", key),
                     ("here?", any key), which is answered ("here", numbers of the hosts that are lost), and
                     ("ask", (host, what, argument)), answered ("answer", value) or ("wrong", kind, text)
    here -> trial    ("pid", pid) on that connection, before the actor has it; ("lost",) when Ray is gone

An actor of another host has no end of a connection here: this process keeps it, and passes on what is said.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from crewbench import inert
from crewbench.devices import procfs
from crewbench.execute import made, worker
from crewbench.execute.clocks import shifted
from crewbench.execute.door import Actor, Door, Key, Order, receive, short
from crewbench.execute.guardian import PR_SET_CHILD_SUBREAPER, children, end_descendants, prctl
from crewbench.execute.outpost import Outpost, keep_alive

OBJECT_STORE_MIB = 80
"""Ray's least is 75; nothing goes through it here."""

CONNECT_S = 10.0

ARRIVE_S = 90.0
"""How long Ray may take to start the outposts."""

LOOPBACK = {
    # Without it Ray takes the address by which others reach this host. The name is about systems on which
    # Ray forms no clusters; what it does there is to stay on the loopback.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # An actor's process is new when it is asked for, as the start state says.
    "RAY_prestart_worker_first_driver": "0",
    # No other runner has somebody who kills workers when the host's memory is nearly full.
    "RAY_memory_monitor_refresh_ms": "0",
    # A slow host with many actors must not be taken for one whose actors do not start.
    "RAY_worker_register_timeout_seconds": "600",
}
"""The environment of a Ray that serves trials and nobody else."""

TOO_SLOW, TRIES = "The current node timed out during startup", 5
"""What a Ray says that gave its own helper processes too little time to start, on a slow or busy host: 15 s
that no setting changes (ray#65983). The next try finds their code in the page cache."""

LOCAL = {**LOOPBACK, **QUIET, "RAY_AUTH_MODE": "token"}
"""The environment of a Ray that the trial starts."""

BINDING = {
    # The Deployment's device binds, by UUID (worker.pin); Ray would give out its own numbers.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """`address` names a Ray that runs, None starts one; `place` a directory that goes with the trial; `gpus`
    how many a Ray that is started has; `restarts` how often Ray starts an actor again; `hosts` how many hosts
    the trial spans."""

    address: str | None
    place: str
    gpus: int
    restarts: int
    hosts: int = 1


def main(conn: Connection, settings: Settings, trial_pidfd: Any, lease_fds: Any) -> None:
    """The whole life of the process. It says ("ready", "") or ("failed", why) first."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    worker.die_with(trial_pidfd.fd, first=end_descendants)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = dict(os.environ)
    held = [trial_pidfd.fd, os.pidfd_open(os.getpid()), 2, *(fd.fd for fd in lease_fds)]
    try:
        node = join(settings)
        door = Door(Path(settings.place), environment, held)
        outposts = reach(node, settings.hosts - 1)
    except BaseException as error:
        conn.send(("failed", f"{type(error).__name__}: {error}"[:2000]))
        end_descendants()
        os._exit(1)
    cluster = Cluster(conn, settings, node, door, outposts)
    conn.send(("ready", [post.name for post in outposts]))
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
        start(place, settings.gpus, quiet)
    else:
        host, _, port = settings.address.rpartition(":")
        # Where nobody listens, Ray would try for ever.
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        # Ray looks for its node here under this host's address, which must be the one that the node has.
        os.environ.update(token(), **(LOOPBACK if host in ("127.0.0.1", "localhost") else {}))
        import ray

        ray.init(address=settings.address, **quiet)
    import ray

    return ray.get_runtime_context().get_node_id()


def start(place: Path, gpus: int, quiet: dict[str, Any]) -> None:
    """Start a Ray below `place`, again where it was but too slow."""
    import ray

    for tries in range(1, TRIES + 1):
        try:
            ray.init(
                address="local",
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_MIB * 2**20,
                _plasma_directory=str(place),
                _temp_dir=short(place),
                **quiet,
            )
            return
        except Exception as error:
            if TOO_SLOW not in str(error) or tries == TRIES:
                raise
            print("Ray took too long to start, and starts again", file=sys.stderr, flush=True)
            ray.shutdown()
            end_descendants()


def token() -> dict[str, str]:
    """Where the user's Ray token is: Ray looks in the home directory, and a trial has another one."""
    import pwd

    path = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ray/auth_token"
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return {"RAY_AUTH_TOKEN_PATH": str(path)} if path.exists() and not given else {}


@dataclass(slots=True)
class _Far:
    """A life of a worker on another host: the ends that its actor would have if it were here."""

    conn: Connection
    alive: int
    made: str | None


class _Outpost:
    """The trial's part on another host, as this process sees it. `name` is Ray's name of its node, None where
    that is but an address; `lives` are those of its actors; `door` where these come, once it is known."""

    def __init__(self, node: dict[str, Any], number: int, handle: Any) -> None:
        self.node = node["NodeID"]
        self.name = None if node["NodeName"] == node["NodeManagerAddress"] else node["NodeName"]
        self.number = number
        self.handle = handle
        self.conn: Connection | None = None
        self.lives: dict[Key, _Far] = {}
        self.asked = False


class NoHosts(RuntimeError):
    """Ray has too few hosts, or none came up on one of them."""


def reach(here: str, others: int) -> list[_Outpost]:
    """An outpost on each of so many other hosts, and the connection to it. NoHosts with the reason."""
    if not others:
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    mine = alive.pop(here)
    nodes = sorted(alive.values(), key=lambda node: (node["NodeName"], node["NodeID"]))[:others]
    if len(nodes) < others:
        raise NoHosts(
            f"this Ray has {1 + len(alive)} hosts and the trial spans {1 + others}: start Ray on more "
            "(ray start --address), or lower `hosts`"
        )
    secret = secrets.token_bytes(32)
    listener = Listener((mine["NodeManagerAddress"], 0), "AF_INET", backlog=others, authkey=secret)
    posts = []
    for number, node in enumerate(nodes, 1):
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        handle = ray.remote(Outpost).options(num_cpus=0, scheduling_strategy=strategy).remote()
        posts.append(_Outpost(node, number, handle))
    calls = [post.handle.run.remote(listener.address, secret, post.number) for post in posts]
    until = time.monotonic() + ARRIVE_S
    while not all(post.conn for post in posts):
        if wait([listener._listener._socket], 1.0):
            with suppress(Exception):  # somebody else, who is not authenticated
                conn = listener.accept()
                keep_alive(conn)
                _, number = conn.recv()
                posts[number - 1].conn = conn
        ended, _ = ray.wait(calls, num_returns=1, timeout=0)
        if ended:
            ray.get(ended)
        if time.monotonic() > until:
            late = ", ".join(post.name or post.node for post in posts if post.conn is None)
            raise NoHosts(f"nothing came from {late} within {ARRIVE_S:g} s: can it reach {listener.address}?")
    listener.close()
    return posts


@dataclass(slots=True)
class _Actor:
    """One of Ray's actors, over all of its processes, and the host that it is on."""

    handle: Any
    host: int
    over: bool = False


class Cluster:
    """The actors of one trial, and who waits for what."""

    def __init__(
        self, trial: Connection, settings: Settings, node: str, door: Door, outposts: Sequence[_Outpost]
    ) -> None:
        self.trial = trial
        self.settings = settings
        self.door = door
        self.outposts = {post.number: post for post in outposts}
        self.nodes = {0: node, **{post.number: post.node for post in outposts}}
        self.doors: dict[int, tuple[str, bytes]] = {0: (door.address, door.secret)}
        self.actors: dict[Key, _Actor] = {}
        self.over: list[tuple[Key, _Actor]] = []
        self.wake = os.eventfd(0, os.EFD_CLOEXEC)
        names = {pid: procfs.name(pid) for pid in children(os.getpid())}
        # Either takes the actors with it, but Ray may need a minute to notice.
        self.vital = [os.pidfd_open(pid) for pid, name in names.items() if name in ("raylet", "gcs_server")]

    def run(self) -> None:
        """Until the trial closes its end, or Ray is gone."""
        while True:
            posts = {post.conn: post for post in self.outposts.values() if post.conn is not None}
            far = {
                life.conn: (post, key)
                for post in posts.values()
                for key, life in post.lives.items()
                if not life.conn.closed
            }
            ready = wait([self.trial, self.door, self.wake, *self.vital, *posts, *far])
            if any(fd in ready for fd in self.vital):
                self.trial.send(("lost",))
                return
            if self.wake in ready:
                os.eventfd_read(self.wake)
                while self.over:
                    key, actor = self.over.pop()
                    if self.actors.get(key) is actor:  # and not another that took its place
                        self.end(key)
            if self.door in ready:
                self.door.meet()
            for conn, (post, key) in far.items():
                if conn in ready:
                    self.pass_on(post, key)
            for conn, post in posts.items():
                if conn in ready:
                    self.hear(post)
            if self.trial in ready:
                try:
                    (what, order), fds = receive(self.trial)
                except (EOFError, OSError):
                    return
                if what == "start":
                    self.ask(order, fds)
                elif what == "end":
                    self.end(order)
                elif what == "ask":
                    self.question(*order)
                else:
                    self.trial.send(("here", [n for n, post in self.outposts.items() if post.conn is None]))

    # ---- actors

    def ask(self, order: Order, fds: list[int]) -> None:
        """Have the order's actor do it; make it, unless Ray starts it again by itself."""
        actor = self.actors.get(order.key)
        if order.host == 0:
            self.door.expect(order, fds)
        elif not self.send_far(order, fds):
            return
        if actor is None or actor.over:
            self.actors[order.key] = self.make(order)

    def make(self, order: Order) -> _Actor:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        times, key = self.settings.restarts, order.key
        remote = ray.remote(Actor).options(
            num_cpus=0,
            num_gpus=order.gpus,
            max_restarts=times,
            max_task_retries=times,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self.nodes[order.host], soft=False),
        )
        actor = _Actor(remote.remote(), order.host)
        call = actor.handle.run.remote(*self.doors[order.host], key)

        def done(future: Any) -> None:  # in a thread of Ray's
            if not actor.over and (error := future.exception()) is not None:
                said = inert.excerpt(str(error), 2000)
                print(f"Ray on {key[1]}: {said}", file=sys.stderr, flush=True)
            self.over.append((key, actor))
            os.eventfd_write(self.wake, 1)

        call.future().add_done_callback(done)
        return actor

    def end(self, key: Key) -> None:
        """End an actor for good: first Ray is told, so that it does not start it again."""
        actor = self.actors.get(key)
        if actor is None or actor.over:
            return
        import ray

        actor.over = True
        with suppress(Exception):
            ray.kill(actor.handle, no_restart=True)
        if actor.host == 0:
            self.door.end(key)
        else:
            self.say(self.outposts[actor.host], ("end", key))

    # ---- other hosts

    def say(self, post: _Outpost, message: Any) -> bool:
        """Tell an outpost something; one that is gone is found out where it is heard."""
        if post.conn is None:
            return False
        with suppress(OSError):
            post.conn.send(message)
        return True

    def send_far(self, order: Order, fds: list[int]) -> bool:
        """Send an order to its host and keep the actor's ends here. False where that host is gone: the ends
        are closed, which says so."""
        post = self.outposts[order.host]
        if not self.say(post, ("start", order)):
            for fd in fds:
                os.close(fd)
            return False
        post.lives[order.key] = _Far(Connection(fds[0]), fds[1], order.job.made)
        return True

    def pass_on(self, post: _Outpost, key: Key) -> None:
        """What the trial says to a worker of another host."""
        try:
            message = post.lives[key].conn.recv()
        except (EOFError, OSError):
            post.lives[key].conn.close()
        else:
            self.say(post, ("tell", key, message))

    def hear(self, post: _Outpost) -> None:
        """What an outpost says. Its instants are ages; here they are instants of this host again."""
        try:
            what, *rest = post.conn.recv()
        except (EOFError, OSError):
            self.lose(post)
            return
        if what == "log":
            print(rest[0], end="", file=sys.stderr, flush=True)
        elif what in ("answer", "wrong"):
            post.asked = False
            if what == "answer" and isinstance(rest[0], dict) and "door" in rest[0]:
                self.doors[post.number] = rest[0].pop("door")
            self.trial.send((what, *rest))
        elif (life := post.lives.get(rest[0])) is None:
            return
        elif what == "said":
            if rest[1] is None:
                life.conn.close()
            elif not life.conn.closed:
                with suppress(OSError):
                    life.conn.send(shifted(rest[1], time.monotonic()))
        else:
            self.gone(post, *rest)

    def gone(self, post: _Outpost, key: Key, tokens: int | None = None) -> None:
        life = post.lives.pop(key)
        made.leave(life.made, tokens)
        life.conn.close()
        os.close(life.alive)

    def lose(self, post: _Outpost) -> None:
        """Another host's part has ended: its actors end with it, and Ray starts none of them again."""
        print(f"host {post.name or post.node} is lost", file=sys.stderr, flush=True)
        post.conn.close()
        post.conn = None
        if post.asked:
            self.trial.send(("wrong", "RunnerError", "it was lost"))
        for key, actor in self.actors.items():
            if actor.host == post.number:
                self.end(key)
        for key in list(post.lives):
            self.gone(post, key)

    def question(self, number: int, what: str, argument: Any) -> None:
        """Ask an outpost; the trial waits for the answer."""
        post = self.outposts[number]
        if not self.say(post, ("ask", what, argument)):
            self.trial.send(("wrong", "RunnerError", "it was lost"))
            return
        post.asked = True
