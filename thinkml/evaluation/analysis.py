"""How well a model does, in numbers and in pictures."""

import dataclasses
import os
from typing import TYPE_CHECKING

from thinkml.evaluation import plots
from thinkml.evaluation.result import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, repr=False)
class PerformanceAnalysis:
    """How well a model does. Made by `ModelEvaluator.analyze_performance`.

    The plots are matplotlib Figures. They need no display: a notebook shows them, and ``path``
    writes them to a file, whose ending picks the format (``.png``, ``.pdf``, ``.svg``).

    Attributes:
        evaluation: what was found, with every metric that fits the task.
    """

    evaluation: Evaluation

    def __repr__(self) -> str:
        return f'PerformanceAnalysis({self.evaluation!r})'

    def get_metrics(self) -> dict[str, float]:
        """Every metric that fits the task, as plain floats by name."""
        return dict(self.evaluation.metrics)

    def plot_roc_curve(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws true positives over false positives, at every threshold.

        For binary the curve of the positive class; else one per class (against the others) or
        label, and their mean. Classes without examples are left out; of more than ten the three
        worst are named.

        Args:
            path: a file to write the figure to. Its directory is made if there is none.
            ax: axes to draw into; None draws a figure of its own.

        Returns:
            the figure drawn into.

        Raises:
            ConfigError: for regression.
        """
        return plots.roc_curve(self.evaluation, path, ax)

    def plot_precision_recall_curve(
        self, path: PathLike | None = None, ax: 'Axes | None' = None
    ) -> 'Figure':
        """Draws precision over recall, at every threshold, as steps whose area is the AP.

        Curves, arguments and errors are those of `plot_roc_curve`.
        """
        return plots.precision_recall_curve(self.evaluation, path, ax)

    def plot_confusion_matrix(
        self, path: PathLike | None = None, ax: 'Axes | None' = None
    ) -> 'Figure':
        """Draws how often each class was taken for which, coloured by the share in its row.

        For multilabel each label has a row of true and false negatives and positives. Up to 30
        classes are named and counted. Arguments and errors are those of `plot_roc_curve`.
        """
        return plots.confusion_matrix(self.evaluation, path, ax)
