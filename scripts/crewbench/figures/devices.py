"""How full each device gets."""

from __future__ import annotations

import seaborn as sns

from crewbench import cells, drawing
from crewbench.drawing import Canvas, Key, Sheet
from crewbench.figures.marks import BAD, INK, PAPER, left_in
from crewbench.figures.study import ROWS_MAX, Drawn, Study, finish, missing, n_each
from crewbench.records import Status
from crewbench.words import number


def memory(study: Study, canvas: Canvas) -> Drawn:
    """Peak memory of every assigned device against its budget: one point per trial and device, no sums."""
    devices = cells.in_order(cells.only(study.tables["devices"], study.setting))
    devices = devices.dropna(subset=["used_peak_mib"])
    devices = devices[devices["in_use"]]
    if devices.empty:
        return missing(study, "memory", "no device reported its memory")
    groups = [
        (mode, int(gpus), g)
        for (mode, gpus), g in devices.groupby(["mode", "gpus"], observed=True, sort=False)
    ][:ROWS_MAX]
    labels = [cells.label({"mode": m, "gpus": g}, (), study.kind) for m, g, _ in groups]
    lines = drawing.Rows(labels, canvas, modes=[mode for mode, *_ in groups])
    simulated = bool(devices["simulated_budget"].any())
    sheet = Sheet(
        canvas,
        study.question("memory"),
        [lines.height_in],
        left=left_in(labels, canvas),
        right=0.35,
        legend=[
            Key("peak of one device in one trial", INK, "o"),
            Key("its budget" + (" (simulated)" if simulated else ""), BAD, "|"),
        ],
        note=study.notes(memory=True),
    )
    ax, said = sheet.axes[0], []
    worked = study.trials[study.trials["status"] == Status.OK]
    for i, (mode, gpus, group) in enumerate(groups):
        spread = (group["device_index"] - group["device_index"].min()) / max(1, group["device_index"].max())
        sns.scatterplot(
            x=group["used_peak_mib"].to_numpy(),
            y=(lines.at(i) + 0.34 * (spread - 0.5)).to_numpy(),
            ax=ax,
            s=26,
            facecolor=canvas.mode(mode),
            edgecolor=PAPER,
            linewidth=0.6,
            zorder=3,
            legend=False,
            rasterized=len(group) > 500,
        )
        told = (
            []
            if len(group) > 500
            else zip(group["used_peak_mib"], group["device_index"], group["repeat"], strict=True)
        )
        drawing.says(
            ax.collections[-1],
            [f"{number(mib)} MiB on {study.device} {int(index)}, repeat {r}" for mib, index, r in told],
        )
        for budget in group["budget_mib"].dropna().unique():
            ax.plot([budget] * 2, [lines.at(i) - 0.3, lines.at(i) + 0.3], color=BAD, lw=1.8)
        said.append(
            f"{labels[i]}: at most {number(group['used_peak_mib'].max())} of "
            f"{number(group['budget_mib'].max())} MiB on one device"
        )
        if worked[(worked["mode"] == mode) & (worked["gpus"] == gpus)].empty:
            ax.annotate(
                "no trial worked",
                (0, lines.at(i)),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=8.5,
                color=BAD,
            )
            said[-1] += ", and no trial worked"
    lines.draw(ax)
    ax.set_xlim(left=0)
    ax.set_ylabel("")
    drawing.x_grid(ax, "peak memory of one device, MiB" + (", simulated budget" if simulated else ""))
    caption = (
        f"Peak memory in use on each {study.device} that held a worker, in MiB, a point per trial and "
        f"{study.device}: peaks are never added up. {study.setting_words()}; {n_each(study.trials)}."
    )
    return finish("memory", sheet, caption, "; ".join(said), study.budget_note())
