"""What figures and report show of single trials: their samples over time, and what the agents said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from crewbench import cells, inert
from crewbench.tables.reading import IDENTITY, OUTPUTS

EXCERPT_CHARACTERS = 280
SAMPLES_PER_DEVICE = 300


def samples(shown: pd.DataFrame) -> pd.DataFrame:
    """gpu.csv of the shown trials, at most SAMPLES_PER_DEVICE per device: each kept sample is the highest of
    those it stands for, so a short peak is not lost."""
    frames = []
    for row in shown.to_dict("records"):
        content = (Path(row["dir"]) / "gpu.csv").read_bytes()
        table = pd.read_csv(
            io.BytesIO(content),
            usecols=lambda c: c in {*IDENTITY, *_SAMPLED},
            keep_default_na=False,
            na_values=[""],
        )
        for _, of_device in table.groupby("device_uuid", sort=False):
            size = -(-len(of_device) // SAMPLES_PER_DEVICE)
            part = np.arange(len(of_device)) // size
            by = [c for c in of_device if c not in _SAMPLED or c in ("device_uuid", "device_index")]
            highest = of_device.groupby([*by, part], sort=False, dropna=False).max(numeric_only=True)
            frames.append(highest.reset_index(by).reset_index(drop=True))
    if not frames:
        return pd.DataFrame(columns=[*IDENTITY, *_SAMPLED])
    return pd.concat(frames, ignore_index=True)


_SAMPLED = (
    "device_uuid",
    "device_index",
    "t_at_s",
    "util_pct",
    "used_mib",
    "free_mib",
    "ballast_mib",
    "power_w",
)


def outputs(shown: pd.DataFrame) -> pd.DataFrame:
    """The beginning of what each agent of the shown trials said in round 0."""
    rows = []
    for trial in shown.to_dict("records"):
        for text in (Path(trial["dir"]) / OUTPUTS).read_bytes().splitlines():
            said = json.loads(text)
            if said.get("round") == 0:
                words = str(said.get("text") or "")
                rows.append(
                    {
                        **{name: trial[name] for name in IDENTITY},
                        **{n: said.get(n) for n in ("attempt", "step", "agent")},
                        "characters": len(words),
                        "text": inert.excerpt(words, EXCERPT_CHARACTERS),
                    }
                )
    found = pd.DataFrame(rows, columns=[*IDENTITY, "attempt", "step", "agent", "characters", "text"])
    return cells.last_attempts(found)
