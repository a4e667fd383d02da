"""Makes text that a model or a program wrote safe to show: it can be anything, a megabyte of one line too."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline, lone surrogates, the marks that reorder a line's direction, what has
# no width and can hide what follows (not the joiners, which scripts and emoji need), tags, and the separators
# that some readers take for a line's end.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)

FORMULA = r"^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
"""What a spreadsheet takes for the start of a formula, in full width too (some languages' do): text like that
gets an apostrophe before it in CSV."""


def plain(text: str) -> str:
    """The text without control characters; tabs and newlines stay."""
    return _CONTROLS.sub("", text)


def lines(text: str) -> str:
    """A program's log as plain text: a line that was written over is a line of its own."""
    return plain(re.sub(r"\r\n?", "\n", text))


def guarded(text: str) -> str:
    """Plain text as a cell of CSV that no spreadsheet runs."""
    return re.sub(FORMULA, r"'\g<0>", plain(text))


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of plain text on one line, the last of them "…" where that cuts it."""
    line = " ".join(plain(text[: 4 * limit]).split())
    if len(text) <= 4 * limit and len(line) <= limit:
        return line
    return f"{line[: limit - 1].rstrip()}…"


def excerpt(text: str, limit: int) -> str:
    """At most `limit` characters of plain text on one line, and how long it was where that cuts it."""
    line = " ".join(plain(text[: 4 * limit]).split())
    if len(text) <= 4 * limit and len(line) <= limit:
        return line
    return f"{line[:limit].rstrip()}… ({len(text):,} characters)"
