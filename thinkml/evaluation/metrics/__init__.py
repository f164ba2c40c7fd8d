"""Metrics of a finished evaluation, in float64 on the host."""
