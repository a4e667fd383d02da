"""Where the agents' own Python runs when the model is elsewhere: threads of one process, or forked processes.

CrewAI spends tens of milliseconds of Python on a call, and threads share one interpreter lock; processes that
are forked after the imports, and before the first kickoff, do not.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

from crewbench.execute.worker import StepOrder, StepResult, die_with, lost_step

Run = Callable[[StepOrder], StepResult]


class Threads:
    """Runs a step in the thread that asks. `count` is how many may ask at once."""

    def __init__(self, count: int, run: Run, prepare: Callable[[int], None]) -> None:
        prepare(0)
        self.pids: list[int] = []
        self.run = run

    def close(self) -> None:
        pass


class Processes:
    """Runs each step in one of `count` processes, forked here and now. `prepare(i)` is called first in the
    i-th; `run` is what each does with an order."""

    def __init__(self, count: int, run: Run, prepare: Callable[[int], None]) -> None:
        self.pids: list[int] = []
        self._idle: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        parent = os.pidfd_open(os.getpid())
        for number in range(count):
            ours, theirs = multiprocessing.Pipe()
            # multiprocessing lets no daemonic process, as workers are, have children of its own.
            pid = os.fork()
            if pid == 0:
                _serve(number, theirs, parent, run, prepare)
            theirs.close()
            self.pids.append(pid)
            self._idle.put((pid, ours))

    def run(self, order: StepOrder) -> StepResult:
        """Blocks until the step is done; a client that dies is an error of its steps, and is not replaced."""
        client = self._idle.get()
        pid, conn = client
        began = time.monotonic()
        try:
            conn.send(order)
            return conn.recv()
        except (EOFError, OSError):
            return lost_step(order, began, f"the agent's client, process {pid}, is gone")
        finally:
            self._idle.put(client)

    def close(self) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


CLIENTS = {"processes": Processes, "threads": Threads}


def _serve(number: int, conn: Connection, parent: int, run: Run, prepare: Callable[[int], None]) -> None:
    """A client process's whole life: it ends with the process that forked it, and never returns."""
    try:
        die_with(parent)
        prepare(number)
        while True:
            conn.send(run(conn.recv()))
    except EOFError:
        os._exit(0)
    except BaseException:  # nothing may unwind into the code that forked
        traceback.print_exc()
        os._exit(1)
