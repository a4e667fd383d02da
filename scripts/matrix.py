"""Write the manifest that every rule reads, as the workflow does when it starts.

    matrix.py --config '{"runs": [...], ...}' --gpus 0 --out results/matrix.json
    matrix.py --read config/mistral-7b.yaml

--config is a whole config as JSON, or a path to a YAML file. It also says how many
trials have not run yet, and about how long they will take. --read only
looks whether a file is whole: Snakemake itself does not say where YAML is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from crewbench import matrix
from crewbench.config import load
from crewbench.problems import ConfigError, read_yaml
from crewbench.progress import Progress, done


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", help="JSON text, or a YAML file")
    source.add_argument("--read", type=Path, help="a YAML file to read, and write nothing")
    parser.add_argument("--gpus", type=int, help="GPUs of this machine (default: look)")
    parser.add_argument("--out", type=Path, default=Path(matrix.MANIFEST), help="the manifest")
    arguments = parser.parse_args()
    try:
        if arguments.read:
            read_yaml(arguments.read)
            return 0
        is_json = arguments.config.lstrip().startswith("{")
        config = load(json.loads(arguments.config) if is_json else arguments.config)
        made = matrix.build(config, gpus=arguments.gpus)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    matrix.write(made, arguments.out)
    known = done(made)
    to_run = [trial.trial_id for trial in made if trial.trial_id not in known]
    print(f"{len(made)} trials, {len(made.skipped)} cells skipped -> {arguments.out}")
    print(Progress(made, to_run, known).announcement() or "all of them are done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
