"use strict";
// Sorts tables, hides modes, and says what a mark stands for. The page is whole without it: what needs it is
// shown by it, and it makes no request.
(() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Tables ------------------------------------------------------------------------------------------

  const NUMBER = /^[+~<>≤≥]?\s*(-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)/;
  const written = (cell) => (cell?.firstChild?.textContent ?? "").trim();
  const valued = (cell) => {
    const found = NUMBER.exec(written(cell));
    return found ? parseFloat(found[1].replaceAll(",", "")) : NaN;
  };

  // The rows of one body in the order of a column; what is not measured stays last either way.
  function ordered(rows, column, down) {
    const cells = new Map(rows.map((row) => [row, row.cells[column]]));
    const told = rows.filter((row) => !["", "–"].includes(written(cells.get(row))));
    const numbers = new Map(rows.map((row) => [row, valued(cells.get(row))]));
    const numeric = told.length > 0 && told.every((row) => !isNaN(numbers.get(row)));
    const compare = numeric
      ? (a, b) => numbers.get(a) - numbers.get(b)
      : (a, b) => written(cells.get(a)).localeCompare(written(cells.get(b)), "en", { numeric: true });
    told.sort((a, b) => (down ? compare(b, a) : compare(a, b)));
    return [...told, ...rows.filter((row) => !told.includes(row))];
  }

  function sortable(table) {
    const bodies = [...table.tBodies].map((body) => [body, [...body.rows].filter((r) => !r.querySelector(".group"))]);
    if (bodies.every(([, rows]) => rows.length < 2)) return;
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const before = heading.getAttribute("aria-sort");
        const now = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        if (now) heading.setAttribute("aria-sort", now);
        for (const [body, rows] of bodies) body.append(...(now ? ordered(rows, column, now === "descending") : rows));
      });
    });
  }

  // Modes -------------------------------------------------------------------------------------------

  function filter(bar) {
    const buttons = all("button[data-shows]", bar);
    const said = bar.querySelector("output");
    const shown = () => new Set(buttons.filter((b) => b.ariaPressed === "true").map((b) => b.dataset.shows));
    const apply = () => {
      const on = shown();
      for (const marked of all("[data-mode]")) {
        const off = !on.has(marked.dataset.mode);
        if (marked instanceof SVGElement) marked.classList.toggle("off", off);
        else (marked.closest("tr") ?? marked).hidden = off;
      }
      said.textContent = on.size === buttons.length ? "" : `${on.size} of ${buttons.length} modes shown`;
    };
    bar.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.shows) button.ariaPressed = String(button.ariaPressed !== "true");
      else buttons.forEach((b) => (b.ariaPressed = "true"));
      apply();
    });
    bar.hidden = false;
  }

  // Marks -------------------------------------------------------------------------------------------

  function telling() {
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    document.body.append(tip);
    const words = new WeakMap();
    document.addEventListener("pointerover", (event) => {
      const mark = event.target.closest?.("figure svg .says");
      const title = mark?.querySelector(":scope > title");
      if (title) {
        // A browser's own would come a second later, over this one.
        words.set(mark, title.textContent);
        title.remove();
      }
      tip.hidden = !mark;
      if (!mark) return;
      tip.textContent = words.get(mark);
      const box = mark.getBoundingClientRect();
      const left = Math.min(event.clientX + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
      const above = box.top - tip.offsetHeight - 8;
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${above > 0 ? above : box.bottom + 8}px`;
    });
    document.addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  }

  all("main table").forEach(sortable);
  all("fieldset.modes").forEach(filter);
  telling();
})();
