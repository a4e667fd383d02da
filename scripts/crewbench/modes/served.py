"""Servers that batch what the agents ask at once: one over all GPUs, or one on each."""

from crewbench.deployment import Deployment, Step, Worker
from crewbench.modes import Mode
from crewbench.trial import Cell

LAYOUTS = {
    "tensor": lambda gpus: [tuple(range(gpus))],
    "replicas": lambda gpus: [(i,) for i in range(gpus)],
}


def deployment(cell: Cell) -> Deployment:
    groups = LAYOUTS[cell.options.get("layout", "tensor")](cell.gpus)
    servers = tuple(f"server{i}" for i in range(len(groups)))
    return Deployment(
        workers=tuple(
            Worker(name, devices, cell.engine, "server", concurrency=-(-cell.agents // len(groups)))
            for name, devices in zip(servers, groups, strict=True)
        ),
        steps=tuple(Step(f"agent{i}", servers, i, "explain") for i in range(cell.agents)),
    )


def idle_servers(cell: Cell) -> str | None:
    servers = len(deployment(cell).workers)
    return f"{servers} servers for {cell.agents} agents" if servers > cell.agents else None


MODE = Mode(
    name="served",
    title="Served",
    idea="One server with continuous batching, or one on each GPU; the agents are its clients",
    rank=70,
    attempts=lambda cell: [deployment(cell)],
    unfit=idle_servers,
    options=("layout",),
)
