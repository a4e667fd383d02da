"""Who counts memory: CUDA does for GPUs; on CPU slots an account charges a simulated budget.

Either way an engine that does not fit raises the same typed OutOfMemory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from crewbench.devices.budget import Ledger, OutOfMemory

Hold = Callable[[int], None]
"""Says that a sequence will grow to that many tokens. Raises OutOfMemory."""


class CountedByDevice:
    """A GPU refuses by itself what does not fit."""

    def weights(self) -> None:
        pass

    @contextmanager
    def sequence(self) -> Iterator[Hold]:
        yield lambda tokens: None


@dataclass
class SimulatedAccount:
    """Charges a slot's ledger for what a GPU would hold: the weights from load on, and the KV cache of
    each sequence in flight at its full length. A copy spread over several slots charges each an equal
    share, all to process `pid`. Sizes in MiB."""

    ledger: Ledger
    slots: tuple[str, ...]
    budget_mib: float
    weights_mib: float
    kv_mib_per_token: float
    pid: int = field(default_factory=os.getpid)

    def _charge(self, what: str, mib: float, phase: str) -> None:
        """All of it or, when one slot refuses, nothing."""
        share, charged = mib / len(self.slots), []
        try:
            for slot in self.slots:
                self.ledger.charge(slot, self.pid, what, share, self.budget_mib, phase)
                charged.append(slot)
        except OutOfMemory:
            for slot in charged:
                self.ledger.charge(slot, self.pid, what, -share, self.budget_mib, phase)
            raise

    def weights(self) -> None:
        self._charge("weights", self.weights_mib, "load")

    @contextmanager
    def sequence(self) -> Iterator[Hold]:
        held = 0.0

        def hold(tokens: int) -> None:
            nonlocal held
            mib = tokens * self.kv_mib_per_token
            self._charge("kv_cache", mib, "prefill")
            held += mib

        try:
            yield hold
        finally:
            self._charge("kv_cache", -held, "prefill")
