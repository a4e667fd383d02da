"""Makes text that a model or a program wrote safe to show: it can be anything, a megabyte of one line too."""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline, lone surrogates, the marks that reorder a line's direction,
# and the separators that some readers take for a line's end.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]"
)

FORMULA = r"^[=+\-@\t\r]"
"""What a spreadsheet takes for the start of a formula: text like that gets an apostrophe before it in CSV."""


def plain(text: str) -> str:
    """The text without control characters; tabs and newlines stay."""
    return _CONTROLS.sub("", text)


def excerpt(text: str, limit: int) -> str:
    """At most `limit` characters of plain text on one line, and how long it was where that cuts it."""
    line = " ".join(plain(text[: 4 * limit]).split())
    if len(text) <= 4 * limit and len(line) <= limit:
        return line
    return f"{line[:limit].rstrip()}… ({len(text):,} characters)"
