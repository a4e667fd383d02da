"""A checkout of one's own to run the workflow in: the project's sources and a small study."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

STUDY = {
    "repeats": 1,
    "warm_rounds": 0,
    "generation": {"output_tokens": 4},
    "runs": [{"mode": "shared", "agents": 2}, {"mode": "parallel", "gpus": 2, "agents": 2}],
}
"""Two trials, as small as they get."""


def sources() -> list[str]:
    """What belongs to the project: tracked files, and new ones that git does not ignore. Not the reference
    results, so that whatever is in results/ was made by the test."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    names = (name for name in listed.stdout.splitlines() if not name.startswith("results/"))
    return [name for name in names if (ROOT / name).is_file()]


def _copy(source: str, target: str) -> str:
    # Nobody edits weights: one copy of them serves all checkouts.
    if source.endswith(".safetensors"):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


@dataclass
class Done:
    """What a call of snakemake said."""

    code: int
    text: str

    @property
    def jobs(self) -> dict[str, int]:
        """Rule -> how many of its jobs would run, without `all`; empty when there is nothing to do."""
        if "Nothing to be done" in self.text:
            return {}
        table = re.search(r"^job +count\n[- ]+\n((?:\w+ +\d+\n)+)", self.text, re.MULTILINE)
        assert table, self.text
        rows = (line.split() for line in table.group(1).splitlines())
        return {name: int(count) for name, count in rows if name not in ("all", "total")}


class Checkout:
    """`study` is laid over config/config.yaml with --configfile, as a user would."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @classmethod
    def make(cls, place: Path, study: dict[str, Any] = STUDY) -> Checkout:
        for name in sources():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        made = cls(place)
        made.study = study
        return made

    def copy(self, place: Path) -> Checkout:
        """Another checkout in the same state, times of files included."""
        shutil.copytree(self.place, place, copy_function=_copy, symlinks=True)
        return Checkout(place)

    @property
    def study(self) -> dict[str, Any]:
        return json.loads((self.place / "study.json").read_text())

    @study.setter
    def study(self, value: dict[str, Any]) -> None:
        (self.place / "study.json").write_text(json.dumps(value))

    def command(self, *words: str, configfile: str | None = "study.json") -> list[str]:
        config = ["--configfile", configfile] if configfile else []
        return [sys.executable, "-m", "snakemake", "--cores", "2", *config, *words]

    def snakemake(self, *words: str, configfile: str | None = "study.json") -> Done:
        done = subprocess.run(
            self.command(*words, configfile=configfile),
            cwd=self.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_CACHE_HOME": str(self.place / ".cache")}

    def run(self, *words: str) -> Done:
        """A real run, which must succeed; what its scripts logged is in the failure otherwise."""
        done = self.snakemake(*words)
        assert done.code == 0, done.text + self.logs()
        return done

    def wanted(self, *words: str) -> dict[str, int]:
        """What a run would do now."""
        done = self.snakemake("-n", *words)
        assert done.code == 0, done.text
        return done.jobs

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.place / name
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {name}: the test needs another edit"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def logs(self) -> str:
        paths = sorted((self.place / "results/logs").rglob("*.log"))
        return "".join(f"\n== {p.name}\n{p.read_text()[-3000:]}" for p in paths)

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.place / "results/matrix.json").read_text())

    def trials(self) -> list[dict[str, Any]]:
        """The trial.json of every trial of the manifest, in the manifest's order."""
        records = (self.place / line["dir"] / "trial.json" for line in self.manifest["trials"])
        return [json.loads(path.read_text()) for path in records]
