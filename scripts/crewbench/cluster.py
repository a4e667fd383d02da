"""What the workflow does differently where Slurm runs its jobs (`--workflow-profile profiles/slurm`).

The limits of this host do not hold there, the devices must be said, since nobody can look at a node from
here, and the plugin that submits the jobs is one version that is mended (slurm_executor.py).
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crewbench.devices import allocation
from crewbench.extras import EXTRAS
from crewbench.matrix import Matrix, Trial
from crewbench.problems import ConfigError, Problem

SLURM = "slurm"
VERSIONS = {"snakemake-executor-plugin-slurm": "2.8.0", "snakemake-executor-plugin-slurm-jobstep": "0.6.1"}
"""What slurm_executor.py mends: other versions may have other faults in other places."""


def arguments() -> Any:
    """What this call of Snakemake was told; None where it was not called as a command.

    Snakemake tells its Snakefile which executor it uses only after it was read, which is too late for limits
    and checks: so its own parser is asked, which knows the profile too.
    """
    from snakemake.cli import parse_args

    if Path(sys.argv[0]).name not in ("snakemake", "__main__.py"):
        return None
    with redirect_stderr(io.StringIO()):  # which profile it reads has been said
        return parse_args(sys.argv[1:])[1]


def enter(workflow: Any, matrix: Matrix) -> bool:
    """Make this process ready for Slurm where it has to do with it. Returns whether it submits jobs to it.

    ConfigError where the plugin is not the version that is mended, where the study leaves open what only a
    node could say, or where jobs of an earlier call still run.
    """
    os.environ.pop(allocation.ALLOCATED, None)
    told = arguments()
    used = told.executor if told is not None else None
    if used == SLURM:
        check_versions()
        from crewbench import slurm_executor

        slurm_executor.mend()
        check_devices(matrix.config.devices)
        check_hosts(matrix)
        if not (told.dryrun or told.unlock or told.touch):
            check_queue(Path())
    elif workflow.is_main_process:
        check_variants(matrix)
    if workflow.remote_exec and "SLURM_JOB_ID" in os.environ:
        os.environ[allocation.ALLOCATED] = "1"
    return used == SLURM


def check_versions() -> None:
    """ConfigError where another version of the plugin is installed."""
    found = {}
    for package, wanted in VERSIONS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            installed = "nothing"
        if installed != wanted:
            found[package] = f"{installed} is installed, and {wanted} is what crewbench mends"
    if found:
        remedy = f"run `{EXTRAS[SLURM].install}`"
        raise ConfigError(
            "the Slurm profile", [Problem(package, f"{what}: {remedy}") for package, what in found.items()]
        )


def check_devices(devices: Any) -> None:
    """ConfigError where a study's devices (the config's section) are left to be found out on this host, which
    is not what its trials run on."""
    problems = []
    if devices.kind == "auto":
        right = "must be gpu or slots where Slurm runs the trials: this host's devices are not theirs"
        problems.append(Problem("devices.kind", right, '"auto"'))
    if devices.kind == "gpu" and devices.gpus is None:
        right = "must say how many GPUs a node has, where Slurm runs the trials"
        problems.append(Problem("devices.gpus", right, "null"))
    if problems:
        raise ConfigError("the config", problems)


def to_run(matrix: Matrix) -> Iterator[Trial]:
    """The trials that are not done yet."""
    return (trial for trial in matrix if not Path(trial.dir, "trial.json").exists())


def check_hosts(matrix: Matrix) -> None:
    """ConfigError where a trial that is still to run spans hosts: a job of this profile has one node."""
    spanning = sorted({trial.cell.variant for trial in to_run(matrix) if trial.cell.hosts > 1})
    if spanning:
        right = "spans nodes, and a job of this profile has one: docs/several-hosts.md says what to submit"
        raise ConfigError("the config", [Problem(f"variants.{name}.hosts", right) for name in spanning])


def check_variants(matrix: Matrix) -> None:
    """ConfigError where a trial that is still to run wants several allocations, and no cluster is asked."""
    wanting = sorted({trial.cell.variant for trial in to_run(matrix) if trial.cell.allocation_each})
    if wanting:
        right = "only a cluster gives out allocations: add `--workflow-profile profiles/slurm`"
        found = [Problem(f"variants.{name}.allocation", right, '"attempt"') for name in wanting]
        raise ConfigError("the config", found)


def check_queue(place: Path) -> None:
    """ConfigError where jobs that an earlier call submitted from this directory have not ended."""
    left = jobs_of(place, queue())
    if left:
        right = (
            "an earlier call's jobs are still in Slurm's queue and would write into the same files: wait for "
            f"them, or `scancel {' '.join(left)}`"
        )
        raise ConfigError("the Slurm profile", [Problem("jobs", right)])


def queue() -> str:
    """This user's jobs, a line each: id, working directory and comment, parted by |. ConfigError with Slurm's
    words where it does not answer."""
    command = ["squeue", "--me", "--noheader", "--format=%i|%Z|%k"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        why = said.stderr.strip() if said.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        right = f"no answer to `squeue`; run this where jobs can be submitted, as on a login node: {why}"
        raise ConfigError("the Slurm profile", [Problem("executor", right)])
    return said.stdout


def jobs_of(place: Path, said: str) -> list[str]:
    """The ids of those jobs that a workflow submitted from this directory. The plugin's comment on a job
    begins with its rule."""
    rows: Iterable[list[str]] = (line.split("|", 2) for line in said.splitlines())
    return [
        row[0]
        for row in rows
        if len(row) == 3 and Path(row[1]) == place.resolve() and row[2].startswith("rule_")
    ]
