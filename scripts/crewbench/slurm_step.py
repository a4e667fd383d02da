"""Runs a command as the one step of a Slurm job: slurm_step.py SRUN-OPTION... -- WORD...

A step holds what was asked for, where an exclusive job holds all of its node. What the job's own environment
says of its shape is kept from srun, which would take it for wishes; Slurm's configuration is not.
"""

import os
import re
import sys

KEPT = re.compile(r"SLURM_(JOB_?ID|ARRAY_\w+|CLUSTER_NAME|SUBMIT_DIR|SUBMIT_HOST|CONF|TMPDIR)$")
"""Whose job it is, where Slurm is, and the job's own disk, where a site tells it."""


def environment(given: dict[str, str]) -> dict[str, str]:
    """What srun is told of the job's environment."""
    shapes = ("SLURM_", "SRUN_", "SBATCH_")
    return {n: v for n, v in given.items() if KEPT.match(n) or not n.startswith(shapes)}


if __name__ == "__main__":
    at = sys.argv.index("--")
    words = ["srun", "-n1", "--cpu-bind=q", *sys.argv[1:at], *sys.argv[at + 1 :]]
    os.execvpe("srun", words, environment(dict(os.environ)))
