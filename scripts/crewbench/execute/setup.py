"""What every runner of one trial starts from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crewbench.deployment import Deployment, Worker
from crewbench.devices.inventory import Device
from crewbench.engines import ENGINES
from crewbench.execute.worker import Job
from crewbench.runners import RUNNERS
from crewbench.start import Start
from crewbench.trial import Spec


class RunnerError(RuntimeError):
    """A runner is of no use. The text says what to do, or what it met is in the trial's log."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One trial's surroundings. `ledger` is the simulated budget's file, None on GPUs; `scratch` a
    directory that goes with the trial; `attempts` what the trial's mode makes, `stage` what
    `model.stage` says. Sizes in MiB."""

    spec: Spec
    start: Start
    model_path: Path
    weight_files: tuple[Path, ...]
    weights_mib: float
    kv_mib_per_token: float
    ledger: Path | None
    scratch: Path
    lease_fds: Sequence[int]
    attempts: Sequence[Deployment] = ()
    stage: str | None = None

    def job(self, worker: Worker, devices: tuple[Device, ...], life: int, attempt: int) -> Job:
        """What a worker that runs in a process of its own must know."""
        spec = self.spec
        return Job(
            worker=worker.name,
            engine=worker.engine,
            model_path=str(self.model_path),
            dtype=spec.dtype,
            devices=devices,
            concurrency=worker.concurrency,
            threads=spec.threads_per_worker,
            length=spec.output_length,
            tokens=spec.output_tokens,
            step_timeout_s=spec.step_timeout_s,
            storage=str(self.scratch / f"crewai-{attempt}-{worker.name}-{life}"),
            zygote=self.start.zygote,
            weight_files=tuple(map(str, self.weight_files)),
            ledger=None if self.ledger is None else str(self.ledger),
            budget_mib=float(spec.memory_mib or 0),
            weights_mib=self.weights_mib,
            kv_mib_per_token=self.kv_mib_per_token,
            inputs=spec.inputs,
            engine_options=_picked(spec.cell.options, ENGINES[worker.engine].options),
            runner_options=_picked(spec.cell.options, RUNNERS[worker.runner].options),
            load_timeout_s=spec.load_timeout_s,
            made=str(self.scratch / f"made-{attempt}-{worker.name}-{life}")
            if worker.concurrency == 1
            else None,
        )


def _picked(options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
