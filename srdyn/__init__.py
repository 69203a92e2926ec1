"""Rank dynamics of the recurrent states of linear-attention language models."""

__version__ = "0.1.0"
