"""Runs Deployments for real. run.py walks the steps; each runner (process.py, ...) holds workers.

Nothing here knows a mode, and no runner knows another.
"""
