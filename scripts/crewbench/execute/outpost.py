"""A trial's part on another host: a Ray actor that leases devices there, samples them, and is the door for
the actors of that host.

It speaks with the trial's own Ray process (cluster.py) over an authenticated TCP connection on Ray's address:

    here -> trial    ("host", number), then ("said", key, message), ("gone", key, made), ("log", text) and, to
                     each question, ("answer", value) or ("wrong", kind, text)
    trial -> here    ("start", Order), ("tell", key, message), ("end", key), ("ask", what, argument)

When that connection ends, the trial is over: everything that it has on this host ends. The actors watch
this process, so they end with it however it ends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection, Pipe, wait
from pathlib import Path
from typing import Any

from crewbench import provenance
from crewbench.checkpoint import files, manifest, stage
from crewbench.devices import sampler
from crewbench.devices.inventory import list_devices
from crewbench.devices.lease import directory, lease
from crewbench.execute import made
from crewbench.execute.clocks import shifted
from crewbench.execute.door import Door, Key, Order
from crewbench.execute.surroundings import make_scratch
from crewbench.records import Identity

LEASE_S = 600.0
"""How long to wait for this host's devices. Two trials that hold a host each and want both would for ever."""

KEPT_ALIVE = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    # Milliseconds. While something that was sent has no answer, nobody asks whether the other is alive.
    socket.TCP_USER_TIMEOUT: 25_000,
}
"""Seconds and tries until a host that is gone without a word is known to be gone (tcp(7))."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a trial wants of another host. `listed` are the devices that it has (None: look), `count` those to
    lease; `stage` is `model.stage`; `scratch` the trial's own directory, which `environment` speaks of;
    `name` is Ray's name of the node, None where it was given none."""

    name: str | None
    kind: str
    listed: int | None
    count: int
    memory_mib: int | None
    exclusive: bool
    holder: str
    model_dir: str
    stage: str | None
    scratch: str
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Begin:
    """The start state is brought about and the sampler started. `zero_s` is the trial's zero on its own
    host's clock, `elapsed_s` its time when this is sent."""

    identity: Identity
    hz: float
    cached: bool
    zero_s: float
    elapsed_s: float = 0.0


def keep_alive(conn: Connection) -> None:
    with socket.socket(fileno=os.dup(conn.fileno())) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in KEPT_ALIVE.items():
            plain.setsockopt(socket.IPPROTO_TCP, option, value)


class Outpost:
    """What Ray holds on another host. It is not started again: what it leased and staged would be gone."""

    def run(self, address: tuple[str, int], secret: bytes, number: int) -> None:
        conn = Client(address, "AF_INET", authkey=secret)
        keep_alive(conn)
        conn.send(("host", number))
        post = _Post(conn)
        try:
            post.run()
        finally:
            post.close()
            os._exit(0)  # threads of what was imported may not keep it


@dataclass(slots=True)
class _Life:
    """A life of a worker here: this side of its connection, and of the pipe that it alone holds open."""

    ours: Connection
    gone: int
    made: str | None


class _Post:
    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.held = ExitStack()
        self.lives: dict[Key, _Life] = {}
        self.log, self._log_in = os.pipe()
        self.door: Door | None = None
        self.scratch: Path | None = None
        self.sampling: sampler.Sampler | None = None

    def run(self) -> None:
        """Until the trial's end of the connection closes."""
        while True:
            sources: list[Any] = [self.conn, self.log, *([self.door] if self.door else [])]
            for life in self.lives.values():
                sources += [life.gone, *([] if life.ours.closed else [life.ours])]
            ready = wait(sources)
            if self.log in ready:
                self.conn.send(("log", os.read(self.log, 65536).decode(errors="replace")))
            if self.door in ready:
                self.door.meet()
            for key, life in list(self.lives.items()):
                if life.ours in ready:
                    self._hear(key, life)
                if life.gone in ready:
                    self._gone(key, life)
            if self.conn in ready:
                try:
                    what, *rest = self.conn.recv()
                except (EOFError, OSError):
                    return
                getattr(self, f"_on_{what}")(*rest)

    def _hear(self, key: Key, life: _Life) -> bool:
        try:
            message = life.ours.recv()
        except (EOFError, OSError):
            life.ours.close()
            self.conn.send(("said", key, None))
            return False
        self.conn.send(("said", key, shifted(message, -time.monotonic())))
        return True

    def _gone(self, key: Key, life: _Life) -> None:
        while not life.ours.closed and life.ours.poll(0):  # words before deaths
            self._hear(key, life)
        life.ours.close()
        os.close(life.gone)
        del self.lives[key]
        self.conn.send(("gone", key, made.read(life.made)))

    # ---- what the trial says

    def _on_start(self, order: Order) -> None:
        ours, theirs = Pipe()
        gone, alive = os.pipe()
        job = order.job

        def here(path: str | None) -> str | None:
            return None if path is None else str(self.scratch / Path(path).name)

        job = replace(
            job,
            asked_s=time.monotonic(),
            ledger=here(job.ledger),
            storage=here(job.storage),
            made=here(job.made),
            model_path=str(self.model.directory(self.model_dir)),
            weight_files=tuple(map(str, self.weight_files)),
        )
        self.lives[order.key] = _Life(ours, gone, job.made)
        fds = [os.dup(theirs.fileno()), alive]
        theirs.close()
        self.door.expect(replace(order, job=job), fds)

    def _on_tell(self, key: Key, message: Any) -> None:
        if key in self.lives and not self.lives[key].ours.closed:
            with suppress(OSError):
                self.lives[key].ours.send(message)

    def _on_end(self, key: Key) -> None:
        self.door.end(key)

    def _on_ask(self, what: str, argument: Any) -> None:
        try:
            answer = getattr(self, what)(argument)
        except (Exception, SystemExit) as error:
            self.conn.send(("wrong", type(error).__name__, str(error)[:2000]))
        else:
            self.conn.send(("answer", answer))

    # ---- what it is asked for

    def prepare(self, plan: Plan) -> dict[str, Any]:
        """Lease and stage. Returns the host's name, its devices and what trial.json says of it."""
        visible = _visible_to_ray()
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
        self.host = plan.name or provenance.host()
        model = manifest.load(plan.model_dir)
        stage_in = None if plan.stage is None else stage.place(plan.stage, os.environ)
        leased = self.held.enter_context(
            lease(
                list_devices(plan.kind, plan.listed, plan.memory_mib),
                plan.count,
                exclusive_host=plan.exclusive,
                deadline_s=LEASE_S,
                holder=plan.holder,
                host=self.host,
            )
        )
        self.leased = leased
        staged = None if stage_in is None else stage.stage(model, plan.model_dir, stage_in)
        self.model_dir = Path(plan.model_dir) if staged is None else staged.directory
        self.model = manifest.load(self.model_dir)
        self.weight_files = self.model.weight_files(self.model_dir)
        self.scratch = make_scratch("a trial's part on this host")
        self.remover = _removed_with_me(self.scratch)
        # A slot's name is the same on every host; a GPU's is its own.
        self.devices = tuple(
            replace(d, host=self.host, uuid=f"{self.host}/{d.uuid}" if d.kind == "slot" else d.uuid)
            for d in leased.devices
        )
        environment = {k: v.replace(plan.scratch, str(self.scratch)) for k, v in plan.environment.items()}
        environment["CREWBENCH_LEASE_DIR"] = str(directory())
        me = os.pidfd_open(os.getpid())
        self.door = Door(self.scratch, environment, [me, me, self._log_in, *leased.fds])
        return {
            "host": self.host,
            "devices": self.devices,
            "staged": None if staged is None else staged.record(),
            "lease_waited_s": leased.waited_s,
            "door": (self.door.address, self.door.secret),
        }

    def begin(self, wanted: Begin) -> dict[str, Any]:
        """The start state and the sampler, whose zero is the trial's as nearly as a message tells it."""
        zero_s = time.monotonic() - wanted.elapsed_s
        anchor = {
            "zero_monotonic_s": zero_s,
            "zero_wall_s": time.time() - wanted.elapsed_s,
            "host": self.host,
        }
        slots = any(d.kind == "slot" for d in self.devices)
        self.samples = self.scratch / "gpu.csv"
        self.before = provenance.pressure()
        self.sampling = sampler.Sampler(
            path=self.samples,
            identity=replace(wanted.identity, host=self.host),
            devices=self.devices,
            hz=wanted.hz,
            zero_s=zero_s,
            ledger=self.scratch / "ledger.json" if slots else None,
        )
        self.sampling.start()
        (files.warm if wanted.cached else files.evict)(self.weight_files)
        return anchor

    def finish(self, pids: set[int]) -> dict[str, Any]:
        """The samples, and what the sampler and the lease say; `pids` are the trial's workers here."""
        sampled, self.sampling = self.sampling.stop(pids), None
        return {
            "sampled": sampled,
            "rows": self.samples.read_text(encoding="utf-8").split("\n", 1)[1],
            "pressure": provenance.pressure_since(self.before),
            "shared_host": self.leased.shared_host,
        }

    def close(self) -> None:
        """Nothing of the trial's is left here after it."""
        if self.door is not None:
            self.door.end_all()
        if self.sampling is not None:
            self.sampling.stop()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        self.held.close()


def _visible_to_ray() -> str | None:
    """CUDA_VISIBLE_DEVICES of Ray's own process here, this one's parent: Ray changes it for actors."""
    pairs = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    found = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair).get(b"CUDA_VISIBLE_DEVICES")
    return None if found is None else found.decode()


def _removed_with_me(scratch: Path) -> int:
    """Have the directory removed when this process ends, also by a SIGKILL, which closes the pipe that is
    returned. By a process that is not its child: Ray kills those first."""
    script = 'exec 3<&0; (cat <&3 >/dev/null; rm -rf -- "$1") &'
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    ends, pipe = os.pipe()
    words = ["sh", "-c", script, "sh", str(scratch)]
    subprocess.run(words, stdin=ends, start_new_session=True, check=True, **quiet)
    os.close(ends)
    return pipe
