"""Head tables of models and their nulls over contexts."""
