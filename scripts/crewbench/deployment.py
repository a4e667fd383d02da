"""A Deployment is data: which workers hold the model where, and which steps run on them.

A mode makes Deployments (modes/), `execute` runs one for real and `simulate` predicts one.
Nothing in this file knows about processes, devices that exist, or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class DeploymentError(ValueError):
    """A Deployment that contradicts itself."""


@dataclass(frozen=True, slots=True)
class Worker:
    """Holds one copy of the model.

    `devices` are positions among the trial's devices (0 to gpus-1); several mean that the copy is
    spread over them. `concurrency` is how many steps it works on at once.
    """

    name: str
    devices: tuple[int, ...]
    engine: str
    runner: Literal["process", "server", "actor"] = "process"
    concurrency: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """One agent's task. `agent` is the position in the crew; `after` names the steps whose outputs
    are its CrewAI context. `worker` may be a tuple: any of these, first come first served."""

    name: str
    worker: str | tuple[str, ...]
    agent: int
    task: str
    after: tuple[str, ...] = ()

    @property
    def workers(self) -> tuple[str, ...]:
        return (self.worker,) if isinstance(self.worker, str) else self.worker


@dataclass(frozen=True, slots=True)
class Deployment:
    """Workers and the steps they run. Lifetime "trial": workers start together and stay; "step":
    each step of round 0 gets a fresh worker, one at a time, and the last one stays."""

    workers: tuple[Worker, ...]
    steps: tuple[Step, ...]
    lifetime: Literal["trial", "step"] = "trial"

    def __post_init__(self) -> None:
        names = [w.name for w in self.workers]
        if len(set(names)) != len(names):
            raise DeploymentError(f"worker names are not unique: {names}")
        for worker in self.workers:
            if not worker.devices or worker.concurrency < 1:
                raise DeploymentError(f"{worker} needs a device and a concurrency of at least 1")
        if not self.steps:
            raise DeploymentError("a deployment needs at least one step")
        if self.lifetime == "step" and len(self.workers) != 1:
            raise DeploymentError("lifetime 'step' renews one worker: give exactly one")
        known: set[str] = set()
        for step in self.steps:
            if step.name in known:
                raise DeploymentError(f"step names are not unique: {step.name!r}")
            if not step.workers or not set(step.workers) <= set(names):
                raise DeploymentError(f"step {step.name!r} runs on {step.workers}, not all of {names}")
            if not set(step.after) <= known:
                raise DeploymentError(
                    f"step {step.name!r} comes after {step.after}, which must be earlier steps"
                )
            known.add(step.name)

    @property
    def devices(self) -> tuple[int, ...]:
        """The device positions in use, each once."""
        return tuple(sorted({d for w in self.workers for d in w.devices}))

    @property
    def workload(self) -> str:
        """What work this is, whatever the deployment: equal workloads may be compared for latency."""
        return "+".join(dict.fromkeys(step.task for step in self.steps))

    def worker(self, name: str) -> Worker:
        return next(w for w in self.workers if w.name == name)
