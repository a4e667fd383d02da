"""Stands in for scripts/trial.py where a test is about the way of a trial through Slurm, not about the trial.

It takes the devices that a trial would take, holds their leases while it does what toy.json says of its id
("wait": until the file go/ID is there; "hog": memory; "fail": an error; else nothing), and writes the files
of rule `trial`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path.cwd() / "scripts"))

from crewbench import matrix
from crewbench.devices import allocation
from crewbench.devices.inventory import DeviceError, usable
from crewbench.devices.lease import lease
from crewbench.execute.guardian import supervised
from crewbench.execute.host import in_allocations
from crewbench.records import FILES

HOG_BYTES = 1_500_000_000


def body(args):
    spec = matrix.read(args.matrix).spec(args.trial)
    try:
        devices = usable(spec.device_kind, spec.device_count, spec.cell.gpus, spec.memory_mib)
        with lease(devices, spec.cell.gpus, spec.exclusive) as leased:
            print(f"began on {allocation.host()}", flush=True)
            began = time.time()
            what = json.loads(Path("toy.json").read_text()).get(args.trial)
            hogged = []
            while what == "wait" and not Path("go", args.trial).exists():
                time.sleep(0.05)
            while what == "hog":
                if not hogged:
                    hogged.append(bytearray(b"x") * HOG_BYTES)
                time.sleep(0.05)
            if what == "fail":
                sys.exit("error: told to fail")
            ended = time.time()
    except DeviceError as error:
        sys.exit(f"error: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, "outputs.jsonl"):
        (args.out / name).touch()
    record = {
        "trial_id": spec.trial_id,
        "spec8": spec.spec8,
        "status": "ok",
        "files": {},
        "gpus": spec.cell.gpus,
        "host": allocation.host(),
        "devices": [device.uuid for device in leased.devices],
        "began": began,
        "ended": ended,
        "lease_waited_s": leased.waited_s,
        "allocations": in_allocations(leased.devices),
    }
    (args.out / "trial.json").write_text(json.dumps(record))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--matrix", "--out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--trial")
    given, _ = parser.parse_known_args()
    sys.exit(supervised(lambda: body(given)))
