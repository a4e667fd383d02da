"""What a chain's growing context costs: prompt tokens and prefill of each step."""

from __future__ import annotations

import numpy as np
import seaborn as sns

from crewbench import cells, drawing
from crewbench.chain import by_step
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import INK, PAPER, QUIET
from crewbench.figures.study import Drawn, Study, finish, missing, n_each
from crewbench.words import number


def chain(study: Study, canvas: Canvas) -> Drawn:
    """Prompt tokens (above) and milliseconds of prefill (below) over the steps of a chain, trials as points:
    the headline setting's chain, else the first one."""
    rows = study.tables["chain"]
    if rows.empty:
        return missing(study, "chain", "no chain of agents worked: none reads what those before it wrote")
    here = cells.only(rows, {n: study.setting[n] for n in study.setting if n in rows})
    rows = here if len(here) else rows
    cell = {name: rows[name].iloc[0] for name in cells.WHERE}
    rows = cells.only(rows, cell)
    steps = by_step(rows)
    sheet = Sheet(
        canvas,
        study.question("chain"),
        [1.3, 1.5],
        left=0.62,
        right=0.3,
        gap=0.5,
        legend=[
            Key("a trial", canvas.mode(cell["mode"]), "o", hollow=True),
            Key("median of tokens, geometric mean of prefill", INK, "_"),
        ],
        note=study.notes(),
    )
    tokens, prefill = sheet.axes
    middle = [[step["prompt_tokens"] for step in steps], [1000 * step["prefill"].value for step in steps]]
    columns = (rows["prompt_tokens"], 1000 * rows["prefill_s"])
    for ax, values, line, label in zip(
        sheet.axes, columns, middle, ("prompt tokens", "prefill, ms"), strict=True
    ):
        known = values.notna()
        sns.scatterplot(
            x=rows["position"][known].to_numpy(),
            y=values[known].to_numpy(dtype=float),
            ax=ax,
            s=26,
            facecolor=PAPER,
            edgecolor=canvas.mode(cell["mode"]),
            linewidth=1.1,
            zorder=3,
            legend=False,
        )
        unit = "tokens" if label.endswith("tokens") else "ms"
        words = [
            f"{number(v)} {unit}, step {p}, repeat {r}"
            for v, p, r in zip(values[known], rows["position"][known], rows["repeat"][known], strict=True)
        ]
        drawing.says(ax.collections[-1], words, cell["mode"])
        (middle_line,) = ax.plot(
            [step["position"] for step in steps],
            [np.nan if v is None else v for v in line],
            color=canvas.mode(cell["mode"]),
            lw=1.4,
            marker="_",
            mec=INK,
            ms=12,
            mew=1.6,
        )
        drawing.says(middle_line, [], cell["mode"])
        ax.set_ylim(0, 1.12 * float(values[known].max()))
        ax.set_ylabel(label)
        ax.set_xlabel("")
        ax.set_xticks([step["position"] for step in steps])
        ax.tick_params(axis="y", labelcolor=QUIET)
        ax.grid(axis="y")
    tokens.set_xlabel("")
    prefill.set_xlabel("step of the chain", loc="left")
    said = [
        f"step {step['position']} ({drawing.plain(str(step['agent']), 40)}): {number(step['prompt_tokens'])} "
        f"prompt tokens, prefill {number(1000 * step['prefill'].value)} ms"
        for step in steps
    ]
    caption = (
        f"{study.label(cell)}: each step's prompt holds what all before it wrote. Above, tokens of its "
        "prompt; below, milliseconds from the prompt's ids to the first output id, on loaded workers where "
        f"there were warm rounds. {study.setting_words(of=cell)}; {n_each(rows[rows['position'] == 1])}, "
        "every trial a point."
    )
    return finish("chain", sheet, caption, "; ".join(said), study.notes())
