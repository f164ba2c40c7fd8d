"""Active learning: which rows are worth a label, asked for, kept and learned from."""
