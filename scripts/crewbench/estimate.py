"""How long trials will take: to tell a user, to order and to bound them, never a result.

`estimate_s` is a rule of thumb from a trial's Deployments and the pace of a kind of device. `expected_s` puts
what was measured in its place: the same cell's earlier trials, or how far the rule was off for the same mode.
Pure and light: the Snakefile's matrix uses it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from crewbench.deployment import Deployment, Step
from crewbench.engines import ENGINES
from crewbench.runners import RUNNERS
from crewbench.start import STARTS
from crewbench.trial import Cell


@dataclass(frozen=True, slots=True)
class Pace:
    """Rough seconds on one kind of device.

    `around_s` is a trial without zygote and rounds (leases, sampler, stopping, files), `between_s` what lies
    between two trials; `zygote_s` its start; `import_s` a worker's imports without one; `start_s` a worker's
    process, CUDA context, tokenizer, pipeline and slower first answer; `gib_s` loading per GiB from the page
    cache, `disk_gib_s` reading one from disk; `step_s` and `token_s` one step alone; `stop_s` a worker's end.
    What runs at once slows each other: `crowd_copy` by that share for each further step on the same copy,
    `crowd_device` for each further copy at work on the same device, `crowd_start` for each further worker
    that starts. `by_cores`: workers compute on the host's cores and share them.
    """

    around_s: float
    between_s: float
    zygote_s: float
    import_s: float
    start_s: float
    gib_s: float
    disk_gib_s: float
    step_s: float
    token_s: float
    stop_s: float
    crowd_copy: float
    crowd_device: float
    crowd_start: float
    by_cores: bool


PACES = {
    # results/reference/2x-h200-core: eight agents, Mistral-7B shapes, 32 tokens, 32 cores. A cold
    # sequential agent 4.6 s, a warm one 1.8 s; 8 threads on one copy 4.3 times that, 8 copies on a GPU 1.65.
    "gpu": Pace(
        around_s=1.0,
        between_s=0.5,
        zygote_s=14.0,
        import_s=10.0,
        start_s=0.8,
        gib_s=0.14,
        disk_gib_s=0.75,
        step_s=0.25,
        token_s=0.05,
        stop_s=0.15,
        crowd_copy=0.47,
        crowd_device=0.09,
        crowd_start=0.07,
        by_cores=False,
    ),
    # The embedded study on two cores: the tiny model, 32 tokens. Threads of a copy share one interpreter.
    "slot": Pace(
        around_s=0.2,
        between_s=0.4,
        zygote_s=7.5,
        import_s=6.5,
        start_s=0.2,
        gib_s=1.0,
        disk_gib_s=2.0,
        step_s=0.06,
        token_s=0.003,
        stop_s=0.05,
        crowd_copy=1.4,
        crowd_device=0.0,
        crowd_start=0.0,
        by_cores=True,
    ),
}

GPU_CONTEXT_MIB = 600
"""What CUDA takes of a GPU for each process, beside the weights."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Steps that run at the same time: how many on the fullest copy, how many copies at work on the fullest
    device, and how many in all."""

    on_copy: int
    on_device: int
    copies: int


def waves(deployment: Deployment) -> list[Wave]:
    """The steps of a round as waves of equal length: a step is in the first wave after those of the steps
    before it in which a worker of its own has room."""
    found: list[Wave] = []
    done: set[str] = set()
    waiting = list(deployment.steps)
    while waiting:
        busy: Counter[str] = Counter()
        placed: list[Step] = []
        for step in waiting:
            room = (w for w in step.workers if busy[w] < deployment.worker(w).concurrency)
            worker = next(room, None) if set(step.after) <= done else None
            if worker is not None:
                busy[worker] += 1
                placed.append(step)
        devices = Counter(d for name in busy for d in deployment.worker(name).devices)
        found.append(Wave(max(busy.values()), max(devices.values()), len(busy)))
        done |= {step.name for step in placed}
        waiting = [step for step in waiting if step.name not in done]
    return found


def fits(deployment: Deployment, weights_mib: float, context_mib: float, memory_mib: float | None) -> bool:
    """Whether the weights of all copies fit; what is not known to be too much does."""
    if memory_mib is None:
        return True
    held = Counter()
    for worker in deployment.workers:
        for device in worker.devices:
            held[device] += weights_mib / len(worker.devices) + context_mib
    return max(held.values()) <= memory_mib


def estimate_s(
    cell: Cell,
    attempts: tuple[Deployment, ...],
    *,
    device_kind: str,
    warm_rounds: int,
    tokens: int,
    weights_mib: float,
    memory_mib: float | None,
    cores: int,
) -> float:
    """Rough seconds from a trial's start to its end.

    The attempts that are too full cost their start; the first that fits, or the last, a cold round and the
    warm ones. `memory_mib` is each device's (None: not known), `cores` the host's.
    """
    pace, start, engine = PACES[device_kind], STARTS[cell.start], ENGINES[cell.engine]
    gib = weights_mib / 1024
    alone = pace.start_s + gib * pace.gib_s + engine.ready_s + (0.0 if start.zygote else pace.import_s)

    def starting(workers: int) -> float:
        crowd = 1 + pace.crowd_start * (workers - 1)
        return alone * (max(crowd, workers / cores) if pace.by_cores else crowd)

    def a_round(deployment: Deployment) -> float:
        step = pace.step_s + tokens * pace.token_s / engine.speed
        total = 0.0
        for wave in waves(deployment):
            slowed = 1 + pace.crowd_copy * (wave.on_copy - 1)
            if pace.by_cores:
                slowed = max(slowed, wave.copies / cores)
            total += step * slowed * (1 + pace.crowd_device * (wave.on_device - 1))
        return total

    seconds = pace.around_s + (pace.zygote_s if start.zygote else 0.0)
    seconds += sum(RUNNERS[name].ready_s for name in {w.runner for d in attempts for w in d.workers})
    if not start.cached:
        seconds += gib * pace.disk_gib_s
    context_mib = GPU_CONTEXT_MIB if device_kind == "gpu" else 0
    for number, deployment in enumerate(attempts, 1):
        renewed = deployment.lifetime == "step"
        lives = len(deployment.steps) if renewed else 1
        seconds += lives * (starting(1 if renewed else len(deployment.workers)) + pace.stop_s)
        if number == len(attempts) or fits(deployment, weights_mib, context_mib, memory_mib):
            return seconds + (1 + warm_rounds) * a_round(deployment)
    raise ValueError("a mode needs at least one attempt")


def expected_s(
    cells: Mapping[str, Cell], estimated: Mapping[str, float], measured: Mapping[str, float]
) -> dict[str, float]:
    """Seconds to expect of each trial, by trial id: the median of what its cell's measured trials took, else
    its estimate times how far the estimates of its mode, or else of all trials, were off (in the median)."""
    of_cell: dict[str, list[float]] = {}
    off: dict[str | None, list[float]] = {}
    for trial_id, seconds in measured.items():
        cell = cells[trial_id]
        of_cell.setdefault(cell.trial_id(0), []).append(seconds)
        for key in (cell.mode, None):
            off.setdefault(key, []).append(seconds / estimated[trial_id])
    typical = {key: median(values) for key, values in of_cell.items()}
    factors = {key: median(values) for key, values in off.items()}

    def expect(trial_id: str, cell: Cell) -> float:
        known = typical.get(cell.trial_id(0))
        if known is not None:
            return known
        return estimated[trial_id] * factors.get(cell.mode, factors.get(None, 1.0))

    return {trial_id: expect(trial_id, cell) for trial_id, cell in cells.items()}


def in_words(seconds: float) -> str:
    """A rough duration: "45 s", "14 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    # To ten minutes: more would be a promise.
    hours, rest = divmod(round(minutes, -1), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
