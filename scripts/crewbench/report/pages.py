"""What every page is made with: templates that escape all text, and one style in the palette's colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from crewbench import palette

HERE = Path(__file__).parent


def templates() -> jinja2.Environment:
    """The templates of this folder; a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style(colours: Sequence[palette.Colour]) -> Markup:
    """The style sheet, light or dark as the reader prefers."""
    return Markup(
        f":root{{color-scheme:light dark;{palette.css(colours, 'light')}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{palette.css(colours, 'dark')}}}}}"
        + (HERE / "style.css").read_text(encoding="utf-8")
    )
