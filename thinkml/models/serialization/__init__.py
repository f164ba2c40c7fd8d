"""Model files: structure, weights and everything else that a saved model needs."""
