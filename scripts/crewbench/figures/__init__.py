"""The figures: one function each, from the tables to a drawing that answers the question in its title.

Latency is compared only between cells that do the same work; cells that do other work stand apart. Every
trial is a point. A figure whose data are not there says why instead of being left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crewbench import cells, drawing
from crewbench.drawing import Canvas, Sheet
from crewbench.figures.chains import chain
from crewbench.figures.decoding import engines
from crewbench.figures.devices import memory
from crewbench.figures.framework import framework
from crewbench.figures.makespans import cold_warm, scaling
from crewbench.figures.marks import QUIET
from crewbench.figures.neighbours import interference
from crewbench.figures.repayment import breakeven
from crewbench.figures.stages import names as stage_names
from crewbench.figures.stages import stages
from crewbench.figures.starting import attempts, starts
from crewbench.figures.study import TIMELINE, Drawn, Study
from crewbench.figures.timelines import timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Study, Canvas], Drawn]] = {
    "cold_warm": cold_warm,
    "chain": chain,
    "scaling": scaling,
    "attempts": attempts,
    "starts": starts,
    "engines": engines,
    "memory": memory,
    "framework": framework,
    "interference": interference,
    "breakeven": breakeven,
}


def write(study: Study, out: Path, palette_name: str = "colorblind", png_dpi: int = 120) -> list[str]:
    """Every figure as NAME.svg, NAME-narrow.svg (for phones) and NAME.png, and figures.json with their words.

    Gives the names. A figure without data is written too: it says why it is empty."""
    out.mkdir(parents=True, exist_ok=True)
    drawings = {}
    for name, draw in FIGURES.items():
        drawings[name] = draw
        if name == "cold_warm":
            for start in stage_names(study.tables["trials"]):
                drawings[f"stages_{start}"] = lambda s, c, start=start: stages(s, c, start)
    for mode in dict.fromkeys(cells.in_order(study.tables["trials"])["mode"]):
        drawings[TIMELINE.format(mode=mode)] = lambda s, c, mode=mode: timeline(s, c, mode)
    index = []
    for name, draw in drawings.items():
        for canvas in (Canvas(False, palette_name), Canvas(True, palette_name)):
            drawn = draw(study, canvas)
            figure = drawn.figure or _empty(drawn, canvas)
            svg = drawing.to_svg(figure, canvas.colours, drawn.question, drawn.description)
            (out / f"{name}{'-narrow' * canvas.narrow}.svg").write_text(svg, encoding="utf-8")
            if not canvas.narrow:
                drawing.to_png(figure, out / f"{name}.png", png_dpi)
                index.append(words(drawn))
            drawing.close(figure)
    (out / "figures.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return list(drawings)


def words(drawn: Drawn) -> dict[str, str]:
    """The words of a figure: what figures.json holds of it."""
    return {n: getattr(drawn, n) for n in ("name", "question", "caption", "description", "missing")}


def _empty(drawn: Drawn, canvas: Canvas) -> Figure:
    sheet = Sheet(canvas, drawn.question, [0.3], bottom=0.1)
    sheet.axes[0].set_axis_off()
    sheet.axes[0].text(0, 0.5, drawing.plain(f"Not measured: {drawn.missing}."), va="center", color=QUIET)
    return sheet.figure
