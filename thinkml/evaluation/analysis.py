"""Performance analysis: all metrics of a model, its speed, and its plots."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thinkml.evaluation import plots
from thinkml.evaluation.plots.axes import PathLike
from thinkml.evaluation.result import Evaluation
from thinkml.evaluation.speed import Speed
from thinkml.evaluation.threshold_choice import Threshold
from thinkml.figures import give_to_pyplot
from thinkml.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class PerformanceAnalysis:
    """An analysis of a model's performance, returned by `ModelEvaluator.analyze_performance`.

    The plots are matplotlib Figures and need no display. A notebook shows each of them once, a
    script shows them with ``plt.show()``. ``path`` writes them to a file, whose ending picks the
    format (``.png``, ``.pdf``, ``.svg``). Sample weights count in all of them. The shaded area is
    the pointwise confidence interval, from resamples of the rows (or groups); there is none with
    ``confidence=None``.

    Attributes:
        evaluation: the evaluation, with every metric that fits the task.
        speed: the speed of predictions; None if it was not measured.
        runs: the histories of the model's trainings, oldest first.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.evaluation import ModelEvaluator
        >>> X_test, y_test = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> analysis = ModelEvaluator().analyze_performance(model, X_test, y_test)
        >>> analysis.get_metrics()['rows_per_second'] > 0
        True
        >>> analysis.plot_roc_curve().axes[0].get_title()
        'ROC curve of class 1'
    """

    evaluation: Evaluation
    speed: Speed | None = None
    runs: Sequence[History] = ()

    def __repr__(self) -> str:
        return f'PerformanceAnalysis({self.evaluation!r})'

    def get_metrics(self) -> dict[str, float]:
        """Returns every metric that fits the task, as plain floats by name.

        If speed was measured, ``latency_seconds`` is the time to predict one row, and
        ``rows_per_second`` the rows predicted per second in batches; see `Speed`.
        """
        metrics = dict(self.evaluation.metrics)
        if self.speed is not None:
            metrics['latency_seconds'] = self.speed.latency_seconds
            metrics['rows_per_second'] = self.speed.rows_per_second
        return metrics

    def plot_roc_curve(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws the true positive rate over the false positive rate, at every threshold.

        For binary there is one curve, of the positive class. Else there is one curve per class
        (against the others) or label, and their mean, which has the band. Classes without examples
        are left out. With more than ten curves only the three worst are named.

        Args:
            path: a file to write the figure to. Its directory is created if needed.
            ax: the axes to draw into; None creates a new figure.

        Returns:
            The figure that was drawn into.

        Raises:
            ConfigError: for regression, and for models without probabilities.
        """
        return give_to_pyplot(plots.roc_curve(self.evaluation, path, ax))

    def plot_precision_recall_curve(
        self, path: PathLike | None = None, ax: 'Axes | None' = None
    ) -> 'Figure':
        """Draws precision over recall, at every threshold, as steps; their area is the AP.

        Curves, arguments and errors are those of `plot_roc_curve`.
        """
        return give_to_pyplot(plots.precision_recall_curve(self.evaluation, path, ax))

    def plot_gain(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws the cumulative gain: the recall among the rows with the highest scores.

        The lift at 10 % is the ratio of the fraction of positives in the first tenth of the rows to
        that in all rows. Curves, arguments and errors are those of `plot_roc_curve`.
        """
        return give_to_pyplot(plots.gain_curve(self.evaluation, path, ax))

    def plot_threshold(
        self,
        path: PathLike | None = None,
        ax: 'Axes | None' = None,
        choice: Threshold | Mapping[Any, Threshold] | None = None,
    ) -> 'Figure':
        """Draws precision, recall and F1 over the threshold; for multilabel the F1 of each label.

        Args:
            path: as in `plot_roc_curve`.
            ax: as in `plot_roc_curve`.
            choice: the threshold to mark, from `choose_threshold` on validation data. None marks
                the one with the highest F1 on the data drawn, which looks better than it is.

        Raises:
            ConfigError: for multiclass and regression, and for models without probabilities.
        """
        return give_to_pyplot(plots.threshold_curves(self.evaluation, path, ax, choice))

    def plot_calibration(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws the fraction of true cases over the probability, in 15 bins of equal width.

        For binary the probability is that of the positive class, for multiclass that of the
        predicted class, for multilabel that of each label. Intervals are Wilson's. Arguments and
        errors are those of `plot_roc_curve`.
        """
        return give_to_pyplot(plots.calibration_curve(self.evaluation, path, ax))

    def plot_confusion_matrix(
        self, path: PathLike | None = None, ax: 'Axes | None' = None
    ) -> 'Figure':
        """Draws the confusion matrix, coloured by the fraction of each row.

        For multilabel each label has a row of true and false negatives and positives. Up to 30
        classes are named and counted. Arguments are those of `plot_roc_curve`.

        Raises:
            ConfigError: for regression.
        """
        return give_to_pyplot(plots.confusion_matrix(self.evaluation, path, ax))

    def plot_residuals(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws residuals (true minus predicted) over the predictions, and their distribution.

        A line shows the mean residual of predictions of similar size, which is 0 for a model that
        is right on average. Several targets are each drawn in units of their standard deviation. If
        there are very many rows, only some are drawn, but all count in the line. Arguments are
        those of `plot_roc_curve`.

        Raises:
            ConfigError: for classification.
        """
        return give_to_pyplot(plots.residual_plot(self.evaluation, path, ax))

    def plot_learning_curve(
        self, path: PathLike | None = None, ax: 'Axes | None' = None, metric: str = 'loss'
    ) -> 'Figure':
        """Draws a metric of training and validation over the epochs, one training after another.

        Args:
            path: as in `plot_roc_curve`.
            ax: as in `plot_roc_curve`.
            metric: a metric that was recorded in training: ``'loss'``, or one that was requested.

        Raises:
            ConfigError: if the metric was not recorded.
            NotTrainedError: if no training of the model is recorded.
        """
        return give_to_pyplot(plots.learning_curve(self.runs, path, ax, metric))
