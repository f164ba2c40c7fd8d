"""Plot reading: analyses to plot, and helpers that read curves and labels off the axes."""

from matplotlib.collections import PolyCollection

from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.bootstrap import Resampling
from thinkml.history import History

from .make_evaluations import classification, multilabel, regression

PLAIN = Resampling(confidence=None)


def analyze(kind, n=150, **settings):
    """Returns the analysis of an evaluation from `make_evaluations`."""
    makers = {'multilabel': multilabel, 'regression': regression}
    if kind in makers:
        return PerformanceAnalysis(makers[kind](n=n, **settings))
    classes = ('no', 'yes') if kind == 'binary' else ('ant', 'bee', 'cat', 'dog')
    return PerformanceAnalysis(classification(classes, n, **settings))


def four_epochs():
    """Returns the history of a training of four epochs."""
    history = History()
    for epoch in range(1, 5):
        history.add_epoch({'loss': 1 / epoch, 'val_loss': 0.3 + (epoch - 2) ** 2, 'f1': 0.5})
    history.best_epoch = 2
    return history


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label):
    """Returns the points of the first line with that label."""
    found = next(each for each in ax.get_lines() if each.get_label().startswith(label))
    return found.get_xydata().T


def has_band(ax):
    return any(isinstance(part, PolyCollection) for part in ax.collections)
