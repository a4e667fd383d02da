"""Start Ray on every node of this Slurm job, run a command on the first one, and take Ray down after it.

    hosts.py [--join-s SECONDS] COMMAND...

profiles/slurm/several-hosts.sbatch calls it. The command finds the address in RAY_ADDRESS, which a variant's
`ray_address: auto` means, and its exit code is this one's; 1 with the node's name where one does not join.
"""

from __future__ import annotations

import argparse
import sys

from crewbench.several_hosts import JOIN_S, HostsError, run


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--join-s", type=float, default=JOIN_S, help="how long a node may take to join")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("no COMMAND to run")
    try:
        return run(arguments.command, arguments.join_s)
    except HostsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
