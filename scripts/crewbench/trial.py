"""A trial: one repeat of a cell, and the Spec that holds exactly what it reads."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from crewbench.records import canonical_json

ALLOCATION = "allocation"
"""The variant option that says what gets an allocation of a cluster: the trial, or each of its attempts."""

MORE = "more"
"""The file that lies beside kept attempts while the next allocation is wanted: a sentence that says why."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the matrix. All that a mode sees: `options` are its variant's."""

    mode: str
    gpus: int
    agents: int
    engine: str
    start: str
    variant: str = "base"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def allocation_each(self) -> bool:
        """Whether each attempt runs in an allocation of its own."""
        return self.options.get(ALLOCATION) == "attempt"

    @property
    def hosts(self) -> int:
        """How many hosts the devices are on, as many on each."""
        return self.options.get("hosts", 1)

    def trial_id(self, repeat: int) -> str:
        size = f"{self.mode}__g{self.gpus}__a{self.agents}"
        return f"{size}__{self.engine}__{self.start}__{self.variant}__r{repeat}"


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """One CrewAI agent as agents.yaml has it."""

    name: str
    role: str
    goal: str
    backstory: str


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One CrewAI task as tasks.yaml has it."""

    name: str
    description: str
    expected_output: str


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything a trial reads, and nothing else: what is in here reruns it when it changes.

    `model_dir` is where rule `model` leaves the checkpoint's manifest; `dtype` a torch dtype's name.
    `memory_mib` is each device's budget (None: the device's own memory), simulated on CPU slots.
    `staged`: the checkpoint is read from a copy on the node's own disk; where it is, is the node's business.
    """

    cell: Cell
    repeat: int
    warm_rounds: int
    exclusive: bool
    model_dir: str
    dtype: str
    output_length: str  # "fixed" | "natural"
    output_tokens: int
    device_kind: str  # "gpu" | "slot"
    device_count: int
    memory_mib: int | None
    sampler_hz: float
    load_timeout_s: float
    step_timeout_s: float
    threads_per_worker: int
    agents: tuple[AgentSpec, ...]
    tasks: tuple[TaskSpec, ...]
    inputs: dict[str, str] = field(default_factory=dict)
    replay: bool = False
    staged: bool = False

    @property
    def trial_id(self) -> str:
        return self.cell.trial_id(self.repeat)

    @property
    def hosts(self) -> int:
        """How many hosts the trial's devices are on, as many on each."""
        return self.cell.hosts

    @property
    def spec8(self) -> str:
        """Eight hex digits of the SHA-256 of this Spec's canonical JSON."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:8]

    def task(self, name: str) -> TaskSpec:
        return next(t for t in self.tasks if t.name == name)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Spec:
        return cls(
            **{
                **data,
                "cell": Cell(**data["cell"]),
                "agents": tuple(AgentSpec(**a) for a in data["agents"]),
                "tasks": tuple(TaskSpec(**t) for t in data["tasks"]),
            }
        )
