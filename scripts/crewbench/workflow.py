"""What the Snakefile and its rules share: how a rule's script is called, and what the workflow promises."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from crewbench.matrix import HOST, Matrix

SCRIPTS = Path(__file__).resolve().parent.parent


def script(name: str, arguments: str) -> str:
    """A rule's shell command. Rule, script and log have one name; the interpreter is this one, because
    `python` alone fails where no environment is activated. Braces are doubled: Snakemake formats it."""
    run = f"{shlex.quote(sys.executable)} {shlex.quote(str(SCRIPTS / name))}.py"
    return f"{run.replace('{', '{{').replace('}', '}}')} {arguments} > {{log}} 2>&1"


def watch_me() -> None:
    """Tell trials which process to watch, so that no worker outlives the workflow, however it ends."""
    os.environ["CREWBENCH_WORKFLOW_PID"] = str(os.getpid())


def gpu_limit(workflow) -> int | None:
    """What `--resources gpu=` says, or None."""
    limits = workflow.global_resources
    return limits["gpu"].value if "gpu" in limits else None


def register_limits(workflow, matrix: Matrix, cluster: bool) -> None:
    """Limits that must hold on one host: without `--resources gpu=` Snakemake has none at all, and with it,
    it drops those of a profile. Only one that nobody gave is set here. A cluster has its own."""
    if cluster:
        return
    for resource, most in {"gpu": matrix.devices.count, "host": HOST}.items():
        if resource not in workflow.global_resources:
            workflow.register_resource(resource, most)


def slurm_extra(matrix: Matrix) -> str:
    """What an exclusive trial asks of Slurm besides: a node to itself. On one host the resource `host` keeps
    it alone."""
    return "--exclusive" if matrix.config.exclusive else ""
