"""Transformers' own command, with its prefix cache off, for which its `serve` has no switch.

python -m crewbench.engines.transformers_start serve DIR ...     (as engines/transformers_serve.py tells)
"""

from __future__ import annotations

from typing import Any

from transformers import ContinuousBatchingConfig
from transformers.cli.transformers import app

if __name__ == "__main__":
    configure = ContinuousBatchingConfig.__init__

    def without_sharing(self: ContinuousBatchingConfig, **fields: Any) -> None:
        configure(self, **{"allow_block_sharing": False, **fields})

    ContinuousBatchingConfig.__init__ = without_sharing
    app()
