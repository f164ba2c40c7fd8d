"""Active learning: acquisition scores, and the selection of rows by them."""
