"""The reproduction, on top of the instrument: surveys, trials, claims, analysis."""
