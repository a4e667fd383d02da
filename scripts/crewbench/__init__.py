"""crewbench: how to deploy N local agents on their GPUs, and what breaks first."""

__version__ = "0.1.0"
