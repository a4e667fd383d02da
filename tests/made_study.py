"""A small real study in a directory of its own: matrix, model and trials by the project's own scripts."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
PYTHONPATH = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
"""The library, beside what this interpreter was told to find."""


def run(
    *words: str | Path, cwd: Path, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, capture_output=True, text=True, check=False, **options
    )
    assert not check or done.returncode == 0, f"{words} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass
class Result:
    """The files of one trial, read back."""

    dir: Path
    log: str

    @property
    def trial(self) -> dict[str, Any]:
        return json.loads((self.dir / "trial.json").read_text())

    @property
    def taints(self) -> list[str]:
        """Without those that this machine causes: a kernel that drops pages, a sampler that gets no CPU."""
        machine = ("in the page cache before they were loaded", "the sampler missed")
        return [taint for taint in self.trial["taints"] if not any(words in taint for words in machine)]

    def rows(self, name: str) -> list[dict[str, str]]:
        with open(self.dir / f"{name}.csv", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def outputs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.dir / "outputs.jsonl").read_text().splitlines()]


class Study:
    """`config` is a whole config as data; the tiny model is built once and shared through `models`."""

    def __init__(self, place: Path, config: dict[str, Any], models: Path | None = None) -> None:
        self.place = place
        (place / "results").mkdir(parents=True)
        config = {
            "crew": {
                "agents": str(ROOT / "config/agents.yaml"),
                "tasks": str(ROOT / "config/tasks.yaml"),
            },
            "repeats": 1,
            "generation": {"output_tokens": 8},
            "devices": {"kind": "slots", "slots": 8, "slot_memory_mib": 56},
            **config,
        }
        run(sys.executable, SCRIPTS / "matrix.py", "--config", json.dumps(config), cwd=place)
        manifest = json.loads((place / "results/matrix.json").read_text())
        self.modes = {t["trial_id"]: t["mode"] for t in manifest["trials"]}
        self.trials = list(self.modes)
        self.model = place / manifest["model"]["dir"]
        if models is not None:
            models.mkdir(exist_ok=True)
            (place / "results/models").symlink_to(models)
        if not (self.model / "manifest.json").exists():
            run(
                sys.executable,
                SCRIPTS / "model.py",
                "--matrix",
                "results/matrix.json",
                "--out",
                self.model,
                cwd=place,
            )

    def command(self, trial_id: str) -> list[str]:
        return [
            sys.executable,
            str(SCRIPTS / "trial.py"),
            "--matrix",
            "results/matrix.json",
            "--trial",
            trial_id,
            "--out",
            f"out/{trial_id}",
        ]

    def dir(self, trial_id: str) -> Path:
        return self.place / "out" / trial_id

    def start(self, trial_id: str, wrap: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """The trial as Snakemake starts it, its log on stderr."""
        env = {**os.environ, **environment}
        # The script finds the library by itself; what else is on the path may hold what it imports.
        others = [p for p in env.pop("PYTHONPATH", "").split(os.pathsep) if p and Path(p) != SCRIPTS]
        if others:
            env["PYTHONPATH"] = os.pathsep.join(others)
        return subprocess.Popen(
            [*wrap, *self.command(trial_id)],
            cwd=self.place,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, trial_id: str, wrap: tuple[str, ...] = (), **environment: str) -> Result:
        process = self.start(trial_id, wrap, **environment)
        _, log = process.communicate()
        assert process.returncode == 0, log
        return Result(self.dir(trial_id), log)
