"""Model files: the structure, the weights and all other parts of a saved model."""
