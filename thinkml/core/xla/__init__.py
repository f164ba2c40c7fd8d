"""Compilation: cached programs, rewritten convolutions and rematerialization."""
