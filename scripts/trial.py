"""Rule `trial`: run one trial and write its files.

    trial.py --matrix results/matrix.json --trial ID --out DIR

Exit code 0 means that the trial was measured, whatever became of its agents: an out-of-memory, a timeout
or an agent's error is a status in its rows. 75 means that one attempt was, which ran out of memory and is
kept for the next allocation (crewbench/execute/allocations.py). Any other code means that the harness could
not do its work.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def body(args: argparse.Namespace, scratch: Path) -> int:
    from crewbench import matrix
    from crewbench.checkpoint import stage
    from crewbench.checkpoint.files import CheckpointError
    from crewbench.devices.inventory import DeviceError
    from crewbench.devices.sampler import SamplerError
    from crewbench.execute.allocations import run_next
    from crewbench.execute.host import run_trial
    from crewbench.execute.setup import RunnerError
    from crewbench.execute.surroundings import enter

    try:
        study = matrix.read(args.matrix)
        spec = study.spec(args.trial)
        # Before the trial has a home and a temporary directory of its own.
        said = study.config.model.stage
        stage_in = stage.place(said, os.environ) if spec.staged else None
        enter(scratch)
        if spec.cell.allocation_each:
            return run_next(spec, args.out, args.kept, scratch, ROOT, stage_in)
        run_trial(spec, args.out, scratch, ROOT, stage_in, said)
    except (DeviceError, CheckpointError, SamplerError, RunnerError, matrix.MatrixError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(f"error: no space left for {args.out} or in {scratch.parent}: free some and run again")
    return 0


def main() -> int:
    from crewbench.execute.guardian import supervised
    from crewbench.execute.surroundings import make_scratch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--matrix", type=Path, required=True, help="results/matrix.json")
    parser.add_argument("--trial", required=True, help="a trial_id of that matrix")
    parser.add_argument("--out", type=Path, required=True, help="the trial's directory")
    parser.add_argument("--kept", type=Path, help="where attempts in allocations of their own are kept")
    args = parser.parse_args()
    scratch = make_scratch("a trial")
    return supervised(lambda: body(args, scratch), scratch)


if __name__ == "__main__":
    sys.exit(main())
