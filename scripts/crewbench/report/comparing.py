"""The page of scripts/compare.py: two results beside each other, in the report's own style."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from crewbench import compare, inert, palette

HERE = Path(__file__).parent


def page(a: compare.Result, b: compare.Result, found: compare.Outcome) -> str:
    """One HTML file without scripts or network. Names of files and hosts are text, whatever they hold."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = palette.all_colours()
    style = (
        f":root{{color-scheme:light dark;{palette.css(colours, 'light')}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{palette.css(colours, 'dark')}}}}}"
        + (HERE / "style.css").read_text(encoding="utf-8")
    )
    rows = [
        {name: inert.excerpt(text, 300) for name, text in compare.told(row).items()} for row in found.rows
    ]
    return environment.get_template("compare.html.j2").render(
        style=Markup(style),
        a=inert.excerpt(a.name, 200),
        b=inert.excerpt(b.name, 200),
        answer=found.answer,
        regressed=found.code == compare.REGRESSED,
        rows=rows,
        worse=compare.WORSE,
        only=[("A", found.only_a), ("B", found.only_b)],
        differences=[tuple(inert.excerpt(text, 300) for text in line) for line in found.differences],
    )
