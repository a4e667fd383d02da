"""The interpreter that runs a Deployment for real: starts its workers, walks its steps, keeps records.

One thread waits on every worker's connection and process at once and never polls. Outcomes are rows:
an out-of-memory, a timeout, an agent's error or a worker that was killed is a status, not an exception.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from crewbench import inert
from crewbench.deployment import Deployment, Step, Worker
from crewbench.devices.budget import OutOfMemory
from crewbench.devices.inventory import Device
from crewbench.engines import Call
from crewbench.execute import critical_path
from crewbench.execute.critical_path import Piece
from crewbench.execute.worker import Failure, Stages, StepOrder, StepResult
from crewbench.records import STAGES, AgentRow, OomRow, RoundRow, ServerRow, Status, WorkerRow
from crewbench.trial import AgentSpec, TaskSpec

GRACE_S = 5.0
"""How long past its deadline a worker may take to say so itself, before it is killed, and to be gone then,
before it is killed again."""


class Handle(Protocol):
    """A started worker: a connection that speaks execute/worker.py's protocol, and its process. `pid` may be
    unknown until the worker tells it; `pidfd` becomes readable when the process is gone. `kill` ends it, and
    called again it does whatever else that takes. `made` is how many tokens its current step has, also after
    its death; None where nobody counts. `restarts` is how often a worker that dies there is started again."""

    conn: Connection
    pid: int | None
    pidfd: int
    asked_s: float

    @property
    def restarts(self) -> int: ...
    def send(self, message: tuple[Any, ...]) -> None: ...
    def kill(self) -> None: ...
    def end(self) -> str: ...
    def made(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Bench:
    """What a Deployment needs of the world. `start(worker, devices, life, attempt)` starts a worker;
    `memory_free()` returns once the memory of dead workers is seen free. `ballast` is, by device UUID, the
    pid of what holds the rest of the device back from the budget, and its MiB."""

    devices: tuple[Device, ...]
    start: Callable[[Worker, tuple[Device, ...], int, int], Handle]
    memory_free: Callable[[], None]
    agents: tuple[AgentSpec, ...]
    tasks: Mapping[str, TaskSpec]
    warm_rounds: int
    load_timeout_s: float
    step_timeout_s: float
    zero_s: float
    ballast: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    replay: bool = False

    @property
    def rounds(self) -> list[tuple[int, str]]:
        """Number and phase of each round, in order. Replays make the last warm round's calls, as often as
        there were warm rounds, and come after all of them, so that no warm round's window holds one."""
        warm = range(1, self.warm_rounds + 1)
        phases = ("warm", "replay") if self.replay else ("warm",)
        return [(0, "cold"), *((number, phase) for phase in phases for number in warm)]


@dataclass(slots=True)
class Output:
    """What one step wrote, with the instants of its tokens: one line of outputs.jsonl."""

    round: int
    attempt: int
    step: str
    agent: str
    task: str
    status: str
    text: str
    prompt_ids: list[list[int]]
    output_ids: list[list[int]]
    token_at_s: list[list[float]]

    @property
    def calls(self) -> list[tuple[list[int], list[int]]]:
        """Prompt ids and output ids of each call."""
        return list(zip(self.prompt_ids, self.output_ids, strict=True))


@dataclass(slots=True)
class Records:
    """All that a trial's rounds left behind. `pids` are the processes that hold a worker's model, by the
    worker's pid; `facts` what a worker said of its start, by "attempt/worker/life"; `restarts` how many
    workers were started again after they had died."""

    agents: list[AgentRow] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    rounds: list[RoundRow] = field(default_factory=list)
    ooms: list[OomRow] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    replays: list[AgentRow] = field(default_factory=list)
    servers: list[ServerRow] = field(default_factory=list)
    pids: dict[int, tuple[int, ...]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    restarts: int = 0

    @property
    def status(self) -> Status:
        """The last attempt's: what was tried before it is recorded, and was not the end."""
        last = max((r.attempt for r in self.rounds), default=0)
        return Status.worst(r.status for r in self.rounds if r.attempt == last)


@dataclass(slots=True)
class _Life:
    """One life of a worker, from being asked for to being seen gone."""

    worker: Worker
    number: int
    handle: Handle
    devices: tuple[Device, ...]
    state: str = "starting"  # starting | ready | stopping | gone
    stage: str = "spawn"
    stage_since_s: float = 0.0
    stages: Stages | None = None
    failure: Failure | None = None
    was_ready: bool = False
    running: dict[str, float] = field(default_factory=dict)  # step, "(load)", "(stop)", "(end)" -> deadline
    stop_asked_s: float | None = None
    gone_s: float | None = None
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    turn: int = 0  # the round in which it was started or ended, counted from 0 over all phases
    before: _Life | None = None  # the life whose death it makes good
    restarts: int = 0  # how many deaths of its worker came before it

    @property
    def piece(self) -> str:
        return f"worker {self.worker.name}/{self.number}"

    def took(self, ended_s: float) -> dict[str, float]:
        """Seconds per stage from being asked for to ready, failed or, at `ended_s`, gone."""
        known = self.stages
        if known is None:
            return {"spawn": ended_s - self.handle.asked_s}
        took = {"spawn": known.began_s - self.handle.asked_s}
        if known.ended_s is None:
            if self.stage != "import":
                took["import"] = self.stage_since_s - known.began_s
            return {**took, self.stage: ended_s - self.stage_since_s}
        return took | {s: getattr(known, f"{s}_s") or 0.0 for s in ("import", "context", "load", "compile")}

    @property
    def has_room(self) -> bool:
        listens = self.state == "ready" and not self.handle.conn.closed
        return listens and len(self.running) < self.worker.concurrency

    @property
    def deadline_s(self) -> float | None:
        """The next instant at which this worker is overdue, or None."""
        return min(self.running.values(), default=None)


@dataclass(slots=True)
class _StepState:
    step: Step
    queued_s: float | None = None
    life: _Life | None = None
    result: StepResult | None = None
    status: Status | None = None
    error: str = ""
    reruns: int = 0
    lost_tokens: int | None = 0


def execute(attempts: Iterable[Deployment], bench: Bench, only: int | None = None) -> Records:
    """Run the attempts in order until one has no out-of-memory in any of its rounds; or that number `only`,
    as it would run among the others."""
    records = Records()
    todo = list(attempts)
    for number, deployment in enumerate(todo, 1):
        if only not in (None, number):
            continue
        attempt = _Attempt(number, deployment, bench, records, more_follow=number < len(todo))
        if any(attempt.run_round(*which) for which in bench.rounds):
            attempt.record_workers()
            continue
        attempt.stop_all()
        attempt.record_workers()
        break
    return records


def log_line(at_s: float, attempt: int, number: int, text: str) -> str:
    """A line of the trial's log, `at_s` seconds from the trial's zero. A worker's message can be anything."""
    return f"[{at_s:8.3f}] attempt {attempt} round {number}: {inert.excerpt(text, 2000)}"


def rehearse(deployment: Deployment, bench: Bench) -> Status:
    """Start the deployment's first worker alone, have it do one of its steps and stop it, as attempt 0, which
    no record keeps: what a start leaves behind on disk, the next ones find. Returns how it went."""
    worker = deployment.workers[0]
    step = next(s for s in deployment.steps if worker.name in s.workers)
    alone = Deployment((worker,), (replace(step, worker=worker.name, after=()),))
    records = Records()
    attempt = _Attempt(0, alone, bench, records, more_follow=False)
    attempt.run_round(0, "cold")
    attempt.stop_all()
    bench.memory_free()
    return records.status


class _Attempt:
    """One Deployment being run. `more_follow`: an out-of-memory cancels the rest of it."""

    def __init__(
        self, number: int, deployment: Deployment, bench: Bench, records: Records, more_follow: bool
    ) -> None:
        self.number = number
        self.deployment = deployment
        self.bench = bench
        self.records = records
        self.more_follow = more_follow
        self.lives: list[_Life] = []
        self.states: dict[str, _StepState] = {}
        self.round = 0
        self.phase = "cold"
        self.turn = -1
        self.calls: dict[str, tuple[Call, ...]] = {}
        self.round_start_s = 0.0
        self.cancelled_s: float | None = None

    # ---- a round

    def run_round(self, number: int, phase: str) -> bool:
        """Run every step once. Returns whether the attempt ran out of memory and another one follows."""
        if self.phase != "replay":
            self.calls = {n: s.result.calls for n, s in self.states.items() if s.status is Status.OK}
        self.round, self.phase, self.turn = number, phase, self.turn + 1
        self.states = {s.name: _StepState(s) for s in self.deployment.steps}
        self.round_start_s = time.monotonic()
        if phase == "cold" and self.deployment.lifetime == "trial":
            for worker in self.deployment.workers:
                self._start(worker)
        while True:
            self._advance()
            if all(s.status is not None for s in self.states.values()) and not self._between_states:
                break
            self._wait_for_events()
            if self._give_up:
                self._cancel()
                break
        self._record_round()
        return self._give_up

    @property
    def _give_up(self) -> bool:
        """Whether an out-of-memory ends this attempt for the next one."""
        return self.more_follow and self.phase != "replay" and self._out_of_memory

    @property
    def _renewing(self) -> bool:
        """Whether each step of this round gets a worker of its own."""
        return self.round == 0 and self.deployment.lifetime == "step"

    @property
    def _between_states(self) -> bool:
        """Whether a worker still starts or stops: no round ends before, and the next one starts warm."""
        return any(life.state in ("starting", "stopping") for life in self.lives)

    @property
    def _out_of_memory(self) -> bool:
        return any(s.status is Status.OOM for s in self.states.values()) or any(
            life.failure is not None and life.failure.status is Status.OOM for life in self.lives
        )

    def _advance(self) -> None:
        """Queue the steps whose contexts are there, and give queued ones to free workers."""
        now = time.monotonic()
        for state in self.states.values():
            if state.status is not None or state.life is not None:
                continue
            before = [self.states[name] for name in state.step.after]
            if any(b.status not in (None, Status.OK) for b in before):
                failed = next(b.step.name for b in before if b.status not in (None, Status.OK))
                state.status, state.error = Status.SKIPPED, f"step {failed!r} before it did not succeed"
                continue
            if any(b.status is None for b in before):
                continue
            if state.queued_s is None:
                state.queued_s = now if before else self.round_start_s
            self._place(state)

    def _place(self, state: _StepState) -> None:
        """Give a queued step to the least busy of its workers with room; fail it if none will have any."""
        if self.phase == "replay" and not self.calls.get(state.step.name):
            state.status, state.error = (
                Status.SKIPPED,
                "it made no call in the round before that can be repeated",
            )
            return
        lives = [self._life(name) for name in state.step.workers]
        if self._renewing:
            live = lives[0]
            if live is None or live.state == "gone":
                self._start(self.deployment.worker(state.step.workers[0]), for_step=state)
            return
        free = [life for life in lives if life is not None and life.has_room]
        if free:
            self._send(min(free, key=lambda life: len(life.running)), state)
        elif all(life is None or life.state == "gone" for life in lives):
            self._fail_without_worker(state, lives[0])

    def _send(self, life: _Life, state: _StepState) -> None:
        step = state.step
        context = tuple(
            (
                self.bench.agents[before.step.agent],
                self.bench.tasks[before.step.task],
                before.result.text,
            )
            for before in (self.states[name] for name in step.after)
        )
        calls = self.calls[step.name] if self.phase == "replay" else ()
        order = StepOrder(
            step.name, self.bench.agents[step.agent], self.bench.tasks[step.task], context, calls
        )
        state.life = life
        life.running[step.name] = time.monotonic() + self.bench.step_timeout_s + GRACE_S
        life.handle.send(("step", order))

    def _fail_without_worker(self, state: _StepState, life: _Life | None) -> None:
        """The step's worker is gone. In the round in which it went, its fate is the step's."""
        state.life = life
        if life is not None and life.failure is not None and life.turn == self.turn:
            state.status, state.error = life.failure.status, life.failure.error
        else:
            state.status, state.error = Status.SKIPPED, "its worker is gone since an earlier round"

    # ---- workers

    def _life(self, name: str) -> _Life | None:
        return next((x for x in reversed(self.lives) if x.worker.name == name), None)

    def _start(self, worker: Worker, for_step: _StepState | None = None) -> _Life:
        number = sum(1 for x in self.lives if x.worker.name == worker.name)
        devices = tuple(self.bench.devices[i] for i in worker.devices)
        handle = self.bench.start(worker, devices, number, self.number)
        life = _Life(worker, number, handle, devices, turn=self.turn)
        life.running["(load)"] = handle.asked_s + self.bench.load_timeout_s + GRACE_S
        self.lives.append(life)
        if for_step is not None:
            for_step.life = life
        return life

    def _wait_for_events(self) -> None:
        """Block until a worker says something, ends, or is overdue; then take it in."""
        living = [x for x in self.lives if x.state != "gone"]
        if not living:
            return
        sources: dict[Any, _Life] = {}
        for life in living:
            sources[life.handle.pidfd] = life
            if not life.handle.conn.closed:
                sources[life.handle.conn] = life
        deadlines = [d for life in living if (d := life.deadline_s) is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        ready = wait(list(sources), timeout)
        for source in sorted(ready, key=lambda s: isinstance(s, int)):  # words before deaths
            life = sources[source]
            if life.state == "gone":
                continue
            if isinstance(source, int):
                self._drain(life)
                self._gone(life)
            else:
                self._hear(life)
        now = time.monotonic()
        for life in living:
            deadline = life.deadline_s
            if life.state != "gone" and deadline is not None and deadline <= now:
                life.failure = life.failure or self._overdue(life)
                self._kill(life)

    def _kill(self, life: _Life) -> None:
        """Kill a worker, and again if it is still there after GRACE_S."""
        life.handle.kill()
        life.running = dict.fromkeys(life.running or ("(end)",), time.monotonic() + GRACE_S)

    def _overdue(self, life: _Life) -> Failure:
        name = life.worker.name
        if "(end)" in life.running:
            return Failure(Status.ERROR, f"worker {name} closed its connection and did not end; killed")
        what = {"starting": "loading", "stopping": "stopping"}.get(life.state, "its steps")
        return Failure(Status.TIMEOUT, f"worker {name} overran {what}; killed")

    def _drain(self, life: _Life) -> None:
        while not life.handle.conn.closed and life.handle.conn.poll(0):
            if not self._hear(life):
                return

    def _hear(self, life: _Life) -> bool:
        """Take in one message; False when the worker's end is closed, also in the midst of a message.

        Without a connection a worker is of no use: it ends by itself in a moment, or is ended.
        """
        try:
            message = life.handle.conn.recv()
        except (EOFError, OSError):
            life.handle.conn.close()
            life.running["(end)"] = time.monotonic() + GRACE_S
            return False
        getattr(self, f"_on_{message[0]}")(life, *message[1:])
        return True

    def _on_pid(self, life: _Life, pid: int) -> None:
        life.handle.pid = pid

    def _on_stage(self, life: _Life, stage: str, at_s: float) -> None:
        life.stage, life.stage_since_s = stage, at_s
        if life.stages is None:
            life.stages = Stages(began_s=at_s)
        self._say(f"{life.worker.name} (pid {life.handle.pid}): {stage}")

    def _on_ready(self, life: _Life, stages: Stages) -> None:
        life.stages, life.state, life.stage, life.was_ready = stages, "ready", "ready", True
        if stages.pids:
            self.records.pids[life.handle.pid] = stages.pids
        life.running.pop("(load)")
        self._say(f"{life.worker.name} (pid {life.handle.pid}): ready")
        if self._renewing:
            mine = next(s for s in self.states.values() if s.life is life)
            self._send(life, mine)

    def _on_failed(self, life: _Life, stages: Stages, failure: Failure) -> None:
        life.stages, life.failure = stages, failure
        self._record_oom(life, "", failure.oom)
        self._say(f"{life.worker.name} (pid {life.handle.pid}): {failure.status}: {failure.error}")

    def _on_done(self, life: _Life, result: StepResult) -> None:
        life.running.pop(result.step)
        state = self.states[result.step]
        state.result, state.status, state.error = result, result.status, result.error
        self._record_oom(life, result.step, result.oom)
        self._say(f"{life.worker.name}: {result.step} {result.status}")
        if self._renewing and any(s.status is None for s in self.states.values()):
            self._ask_to_stop(life)

    def _on_stopped(
        self, life: _Life, peaks: dict[str, dict[str, float]], samples: list[dict[str, float]]
    ) -> None:
        life.peaks = peaks
        for sample in samples:
            at = self._at(sample.pop("t_s"))
            self.records.servers.append(
                ServerRow(
                    t_at_s=at, worker=life.worker.name, worker_life=life.number, attempt=self.number, **sample
                )
            )

    def _gone(self, life: _Life) -> None:
        """A worker's process has ended: it lives again, and with it its unfinished steps, or they end."""
        life.gone_s = time.monotonic()
        how = life.handle.end()
        died = life.state != "stopping" and life.failure is None
        if died:
            doing = "ran" if life.state == "ready" else f"was at stage {life.stage!r}"
            life.failure = Failure(Status.ERROR, f"worker {life.worker.name} {how} while it {doing}")
            self._say(life.failure.error)
        life.state = "gone"
        life.running.clear()
        life.turn = self.turn
        unfinished = [s for s in self.states.values() if s.life is life and s.status is None]
        for state in unfinished:
            made = life.handle.made() if life.was_ready else 0
            known = made is not None and state.lost_tokens is not None
            state.lost_tokens = state.lost_tokens + made if known else None
        if died and life.restarts < life.handle.restarts:
            self._start_again(life, unfinished)
        elif life.failure is not None:
            for state in unfinished:
                state.status, state.error = life.failure.status, life.failure.error

    def _start_again(self, dead: _Life, unfinished: list[_StepState]) -> None:
        """Another life for a worker that died; the steps that it had not finished are queued again."""
        life = self._start(dead.worker)
        life.before, life.restarts = dead, dead.restarts + 1
        self.records.restarts += 1
        for state in unfinished:
            state.reruns += 1
            # A renewed worker runs the step that it was started for; others take what is queued.
            state.life = life if self._renewing else None

    def _ask_to_stop(self, life: _Life) -> None:
        life.stop_asked_s = time.monotonic()
        life.state = "stopping"
        life.running = {"(stop)": life.stop_asked_s + GRACE_S}
        life.handle.send(("stop",))

    def stop_all(self) -> None:
        """Stop the workers that still live and wait until they are gone."""
        for life in self.lives:
            if life.state in ("ready", "starting"):
                self._ask_to_stop(life)
        while any(life.state != "gone" for life in self.lives):
            self._wait_for_events()

    def _cancel(self) -> None:
        """End the attempt now: kill its workers, cancel its steps, wait for the memory."""
        self.cancelled_s = time.monotonic()
        for life in self.lives:
            if life.state != "gone":
                if life.failure is None:
                    life.failure = Failure(Status.CANCELLED, "another worker ran out of memory")
                life.stop_asked_s = self.cancelled_s
                self._kill(life)
        while any(life.state != "gone" for life in self.lives):
            self._wait_for_events()
        for state in self.states.values():
            if state.status is None:
                state.life = state.life or self._life(state.step.workers[0])
                fate = state.life.failure if state.life else None
                state.status = fate.status if fate else Status.CANCELLED
                state.error = fate.error if fate else "the attempt ended before it could start"
        self.bench.memory_free()

    # ---- records

    def _say(self, text: str) -> None:
        """A progress line in the trial's log."""
        at_s = time.monotonic() - self.bench.zero_s
        print(log_line(at_s, self.number, self.round, text), file=sys.stderr, flush=True)

    def _at(self, instant_s: float | None) -> float | None:
        return None if instant_s is None else instant_s - self.bench.zero_s

    def _record_oom(self, life: _Life, step: str, met: dict[str, Any] | None) -> None:
        """One row for an out-of-memory that a worker met in a step, or, with none, while it loaded."""
        if met is None:
            return
        oom = OutOfMemory.from_dict(met)
        pid = life.handle.pid
        ballasts = {held: "ballast" for held, _ in self.bench.ballast.values()}
        workers = {x.handle.pid: x.worker.name for x in self.lives if x.state != "gone"}
        _, ballast_mib = self.bench.ballast.get(oom.device_uuid, (None, None if oom.simulated else 0.0))
        self.records.ooms.append(
            OomRow(
                round=self.round,
                phase=self.phase,
                attempt=self.number,
                worker=life.worker.name,
                worker_life=life.number,
                step=step,
                pid=pid,
                device_uuid=oom.device_uuid,
                oom_phase=oom.phase,
                requested_mib=oom.requested_mib,
                free_mib=oom.free_mib,
                reserved_mib=oom.reserved_mib,
                others_mib=oom.others_mib(pid, aside=ballasts),
                ballast_mib=ballast_mib,
                holders=json.dumps(oom.to_dict()["holders"]),
                held_by=oom.held_by(workers | ballasts),
                simulated=oom.simulated,
            )
        )

    def _record_round(self) -> None:
        if self.phase == "replay":
            self.records.replays += map(self._agent_row, self.states.values())
            return
        cancelled = self.cancelled_s is not None
        ends = [s.result.ended_s for s in self.states.values() if s.result is not None]
        if any(s.result is None and s.status is not Status.SKIPPED for s in self.states.values()):
            # A worker's death after the last step is still part of the round that waited for it.
            ends += [x.gone_s for x in self.lives if x.gone_s is not None and x.turn == self.turn]
        end = max(ends) if ends and not cancelled else time.monotonic()
        parts = critical_path.stages(self._pieces(end if cancelled else None), self.round_start_s, end)
        devices = {d.uuid for life in self.lives for d in life.devices}
        self.records.rounds.append(
            RoundRow(
                round=self.round,
                phase=self.phase,
                attempt=self.number,
                gpus_used=len(devices),
                started_at_s=self._at(self.round_start_s),
                ended_at_s=self._at(end),
                makespan_s=end - self.round_start_s,
                status=Status.worst(s.status for s in self.states.values()),
                **{f"{stage}_s": parts[stage] for stage in STAGES},
            )
        )
        for state in self.states.values():
            self.records.agents.append(self._agent_row(state))
            if state.result is not None:
                self.records.outputs.append(self._output(state))

    def _pieces(self, cancelled_s: float | None) -> list[Piece]:
        """This round's steps and worker lives as the pieces of its critical path."""
        pieces = []
        before: tuple[str, ...] = ()
        for life in self.lives:
            if life.turn != self.turn and life.handle.asked_s < self.round_start_s:
                continue
            ran = [s.result for s in self.states.values() if s.life is life and s.result is not None]
            seen = [self.round_start_s, *(result.ended_s for result in ran)]
            if life.handle.asked_s >= self.round_start_s:
                known = life.stages
                ended = (known and known.ended_s) or life.stop_asked_s or life.gone_s
                if ended is not None:
                    # Workers are asked for one after another: until its turn, a worker is being spawned.
                    took = life.took(ended)
                    after = before if life.before is None else (f"end {life.before.piece}",)
                    pieces.append(Piece(life.piece, life.handle.asked_s, ended, took, after, wait="spawn"))
                    seen.append(ended)
            if life.gone_s is None or cancelled_s is not None:
                continue
            if life.stop_asked_s is not None:
                begun, stage = life.stop_asked_s, {"stop": life.gone_s - life.stop_asked_s}
            else:  # it ended by itself, and nothing explains the time since it was last heard
                begun, stage = max(seen), {}
                if any(x.before is life for x in self.lives):  # but that its steps wait for another life
                    stage = {"queue": life.gone_s - begun}
            after = (*(result.step for result in ran), life.piece)
            pieces.append(Piece(f"end {life.piece}", begun, life.gone_s, stage, after))
            if self._renewing:
                before = (pieces[-1].name,)
        if cancelled_s is not None:
            begun = self.cancelled_s
            stop = {"stop": cancelled_s - begun}
            culprits = (x.piece for x in self.lives if x.failure and x.failure.status is Status.OOM)
            steps = (s.step.name for s in self.states.values() if s.status is Status.OOM)
            # From the out-of-memory itself: until it is heard of, the attempt is being stopped.
            pieces.append(Piece("cancel", begun, cancelled_s, stop, (*culprits, *steps), wait="stop"))
        for state in self.states.values():
            result = state.result
            if result is None or state.life is None:
                continue
            engine_s = result.prefill_s + result.decode_s
            siblings = (s.step.name for s in self.states.values() if s.life is state.life and s is not state)
            pieces.append(
                Piece(
                    state.step.name,
                    result.started_s,
                    result.ended_s,
                    {
                        "prefill": result.prefill_s,
                        "decode": result.decode_s,
                        "framework": result.ended_s - result.started_s - engine_s,
                    },
                    (*state.step.after, *siblings, state.life.piece),
                    wait="queue",
                )
            )
        return pieces

    def _agent_row(self, state: _StepState) -> AgentRow:
        result, life = state.result, state.life
        row = AgentRow(
            round=self.round,
            phase=self.phase,
            attempt=self.number,
            step=state.step.name,
            agent=self.bench.agents[state.step.agent].name,
            worker=life.worker.name if life else state.step.workers[0],
            worker_life=life.number if life else 0,
            status=state.status,
            reruns=state.reruns,
            lost_tokens=state.lost_tokens,
            queued_at_s=self._at(state.queued_s),
            error=state.error,
        )
        if result is not None:
            row.started_at_s = self._at(result.started_s)
            row.ended_at_s = self._at(result.ended_s)
            row.queue_s = result.started_s - state.queued_s
            row.prefill_s = result.prefill_s
            row.decode_s = result.decode_s
            row.framework_s = result.ended_s - result.started_s - result.prefill_s - result.decode_s
            if result.first_token_s is not None:
                row.ttft_s = result.first_token_s - state.queued_s
            row.prompt_tokens = result.prompt_tokens
            row.output_tokens = result.output_tokens
            row.llm_calls = result.llm_calls
        return row

    def _output(self, state: _StepState) -> Output:
        result = state.result
        return Output(
            round=self.round,
            attempt=self.number,
            step=state.step.name,
            agent=self.bench.agents[state.step.agent].name,
            task=state.step.task,
            status=state.status,
            text=result.text,
            prompt_ids=result.prompt_ids,
            output_ids=result.output_ids,
            token_at_s=[[self._at(t) for t in call] for call in result.token_s],
        )

    def record_workers(self) -> None:
        """One row per life and device, once the attempt is over."""
        for life in self.lives:
            known = life.stages
            if known is not None and known.facts:
                self.records.facts[f"{self.number}/{life.worker.name}/{life.number}"] = known.facts
            for device in life.devices:
                peaks = life.peaks.get(device.uuid, {})
                row = WorkerRow(
                    worker=life.worker.name,
                    worker_life=life.number,
                    attempt=self.number,
                    runner=life.worker.runner,
                    pid=life.handle.pid,
                    device_uuid=device.uuid,
                    device_index=device.index,
                    spawned_at_s=self._at(life.handle.asked_s),
                    stopped_at_s=self._at(life.gone_s),
                    allocated_peak_mib=peaks.get("allocated_peak_mib"),
                    reserved_peak_mib=peaks.get("reserved_peak_mib"),
                    status=life.failure.status if life.failure else Status.OK,
                    error=life.failure.error if life.failure else "",
                )
                if known is not None:
                    row.spawn_s = known.began_s - life.handle.asked_s
                    for name in ("import", "context", "load", "read", "copy", "compile"):
                        setattr(row, f"{name}_s", getattr(known, f"{name}_s"))
                    row.cached_share = known.cached_share
                    row.ready_at_s = self._at(known.ended_s) if life.was_ready else None
                    if life.was_ready and life.before is not None:
                        row.recovery_s = known.ended_s - life.before.gone_s
                if life.stop_asked_s is not None and life.gone_s is not None:
                    row.stop_s = life.gone_s - life.stop_asked_s
                self.records.workers.append(row)
