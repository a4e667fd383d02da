"""`vllm bench serve`, imported once and run again and again: a line of arguments in, a line of results out.

Runs in vLLM's interpreter. In: a JSON list of the command's words. Out: JSON with `duration` in s, the tokens
and the requests that the benchmark itself reports; what it prints goes to the standard error stream.
"""

import json
import os
import sys

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

REPORTED = (
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("output_throughput", "mean_ttft_ms", "mean_itl_ms"),
)

parser = FlexibleArgumentParser()
add_cli_args(parser)
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever prints below this line
for line in sys.stdin:
    result = main(parser.parse_args(json.loads(line)))
    answers.write(json.dumps({name: result.get(name) for name in REPORTED}) + "\n")
    answers.flush()
