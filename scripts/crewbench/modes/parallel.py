"""One worker and one copy of the model per agent; agent i on device i mod g."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode
from crewbench.trial import Cell


def deployment(cell: Cell, gpus: int, runner: str = "process") -> Deployment:
    agents = range(cell.agents)
    return Deployment(
        workers=tuple(Worker(f"worker{i}", (i % gpus,), cell.engine, runner) for i in agents),
        steps=tuple(Step(f"agent{i}", f"worker{i}", i, "explain") for i in agents),
    )


def idle_gpus(cell: Cell) -> str | None:
    if cell.gpus > cell.agents:
        return f"{cell.gpus} GPUs for {cell.agents} agents: {cell.gpus - cell.agents} would stay empty"
    return None


MODE = Mode(
    name="parallel",
    title="Parallel",
    idea="One process and one model copy per agent, spread over the GPUs",
    rank=10,
    attempts=lambda cell: [deployment(cell, cell.gpus)],
    unfit=idle_gpus,
)
