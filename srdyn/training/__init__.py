"""Makes and measures the reference models."""
