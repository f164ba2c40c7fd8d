"""ActiveHistory: the recorded queries of active learning and the metrics after each."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from thinkml.errors import ConfigError, DataError, unknown_name
from thinkml.json_values import to_json_value

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Status = Literal['awaiting_labels', 'labeled', 'skipped', 'trained']


@dataclasses.dataclass
class ActiveQuery:
    """A batch of rows for which labels were requested.

    Attributes:
        indices: int64 ``[rows]``, rows of the pool as it was passed.
        scores: float32 ``[rows]``, the strategy's score of each row; NaN if it gives none.
        status: ``'awaiting_labels'`` until each row has its label or was skipped, then
            ``'labeled'``, and ``'trained'`` once the model was trained on them; ``'skipped'`` if
            no row has a label.
        num_labels: the number of labels that the model was trained on after this query; None
            before.
        metrics: the metrics of that training's last epoch, and ``val_...`` of the validation data.
        agreement: Cohen's kappa on the pool between the models before and after this query; NaN
            if it was not measured.
        seconds: the time that choosing the rows and the training took.
    """

    indices: np.ndarray
    scores: np.ndarray
    status: Status = 'awaiting_labels'
    num_labels: int | None = None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    agreement: float = float('nan')
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f'{len(self.indices)} rows, {self.status.replace("_", " ")}'
        if self.num_labels is not None:
            shown = ', '.join(f'{name} {value:.4g}' for name, value in self.metrics.items())
            text += f': {self.num_labels} labels, {shown}'
        return text


@dataclasses.dataclass
class ActiveHistory(Sequence[ActiveQuery]):
    """The queries of active learning, oldest first.

    Attributes:
        start: the number of labels and the metrics of the training before the first query; None
            for none.
        queries: one query for each iteration.
        stop_reason: the reason to stop, or the reason why it ended before the last iteration; None
            for none.
        baseline: the history of the same experiment with rows chosen at random; None for none.

    Example:
        >>> import numpy as np
        >>> from thinkml.training import ActiveHistory, ActiveQuery
        >>> history = ActiveHistory(
        ...     start=(10, {'val_accuracy': 0.5}),
        ...     queries=[ActiveQuery(np.arange(5), np.ones(5), 'trained', 15,
        ...                          {'val_accuracy': 0.7})],
        ... )
        >>> history.learning_curve('val_accuracy')
        (array([10, 15]), array([0.5, 0.7]))
        >>> round(history.area('val_accuracy'), 3)
        0.6
    """

    start: tuple[int, dict[str, float]] | None = None
    queries: list[ActiveQuery] = dataclasses.field(default_factory=list)
    stop_reason: str | None = None
    baseline: 'ActiveHistory | None' = None

    @overload
    def __getitem__(self, index: int) -> ActiveQuery: ...
    @overload
    def __getitem__(self, index: slice) -> list[ActiveQuery]: ...
    def __getitem__(self, index: int | slice) -> ActiveQuery | list[ActiveQuery]:
        return self.queries[index]

    def __len__(self) -> int:
        return len(self.queries)

    def __iter__(self) -> Iterator[ActiveQuery]:
        return iter(self.queries)

    def learning_curve(self, metric: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of labels, and the metric of the model trained on each.

        Args:
            metric: its name; None for ``'val_accuracy'``, ``'val_rmse'``, or else the first one
                that was recorded.

        Raises:
            DataError: if nothing was trained yet.
            ConfigError: for a metric that was not recorded.
        """
        points = [] if self.start is None else [self.start]
        points += [(q.num_labels, q.metrics) for q in self.queries if q.num_labels is not None]
        if not points:
            raise DataError('learning_curve: no model was trained yet, so there is no curve.')
        metric = _choose_metric(metric, points[-1][1])
        curve = dict((count, values[metric]) for count, values in points if metric in values)
        return np.array(list(curve)), np.array(list(curve.values()))

    def area(self, metric: str | None = None) -> float:
        """Returns the area under the learning curve over its width: the mean height of the curve.

        Args:
            metric: as in `learning_curve`.

        Raises:
            DataError: if the curve has fewer than two points.
            ConfigError: for a metric that was not recorded.
        """
        counts, values = self.learning_curve(metric)
        if len(counts) < 2:
            raise DataError('area: the learning curve has one point, expected at least two.')
        return float(np.trapezoid(values, counts) / (counts[-1] - counts[0]))

    def plot_learning_curve(
        self,
        *others: 'ActiveHistory',
        metric: str | None = None,
        ax: 'Axes | None' = None,
        path: 'str | os.PathLike[str] | None' = None,
    ) -> 'Figure':
        """Draws the metric over the number of labels, and the baseline if there is one.

        Args:
            *others: histories of the same experiment with other seeds. With them the lines are
                means, and the shaded areas their 95 % intervals (of Student's t).
            metric: as in `learning_curve`.
            ax: axes to draw into; None makes a figure.
            path: a file to save the figure to; None saves nothing.

        Raises:
            DataError: if nothing was trained yet, or the histories share no point.
            ConfigError: for a metric that was not recorded.
        """
        from thinkml.training.active.learning_curve import draw_learning_curves

        metric = metric or _choose_metric(None, self._last_metrics())
        runs = [self, *others]
        curves = {'active': [run.learning_curve(metric) for run in runs]}
        baselines = [run.baseline.learning_curve(metric) for run in runs if run.baseline]
        if baselines:
            curves['at random'] = baselines
        return draw_learning_curves(curves, metric, ax, path)

    def _last_metrics(self) -> Mapping[str, float]:
        trained = [query.metrics for query in self.queries if query.metrics]
        return trained[-1] if trained else (self.start or (0, {}))[1]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, for JSON; NaN becomes None."""
        return {
            'start': None if self.start is None else list(self.start),
            'queries': [
                {name: to_json_value(value) for name, value in vars(query).items()}
                for query in self.queries
            ],
            'stop_reason': self.stop_reason,
            'baseline': None if self.baseline is None else self.baseline.to_dict(),
        }

    def __str__(self) -> str:
        lines = []
        if self.start is not None:
            shown = ', '.join(f'{name} {value:.4g}' for name, value in self.start[1].items())
            lines.append(f'start: {self.start[0]} labels, {shown}')
        lines += [f'{number}: {query}' for number, query in enumerate(self.queries, start=1)]
        if self.stop_reason:
            lines.append(f'ended: {self.stop_reason}')
        return '\n'.join(lines) or 'no queries yet'

    __repr__ = __str__


_PREFERRED_METRICS = ('val_accuracy', 'val_rmse', 'val_f1', 'accuracy', 'loss')


def _choose_metric(metric: str | None, recorded: Mapping[str, float]) -> str:
    if metric is None:
        candidates = (*_PREFERRED_METRICS, *recorded)
        return next((name for name in candidates if name in recorded), 'val_accuracy')
    if metric not in recorded:
        raise ConfigError(unknown_name('metric', metric, recorded))
    return metric
