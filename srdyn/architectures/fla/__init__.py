"""Layers of flash-linear-attention."""
