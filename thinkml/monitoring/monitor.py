"""Training monitor: shows the metrics of a model's training, during and after it."""

import inspect
import math
import os
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

from thinkml.errors import (
    ConfigError,
    ModelTypeError,
    ThinkMLError,
    is_number,
    is_whole,
    problems,
    unknown_name,
    warn_user,
)
from thinkml.figures import give_to_pyplot, in_notebook, save_figure
from thinkml.history import History
from thinkml.model_record import ModelRecord, record_of
from thinkml.monitoring.live_plot import Watch, file_display, notebook_display
from thinkml.monitoring.plots import training_figure
from thinkml.typing import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainingMonitor:
    """A view of a model's training, during and after it.

    A monitor reads the record that ThinkML keeps of the model, at no cost to the training. So
    `track_progress` may be called before, during or after the training, from a callback or another
    thread. The monitor shows earlier runs of the model, including those before it was saved and
    loaded, and follows later runs.

    Example:
        >>> from flax import nnx
        >>> from thinkml.monitoring import TrainingMonitor
        >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        >>> monitor = TrainingMonitor()
        >>> monitor.track_progress(model, metrics=['loss', 'accuracy'], interval=100)
        >>> figure = monitor.plot_progress()  # shows "no data yet" until the model is trained
    """

    def __init__(self) -> None:
        self._record: ModelRecord | None = None
        self._metrics: tuple[str, ...] | None = None
        self._interval: int | None = None
        self._watch: Watch | None = None

    def track_progress(
        self, model: Model, metrics: Iterable[str] | None = None, interval: int | None = None
    ) -> None:
        """Chooses the model and metrics to show. Calling it again changes the choice.

        Args:
            model: the model, before, during or after its training.
            metrics: names as in the `History` (``'loss'``, ``'accuracy'``, ``'val_loss'``). None
                shows all recorded metrics.
            interval: steps per point of the loss curve; each point is the mean over these steps.
                None draws one point per epoch.

        Raises:
            ConfigError: if ``metrics`` or ``interval`` are not valid.
            ModelTypeError: if ``model`` can't be a model.
        """
        names = tuple(metrics) if isinstance(metrics, Collection) else None
        found = []
        if isinstance(metrics, str):
            found.append(f'metrics: got the string {metrics!r}, expected a list: [{metrics!r}].')
        elif metrics is not None and not isinstance(metrics, Collection):
            found.append(f'metrics: got {metrics!r}, expected a list of names, or None for all.')
        elif names is not None and not (names and all(isinstance(name, str) for name in names)):
            found.append(f'metrics: got {list(names)!r}, expected names, or None for all.')
        if interval is not None and not (is_whole(interval) and interval >= 1):
            found.append(
                f'interval: got {interval!r}, expected a number of steps, at least 1, '
                'or None for one point per epoch.'
            )
        if found:
            raise ConfigError(problems('track_progress: these can not be shown.', found))
        _check_model(model)
        self._record = record_of(model)
        self._metrics, self._interval = names, interval
        self._warn_of_unknown(self._runs())

    def get_current_metrics(self) -> dict[str, float]:
        """Returns the latest value of each tracked metric, as plain floats.

        Values are those of the last finished epoch. With an ``interval``, ``loss`` is the mean over
        the steps since then, at most ``interval`` of them. Before there is any value, the tracked
        metrics (or ``loss``) are NaN, with a `ThinkMLWarning`.

        Raises:
            ThinkMLError: if `track_progress` was not called.
        """
        runs = self._runs()
        self._warn_of_unknown(runs)
        # A run whose first epoch has not ended has few values: the previous run has more.
        latest = next(filter(None, (_latest(run, self._interval) for run in reversed(runs))), {})
        if not latest:
            warn_user(
                'get_current_metrics: nothing is recorded for this model yet, so all values are '
                'NaN. Values appear when an epoch ends.'
            )
        names = self._metrics or latest or ('loss',)
        return {name: latest.get(name, math.nan) for name in names}

    def plot_progress(self, path: str | os.PathLike[str] | None = None) -> 'Figure':
        """Draws the tracked model's training, with its runs one after another.

        One panel shows the loss and one the other metrics. Every other recorded value (the learning
        rate, the time of a step) has a panel. Training is solid, validation dashed, the best epoch
        a dotted line with stars, and an event a thin line with a few words.
        A notebook shows the figure once; a script shows it with ``plt.show()``.

        Args:
            path: the file to save the figure to; the ending chooses the format (``.png``, ``.svg``,
                ``.pdf``). Missing folders are created. None saves nothing.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            ThinkMLError: if `track_progress` was not called.
        """
        runs = self._runs()
        self._warn_of_unknown(runs)
        figure = self._figure()
        if path is not None:
            save_figure(figure, path)
        return give_to_pyplot(figure)

    def watch(
        self, path: str | os.PathLike[str] | None = None, every_seconds: float = 2.0
    ) -> Watch:
        """Shows the plot of `plot_progress` and redraws it during training.

        In a notebook, the plot appears below the cell. A thread redraws it when there are new
        values, so the training may run in the same cell, in a later one, or in another thread.
        Elsewhere, a live plot needs a ``path``: a file, which many viewers reload when it changes.

        Calling it again ends the previous live plot and begins a new one.

        Args:
            path: a file to draw into, with an ending as for `plot_progress`. None shows the plot in
                the notebook; outside a notebook, a warning names the alternatives.
            every_seconds: the interval between looks for new values, in seconds.

        Returns:
            the `Watch`. ``stop()`` ends it, and so does ``with monitor.watch(): ...``; both draw
            the plot a last time.

        Raises:
            ConfigError: if ``every_seconds`` is not a number above 0.
            ThinkMLError: if `track_progress` was not called.

        Example:
            >>> monitor.watch()  # doctest: +SKIP
            >>> trainer.train(model, X_train, y_train)  # doctest: +SKIP
        """
        self._runs()
        if not (is_number(every_seconds) and every_seconds > 0):
            raise ConfigError(f'every_seconds: got {every_seconds!r}, expected a number above 0.')
        if self._watch is not None:
            self._watch.stop()
        self._watch = Watch(self._state, self._drawing_function(path), every_seconds)
        return self._watch

    def _drawing_function(self, path: str | os.PathLike[str] | None) -> Callable[[], None]:
        """Returns a function that draws the plot to a file or in the notebook."""
        if path is not None:
            show = file_display(path)
        elif in_notebook():
            show = notebook_display()
        else:
            warn_user(
                'watch: this is not a notebook, so nothing is drawn. Name a file to draw into, '
                "watch('progress.png'), or train with callbacks=['tensorboard'] and look at it "
                'there. The progress bar is shown in any case.'
            )
            return lambda: None
        return lambda: show(self._figure())

    def _state(self) -> Hashable:
        """Returns a value that changes whenever the plot would change."""
        interval = self._interval
        runs = [
            (run.epochs, run.best_epoch, len(run.events), interval and run.steps // interval)
            for run in self._runs()
        ]
        return tuple(runs), self._metrics, interval

    def _figure(self) -> 'Figure':
        return training_figure(self._runs(), self._metrics, self._interval)

    def _runs(self) -> list[History]:
        """Returns the runs with recorded values."""
        if self._record is None:
            raise ThinkMLError(
                'model: no model is tracked yet. Call track_progress(model) first, before or after '
                'its training.'
            )
        return [run for run in list(self._record.runs) if run.epochs or run.steps]

    def _warn_of_unknown(self, runs: list[History]) -> None:
        recorded = {name for run in runs for name in run}
        if not recorded:
            return
        for name in self._metrics or ():
            if name not in recorded:
                warn_user(unknown_name('metrics', name, recorded))


def _check_model(model: Model) -> None:
    """Raises a `ModelTypeError` for objects that are often mistaken for a model.

    It does not check whether the object can have a record.
    """
    linen = sys.modules.get('flax.linen')
    is_linen = linen is not None and isinstance(model, linen.Module)
    if is_linen or inspect.isclass(model) or isinstance(model, History | tuple):
        # Imports JAX, which monitoring does not need otherwise.
        from thinkml.core.model.functional import not_a_model

        raise ModelTypeError(not_a_model(model))


def _latest(run: History, interval: int | None) -> Mapping[str, float]:
    run = run.copy()
    latest = run.last()
    unfinished = run.steps - (run.epoch_ends[-1] if run.epochs else 0)
    if interval is not None and unfinished:
        latest['loss'] = float(run.step_loss[-min(interval, unfinished) :].mean())
    return latest
