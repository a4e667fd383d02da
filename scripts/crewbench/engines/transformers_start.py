"""Transformers' own command, with its prefix cache off, for which its `serve` has no switch.

python -m crewbench.engines.transformers_start serve DIR ...     (as engines/transformers_serve.py tells)
"""

from __future__ import annotations

from functools import partial

import transformers
from transformers.cli.transformers import app

if __name__ == "__main__":
    # `serve` takes this name from the package when it starts, and gives it what its own options say.
    transformers.ContinuousBatchingConfig = partial(
        transformers.ContinuousBatchingConfig, allow_block_sharing=False
    )
    app()
