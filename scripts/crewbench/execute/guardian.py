"""Keeps a trial's processes together, so that whatever dies first, nothing of the trial outlives it.

    launcher    what Snakemake starts; passes signals on and returns the trial's exit code
    guardian    in a session of its own; watches the launcher, the workflow and the shell between them;
                adopts every orphan
    trial       runs the rounds; its workers watch it

When one of those or the trial ends, the guardian kills what is left below it and waits until it is gone.
When the guardian itself is killed, the kernel kills the trial (PR_SET_PDEATHSIG) and the workers see their
trial gone. A worker forked by a zygote is no child of the trial, so the parent's death signal alone would
not reach it; being adopted by the guardian (PR_SET_CHILD_SUBREAPER) does.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from crewbench.devices import procfs
from crewbench.watch import above

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process (prctl(2)). OSError if the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def supervised(body: Callable[[], int], scratch: Path | None = None) -> int:
    """Run `body` as a trial under a guardian. Returns its exit code, or 128 + the signal that ended it.

    `scratch` is removed when all processes are gone. Call it from a process with one thread.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    launcher = os.getpid()
    guardian = os.fork()
    if guardian == 0:
        os._exit(_guard(body, launcher, scratch))
    caught: list[int] = []

    def forward(number: int, frame: object) -> None:
        caught.append(number)
        with suppress(ProcessLookupError):
            os.kill(guardian, signal.SIGTERM)

    for number in FORWARDED:
        signal.signal(number, forward)
    while True:
        with suppress(InterruptedError):
            _, status = os.waitpid(guardian, 0)
            break
    if scratch is not None:  # gone already, unless the guardian was killed
        shutil.rmtree(scratch, ignore_errors=True)
    if caught:
        return 128 + caught[0]
    return os.waitstatus_to_exitcode(status) & 0xFF if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _guard(body: Callable[[], int], launcher: int, scratch: Path | None) -> int:
    """The guardian's whole life. Returns the exit code to end with."""
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in FORWARDED:
        signal.signal(number, lambda *_: None)
    me = os.getpid()
    trial = os.fork()
    if trial == 0:
        os._exit(_run_trial(body, me))
    trial_fd = os.pidfd_open(trial)
    watched = {trial_fd: "the trial", wake_read: "a signal"}
    try:
        watched |= {os.pidfd_open(launcher): "the launcher"} | above(launcher)
        if os.getppid() != launcher:
            raise ProcessLookupError(launcher)
    except ProcessLookupError:
        ended = "a process above it"
    else:
        ready, _, _ = select.select(list(watched), [], [])
        ended = "the trial" if trial_fd in ready else watched[ready[0]]
    code = 1
    if ended == "the trial":
        _, status = os.waitpid(trial, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            print(f"the trial was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
            code = 1
    else:
        print(f"{ended} ended: stopping the trial", file=sys.stderr, flush=True)
    end_descendants()
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    return code


def _run_trial(body: Callable[[], int], guardian: int) -> int:
    signal.set_wakeup_fd(-1)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:
        return 1
    try:
        return body()
    except BaseException as exc:
        if isinstance(exc, SystemExit):
            if isinstance(exc.code, str):
                print(exc.code, file=sys.stderr)
            return exc.code if isinstance(exc.code, int) else 1
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def children(pid: int) -> Iterator[int]:
    """The processes whose parent is `pid`, by /proc."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and procfs.parent(int(entry.name)) == pid:
            yield int(entry.name)


def end_descendants() -> None:
    """Kill and reap every child, and every orphan that is adopted on the way, until none is left."""
    me = os.getpid()
    while True:
        for child in list(children(me)):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
