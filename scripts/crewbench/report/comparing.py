"""The page of scripts/compare.py: two results beside each other, in the report's own style."""

from __future__ import annotations

from crewbench import compare, inert, palette
from crewbench.report import pages


def page(a: compare.Result, b: compare.Result, found: compare.Outcome) -> str:
    """One HTML file without scripts or network. Names of files and hosts are text, whatever they hold."""
    environment = pages.templates()
    rows = [
        {name: inert.excerpt(text, 300) for name, text in compare.told(row).items()} for row in found.rows
    ]
    return environment.get_template("compare.html.j2").render(
        style=pages.style(palette.all_colours()),
        a=inert.excerpt(a.name, 200),
        b=inert.excerpt(b.name, 200),
        answer=found.answer,
        regressed=found.code == compare.REGRESSED,
        rows=rows,
        worse=compare.WORSE,
        only=[("A", found.only_a), ("B", found.only_b)],
        differences=[tuple(inert.excerpt(text, 300) for text in line) for line in found.differences],
    )
