"""How a figure is drawn and written: sheets with margins in inches, legends, and SVG that a page can theme.

Text stays text. Every colour becomes a CSS variable of palette.py with the light colour as its fallback,
so the same SVG is light or dark with the page around it.
"""

from __future__ import annotations

import html
import io
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import matplotlib
import seaborn as sns

from crewbench import inert, palette

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

matplotlib.use("svg")

WIDE_IN, NARROW_IN = 9.4, 3.7
"""Widths of the two variants: a column on a desktop, and a phone of 390 CSS pixels less its margins."""

_TITLE_IN = 0.52
_NOTE_IN = 0.24
_LINE_IN = 0.2
_CHARACTER_IN = 0.075
_LABEL_LINES = 2
_HEADING_IN = 0.14
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


def style() -> dict[str, Any]:
    """matplotlib's settings for every figure here."""
    ink, quiet, rule, paper = palette.INK, palette.QUIET, palette.RULE, palette.PAPER
    sns.set_theme(style="white")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "crewbench",
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.labelsize": 9,
        "axes.titlesize": 9,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "text.color": ink.light,
        "axes.labelcolor": quiet.light,
        "xtick.color": quiet.light,
        "ytick.color": quiet.light,
        "xtick.labelcolor": quiet.light,
        "ytick.labelcolor": ink.light,
        "axes.edgecolor": rule.light,
        "axes.facecolor": "none",
        "figure.facecolor": paper.light,
        "savefig.facecolor": paper.light,
        "grid.color": rule.light,
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.7,
        "hatch.color": paper.light,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "ytick.left": False,
        "xtick.bottom": True,
        "xtick.major.size": 3,
        "xtick.major.width": 0.6,
        "legend.frameon": False,
    }


@dataclass(frozen=True)
class Canvas:
    """What a figure is drawn for: `narrow` is the phone's variant, without a title of its own."""

    narrow: bool = False
    palette_name: str = "colorblind"

    @property
    def width_in(self) -> float:
        return NARROW_IN if self.narrow else WIDE_IN

    @cached_property
    def modes(self) -> dict[str, str]:
        return {name: c.light for name, c in palette.modes(self.palette_name).items()}

    @cached_property
    def stages(self) -> dict[str, str]:
        return {name: c.light for name, c in palette.stages().items()}

    @cached_property
    def colours(self) -> list[palette.Colour]:
        return palette.all_colours(self.palette_name)

    def mode(self, name: str) -> str:
        """The mode's colour; ink for a mode that this version has not."""
        return self.modes.get(name, palette.INK.light)


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend. `marker` is matplotlib's, or "bar" for a filled patch."""

    text: str
    colour: str
    marker: str = "bar"
    hollow: bool = False
    hatch: str = ""

    @property
    def width_in(self) -> float:
        return 0.44 + 0.066 * len(self.text)


@dataclass
class Sheet:
    """A figure with panels one below the other, all sizes in inches.

    `panels` are heights; the title (wide only) and the legend take their room above them. `note` is what
    a figure must say even where its caption is not beside it.
    """

    canvas: Canvas
    title: str
    panels: Sequence[float]
    left: float = 0.12
    right: float = 0.15
    gap: float = 0.55
    bottom: float = 0.5
    legend: Sequence[Key] = ()
    heading: float = 0.0
    note: str = ""
    figure: Figure = field(init=False)
    axes: list[Axes] = field(init=False)

    def __post_init__(self) -> None:
        import matplotlib.pyplot as plt

        plt.rcParams.update(style())
        lines = self._legend_lines()
        top = (0.0 if self.canvas.narrow else _TITLE_IN) + _LINE_IN * len(lines) + 0.12 + self.heading
        below = self.bottom + (_NOTE_IN if self.note and not self.canvas.narrow else 0.0)
        height = top + sum(self.panels) + self.gap * (len(self.panels) - 1) + below
        width = self.canvas.width_in
        self.figure = plt.figure(figsize=(width, height))
        self.axes, y = [], height - top
        for panel in self.panels:
            y -= panel
            box = (self.left / width, y / height, (width - self.left - self.right) / width, panel / height)
            self.axes.append(self.figure.add_axes(box))
            y -= self.gap
        if not self.canvas.narrow:
            self.figure.text(
                0.1 / width,
                1 - 0.16 / height,
                plain(self.title),
                va="top",
                size=13,
                weight="bold",
                gid="title",
            )
            self.figure.text(
                1 - 0.1 / width,
                0.07 / height,
                self.note,
                ha="right",
                size=7.5,
                color=palette.QUIET.light,
                gid="note",
            )
        self._draw_legend(lines, height, width)

    def _legend_lines(self) -> list[list[Key]]:
        lines: list[list[Key]] = []
        room = 0.0
        for key in self.legend:
            needed = key.width_in
            if not lines or room < needed:
                lines.append([])
                room = self.canvas.width_in - 0.2
            lines[-1].append(key)
            room -= needed
        return lines

    def _draw_legend(self, lines: list[list[Key]], height: float, width: float) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Rectangle

        y = height - (0.0 if self.canvas.narrow else _TITLE_IN) - _LINE_IN / 2 - 0.02
        for line in lines:
            x = 0.1
            for key in line:
                if key.marker == "bar":
                    patch = Rectangle(
                        (x / width, (y - 0.055) / height),
                        0.2 / width,
                        0.11 / height,
                        transform=self.figure.transFigure,
                        facecolor=key.colour,
                        hatch=key.hatch,
                        edgecolor=palette.PAPER.light if key.hatch else "none",
                        linewidth=0,
                    )
                    self.figure.add_artist(patch)
                else:
                    face = palette.PAPER.light if key.hollow else key.colour
                    self.figure.add_artist(
                        Line2D(
                            [(x + 0.1) / width],
                            [y / height],
                            transform=self.figure.transFigure,
                            ls="",
                            marker=key.marker,
                            ms=6,
                            mfc=face,
                            mec=key.colour,
                            mew=1.2,
                        )
                    )
                self.figure.text((x + 0.26) / width, y / height, plain(key.text), va="center", size=8.5)
                x += key.width_in
            y -= _LINE_IN


def plain(text: str, limit: int = 90) -> str:
    """Text as a figure may hold it: on one line, without control characters, cut where it is too long."""
    return inert.shortened(text, limit)


def text_width_in(labels: Iterable[str], size: float = 8.5) -> float:
    """About how wide the longest label is, in inches."""
    return max((len(label) for label in labels), default=0) * _CHARACTER_IN * size / 9


def label_lines(text: str, canvas: Canvas) -> list[str]:
    """A row's label or heading in at most two lines, as long as there is room for: left of a plot of which
    something is left, or across a phone. What two lines do not hold is cut at their end."""
    room_in, size = (canvas.width_in - 0.3, 8.5) if canvas.narrow else (3.9, 9)
    return textwrap.wrap(
        plain(text, 200),
        int(room_in / text_width_in(["x"], size)),
        max_lines=_LABEL_LINES,
        placeholder="…",
        break_on_hyphens=False,
    )


@dataclass(frozen=True)
class Rows:
    """Rows from the top down, each with a label, some under a heading that sets them apart; both may have
    two lines.

    On a phone a label stands above its row, else left of the axis. `at(i)` is where row i's marks go. `modes`
    are the rows' modes: a page may draw a curtain over those of one."""

    labels: Sequence[str]
    canvas: Canvas
    headings: Sequence[str] = ()
    modes: Sequence[str] = ()

    @property
    def pitch_in(self) -> float:
        return 0.5 if self.canvas.narrow else 0.36

    @property
    def height_in(self) -> float:
        return self.pitch_in * self._tops[-1]

    @cached_property
    def _tops(self) -> list[float]:
        """Where each row begins, below its heading, and where the last one ends, in rows."""
        tops = [0.0]
        for i in range(len(self.labels)):
            tops[-1] += self._heading(i)
            tops.append(tops[-1] + 1 + self._above(i))
        return tops

    def _heading(self, i: int) -> float:
        """The height of what sets row i apart from the one before it, in rows."""
        if i >= len(self.headings) or not self.headings[i]:
            return 0.0
        return 0.6 + (len(label_lines(self.headings[i], self.canvas)) - 1) * _HEADING_IN / self.pitch_in

    def _above(self, i: int) -> float:
        """How much higher row i is for a second line above it; beside it there is room for two."""
        lines = len(label_lines(self.labels[i], self.canvas)) if self.canvas.narrow else 1
        return max(0, lines - 1) * _HEADING_IN / self.pitch_in

    def at(self, i: int) -> float:
        return self._tops[i] + (0.66 + self._above(i) if self.canvas.narrow else 0.5)

    def draw(self, ax: Axes) -> None:
        ax.set_ylim(self._tops[-1], 0)
        ax.set_yticks([])
        ax.set_ylabel("")
        for i, text in enumerate(self.labels):
            if i < len(self.headings) and self.headings[i]:
                height = self._heading(i)
                y = self._tops[i] - height
                if i:
                    ax.axhline(y + 0.1, color=palette.QUIET.light, lw=0.8, ls=(0, (2, 2)))
                look = {"size": 8, "style": "italic", "color": palette.QUIET.light}
                self._write(ax, self.headings[i], y + height / 2 + 0.07, y + 0.2, **look)
            self._write(ax, text, self.at(i), self._tops[i] + 0.08, size=8.5 if self.canvas.narrow else 9)
        for i, mode in enumerate(self.modes):
            self._curtain(ax, mode, self._tops[i], self._tops[i + 1] - self._heading(i + 1))

    def _curtain(self, ax: Axes, mode: str, top: float, bottom: float) -> None:
        """An invisible sheet over a row from edge to edge, the last to be drawn."""
        from matplotlib.patches import Rectangle
        from matplotlib.transforms import blended_transform_factory

        across = blended_transform_factory(ax.figure.transFigure, ax.transData)
        sheet = Rectangle((0, top), 1, bottom - top, transform=across, clip_on=False, zorder=99)
        sheet.set(facecolor="none", edgecolor="none", gid=f"{_CURTAIN}{mode}")
        ax.add_patch(sheet)

    def _write(self, ax: Axes, text: str, beside: float, above: float, **look: Any) -> None:
        text = "\n".join(label_lines(text, self.canvas))
        if self.canvas.narrow:
            ax.annotate(text, (0, above), xycoords=("axes fraction", "data"), va="top", **look)
        else:
            ax.annotate(
                text,
                (0, beside),
                xycoords=("axes fraction", "data"),
                xytext=(-8, 0),
                textcoords="offset points",
                va="center",
                ha="right",
                **look,
            )


_SAYS, _CURTAIN = "says ", "curtain "
"""What the ids of marks begin with until they are written."""


def says(mark: Artist, words: Sequence[str], mode: str = "") -> None:
    """What each of a mark's points says when it is pointed at, in their order; a bar is one point. With a
    `mode`, a page may hide the mark with the mode's others."""
    mark.set_gid(_SAYS + quote(json.dumps([mode, *(plain(text, 120) for text in words)])))


def x_grid(ax: Axes, label: str) -> None:
    """Vertical lines only, and what the axis measures with its unit."""
    from matplotlib.ticker import MaxNLocator

    ax.grid(axis="x")
    ax.set_xlabel(label, loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=False, min_n_ticks=3))


# SVG ---------------------------------------------------------------------------------------------


def to_svg(figure: Figure, colours: Iterable[palette.Colour], title: str, description: str) -> str:
    """The figure as a standalone SVG, light or dark as its viewer prefers, with a title and a description."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    colours = list(colours)
    return _standalone(_themed(buffer.getvalue(), colours), colours, title, description)


def to_png(figure: Figure, path: Any, dpi: int) -> None:
    figure.savefig(path, format="png", dpi=dpi)


def close(figure: Figure) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)


def _themed(svg: str, colours: Sequence[palette.Colour]) -> str:
    """matplotlib's SVG, made smaller and themeable: variables for colours, the page's font, no idle ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"font-family: [^;\"]+; ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(rf'<g id="{_CURTAIN}([^"]*)"', r'<g class="curtain" data-mode="\1"', svg)
    svg = _with_words(svg)
    svg = re.sub(r'<g id="(?!title"|note")[^"]*"', "<g", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub(r' fill="(#[0-9a-fA-F]{6})"', r' style="fill: \1"', svg)  # only style may hold a variable
    names = {c.light.lower(): c.name for c in colours}

    def variable(match: re.Match[str]) -> str:
        name = names.get(match[2].lower())
        return f"{match[0]}; {match[1]}: var(--{name})" if name else match[0]

    return re.sub(r"(fill|stroke): (#[0-9a-fA-F]{6})", variable, svg)


def _with_words(svg: str) -> str:
    """Each point of a mark that says something as an element that holds its words, which viewers show."""
    first, *marks = re.split(rf'(?=<g id="{_SAYS})', svg)
    written = [first]
    for mark in marks:
        opening, rest = mark.split(">", 1)
        mode, *told = json.loads(unquote(opening.removeprefix(f'<g id="{_SAYS}').rstrip('"')))
        words = iter(told)

        def worded(element: re.Match[str], words: Iterator[str] = words) -> str:
            text = next(words, None)
            if text is None:
                return element[0]
            name, attributes = element.groups()
            return f'<{name} class="says"{attributes}><title>{html.escape(text)}</title></{name}>'

        # A collection draws one path many times (use); a bar is a path.
        name = "use" if "<use " in rest.split("</g>", 1)[0] else "path"
        written.append(f'<g data-mode="{mode}">' if mode else "<g>")
        written.append(re.sub(rf"<({name})( [^>]*?)/>", worded, rest))
    return "".join(written)


def _standalone(svg: str, colours: Sequence[palette.Colour], title: str, description: str) -> str:
    from markupsafe import escape

    sheet = (
        f"svg{{{palette.css(colours, 'light')}font-family:{_FONTS}}}"
        f"@media (prefers-color-scheme:dark){{svg{{{palette.css(colours, 'dark')}}}}}"
    )
    opening, rest = svg.split(">", 1)
    words = (
        f"<title>{escape(plain(title, 200))}</title><desc>{escape(inert.excerpt(description, 2000))}</desc>"
    )
    return f'{opening} role="img">{words}<style>{sheet}</style>{rest}'


def for_page(svg: str, uid: str) -> str:
    """A standalone SVG as a part of a page: no style of its own (the page defines the variables), no title
    drawn (the page has its heading), ids that no other figure has."""
    svg = re.sub(r"<style>svg\{.*?</style>", "", svg, count=1, flags=re.S)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"(fill|stroke): #[0-9a-fA-F]{6}; (fill|stroke): var", r"\2: var", svg)
    svg, noted = re.subn(r'<g id="note">.*?</g>\s*', "", svg, count=1, flags=re.S)
    svg, drawn = re.subn(r'<g id="title">.*?</g>\s*', "", svg, count=1, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{uid}-', svg)
    svg = re.sub(r'href="#', f'href="#{uid}-', svg).replace("url(#", f"url(#{uid}-")
    width, height = (float(x) for x in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    top = (_TITLE_IN - 0.1) * 72 if drawn else 0.0
    bottom = _NOTE_IN * 72 if noted else 0.0
    attributes = f'viewBox="0 {top:g} {width:g} {height - top - bottom:g}" aria-labelledby="{uid}-t {uid}-d"'
    svg = re.sub(
        r"<svg [^>]*>",
        f'<svg xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" role="img" {attributes}>',
        svg,
        count=1,
    )
    svg = svg.replace("<title>", f'<title id="{uid}-t">', 1).replace("<desc>", f'<desc id="{uid}-d">', 1)
    # Shorter numbers in the tags; those in the text are what a reader is told.
    return re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), svg)
