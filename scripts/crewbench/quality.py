"""Does an engine compute what the checkpoint says? What is checked, the formulas and the judgement.

An engine answers a few of the crew's prompts greedily, on the path that it always takes. Then the same
checkpoint in float32 is led along the ids that the engine chose, in one forward without a cache, and so is a
plain forward in the engine's own type: what that type alone costs. Pure functions on plain data, and light
to import; observation.py does the measuring.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crewbench import inert
from crewbench.records import Status, canonical_json
from crewbench.trial import AgentSpec, TaskSpec

if TYPE_CHECKING:
    import numpy as np

    from crewbench.engines import Observed

RECORD = "quality.json"
PROMPTS = 3
TOKENS = 32
TIMES = 2.0
"""How many times the error of a plain forward in its own type an engine's may be: a bit of the mantissa more.
Faithful engines came to 0.8 to 1.2 times; docs/method.md has what wrong ones come to."""

FLOOR = 1e-4
"""An error that is never held against an engine, in standard deviations of the logits: float32 sums in
another order differ by 1e-6 to 1e-5 of them, TF32 by 1e-3 and more."""

SLOT_MIB = 1024.0
"""A CPU slot's budget while a check runs: nothing is charged to it."""

Messages = tuple[dict[str, str], ...]


class Agreement(StrEnum):
    """What is said of an engine beside its speed."""

    AGREES = "agrees"
    DIFFERS = "differs"
    NOT_OBSERVABLE = "not observable"
    NOT_MEASURED = "not measured"

    @property
    def words(self) -> str:
        """ "agrees with float32", for a sentence about an engine."""
        return {
            Agreement.AGREES: "agrees with float32",
            Agreement.DIFFERS: "differs from float32",
            Agreement.NOT_OBSERVABLE: "agreement with float32 not observable",
            Agreement.NOT_MEASURED: "agreement with float32 not measured",
        }[self]

    @property
    def beside(self) -> str:
        """ " (agrees)", to stand behind an engine's name. Nothing where nothing is known: "(not measured)"
        behind a name reads as if the engine had not run."""
        return f" ({self})" if self in (Agreement.AGREES, Agreement.DIFFERS) else ""

    @classmethod
    def worst(cls, found: Iterable[Agreement | str]) -> Agreement:
        """The one that a reader must know first; not measured where there is none."""
        rank = [cls.DIFFERS, cls.NOT_MEASURED, cls.NOT_OBSERVABLE, cls.AGREES]
        return min((cls(a) for a in found), key=rank.index, default=cls.NOT_MEASURED)


# What is checked ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """Everything that one check reads: what is in here measures it again when it changes. `options` are the
    engine's own, `devices` how many one copy is spread over."""

    engine: str
    options: dict[str, Any]
    devices: int
    model_dir: str
    dtype: str
    device_kind: str  # "gpu" | "slot"
    exclusive: bool
    threads: int
    load_timeout_s: float
    step_timeout_s: float
    conversations: tuple[Messages, ...]
    tokens: int = TOKENS

    @property
    def check_id(self) -> str:
        """Engine, devices of a copy, and the options that are set: `compiled__d1__cache_tokens-512`."""
        said = [f"{name}-{value}".lower() for name, value in sorted(self.options.items())]
        return "__".join([self.engine, f"d{self.devices}", *said])

    @property
    def spec8(self) -> str:
        """Eight hex digits of the SHA-256 of this Check's canonical JSON."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:8]

    @property
    def place(self) -> str:
        """Where its record lies, below the results."""
        return f"quality/{self.check_id}/{self.spec8}"


def conversations(
    agents: Sequence[AgentSpec], task: TaskSpec, inputs: Mapping[str, str], seed: int
) -> tuple[Messages, ...]:
    """What PROMPTS of the agents, drawn by the seed, are told first, in their own and the task's words."""

    def drawn(agent: AgentSpec) -> str:
        return hashlib.sha256(f"{seed}:{agent.name}".encode()).hexdigest()

    def filled(text: str) -> str:
        for name, value in inputs.items():
            text = text.replace("{" + name + "}", value)
        return text

    return tuple(
        (
            {
                "role": "system",
                "content": filled(f"You are {a.role}. {a.backstory}\nYour personal goal is: {a.goal}"),
            },
            {"role": "user", "content": filled(f"{task.description}\n\n{task.expected_output}")},
        )
        for a in sorted(agents, key=drawn)[:PROMPTS]
    )


# The numbers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Numbers:
    """How far an engine is from float32 on the same ids. `logit_std` is the standard deviation of all float32
    logits here, in nats, and the unit of every error; None: not observable.

    `logit_error`: root mean square over the vocabulary, of the worst token. `logit_max`, `logit_mean`: of the
    absolute error over all tokens and the vocabulary. `logprob_error`: root mean square of the error of the
    chosen ids' log probabilities, of the worst prompt. `plain_*`: the same of the plain forward.
    `gap`: by how much a chosen id's float32 logit is below the best one, at worst; `own_gap`: the same in the
    engine's own logits. `top1_share`: tokens whose id is float32's best. `broken_tokens`: tokens with a logit
    that is no number.
    """

    prompts: int
    tokens: int
    logit_std: float
    gap: float
    top1_share: float
    logit_error: float | None
    logit_max: float | None
    logit_mean: float | None
    logprob_error: float | None
    plain_logit_error: float | None
    plain_logit_max: float | None
    plain_logprob_error: float | None
    own_gap: float | None = None
    broken_tokens: int = 0


def compare(seen: Sequence[Observed], plain: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> Numbers:
    """An engine's answers against logits (tokens × vocabulary, a prompt each) along the same ids: those of a
    plain forward in the engine's type, and of one in float32. ValueError where their shapes do not fit."""
    import numpy as np  # the Snakefile imports this module

    chosen = [np.asarray(o.output_ids) for o in seen]
    for ids, *sides in zip(chosen, plain, exact, strict=True):
        if not len(ids) or any(len(side) != len(ids) for side in sides):
            raise ValueError(f"{len(ids)} ids against {[len(side) for side in sides]} tokens' logits")
    all_exact = np.concatenate(exact)
    std = float(np.std(all_exact[np.isfinite(all_exact)], dtype=np.float64))
    ids = np.concatenate(chosen)

    def gap(sides: Sequence[np.ndarray]) -> float:
        below = (s.max(axis=1) - _at(s, ids) for s, ids in zip(sides, chosen, strict=True))
        return max(float(b.max()) for b in below) / std

    def logprobs(sides: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [_at(s, ids) - _log_sum_exp(s) for s, ids in zip(sides, chosen, strict=True)]

    def logprob_error(theirs: Iterable[np.ndarray]) -> float | None:
        off = (a - b for a, b in zip(theirs, logprobs(exact), strict=True))
        worst = max(float(np.sqrt(np.mean(np.square(o)))) / std for o in off)
        return worst if np.isfinite(worst) else None

    full = [o.logits for o in seen]
    broken, error, largest, mean, own, theirs = 0, None, None, None, None, None
    if all(logits is not None for logits in full):
        error, largest, mean, broken = _errors(full, exact, std)
        own, theirs = None if broken else gap(full), logprobs(full)
    elif all(o.logprobs is not None for o in seen):
        theirs = [np.asarray(o.logprobs) for o in seen]
        broken = sum(int((~np.isfinite(t)).sum()) for t in theirs)
    plain_error, plain_max, _, _ = _errors(plain, exact, std)
    return Numbers(
        prompts=len(seen),
        tokens=len(ids),
        logit_std=std,
        gap=gap(exact),
        top1_share=float(np.mean(np.concatenate([e.argmax(axis=1) for e in exact]) == ids)),
        logit_error=error,
        logit_max=largest,
        logit_mean=mean,
        logprob_error=None if theirs is None else logprob_error(theirs),
        plain_logit_error=plain_error,
        plain_logit_max=plain_max,
        plain_logprob_error=logprob_error(logprobs(plain)),
        own_gap=own,
        broken_tokens=broken,
    )


def _errors(
    sides: Sequence[np.ndarray], exact: Sequence[np.ndarray], std: float
) -> tuple[float | None, float | None, float | None, int]:
    """logit_error, logit_max, logit_mean (None where no token is whole) and broken_tokens."""
    import numpy as np

    ours, theirs = np.concatenate(sides), np.concatenate(exact)
    with np.errstate(invalid="ignore"):
        # An id that a model rules out is minus infinity on both sides.
        off = np.where(ours == theirs, 0.0, np.abs(ours - theirs)) / std
    whole = np.isfinite(off).all(axis=1)
    off, broken = off[whole], int((~whole).sum())
    if not len(off):
        return None, None, None, broken
    rows = np.sqrt(np.mean(np.square(off), axis=1))
    return float(rows.max()), float(off.max()), float(off.mean()), broken


def _at(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    import numpy as np

    return logits[np.arange(len(ids)), ids].astype(np.float64)


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """log Σ exp over the vocabulary, shifted by the largest logit so that nothing overflows."""
    import numpy as np

    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    return np.log(np.exp(wide - top).sum(axis=1)) + top[:, 0]


# The judgement -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """`times` is the engine's error over that of the plain forward in its type, where both are known."""

    agreement: Agreement
    times: float | None = None
    reason: str = ""


def judge(record: Mapping[str, Any], times: float = TIMES) -> Judgement:
    """What a check's record says of its engine; `times` as the config's thresholds.logit_error.

    Judged is what can be seen of: the logits' error, else the log probabilities', against max(times · that of
    the plain forward, FLOOR); and the ids: the best of the engine's own logits, and where those are at most d
    off, no more than 2 d below float32's best, because one is d too high and the other d too low at most.
    """
    if record["status"] != Status.OK:
        return Judgement(Agreement.NOT_MEASURED, reason=record["error"])
    if record["unseen"]:
        return Judgement(Agreement.NOT_OBSERVABLE, reason=record["unseen"])
    n = Numbers(**record["numbers"])
    logits = n.logit_error is not None
    what, error, plain = (
        ("logits", n.logit_error, n.plain_logit_error)
        if logits
        else ("log probabilities", n.logprob_error, n.plain_logprob_error)
    )
    if n.broken_tokens:
        return Judgement(
            Agreement.DIFFERS, reason=f"{n.broken_tokens} of {n.tokens} tokens had logits that are no numbers"
        )
    if error is None:
        return Judgement(Agreement.NOT_OBSERVABLE, reason="it showed neither logits nor log probabilities")
    type_ = record["check"]["dtype"]
    if plain is None:
        return Judgement(
            Agreement.NOT_MEASURED, reason=f"a plain forward in {type_} has logits that are no numbers"
        )
    ratio = error / plain if plain else None
    said = f"{ratio:.3g} × " if ratio is not None else ""
    if not error <= max(times * plain, FLOOR):
        reason = f"its {what} are off by {error:.2g} standard deviations, {said}what {type_} alone costs"
        return Judgement(Agreement.DIFFERS, ratio, reason)
    if n.own_gap is not None and not n.own_gap <= FLOOR:
        reason = f"it chose an id whose logit is {n.own_gap:.2g} standard deviations below its own best"
        return Judgement(Agreement.DIFFERS, ratio, reason)
    if not n.gap <= 2 * max(times * n.plain_logit_max, FLOOR):
        reason = f"it chose an id whose logit is {n.gap:.2g} standard deviations below float32's best"
        return Judgement(Agreement.DIFFERS, ratio, reason)
    return Judgement(Agreement.AGREES, ratio)


def words(record: Mapping[str, Any], times: float = TIMES) -> str:
    """One line for a log: the judgement and the numbers that it rests on."""
    found = judge(record, times)
    line = f"{record['check_id']}: {found.agreement}" + (
        f" ({inert.excerpt(found.reason, 500)})" if found.reason else ""
    )
    if record["numbers"] is None:
        return line
    n = Numbers(**record["numbers"])
    return (
        f"{line}; {n.prompts} prompts, {n.tokens} tokens, in standard deviations of the logits: "
        f"logits {_shown(n.logit_error)} off (plain {record['check']['dtype']}: "
        f"{_shown(n.plain_logit_error)}), log probabilities {_shown(n.logprob_error)} "
        f"({_shown(n.plain_logprob_error)}), worst id {_shown(n.gap)} below the best; "
        f"{100 * n.top1_share:.0f} % of the ids are float32's"
    )


def _shown(value: float | None) -> str:
    return Agreement.NOT_OBSERVABLE if value is None else f"{value:.2g}"


# The record --------------------------------------------------------------------------------------

KEYS = ("check_id", "spec8", "check", "status", "error", "unseen", "numbers", "host", "device_name")


def write(record: Mapping[str, Any], directory: Path) -> None:
    """Leave a record in a check's directory, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f"{RECORD}.new"
    with new.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(directory / RECORD)


def read(directory: Path) -> dict[str, Any] | None:
    """The record in a check's directory; None where there is none. ValueError for one that is not whole."""
    try:
        record = json.loads((directory / RECORD).read_bytes())
    except FileNotFoundError:
        return None
    if lacking := [key for key in KEYS if key not in record]:
        raise ValueError(f"lacks {', '.join(lacking)}")
    return record


def rows(lines: Iterable[Mapping[str, Any]], times: float = TIMES) -> list[dict[str, Any]]:
    """The checks that a manifest lists, a row each with its judgement: not measured where none was made.
    ValueError, with the remedy, for a record that cannot be read or is of another check."""
    found = []
    for line in lines:
        here = Path(line["dir"])
        try:
            record = read(here)
            if record is not None and record["spec8"] != line["spec8"]:
                raise ValueError(f"its spec8 is {record['spec8']!r}, the manifest's {line['spec8']!r}")
        except ValueError as error:
            raise ValueError(f"{here / RECORD}: {error}; delete {here} and run again") from None
        judged = Judgement(Agreement.NOT_MEASURED, reason="the check was not made")
        if record is not None:
            judged = judge(record, times)
        found.append(
            {
                **{name: line[name] for name in ("check_id", "engine", "devices", "dtype")},
                "options": canonical_json(line["options"]),
                "host": (record or {}).get("host", ""),
                "device_name": (record or {}).get("device_name", ""),
                "agreement": str(judged.agreement),
                "times_plain": judged.times,
                "reason": inert.excerpt(judged.reason, 500),
                **((record or {}).get("numbers") or {}),
            }
        )
    return found


COLUMNS = (
    *("check_id", "engine", "options", "devices", "dtype", "host", "device_name", "agreement", "times_plain"),
    *("reason", *(f.name for f in fields(Numbers))),
)
"""Of the table `quality`."""
