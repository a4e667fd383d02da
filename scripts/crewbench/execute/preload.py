"""Imports what an engine needs before a worker can load: by a worker itself, or once by the zygote.

Imported as a module in the zygote (multiprocessing's fork server preloads by name), so what to import
comes from the environment. A failure must not be lost there: it is kept for `check` and for the
workers to report.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys

ENGINE = "CREWBENCH_PRELOAD_ENGINE"
MODEL = "CREWBENCH_PRELOAD_MODEL"

done_for: tuple[str, str] | None = None
error = ""


def imports(engine: str, model_path: str) -> None:
    """Import the engine's packages and the model's own module. Touches no accelerator."""
    global done_for
    from crewbench.engines import ENGINES

    info = ENGINES[engine]
    for name in (*info.imports, info.module, "crewbench.crews", "crewbench.engines.adapter"):
        importlib.import_module(name)
    if "transformers" in info.imports:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        config = AutoConfig.from_pretrained(model_path, local_files_only=True)
        MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]  # importing the class is the purpose
    done_for = (engine, model_path)


def check() -> None:
    """A zygote's first child: ends with code 0 if the zygote has imported all."""
    if error:
        sys.exit(error)


if os.environ.get(ENGINE):
    try:
        imports(os.environ[ENGINE], os.environ[MODEL])
        gc.collect()
        gc.freeze()  # fewer pages are copied when the children's collectors run
    except Exception as exc:  # the fork server would swallow or die of it; workers report it instead
        error = f"{type(exc).__name__}: {exc}"
