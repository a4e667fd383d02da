"""Write the requirements*.txt files: everything that their .in files lead to, with the versions that are
installed in the environment this runs in.

    python envs/lock.py            write them
    python envs/lock.py --check    fail when the .in files lead to something that they do not pin

Install the .in files first. Local versions (2.13.0+cpu) are written without their suffix, so that each
machine takes the build that suits it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENVS = Path(__file__).resolve().parent
HEAD = "# Made by `make lock` from {source}: edit that one.\n"
# Comes with every virtual environment, or is about packaging alone.
UNPINNED = {"pip", "setuptools", "wheel"}
# What one build of torch brings for its accelerator and another has not: torch pins it by itself.
ACCELERATOR = ("cuda-", "nvidia-", "triton")


def wanted(path: Path) -> list[Requirement]:
    """The requirements that a file names."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Every installed distribution that these lead to, name -> pin. SystemExit names one that is missing."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen or name in UNPINNED:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed: install the .in files first") from None
        if not requirement.specifier.contains(found.version, prereleases=True):
            raise SystemExit(f"{requirement} is asked for, {found.version} is installed")
        pins[name] = f"{found.metadata['Name']}=={found.version.split('+')[0]}"
        for line in found.requires or ():
            needed = Requirement(line)
            if name == "torch" and canonicalize_name(needed.name).startswith(ACCELERATOR):
                continue
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                todo.append(needed)
    return pins


SETS = {
    "requirements": (),
    "requirements-serving": ("requirements",),
    "requirements-ray": ("requirements",),
    "requirements-slurm": ("requirements",),
    "requirements-dev": ("requirements", "requirements-serving", "requirements-ray", "requirements-slurm"),
}
"""What is locked, and on which sets each is built. vLLM's list is kept by hand: it wants another torch."""


def texts() -> dict[str, str]:
    """File name -> what it should say."""
    pins = {name: closure(wanted(ENVS / f"{name}.in")) for name in SETS}
    found = {}
    for name, bases in SETS.items():
        known = {package for base in bases for package in pins[base]}
        lines = [f"-r {base}.txt" for base in bases]
        lines += [pins[name][package] for package in sorted(pins[name].keys() - known)]
        found[f"{name}.txt"] = HEAD.format(source=f"{name}.in") + "\n".join(lines) + "\n"
    return found


def main() -> int:
    stale = []
    for name, text in texts().items():
        path = ENVS / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        print(f"{', '.join(stale)}: not what `make lock` writes; run it", file=sys.stderr)
    return len(stale) > 0


if __name__ == "__main__":
    sys.exit(main())
