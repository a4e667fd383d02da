"""Keeps one model server: starts it, times what it says, samples its metrics, and ends it.

    python -m crewbench.execute.keeper     (started by execute/server.py, which tells it what to do)

A process of its own, so that neither reading the server's log nor its metrics takes time from the agents'
clients. It says {"ready_s", "pids", "lines"} or {"died", ...} first, {"died", ...} if the server ends by
itself later, and, told to stop, {"rows"} and, once the server is gone, {"ended"}. `pids` are pairs of a pid
and when it started (devices/procfs.py), `rows` the readings of the metrics, with nothing but "t_s" where the
server gave no answer. With "died" come the last "lines" of the log, "late" (it was not ready in time) and
"rows". No server outlives it, and it does not outlive who started it.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from crewbench.devices import procfs
from crewbench.devices.companion import Companion, Post
from crewbench.execute.guardian import PR_SET_PDEATHSIG, prctl

READY_POLL_S = 0.05
ANSWER_S = 1.0
"""How long a server may take to answer this process: meanwhile nobody reads its log."""

STOP_S = 3.0
"""How long a server may take for a last reading and to end when asked to, before it is killed."""

END_S = ANSWER_S + STOP_S + 0.5
"""How long a keeper takes at most from being told to stop to its last words. Whoever holds a worker waits for
its end a little longer (run.py's GRACE_S)."""

TOLD_S = 2 * ANSWER_S + 1.0
"""And to the readings of the metrics, which come first: one may be under way, and there is a last one."""

KEPT_LINES = 400
"""Lines of a dead server's log: the cause stands above the tracebacks of the processes that it took along."""

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{[^}]*\})? (?P<value>\S+)")


def metrics(text: str, names: Iterable[str]) -> dict[str, float]:
    """The sums over all labels of these metrics, in Prometheus' text format; absent ones are left out.

    Format: prometheus.io/docs/instrumenting/exposition_formats, "Text-based format". A counter's name may end
    in "_total" there.
    """
    found: dict[str, float] = {}
    wanted = {n: n for n in names} | {f"{n}_total": n for n in names}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and match["name"] in wanted:
            name = wanted[match["name"]]
            with suppress(ValueError):
                found[name] = found.get(name, 0.0) + float(match["value"])
    return found


def tree(pid: int) -> dict[int, int]:
    """A process and all that descends from it, by /proc: pid -> when it started."""
    parents = {int(p.name): procfs.parent(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return {one: at for one in found if (at := procfs.started(one)) is not None}


def end(processes: Mapping[int, int]) -> None:
    """Kill those that still live, and none that only has the pid of one."""
    for pid, started in processes.items():
        if procfs.alive(pid, started):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


class Kept(Companion):
    """A keeper and its server, as who started them sees them. `processes` are the server's, as `end` takes
    them, known once it is ready."""

    processes: Mapping[int, int] = {}

    def ready(self, timeout_s: float) -> dict[str, Any]:
        said = super().ready(timeout_s)
        self.processes = {pid: started for pid, started in said.get("pids", [])}
        return said

    def stop(
        self, timeout_s: float, take: Callable[[list[dict[str, float]]], object] = lambda rows: None
    ) -> dict[str, Any]:
        """Have the server ended; returns the keeper's last words. `take` gets the readings of the metrics
        before that: however the server ends, it costs none. CompanionError if the keeper is late, or gone."""
        until = time.monotonic() + timeout_s
        try:
            with suppress(OSError):  # it has ended, and said why
                self._tell("stop\n")
            said = self.hear(min(timeout_s, TOLD_S))
            take(said["rows"])
            last = said if "died" in said else self.hear(until - time.monotonic())
        except Exception:
            self.kill()
            raise
        super().kill()
        return last

    def kill(self) -> None:
        """End the keeper and what it would have ended: of a server the kernel ends only the first process."""
        below = {} if self.pid is None else tree(self.pid)
        super().kill()
        end({**self.processes, **below})


class Keeper:
    """`spec`: command, environment (added to ours), log (a path), port, health (a path of the server's),
    metrics (a path, or None), names (column -> metric), hz, ready_by_s (a CLOCK_MONOTONIC second)."""

    def __init__(self, spec: Mapping[str, Any], post: Post) -> None:
        self.spec = spec
        self.post = post
        self.lines: list[tuple[float, str]] = []
        self.rows: list[dict[str, float]] = []
        self.rest = b""
        self.ready = False
        self.below: dict[int, int] = {}
        self.log = open(spec["log"], "wb", buffering=0)
        self.server = subprocess.Popen(
            spec["command"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **spec["environment"]},
            start_new_session=True,
            # This process has one thread: whatever kills it, the kernel ends the server.
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self.out = self.server.stdout.fileno()
        self.server_fd = os.pidfd_open(self.server.pid)

    def run(self) -> None:
        """Until told to stop, or the server has ended."""
        due: float | None = time.monotonic()
        while True:
            sources = [*self.post.ends, self.server_fd, *([self.out] if self.out >= 0 else [])]
            timeout = None if due is None else max(0.0, due - time.monotonic())
            heard = select.select(sources, [], [], timeout)[0]
            if self.out in heard:
                self._read()
            if any(fd in heard for fd in self.post.ends):
                return self._stop()
            if self.server_fd in heard:
                return self._died()
            if due is not None and time.monotonic() >= due:
                due = self._look()

    def _look(self) -> float | None:
        """See whether the server is ready, or what its metrics say; returns when to look again."""
        if not self.ready:
            if time.monotonic() > self.spec["ready_by_s"]:
                self._say_died("was not ready in time", late=True)
                self._end(time.monotonic() + STOP_S)
                sys.exit(0)
            if self._get(self.spec["health"]) is None:
                return time.monotonic() + READY_POLL_S
            ready_s = time.monotonic()
            self._drain()  # what it said before it answered
            self.ready, self.below = True, tree(self.server.pid)
            self.post.say({"ready_s": ready_s, "pids": list(self.below.items()), "lines": self.lines})
        if not self.spec["metrics"]:
            return None
        self._sample()
        return time.monotonic() + 1.0 / self.spec["hz"]

    def _sample(self) -> None:
        found = metrics(self._get(self.spec["metrics"]) or "", self.spec["names"].values())
        row = {column: found[name] for column, name in self.spec["names"].items() if name in found}
        self.rows.append({"t_s": time.monotonic(), **row})

    def _get(self, path: str) -> str | None:
        """What the server answers with 200, else None."""
        connection = http.client.HTTPConnection("127.0.0.1", self.spec["port"], timeout=ANSWER_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return text if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _read(self) -> bool:
        """Take in what the server has said; False when it has closed its output."""
        try:
            chunk = os.read(self.out, 65536)
        except OSError:
            chunk = b""
        if not chunk:
            self.out = -1
            return False
        now = time.monotonic()
        with suppress(OSError):  # a full disk costs the log, not the server
            self.log.write(chunk)
        *whole, self.rest = re.split(rb"[\r\n]+", self.rest + chunk)
        self.lines += [(now, line.decode(errors="replace")) for line in whole if line.strip()]
        del self.lines[:-4000]
        return True

    def _drain(self) -> None:
        """What is left in the pipe of a server that is gone; children may keep it open, so never wait."""
        while self.out >= 0 and select.select([self.out], [], [], 0)[0] and self._read():
            pass

    def _died(self) -> None:
        code = self.server.wait()
        self._drain()
        self._kill()
        self._say_died(
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        )

    def _say_died(self, how: str, late: bool = False) -> None:
        lines = self.lines[-KEPT_LINES:]
        self.post.say({"died": how, "late": late, "lines": lines, "rows": self.rows})

    def _stop(self) -> None:
        until = time.monotonic() + STOP_S
        if self.ready and self.spec["metrics"]:
            self._sample()
        self.post.say({"rows": self.rows})
        self._end(until)
        self.post.say({"ended": self.server.wait()})

    def _end(self, until: float) -> None:
        """Ask the server to end by that CLOCK_MONOTONIC second, and see to it."""
        self.below |= tree(self.server.pid)
        self.server.terminate()
        while (left := until - time.monotonic()) > 0:
            heard = select.select([self.server_fd, *([self.out] if self.out >= 0 else [])], [], [], left)[0]
            if self.out in heard:
                self._read()
            if self.server_fd in heard:
                break
        self._kill()

    def _kill(self) -> None:
        """End what is left of the server: its session, and what else was seen below it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.server.pid, signal.SIGKILL)
        end(self.below)


def main() -> None:
    post = Post()
    try:
        keeper = Keeper(post.spec, post)
    except OSError as error:
        post.say({"died": f"could not be started: {error}", "late": False, "lines": [], "rows": []})
        return
    keeper.run()


if __name__ == "__main__":
    main()
