"""The processes above this one, up to the workflow: when one of them ends, so does what it started.

A SIGKILL of Snakemake, or of the shell that it puts between, reaches nothing below it; whoever is below
watches instead. Trials have a guardian for that, with children of their own to end; the other rules'
scripts end themselves.
"""

from __future__ import annotations

import os
import select
import sys
import threading

from crewbench.devices import procfs

WORKFLOW_PID = "CREWBENCH_WORKFLOW_PID"
"""Holds the workflow's pid in the environment. Where it is not set, as by hand, nobody is watched."""


def above(pid: int) -> dict[int, str]:
    """Pidfds of the processes above `pid` up to the workflow, each with what to call it.

    ProcessLookupError if one of them is gone already: what it left then has another parent.
    """
    workflow = int(os.environ.get(WORKFLOW_PID) or pid)
    found: dict[int, str] = {}
    while pid != workflow:
        parent = procfs.parent(pid)
        if not parent:
            raise ProcessLookupError(workflow)
        found[os.pidfd_open(parent)] = "the workflow" if parent == workflow else "a shell in between"
        if procfs.parent(pid) != parent:
            raise ProcessLookupError(parent)
        pid = parent
    return found


def end_with_workflow() -> None:
    """From now on this process ends at once when one above it does. For scripts that start no processes; a
    half-written output is Snakemake's to notice."""
    try:
        watched = list(above(os.getpid()))
    except ProcessLookupError:
        sys.exit("a process above this one has ended")

    def watch() -> None:
        select.select(watched, [], [])
        os._exit(1)

    if watched:
        threading.Thread(target=watch, name="watch-workflow", daemon=True).start()
