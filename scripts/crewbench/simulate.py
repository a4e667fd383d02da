"""The interpreter that predicts a Deployment: memory per device, makespan of each round, out-of-memory.

Same rules as execute/run.py, no processes: workers start together (or one a step, lifetime "step"), a step
starts when the steps before it are done and a worker has room. All that runs at once shares the host's
lanes equally (processor sharing, Kleinrock 1967), which is how agents on few cores, or kernel launches
from few cores, slow each other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from crewbench.deployment import Deployment, Step


@dataclass(frozen=True, slots=True)
class Costs:
    """What one worker and one step cost when alone. Seconds and MiB; `lanes` is how many of them the
    host runs at full speed at once; `device_mib` each device's memory or budget."""

    start_s: float
    step_s: float
    stop_s: float
    weights_mib: float
    sequence_mib: float
    context_mib: float
    device_mib: float
    lanes: float = float("inf")


@dataclass(frozen=True, slots=True)
class Prediction:
    """`peak_mib` by device position; `oom` the devices that would need more than they have. The makespans
    are None when it does not fit."""

    peak_mib: dict[int, float]
    oom: tuple[int, ...]
    cold_s: float | None
    warm_s: float | None


def peak_memory(deployment: Deployment, costs: Costs) -> dict[int, float]:
    """MiB per device position: each copy's weights, context and the sequences it may have in flight."""
    peak = dict.fromkeys(deployment.devices, 0.0)
    steps = Counter(name for step in deployment.steps for name in step.workers)
    for worker in deployment.workers:
        sequences = min(worker.concurrency, steps[worker.name]) * costs.sequence_mib
        for device in worker.devices:
            peak[device] += (costs.weights_mib + sequences) / len(worker.devices) + costs.context_mib
    return peak


def simulate(deployment: Deployment, costs: Costs) -> Prediction:
    """Predict one Deployment. Pure: the same arguments give the same prediction."""
    peak = peak_memory(deployment, costs)
    oom = tuple(device for device, mib in peak.items() if mib > costs.device_mib)
    if oom:
        return Prediction(peak, oom, None, None)
    cold, warm = (_makespan(deployment, costs, cold) for cold in (True, False))
    return Prediction(peak, (), cold, warm)


def _makespan(deployment: Deployment, costs: Costs, cold: bool) -> float:
    """Seconds from the round's start to its last step's end."""
    renewing = cold and deployment.lifetime == "step"
    ready = set() if cold else {w.name for w in deployment.workers}
    # What is running: its name (a worker's start, a step, or a worker's renewal) and the work left.
    running: dict[tuple[str, str], float] = {}
    if cold and not renewing:
        running.update({("start", w.name): costs.start_s for w in deployment.workers})
    waiting = list(deployment.steps)
    busy: dict[str, int] = {w.name: 0 for w in deployment.workers}
    placed: dict[str, str] = {}
    done: set[str] = set()
    now = 0.0
    while waiting or running:
        for step in list(waiting):
            worker = _free_worker(step, deployment, ready, busy, done, renewing)
            if worker is None:
                continue
            waiting.remove(step)
            busy[worker] += 1
            placed[step.name] = worker
            work = costs.step_s
            if renewing:
                work += costs.start_s + (costs.stop_s if done else 0.0)
            running[("step", step.name)] = work
        rate = min(1.0, costs.lanes / len(running))
        elapsed = min(running.values()) / rate
        now += elapsed
        running = {key: left - elapsed * rate for key, left in running.items()}
        for kind, name in [key for key, left in running.items() if left <= 1e-9]:
            del running[(kind, name)]
            if kind == "start":
                ready.add(name)
            else:
                done.add(name)
                busy[placed[name]] -= 1
    return now


def _free_worker(
    step: Step,
    deployment: Deployment,
    ready: set[str],
    busy: dict[str, int],
    done: set[str],
    renewing: bool,
) -> str | None:
    """The first of the step's workers with room, if the steps before it are done."""
    if not set(step.after) <= done:
        return None
    for name in step.workers:
        room = 1 if renewing else deployment.worker(name).concurrency
        if (renewing or name in ready) and busy[name] < room:
            return name
    return None
