"""Active learning: choosing which rows to label, storing the labels, and training on them."""
