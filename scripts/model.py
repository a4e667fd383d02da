"""Rule `model`: build, or check and describe, the checkpoint that the trials load.

    model.py                                            the last study's model, where it belongs
    model.py --matrix results/matrix.json --out results/models/ID
    model.py --spec '{"kind": "synthetic", "shape": "tiny", ...}' --out DIR

Reads the `model` section {model_id, kind, shape, seed, dtype, path, repo, revision} and leaves manifest.json
in --out, last and whole. Weights that were deleted come back as they were, so that no finished trial reruns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crewbench.checkpoint import manifest, synthetic
from crewbench.checkpoint.files import CheckpointError
from crewbench.checkpoint.manifest import Manifest
from crewbench.watch import end_with_workflow


def make(spec: Mapping[str, Any], out: Path) -> Manifest:
    """The checkpoint that a model section asks for, with its manifest in `out`."""
    kind = spec["kind"]
    if kind == "synthetic":
        return synthetic.build(spec["shape"], spec["seed"], spec["dtype"], out, model_id=spec.get("model_id"))
    if kind == "local":
        found = manifest.local(spec.get("model_id") or Path(spec["path"]).name, spec["path"])
    elif kind == "hub":
        found = manifest.hub(spec.get("model_id") or spec["repo"], spec["repo"], spec.get("revision"))
    else:
        raise CheckpointError(f"model.kind {kind!r} is none of synthetic, local, hub")
    out.mkdir(parents=True, exist_ok=True)
    found.write(out)
    return found


def main() -> int:
    end_with_workflow()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--matrix", type=Path, default=Path("results/matrix.json"), help="the manifest; its `model` is read"
    )
    source.add_argument("--spec", help="a model section as JSON; needs --out")
    parser.add_argument("--out", type=Path, help="the directory for manifest.json (the study's)")
    arguments = parser.parse_args()
    if arguments.spec and not arguments.out:
        parser.error("--spec needs --out")
    try:
        if arguments.spec:
            spec = json.loads(arguments.spec)
        elif arguments.matrix.is_file():
            spec = json.loads(arguments.matrix.read_text(encoding="utf-8"))["model"]
        else:
            parser.error(f"{arguments.matrix}: no such file; a run of the workflow leaves one")
        made = make(spec, arguments.out or Path(spec["dir"]))
    except CheckpointError as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"model: {error}: free some space or correct the path, then run again", file=sys.stderr)
        return 1
    print(
        f"{made.model_id}: {made.parameters / 1e6:.1f} million parameters, "
        f"{made.weights_bytes / 2**20:.1f} MiB of {made.dtype}, sha256 {made.sha256[:16]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
