"""A view of a model's training, while it runs and afterwards."""

import inspect
import math
import os
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainingMonitor:
    """Shows how a model's training goes, or went.

    A monitor reads the record ThinkML keeps of the model; nothing is pushed to it and it costs the
    training nothing. So `track_progress` may be called before the training, after it, or while it
    runs, from a callback or another thread. Earlier runs of the model are shown, those that a
    loaded model had before it was saved too, and later ones are followed.

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
        self, model: Any, metrics: Iterable[str] | None = None, interval: int | None = None
    ) -> None:
        """Chooses what is shown. Calling it again changes the choice.

        Args:
            model: the model that is trained, has been or will be.
            metrics: names as in the `History` (``'loss'``, ``'accuracy'``, ``'val_loss'``). None
                shows all there are.
            interval: steps per point of the loss curve, each point the mean over that many steps.
                None draws one point per epoch.

        Raises:
            ConfigError: if ``metrics`` or ``interval`` make no sense.
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
        """Returns the latest value of each metric asked for, as plain floats.

        Values are those of the last finished epoch. With an ``interval``, ``loss`` is that of the
        steps since, at most ``interval`` of them. Before there is any value, those asked for (or
        ``loss``) are NaN, and a `ThinkMLWarning` says so.

        Raises:
            ThinkMLError: if `track_progress` was not called.
        """
        runs = self._runs()
        self._warn_of_unknown(runs)
        # A run whose first epoch has not ended has little to tell yet: the run before it has.
        latest = next(filter(None, (_latest(run, self._interval) for run in reversed(runs))), {})
        if not latest:
            warn_user(
                'get_current_metrics: nothing is recorded of this model yet, so all values are '
                'NaN. They appear when an epoch ends.'
            )
        names = self._metrics or latest or ('loss',)
        return {name: latest.get(name, math.nan) for name in names}

    def plot_progress(self, path: str | os.PathLike[str] | None = None) -> 'Figure':
        """Draws the tracked model's training, several runs one after another.

        One panel shows the loss, one the other metrics, and each other value that was recorded
        (the learning rate, the time of a step) has its own: training solid, validation dashed, the
        best epoch a dotted line with stars, and what happened besides a thin line with a few words.
        A notebook shows the figure once, a script shows it with ``plt.show()``.

        Args:
            path: where to save the figure; the ending chooses the format (``.png``, ``.svg``,
                ``.pdf``). Missing folders are made. None saves nothing.

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
        """Shows the plot of `plot_progress` and draws it again while training goes on.

        In a notebook it appears below the cell. A thread looks for something new and draws it, so
        that the training may run in the same cell, in a later one, or in another thread. Anywhere
        else a picture that redraws itself needs a ``path``: a file, which many viewers load again
        when it changes.

        Calling it again ends the picture before and begins a new one.

        Args:
            path: a file to draw into, its ending as for `plot_progress`. None shows the plot in
                the notebook; where there is none, a warning says what else there is.
            every_seconds: how often to look for something new.

        Returns:
            The `Watch`; ``stop()`` ends it, and so does ``with monitor.watch(): ...``, each with a
            last look.

        Raises:
            ConfigError: if ``every_seconds`` is no number above 0.
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
        self._watch = Watch(self._news, self._shown_by(path), every_seconds)
        return self._watch

    def _shown_by(self, path: str | os.PathLike[str] | None) -> Callable[[], None]:
        """What draws the plot to where it is watched."""
        if path is not None:
            show = file_display(path)
        elif in_notebook():
            show = notebook_display()
        else:
            warn_user(
                'watch: this is no notebook, so nothing is drawn. Name a file to draw into, '
                "watch('progress.png'), or train with callbacks=['tensorboard'] and look at it "
                'there. The progress bar is shown in any case.'
            )
            return lambda: None
        return lambda: show(self._figure())

    def _news(self) -> Hashable:
        """Something that is another whenever the plot would be."""
        interval = self._interval
        runs = [
            (run.epochs, run.best_epoch, len(run.events), interval and run.steps // interval)
            for run in self._runs()
        ]
        return tuple(runs), self._metrics, interval

    def _figure(self) -> 'Figure':
        return training_figure(self._runs(), self._metrics, self._interval)

    def _runs(self) -> list[History]:
        """The runs that have recorded something."""
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


def _check_model(model: Any) -> None:
    """Refuses what is often taken for a model; what can have a record at all is not known here."""
    linen = sys.modules.get('flax.linen')
    is_linen = linen is not None and isinstance(model, linen.Module)
    if is_linen or inspect.isclass(model) or isinstance(model, History | tuple):
        from thinkml.core.model.functional import (
            not_a_model,  # imports JAX, which monitoring needs not
        )

        raise ModelTypeError(not_a_model(model))


def _latest(run: History, interval: int | None) -> Mapping[str, float]:
    run = run.copy()
    latest = run.last()
    unfinished = run.steps - (run.epoch_ends[-1] if run.epochs else 0)
    if interval is not None and unfinished:
        latest['loss'] = float(run.step_loss[-min(interval, unfinished) :].mean())
    return latest
