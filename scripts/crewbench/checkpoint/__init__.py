"""Checkpoints on disk: built or checked, described by a manifest, and what they will cost in memory."""
