"""Rule `trial`: run one trial and write its files.

    trial.py --matrix results/matrix.json --trial ID --out DIR

Exit code 0 means that the trial was measured, whatever became of its agents: an out-of-memory, a timeout
or an agent's error is a status in its rows. Any other code means that the harness could not do its work.
"""

from __future__ import annotations

import argparse
import os
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


def body(args: argparse.Namespace, scratch: Path) -> int:
    from crewbench import crews, matrix
    from crewbench.checkpoint.files import CheckpointError
    from crewbench.devices import lease
    from crewbench.devices.inventory import DeviceError
    from crewbench.execute.host import run_trial

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
    except (DeviceError, CheckpointError, matrix.MatrixError) as error:
        sys.exit(f"error: {error}")
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
    scratch = Path(tempfile.mkdtemp(prefix="crewbench-", dir=roomy(tempfile.gettempdir())))
    return supervised(lambda: body(args, scratch), scratch)


if __name__ == "__main__":
    sys.exit(main())
