"""Devices: which there are, who holds them, what they do and how much memory they may use."""
