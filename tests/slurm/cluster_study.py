"""A checkout whose studies a cluster runs, through the committed profile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkout import Checkout, Done
from private_slurm import PrivateSlurm

HERE = Path(__file__).resolve().parent


class ClusterStudy:
    """A checkout that submits to the cluster through the committed profile, with shorter pauses."""

    def __init__(self, cluster: PrivateSlurm, place: Path, study: dict[str, Any], toys: bool = False) -> None:
        self.cluster = cluster
        self.checkout = Checkout.make(place, {"devices": {"kind": "slots", "slots": 4}, **study})
        self.place = place
        self.profile = place / "profiles/slurm/config.yaml"
        self.checkout.edit("profiles/slurm/config.yaml", "status-checks: 10", "status-checks: 1")
        self.checkout.edit("profiles/slurm/config.yaml", "latency-wait: 60", "latency-wait: 20")
        if toys:
            shutil.copy(HERE / "toy_trial.py", place / "scripts/trial.py")
            shutil.copy(HERE / "toy_model.py", place / "scripts/model.py")
            self.toys = {}
            (place / "go").mkdir()

    @property
    def toys(self) -> dict[str, str]:
        return json.loads((self.place / "toy.json").read_text())

    @toys.setter
    def toys(self, value: dict[str, str]) -> None:
        (self.place / "toy.json").write_text(json.dumps(value))

    def go(self, trial: str) -> None:
        (self.place / "go" / trial).touch()

    @property
    def environment(self) -> dict[str, str]:
        leases = {"CREWBENCH_LEASE_DIR": str(self.place / "leases")}
        return {**self.checkout.environment, **self.cluster.environment, **leases}

    def command(self, *words: str) -> list[str]:
        snakemake = [str(Path(sys.executable).with_name("snakemake")), "--workflow-profile", "profiles/slurm"]
        return [*snakemake, "--configfile", "study.json", *words]

    @contextmanager
    def started(self, *words: str):
        """A call that is at work; it is ended if it has not ended by itself."""
        call = Call(self, *words)
        try:
            yield call
        finally:
            if call.process.poll() is None:
                call.process.kill()
                call.process.wait()
                self.cluster.clear()

    def run(self, *words: str, seconds: float = 1200) -> Done:
        with self.started(*words) as call:
            return call.finish(seconds)

    def log(self, trial: str) -> str:
        return "".join(p.read_text() for p in (self.place / "results/logs/trial" / trial).glob("*.log"))

    @property
    def at_work(self) -> list[str]:
        """The node of each toy trial that has begun."""
        logs = (self.place / "results/logs/trial").glob("*/*.log")
        return [
            line.split()[-1] for log in logs for line in log.read_text().splitlines() if "began on" in line
        ]

    def record(self, trial: str) -> dict[str, Any]:
        (path,) = (self.place / "results/trials" / trial).glob("*/trial.json")
        return json.loads(path.read_text())

    @property
    def done(self) -> list[str]:
        return sorted(p.parent.parent.name for p in (self.place / "results/trials").glob("*/*/trial.json"))

    def jobs(self) -> dict[str, dict[str, str]]:
        """The jobs that were submitted from this checkout."""
        return {n: f for n, f in self.cluster.jobs().items() if f["WorkDir"] == str(self.place)}

    def job(self, trial: str, *states: str) -> str | None:
        """The latest Slurm job of a trial, in one of these states."""
        mine = {n: f for n, f in self.jobs().items() if f"/rule_trial/{trial}_" in f["StdOut"]}
        latest = max(mine, key=int, default=None)
        return latest if latest and mine[latest]["JobState"] in states else None


class Call:
    """One call of Snakemake."""

    def __init__(self, study: ClusterStudy, *words: str) -> None:
        self.study = study
        self.said = study.place / f"said-{time.monotonic_ns()}.txt"
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                ["env", "--default-signal", *study.command(*words)],  # behind a shell's & Ctrl-C is ignored
                cwd=study.place,
                env=study.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def until(self, look: Any, what: str) -> Any:
        def look_twice():
            over = self.process.poll() is not None
            found = look()
            assert found or not over, f"{what}: not seen\n{self.text}{self.study.checkout.logs()}"
            return found

        return self.study.cluster.until(look_twice, what)

    def running(self, trial: str) -> str:
        """The Slurm job of a trial whose script is at work."""

        def look():
            return "began on" in self.study.log(trial) and self.study.job(trial, "RUNNING")

        return self.until(look, f"{trial} at work")

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self, seconds: float = 1200) -> Done:
        self.process.wait(seconds)
        return Done(self.process.returncode, self.text)
