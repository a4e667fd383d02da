"""Stands in for scripts/model.py: toy trials load no model."""

import sys
from pathlib import Path

place = Path(sys.argv[sys.argv.index("--out") + 1])
place.mkdir(parents=True, exist_ok=True)
(place / "manifest.json").write_text("{}")
