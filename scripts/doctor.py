"""What this machine has for a study, and what is missing: one line each, with the remedy.

    python scripts/doctor.py

Exit code 1 when something is missing that the config needs.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """`state`: ok, note (works, with a cost) or missing (a study would not run)."""

    state: str
    what: str
    said: str


def interpreter() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok" if sys.version_info >= (3, 11) else "missing", "Python", f"{found} (3.11 or newer)")


def packages() -> Iterator[Finding]:
    wrong = []
    for line in (ROOT / "envs/requirements.in").read_text(encoding="utf-8").splitlines():
        name, _, pin = line.split("#")[0].strip().partition("==")
        if not name:
            continue
        try:
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            found = "nothing"
        if found != pin:
            wrong.append(f"{name}: {found} instead of {pin}")
    if wrong:
        yield Finding("missing", "packages", f"{'; '.join(wrong)}: run `make install`")
    else:
        yield Finding("ok", "packages", "as pinned")


def machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok" if cores >= 2 else "note", "CPU", f"{cores} cores (2 or more)")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield Finding("ok" if memory >= 8 else "note", "memory", f"{memory:.0f} GiB (the embedded study: 8)")
    free = shutil.disk_usage(ROOT).free / GIB
    yield Finding("ok" if free >= 5 else "note", "disk", f"{free:.0f} GiB free here (5 or more)")
    pressure = Path("/proc/pressure/cpu").exists()
    said = "is recorded" if pressure else "is not recorded: the kernel has no /proc/pressure"
    yield Finding("ok" if pressure else "note", "pressure", f"of other work {said}")


def gpus() -> Iterator[Finding]:
    from crewbench.devices.inventory import DeviceError, list_devices

    try:
        for device in list_devices("gpu"):
            yield Finding("ok", f"GPU {device.index}", f"{device.name}, {device.memory_mib / 1024:.0f} GiB")
    except DeviceError as error:
        why = str(error).split(": ask for")[0]
        yield Finding("note", "GPU", f"{why}; CPU slots with a simulated budget take a GPU's place")


def slurm() -> Iterator[Finding]:
    from crewbench import cluster
    from crewbench.problems import ConfigError

    if shutil.which("sbatch") is None:
        return
    try:
        cluster.check_versions()
        yield Finding("ok", "Slurm", "jobs can be submitted with profiles/slurm (docs/cluster.md)")
    except ConfigError as error:
        yield Finding("note", "Slurm", f"no jobs can be submitted: {'; '.join(map(str, error.problems))}")


def study() -> Iterator[Finding]:
    from crewbench.config import load
    from crewbench.matrix import build
    from crewbench.problems import ConfigError

    try:
        made = build(load(ROOT / "config/config.yaml", ROOT), ROOT)
    except ConfigError as error:
        yield Finding("missing", "config", str(error))
        return
    yield Finding("ok", "config", f"config/config.yaml makes {len(made)} trials of {made.model.name}")


def main() -> int:
    worst = 0
    for check in (interpreter, packages, machine, gpus, slurm, study):
        try:
            for finding in check():
                print(f"{finding.state:<8} {finding.what:<9} {finding.said}")
                worst |= finding.state == "missing"
        except ImportError as error:
            print(f"{'missing':<8} {check.__name__:<9} {error}: run `make install`")
            worst = 1
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
