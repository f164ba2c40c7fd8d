"""Monitoring of a training run: its history, plots, the progress bar, and writers of metrics."""

from typing import TYPE_CHECKING

from thinkml import lazy
from thinkml.history import History as History
from thinkml.monitoring.progress import ProgressBar as ProgressBar

if TYPE_CHECKING:
    from thinkml.monitoring.live_plot import Watch as Watch
    from thinkml.monitoring.monitor import TrainingMonitor as TrainingMonitor
    from thinkml.monitoring.plots import training_figure as training_figure
    from thinkml.monitoring.writers import CSVWriter as CSVWriter
    from thinkml.monitoring.writers import EventWriter as EventWriter
    from thinkml.monitoring.writers import MlflowWriter as MlflowWriter
    from thinkml.monitoring.writers import WandbWriter as WandbWriter
    from thinkml.monitoring.writers import Writer as Writer

__getattr__, __dir__ = lazy.names(__name__, {
    'thinkml.monitoring.monitor': 'TrainingMonitor',
    'thinkml.monitoring.plots': 'training_figure',
    'thinkml.monitoring.live_plot': 'Watch',
    'thinkml.monitoring.writers': 'CSVWriter EventWriter MlflowWriter WandbWriter Writer',
})  # fmt: skip
