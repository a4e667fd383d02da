#!/usr/bin/env python
"""What submitting through Slurm adds to each trial: toy trials of no work, on a private Slurm and here.

    python bench/cluster.py [TRIALS]          default: 1000 (about ten minutes on two cores)

All go through the same rules: TRIALS of them PER_JOB to a job of Slurm, some with a job each, and some
without any. A toy trial takes devices and leases and writes its files; what is left is Snakemake, the plugin,
Slurm and starting Python. Needs slurmctld and munged. The last line is JSON.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / path) for path in ("scripts", "tests", "tests/workflow", "tests/slurm")]

from cluster_study import ClusterStudy  # noqa: E402  the paths above come first
from private_slurm import PrivateSlurm  # noqa: E402

AT_ONCE = os.cpu_count() or 1
"""Jobs of Slurm. The nodes of a real cluster are machines of their own; these share the cores of this one."""
PER_JOB = 25
ALONE, HERE = 12, 100
"""How many trials are enough where each has a job, and without Slurm."""


def study(repeats: int) -> dict[str, object]:
    """Trials with one device each, which share nodes."""
    return {
        "repeats": repeats,
        "warm_rounds": 0,
        "exclusive": False,
        "runs": [{"mode": "shared", "agents": 2}],
    }


def on_cluster(cluster: PrivateSlurm, place: Path, trials: int, per_job: int) -> dict[str, float]:
    """Wall seconds, and what Slurm says of the jobs (whole seconds)."""
    made = ClusterStudy(cluster, place, study(trials), toys=True)
    made.checkout.edit("profiles/slurm/config.yaml", "jobs: 100", f"jobs: {AT_ONCE * per_job}")
    made.checkout.edit("profiles/slurm/config.yaml", "trials_per_job: 1", f"trials_per_job: {per_job}")
    before = set(made.jobs())
    began = time.monotonic()
    ended = made.run("--until", "trial", seconds=600 + 10 * trials)
    wall = time.monotonic() - began
    if ended.code:
        raise SystemExit(ended.text)
    jobs = [f for n, f in made.jobs().items() if n not in before and "/rule_trial/" in f["StdOut"]]
    spans = [(int(job["SubmitTime"]), int(job["EndTime"])) for job in jobs]
    held = sorted(int(job["EndTime"]) - int(job["StartTime"]) for job in jobs)
    return {
        "trials": trials,
        "trials_per_job": per_job,
        "jobs": len(jobs),
        "most_jobs_at_once": max(sum(begin <= at < end for begin, end in spans) for at, _ in spans),
        "wall_s": round(wall, 1),
        "wall_s_per_trial": round(wall / trials, 2),
        "slot_s_per_trial": round(sum(held) / trials, 2),
        "job_s_min": held[0],
        "job_s_median": statistics.median(held),
        "job_s_max": held[-1],
    }


def sbatch_s(cluster: PrivateSlurm, times: int = 20) -> float:
    """Median seconds of a bare `sbatch` of nothing."""
    taken = []
    for _ in range(times):
        began = time.monotonic()
        cluster.run("sbatch", "--output=/dev/null", "--wrap=true")
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def on_host(cluster: PrivateSlurm, place: Path, trials: int) -> float:
    """Wall seconds of the same trials without Slurm."""
    made = ClusterStudy(cluster, place, study(trials), toys=True)
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", "study.json"]
    began = time.monotonic()
    subprocess.run(
        [*command, "--until", "trial"],
        cwd=place,
        env=made.environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def main(trials: int) -> None:
    lacking = [name for name in ("slurmctld", "munged") if shutil.which(name) is None]
    if lacking:
        print(f"not measured: {', '.join(lacking)} not installed")
        return
    with tempfile.TemporaryDirectory(prefix="crewbench-bench-") as scratch:
        cluster = PrivateSlurm(Path(scratch) / "slurm")
        try:
            bare = sbatch_s(cluster)
            found = [
                on_cluster(cluster, Path(scratch) / f"by-{per_job}", count, per_job)
                for count, per_job in ((min(ALONE, trials), 1), (trials, PER_JOB))
            ]
            here = min(HERE, trials)
            wall = on_host(cluster, Path(scratch) / "here", here)
        finally:
            cluster.stop()
    found.append({"trials": here, "wall_s": round(wall, 1), "wall_s_per_trial": round(wall / here, 2)})
    writer = csv.DictWriter(sys.stdout, found[0], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}
    print(json.dumps({"cluster": found, "sbatch_s": round(bare, 3), "machine": machine}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
