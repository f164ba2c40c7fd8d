"""Watching a training: its record, its plots, the progress bar and event files."""

from thinkml.history import History as History
from thinkml.monitoring.events import EventWriter as EventWriter
from thinkml.monitoring.monitor import TrainingMonitor as TrainingMonitor
from thinkml.monitoring.plots import training_figure as training_figure
from thinkml.monitoring.progress import ProgressBar as ProgressBar
