"""What Slurm gave the job that this process runs in: a node, devices on it, and when it was asked for.

The workflow says through ALLOCATED that its job is an allocation of its own, made for one trial: then the
trial uses what the allocation holds, and nothing else. Somebody who runs a whole study inside one `salloc`
has devices for many trials, and leases divide them as on any host.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALLOCATED = "CREWBENCH_ALLOCATED"
"""Set for a trial's processes where its job is an allocation of its own."""

SCONTROL_S = 60.0
"""How long the controller may take to say when a job was asked for."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One Slurm job. `devices` are the node's own numbers of the GPUs that it holds, or UUIDs where Slurm
    tells no numbers; None where it asked for none. `visible` is CUDA_VISIBLE_DEVICES, for messages."""

    job_id: str
    node: str
    devices: tuple[str, ...] | None
    visible: str | None


def current(environment: Mapping[str, str] = os.environ) -> Allocation | None:
    """The allocation that the workflow made for this trial, or None."""
    if not environment.get(ALLOCATED) or "SLURM_JOB_ID" not in environment:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    # Where a cgroup hides the other GPUs, CUDA counts from 0 in each job; these are the node's numbers.
    numbers = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS") or visible
    devices = None if visible is None else tuple(n for n in (numbers or "").split(",") if names_a_gpu(n))
    return Allocation(environment["SLURM_JOB_ID"], host(environment), devices, visible)


def names_a_gpu(entry: str) -> bool:
    """Whether an entry of such a list is a GPU's number or UUID, or that of a part of one (MIG)."""
    return entry.isdigit() or entry.startswith(("GPU-", "MIG-"))


def host(environment: Mapping[str, str] = os.environ) -> str:
    """This host's name: Slurm's own name of the node in any of its jobs, so that trials of all of them, and
    their leases, mean one host by it."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def waited(job_id: str) -> dict[str, Any]:
    """When Slurm was asked for the job and when it started it, as wall-clock seconds since the epoch, and how
    often it had to start it again. Each is None where the controller does not say."""
    return queue(show(job_id))


def show(job_id: str) -> dict[str, str]:
    """What the controller says of a job, times in seconds since the epoch; nothing if it does not answer."""
    try:
        said = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job_id],
            env={**os.environ, "SLURM_TIME_FORMAT": "%s"},
            capture_output=True,
            text=True,
            timeout=SCONTROL_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return fields(said)


def fields(said: str) -> dict[str, str]:
    """The fields of a line of `scontrol --oneliner show job`; values there hold no spaces, bar a few at the
    end that nothing here reads."""
    pairs = (word.partition("=") for word in said.split())
    return {key: value for key, sign, value in pairs if sign}


def queue(said: Mapping[str, str]) -> dict[str, Any]:
    """The times of `waited` from a job's fields. A job that was put back into the queue waited since then for
    the start that counts: Slurm moves EligibleTime, not SubmitTime."""
    asked, eligible, started = (
        int(said[name]) if said.get(name, "").isdigit() else None
        for name in ("SubmitTime", "EligibleTime", "StartTime")
    )
    known = [t for t in (asked, eligible) if t is not None]
    restarts = said.get("Restarts", "")
    return {
        "submitted_wall_s": asked,
        "started_wall_s": started,
        "queue_s": float(started - max(known)) if known and started is not None else None,
        "restarts": int(restarts) if restarts.isdigit() else None,
    }
