"""Checkpoints of a training run, and arrays on disk; the only package that imports Orbax."""

from thinkml.checkpoint.array_store import load_arrays as load_arrays
from thinkml.checkpoint.array_store import save_arrays as save_arrays
from thinkml.checkpoint.checkpointer import Checkpointer as Checkpointer
from thinkml.checkpoint.checkpointer import has_checkpoints as has_checkpoints
from thinkml.checkpoint.checkpointer import is_checkpoint as is_checkpoint
