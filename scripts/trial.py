"""Rule `trial`: run one trial and write its files.

    trial.py --matrix results/matrix.json --trial ID --out DIR

Exit code 0 means that the trial was measured, whatever became of its agents: an out-of-memory, a timeout
or an agent's error is a status in its rows. Any other code means that the harness could not do its work.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import tempfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent

# Snakemake sets these to a rule's `threads`; the workers set their own count, and loading may use all cores.
THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "GOTO_NUM_THREADS",
)

SCRATCH_MIB = 64
"""What a trial's scratch directory must have room for: CrewAI's storage of each worker, the ledger."""


def body(args: argparse.Namespace, scratch: Path) -> int:
    from crewbench import crews, matrix
    from crewbench.checkpoint.files import CheckpointError
    from crewbench.devices import lease
    from crewbench.devices.inventory import DeviceError
    from crewbench.devices.sampler import SamplerError
    from crewbench.execute.host import run_trial
    from crewbench.execute.process import ZygoteError

    os.environ.update(crews.OFFLINE)
    # The leases are the host's, not this trial's: find their place before the temporary directory moves.
    os.environ["CREWBENCH_LEASE_DIR"] = str(lease.directory())
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    # CrewAI keeps settings and a key in the home directory, whatever it is told about its storage.
    os.environ["HOME"] = str(scratch)
    # Workers and the sampler are started as new interpreters and must find the library.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    for name in THREAD_LIMITS:
        os.environ.pop(name, None)
    try:
        spec = matrix.read(args.matrix).spec(args.trial)
        run_trial(spec, args.out, scratch, SCRIPTS.parent)
    except (DeviceError, CheckpointError, SamplerError, ZygoteError, matrix.MatrixError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"error: no space left for {args.out} or in {scratch.parent}: free some and run again")
    return 0


def roomy(directory: str) -> str:
    """The temporary directory, or /tmp where its path leaves a socket's name no room.

    A socket's path has at most 107 bytes (unix(7)), of which the scratch directory and the zygote's take 51.
    """
    return directory if len(os.fsencode(directory)) <= 107 - 51 else "/tmp"


def main() -> int:
    from crewbench.execute.guardian import supervised

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--matrix", type=Path, required=True, help="results/matrix.json")
    parser.add_argument("--trial", required=True, help="a trial_id of that matrix")
    parser.add_argument("--out", type=Path, required=True, help="the trial's directory")
    args = parser.parse_args()
    place = roomy(tempfile.gettempdir())
    free_mib = shutil.disk_usage(place).free // 2**20
    if free_mib < SCRATCH_MIB:
        # Agents would fail in it one by one, and the trial would be done, with a result that is none.
        sys.exit(
            f"error: {place} has {free_mib} MiB free and a trial needs {SCRATCH_MIB}: "
            "free some, or set TMPDIR to another directory"
        )
    scratch = Path(tempfile.mkdtemp(prefix="crewbench-", dir=place))
    return supervised(lambda: body(args, scratch), scratch)


if __name__ == "__main__":
    sys.exit(main())
