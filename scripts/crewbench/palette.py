"""Colours: one per mode throughout, one per stage, each in a light and a dark variant that can be read.

A figure is drawn in the light colours; `css` gives them as variables that a dark page redefines.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crewbench.modes import MODES
from crewbench.records import STAGES

CONTRAST = 3.0
"""What a mark needs against its background: WCAG 2.2, 1.4.11, non-text contrast."""

SURFACE = {"light": "#ffffff", "dark": "#0f141a"}


@dataclass(frozen=True, slots=True)
class Colour:
    """One colour on a light and on a dark surface, as #rrggbb. `name` is its CSS variable."""

    name: str
    light: str
    dark: str


# Found by search: the least distance between any two is the largest under normal sight, protanopia and
# deuteranopia at once, each with CONTRAST to its surface and no more than 15 degrees of hue between the two
# (OKLCH), so that a mode is the same colour on both. In the order of the modes' ranks.
_APART = (
    ("#0916b0", "#0c4ffb"),
    ("#2796e1", "#88c3fd"),
    ("#9c9700", "#a68b0d"),
    ("#8c4076", "#b66c97"),
    ("#566c0c", "#d3d839"),
    ("#640e63", "#8f40a1"),
    ("#5847ec", "#7a8ffc"),
    ("#014800", "#476b37"),
    ("#ad6e83", "#fe92a1"),
)

# Stages in the order in which they happen, with a hatch as a second channel for the grey ones. They touch
# each other and are labelled, so their lightness may range wider than that of the modes.
_STAGES = {
    "failed": ("#c2418f", "xxxx"),
    "spawn": ("#cfc4f2", ""),
    "import": ("#7443b0", ""),
    "context": ("#e0b0dc", "\\\\\\\\"),
    "load": ("#134a94", ""),
    "compile": ("#62c4d0", ""),
    "queue": ("#949ca6", "////"),
    "prefill": ("#f2a641", ""),
    "decode": ("#a02c12", ""),
    "framework": ("#3d8b4c", ""),
    "stop": ("#59616b", ""),
    "idle": ("#c4cad1", "\\\\\\\\"),
}
STAGE_CONTRAST = 1.5

INK = Colour("ink", "#1c2128", "#e8edf3")
QUIET = Colour("quiet", "#57606a", "#9aa6b3")
RULE = Colour("rule", "#d3d9e0", "#343c46")
PAPER = Colour("paper", SURFACE["light"], SURFACE["dark"])
BAD = Colour("bad", "#b3261e", "#ff8f85")
GOOD = Colour("good", "#1a7f37", "#56d364")
STARTING = Colour("starting", "#8d96a1", "#7b8794")
WAITING = Colour("waiting", "#c9cfd7", "#4a535e")


def modes(palette: str = "colorblind") -> dict[str, Colour]:
    """A colour for each mode, always the same. "colorblind" is ours, another name a palette of seaborn's."""
    if palette == "colorblind":
        return {name: Colour(f"mode-{name}", *_APART[i % len(_APART)]) for i, name in enumerate(MODES)}
    import seaborn as sns

    hues = sns.color_palette(palette, 10).as_hex()
    return {name: _both(f"mode-{name}", hues[i % 10]) for i, name in enumerate(MODES)}


def stages() -> dict[str, Colour]:
    """A colour for each stage of a makespan, and one for failed attempts before it."""
    return {n: _both(f"stage-{n}", _STAGES[n][0], STAGE_CONTRAST) for n in ("failed", *STAGES)}


def hatch(stage: str) -> str:
    """A second channel for stages whose colours are close: matplotlib's hatch, or none."""
    return _STAGES[stage][1]


def all_colours(palette: str = "colorblind") -> list[Colour]:
    fixed = (INK, QUIET, RULE, PAPER, BAD, GOOD, STARTING, WAITING)
    return [*fixed, *modes(palette).values(), *stages().values()]


def css(colours: Iterable[Colour], scheme: str) -> str:
    """The colours as CSS variables, `--mode-parallel:#...;`."""
    return "".join(f"--{c.name}:{getattr(c, scheme)};" for c in colours)


def _both(name: str, hue: str, contrast: float = CONTRAST) -> Colour:
    return Colour(name, *(readable(hue, SURFACE[scheme], contrast) for scheme in ("light", "dark")))


def readable(hue: str, surface: str, contrast: float = CONTRAST) -> str:
    """The hue, made darker or lighter until it stands out from the surface by `contrast`."""
    red, green, blue = _channels(hue)
    h, lightness, s = colorsys.rgb_to_hls(red, green, blue)
    step = -0.01 if luminance(surface) > 0.5 else 0.01
    while contrast_ratio(hue, surface) < contrast and 0 < lightness < 1:
        lightness += step
        rgb = colorsys.hls_to_rgb(h, min(max(lightness, 0.0), 1.0), s)
        hue = "#" + "".join(f"{round(255 * c):02x}" for c in rgb)
    return hue


def contrast_ratio(one: str, other: str) -> float:
    """(lighter + 0.05) / (darker + 0.05) of relative luminances: WCAG 2.2."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, 0 to 1: WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _channels(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def by_light(colours: Iterable[Colour]) -> Mapping[str, Colour]:
    """The colours by what a figure is drawn in."""
    return {c.light: c for c in colours}
