"""Checkpoints, devices, streaming from disk, memory, and what is told before any weight is read."""
