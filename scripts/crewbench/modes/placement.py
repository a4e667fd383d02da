"""Which devices a copy of the model lies on. The variant option `devices_per_copy` spreads each copy over so
many neighbours; a mode that offers it names it in `options`."""

from __future__ import annotations

from crewbench.trial import Cell

DEVICES_PER_COPY = "devices_per_copy"


def per_copy(cell: Cell) -> int:
    """How many devices each copy lies on."""
    return cell.options.get(DEVICES_PER_COPY, 1)


def group(cell: Cell, copy: int, gpus: int) -> tuple[int, ...]:
    """The devices of a copy: copy i lies on group i mod the number of groups that `gpus` devices make."""
    each = per_copy(cell)
    first = copy % (gpus // each) * each
    return tuple(range(first, first + each))


def single_group(cell: Cell) -> str | None:
    """Why this cell does not fit a mode that has one copy at a time, or None."""
    each = per_copy(cell)
    if cell.gpus == each:
        return None
    return f"runs on {'one GPU' if each == 1 else f'{each} GPUs'}, not on {cell.gpus}"


def idle_gpus(cell: Cell) -> str | None:
    """Why this cell does not fit a mode that has a copy for each agent, or None."""
    each = per_copy(cell)
    if cell.gpus < each:
        return f"a copy takes {each} GPUs, and there {'is' if cell.gpus == 1 else 'are'} {cell.gpus}"
    if cell.gpus % each:
        return f"{cell.gpus} GPUs cannot be divided into groups of {each}"
    empty = cell.gpus - cell.agents * each
    if empty > 0:
        agents = "one agent" if cell.agents == 1 else f"{cell.agents} agents"
        return f"{cell.gpus} GPUs for {agents}: {empty} would stay empty"
    return None
