"""How well a model does, in numbers and in pictures."""

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
    """How well a model does. Made by `ModelEvaluator.analyze_performance`.

    The plots are matplotlib Figures. They need no display: a notebook shows each of them once, a
    script shows them with ``plt.show()``, and ``path`` writes them to a file, whose ending picks
    the format (``.png``, ``.pdf``, ``.svg``). Sample
    weights count in all of them. What is shaded is the confidence interval at each point by
    itself, from resamples of the rows (or groups); there is none with ``confidence=None``.

    Attributes:
        evaluation: what was found, with every metric that fits the task.
        speed: how fast the model predicts; None if that was not measured.
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
        """Every metric that fits the task, as plain floats by name.

        Where speed was measured, ``latency_seconds`` is what a prediction of one row takes, and
        ``rows_per_second`` how many are predicted in batches, see `Speed`.
        """
        metrics = dict(self.evaluation.metrics)
        if self.speed is not None:
            metrics['latency_seconds'] = self.speed.latency_seconds
            metrics['rows_per_second'] = self.speed.rows_per_second
        return metrics

    def plot_roc_curve(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws true positives over false positives, at every threshold.

        For binary the curve of the positive class; else one per class (against the others) or
        label, and their mean, whose band is the one that is drawn. Classes without examples are
        left out; of more than ten the three worst are named.

        Args:
            path: a file to write the figure to. Its directory is made if there is none.
            ax: axes to draw into; None draws a figure of its own.

        Returns:
            the figure drawn into.

        Raises:
            ConfigError: for regression, and for models without probabilities.
        """
        return give_to_pyplot(plots.roc_curve(self.evaluation, path, ax))

    def plot_precision_recall_curve(
        self, path: PathLike | None = None, ax: 'Axes | None' = None
    ) -> 'Figure':
        """Draws precision over recall, at every threshold, as steps whose area is the AP.

        Curves, arguments and errors are those of `plot_roc_curve`.
        """
        return give_to_pyplot(plots.precision_recall_curve(self.evaluation, path, ax))

    def plot_gain(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws the cumulative gain: the share of positives among the rows with highest scores.

        The lift at 10 % is how many times more positives there are among the first tenth of the
        rows than among all. Curves, arguments and errors are those of `plot_roc_curve`.
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
        """Draws how often what was given a probability is true, in 15 bins of even width.

        For binary it is the probability of the positive class; for multiclass of the class that is
        predicted; for multilabel of each label. Intervals are Wilson's. Arguments and errors are
        those of `plot_roc_curve`.
        """
        return give_to_pyplot(plots.calibration_curve(self.evaluation, path, ax))

    def plot_confusion_matrix(
        self, path: PathLike | None = None, ax: 'Axes | None' = None
    ) -> 'Figure':
        """Draws how often each class was taken for which, coloured by the share in its row.

        For multilabel each label has a row of true and false negatives and positives. Up to 30
        classes are named and counted. Arguments are those of `plot_roc_curve`.

        Raises:
            ConfigError: for regression.
        """
        return give_to_pyplot(plots.confusion_matrix(self.evaluation, path, ax))

    def plot_residuals(self, path: PathLike | None = None, ax: 'Axes | None' = None) -> 'Figure':
        """Draws what is true less what was predicted, over the prediction, and its distribution.

        A line shows the mean residual of predictions of about that size, which is 0 for a model
        that is right on average. Of several targets each is in its own standard deviations. Of very
        many rows some are drawn, all count in the line. Arguments are those of `plot_roc_curve`.

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
            metric: what was recorded in training: ``'loss'``, or a metric that was asked for.

        Raises:
            ConfigError: if the metric was not recorded.
            NotTrainedError: if no training of the model is recorded.
        """
        return give_to_pyplot(plots.learning_curve(self.runs, path, ax, metric))
