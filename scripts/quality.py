"""Rule `quality`: see whether an engine computes what the checkpoint says, and write quality.json.

    quality.py --matrix results/matrix.json --check ID --out DIR
    quality.py --model DIR --engine compiled --out DIR [--dtype bfloat16] [--devices 1] [--options JSON]

The second form needs no study: --model is a checkpoint's directory, or what rule `model` made; the prompts
are those of config/agents.yaml, the devices the GPUs of this machine, or its CPU. Either prints one line with
the judgement. Exit code 0 means that the check was made, whatever it found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crewbench.quality import Check

ROOT = Path(__file__).resolve().parents[1]


def of_matrix(args: argparse.Namespace) -> tuple[Check, Path, float]:
    """The check that a matrix names, the checkpoint's directory, and the study's threshold."""
    from crewbench import matrix
    from crewbench.checkpoint import manifest

    study = matrix.read(args.matrix)
    check = study.check(args.check)
    model = manifest.load(check.model_dir).directory(check.model_dir)
    return check, model, study.config.thresholds.logit_error


def of_arguments(args: argparse.Namespace) -> tuple[Check, Path, float]:
    """The check that a command line describes, where no study is."""
    from crewbench import quality
    from crewbench.checkpoint import manifest
    from crewbench.config import Crew, Timeouts, read_crew
    from crewbench.devices.inventory import resolve
    from crewbench.engines import ENGINES
    from crewbench.matrix import own_dtype

    texts, problems = read_crew(Crew(), ROOT)
    if problems:
        sys.exit("\n".join(map(str, problems)))
    kind = resolve("auto")
    if kind not in ENGINES[args.engine].device_kinds:
        sys.exit(f"error: engine {args.engine} needs a GPU, and none may be used here")
    model, limits = args.model, Timeouts()
    if (model / manifest.NAME).exists():
        model = manifest.load(model).directory(model)
    check = quality.Check(
        engine=args.engine,
        options=args.options,
        devices=args.devices,
        model_dir=str(model),
        dtype=args.dtype or own_dtype(model),
        device_kind=kind,
        exclusive=True,
        threads=len(os.sched_getaffinity(0)),
        load_timeout_s=limits.load_s,
        step_timeout_s=limits.step_s,
        conversations=quality.conversations(texts.agents, next(iter(texts.tasks.values())), {}, seed=1),
    )
    return check, model, quality.TIMES


def body(args: argparse.Namespace, scratch: Path) -> int:
    from crewbench import matrix, provenance, quality
    from crewbench.checkpoint.files import CheckpointError
    from crewbench.devices.inventory import DeviceError, usable
    from crewbench.devices.lease import lease
    from crewbench.execute.surroundings import enter
    from crewbench.observation import measure
    from crewbench.problems import ConfigError

    enter(scratch)
    try:
        check, model, times = of_matrix(args) if args.matrix else of_arguments(args)
        (args.out / quality.RECORD).unlink(missing_ok=True)  # a check that is being made is not done
        memory_mib = quality.SLOT_MIB if check.device_kind == "slot" else None
        devices = usable(check.device_kind, check.devices, check.devices, memory_mib)
        with lease(devices, check.devices, check.exclusive, holder=check.check_id) as leased:
            found = measure(check, model, leased.devices, scratch)
    except (DeviceError, CheckpointError, ConfigError, matrix.MatrixError) as error:
        sys.exit(f"error: {error}")
    record = {
        "check_id": check.check_id,
        "spec8": check.spec8,
        "check": asdict(check),
        "host": provenance.host(),
        "device_name": leased.devices[0].name,
        "devices": [asdict(device) for device in leased.devices],
        "finished_wall_s": time.time(),
        "environment": provenance.environment(ROOT),
        **found,
    }
    quality.write(record, args.out)
    print(quality.words(record, times))
    return 0


def main() -> int:
    from crewbench.engines import ENGINES
    from crewbench.execute.guardian import supervised
    from crewbench.execute.surroundings import make_scratch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--matrix", type=Path, help="results/matrix.json")
    source.add_argument("--model", type=Path, help="a checkpoint's directory, instead of a matrix")
    parser.add_argument("--check", help="a check_id of that matrix")
    parser.add_argument("--out", type=Path, required=True, help="the check's directory")
    parser.add_argument("--engine", choices=list(ENGINES), default="eager", help="with --model")
    parser.add_argument("--dtype", help="with --model: float32, bfloat16 or float16 (default: the weights')")
    parser.add_argument("--devices", type=int, default=1, help="with --model: how many a copy is spread over")
    parser.add_argument("--options", type=json.loads, default={}, help="with --model: the engine's, as JSON")
    args = parser.parse_args()
    if args.matrix and not args.check:
        parser.error("--matrix needs --check")
    scratch = make_scratch("a check")
    return supervised(lambda: body(args, scratch), scratch)


if __name__ == "__main__":
    sys.exit(main())
