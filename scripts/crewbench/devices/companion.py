"""A process beside the trial (sampler, ballast): it says when it is ready, stops when told, and never
outlives the process that started it.

They talk in lines of JSON: the spec goes to the companion's standard input, "ready" and the result come from
its standard output. Anything more on its input, or its end, means stop.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2]


class CompanionError(RuntimeError):
    """The companion could not start, or is gone. The text says why."""


class Companion:
    """The trial's side. `module` is run with `python -m` and `spec`, JSON-ready, is what it is told. It holds
    `fds` open as long as it lives."""

    def __init__(
        self,
        module: str,
        spec: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        self.module = module
        self._spec = dict(spec)
        self._environment = dict(environment or {})
        self._fds = tuple(fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; returns at once. `ready` waits for it."""
        path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self._environment, "PYTHONPATH": path},
            # Ctrl-C is the trial's to handle: what was sampled until then is still wanted.
            start_new_session=True,
            pass_fds=self._fds,
        )
        try:
            self._tell(json.dumps({**self._spec, "parent": os.getpid()}) + "\n")
        except OSError:
            pass  # it is gone already; `ready` says so

    def fileno(self) -> int:
        """Readable when it has said something, or is gone."""
        return self._process.stdout.fileno()

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """The next thing that it says. CompanionError if that does not come in time."""
        return self._hear(timeout_s)

    def ready(self, timeout_s: float) -> dict[str, Any]:
        """What it says once it is ready. CompanionError, and no process left, if it is not in time."""
        try:
            said = self._hear(timeout_s)
        except CompanionError:
            self.kill()
            raise
        if "error" in said:
            self.kill()
            raise CompanionError(f"{self.module}: {said['error']}")
        return said

    def stop(self, timeout_s: float) -> dict[str, Any]:
        """Tell it to stop and return its last words; it is gone then. CompanionError if there are none."""
        try:
            try:
                self._tell("stop\n")
            except OSError:
                pass  # it ended by itself; it may have left its result all the same
            return self._hear(timeout_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it if it is still there, and reap it."""
        process, self._process, self._heard = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close()
            except OSError:
                pass  # what was left to write has no reader any more

    def _tell(self, text: str) -> None:
        if self._process is None:
            raise CompanionError(f"{self.module} does not run")
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def _hear(self, timeout_s: float) -> dict[str, Any]:
        out = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._heard:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise CompanionError(f"{self.module} did not answer within {timeout_s:g} s")
            more = os.read(out, 65536)
            if not more:
                raise CompanionError(f"{self.module} {self._how_it_ended()}")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with code {code}; its last words are in the log"


class Post:
    """The companion's side: its spec, and when to end. Make one first thing in `main`."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(0, 1)  # nothing may be read ahead: what follows means stop
            if not byte:
                sys.exit("nobody told this process what to do")
            line += byte
        self.spec: dict[str, Any] = json.loads(line)
        self.parent: int = self.spec.pop("parent")
        try:
            self._parent_fd = os.pidfd_open(self.parent)
        except ProcessLookupError:
            sys.exit(0)
        if os.getppid() != self.parent:
            sys.exit(0)

    @property
    def ends(self) -> tuple[int, int]:
        """Descriptors of which one becomes readable when it is time to end."""
        return 0, self._parent_fd

    def wait(self, until: float | None = None) -> bool:
        """Sleep until the CLOCK_MONOTONIC second `until` (None: for ever); True at once when it is time to
        end, because the trial said so or is gone."""
        timeout = None if until is None else max(0.0, until - time.monotonic())
        return bool(select.select(self.ends, [], [], timeout)[0])

    def say(self, message: Mapping[str, Any]) -> None:
        try:
            os.write(1, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            pass  # the trial is gone: nobody listens
