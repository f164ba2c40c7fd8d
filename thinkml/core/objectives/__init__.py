"""Losses and streaming metrics."""
