#!/usr/bin/env python
"""Time and peak memory from many trials' files to the report: tables of 100, 1,000 and 10,000, then the page,
and how it opens in a browser.

    python bench/aggregate.py [TRIALS ...]          default: 100 1000 10000

The trials are made up on disk, eight agents and two warm rounds each, in a directory of its own. The last
line is JSON.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "unit")]

import made_trials  # noqa: E402  the paths above come first
from crewbench.trial import Cell  # noqa: E402

CREW = {"agents": 8, "engine": "eager", "start": "zygote"}
CELLS = [
    Cell("parallel", 8, **CREW),
    Cell("auto_expand", 4, **CREW),
    Cell("sequential", 1, **CREW),
    Cell("shared", 1, **CREW),
    Cell("cooperative", 1, **CREW),
    Cell("hierarchical", 4, **CREW),
]
REPEATS = 5


def make(root: Path, count: int) -> list[dict[str, str]]:
    """`count` trials on disk: the cells in turn, five repeats of each, then again as another variant."""
    lines = []
    for number in range(count):
        cell = CELLS[number % len(CELLS)]
        repeat = number // len(CELLS) % REPEATS + 1
        variant = f"v{number // (len(CELLS) * REPEATS)}"
        cell = Cell(cell.mode, cell.gpus, cell.agents, cell.engine, cell.start, variant)
        lines.append(made_trials.make_trial(root / "trials", cell, repeat, order=number))
    return lines


def run(name: str, *words: str | Path) -> tuple[float, int]:
    """Wall seconds of a script, interpreter start included, and the highest peak in MiB of any so far."""
    start = time.monotonic()
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return time.monotonic() - start, round(peak)


def browse(page: Path, times: int = 5) -> dict[str, list[float]] | None:
    """Milliseconds of Chromium (min, median, max): until the first paint, until the page is loaded and its
    script has run, for sorting the first table and for switching a mode off, each until the next frame."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        return None
    click = """selector => new Promise(done => {
        const began = performance.now();
        document.querySelector(selector).click();
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
    })"""
    seen: dict[str, list[float]] = {"first_paint_ms": [], "loaded_ms": [], "sort_ms": [], "filter_ms": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--headless", "--no-sandbox"])
        for _ in range(times):
            tab = browser.new_page()
            tab.goto(page.as_uri())
            tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
            seen["first_paint_ms"].append(tab.evaluate(paint))
            seen["loaded_ms"].append(tab.evaluate(loaded))
            seen["sort_ms"].append(tab.evaluate(click, "thead button"))
            seen["filter_ms"].append(tab.evaluate(click, "button[data-shows]"))
            tab.close()
        browser.close()
    return {k: [round(f(v), 1) for f in (min, statistics.median, max)] for k, v in seen.items()}


def main(counts: list[int]) -> None:
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="crewbench-") as scratch:
        root = Path(scratch)
        lines = make(root, counts[-1])
        megabytes = sum(f.stat().st_size for f in (root / "trials").rglob("*") if f.is_file()) / 1e6
        print(f"{counts[-1]:,} trials on disk, {megabytes:,.0f} MB")
        tables, figures, page = root / "tables", root / "figures", root / "report.html"
        for count in counts:
            manifest = made_trials.write_manifest(root, lines[:count])
            seconds, peak = run("tables", "--matrix", manifest, "--out", tables)
            results.append({"trials": count, "tables_s": round(seconds, 2), "peak_mib": peak})
            each = 1e3 * seconds / count
            print(f"{count:>8,} trials: tables in {seconds:.1f} s, {each:.1f} ms a trial, {peak:,} MiB")
        drawn, _ = run("figures", "--matrix", manifest, "--tables", tables, "--out", figures)
        written, _ = run(
            "report", "--matrix", manifest, "--tables", tables, "--figures", figures, "--out", page
        )
        size = page.stat().st_size / 1e6
        print(f"{counts[-1]:>8,} trials: figures in {drawn:.1f} s, page in {written:.1f} s, {size:.2f} MB")
        browsed = browse(page)
        print(f"{'':>15} in Chromium, ms (min, median, max): {browsed or 'not installed'}")
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    page_figures = {"figures_s": round(drawn, 2), "report_s": round(written, 2), "page_mb": round(size, 2)}
    page_figures["browser"] = browsed
    print(json.dumps({"aggregate": results, "page": page_figures, "machine": machine}))


if __name__ == "__main__":
    main(sorted(int(n) for n in sys.argv[1:]) or [100, 1_000, 10_000])
