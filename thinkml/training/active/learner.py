"""ActiveLearner: requests the most useful labels, and trains a model on them."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from thinkml.core.objectives.losses import LossFn
from thinkml.data import as_array, check_lengths
from thinkml.errors import ConfigError, DataError, is_number, is_whole, warn_user
from thinkml.paths import local_path
from thinkml.training.active.history import ActiveHistory
from thinkml.training.active.labelling_widget import Widget, labelling_widget
from thinkml.training.active.pool import Pool
from thinkml.training.active.pool_predictions import ElementScore
from thinkml.training.active.query_loop import KnownLabels, Oracle, plan_queries, run_queries
from thinkml.training.active.retraining import (
    Retrain,
    Retraining,
    RetrainingSettings,
    trained_input_spec,
)
from thinkml.training.active.session import QuerySettings, Session
from thinkml.training.active.stopping import StoppingRules
from thinkml.training.active.strategies import STRATEGIES, DiverseBatches, make_strategy
from thinkml.training.config import TrainingConfig
from thinkml.training.train import check_config, check_switches
from thinkml.typing import Inputs, Labels, Model


class ActiveLearner:
    """A learner that chooses which rows to label next, and trains a model on the labels.

    `train` runs a number of iterations. The labels are passed (an experiment) or come from a
    function. `start`, `query`, `teach` and `skip` do the same step by step, over days if needed.
    After `save`, every label is written to disk at once; `load` continues a saved session.

    Args:
        model: as in `ModelTrainer.train`, trained in place; or a list of models with different
            initial weights, an ensemble, which predicts by its mean.
        strategy: the rule to choose rows: a name, a `DiverseBatches` or a function. By the model's
            uncertainty: ``'uncertainty'`` (least confident), ``'margin'``, ``'entropy'``. By how
            passes with dropout, or the models of an ensemble, differ: ``'bald'``,
            ``'variation_ratio'``, and for regression ``'variance'``. By the gradient that a label
            would cause: ``'expected_gradient_length'``. By the distances between rows:
            ``'core_set'``, ``'typiclust'``. By both uncertainty and distance: ``'badge'``,
            `DiverseBatches`. At random: ``'random'``. A function ``(probabilities, key)`` or
            ``(features, key)`` of the available rows returns their order, best first.
        config: the settings of each training; None for the defaults.
        query_size: the number of rows in a query.
        seed: the seed of the random choices of rows.
        classes: all possible labels; needed if the initial labels do not contain every class and
            labels are not 0, 1, 2, ...
        num_draws: the number of passes with dropout.
        element_score: the score of a row with a target for each token or pixel: the ``'mean'`` of
            its elements' scores, or the largest one, ``'max'``. The elements count that are True
            in a mask of the inputs, ``X_unlabeled={'tokens': ..., 'mask': ...}``; else all.
        loss_fn: as in `ModelTrainer.train`.
        class_weights: as in `ModelTrainer.train`; ``'balanced'`` if some classes are rare.
        augmentation: as in `ModelTrainer.train`.
        metrics: the metrics of the validation data, as in `ModelEvaluator.evaluate`; None for
            accuracy and log_loss, for regression rmse and r2, for multilabel accuracy and f1.
        max_labels: stop once this many labels were added to the initial ones.
        patience: stop after this many iterations in a row in which the first of the validation
            metrics did not exceed its best value; needs validation data.
        min_agreement: stop once the predictions for the pool are stable: the mean of the last
            three Cohen's kappas, each between a model's predictions and the next one's, is at
            least this. 0.99 is usual. Not for regression.

    Attributes:
        model: as passed.

    Raises:
        ConfigError: for settings that are impossible.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.training import ActiveLearner, TrainingConfig
        >>> X = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
        >>> y = (X[:, 0] > 0).astype(int)
        >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> learner = ActiveLearner(model, 'margin', config=TrainingConfig(epochs=5), query_size=4)
        >>> history = learner.train(
        ...     X[:10], y[:10], X[10:], n_iterations=3, y_unlabeled=y[10:], progress=False
        ... )
        >>> [query.num_labels for query in history]
        [14, 18, 22]

    Reference:
        Settles, 2009, *Active learning literature survey*; Bloodgood and Vijay-Shanker, 2009, *A
        method for stopping active learning based on stabilizing predictions*. The references of
        the strategies are in `thinkml.core`.
    """

    def __init__(
        self,
        model: Model | Sequence[Model],
        strategy: str | DiverseBatches | Callable[..., ArrayLike] = 'uncertainty',
        *,
        config: TrainingConfig | None = None,
        query_size: int = 10,
        seed: int = 0,
        classes: Sequence[Any] | None = None,
        num_draws: int = 20,
        element_score: ElementScore = 'mean',
        loss_fn: str | LossFn | None = None,
        class_weights: Mapping[Any, float] | str | None = None,
        augmentation: Any = None,
        metrics: Sequence[str] | None = None,
        max_labels: int | None = None,
        patience: int | None = None,
        min_agreement: float | None = None,
    ):
        for name, value, least in (
            ('query_size', query_size, 1),
            ('seed', seed, 0),
            ('num_draws', num_draws, 2),
            ('max_labels', 1 if max_labels is None else max_labels, 1),
            ('patience', 1 if patience is None else patience, 1),
        ):
            if not (is_whole(value) and value >= least):
                raise ConfigError(
                    f'{name}: got {value!r}, expected a whole number of at least {least}.'
                )
        if min_agreement is not None and not (is_number(min_agreement) and 0 < min_agreement <= 1):
            raise ConfigError(
                f'min_agreement: got {min_agreement!r}, expected more than 0, at most 1.'
            )
        if element_score not in ('mean', 'max'):
            raise ConfigError(f"element_score: got {element_score!r}, expected 'mean' or 'max'.")
        models = list(model) if isinstance(model, list | tuple) else [model]
        if not models or len({id(one) for one in models}) < len(models):
            raise ConfigError(
                'model: got no model, or the same one twice, expected different ones.'
            )
        self.model = model
        self.query_size = query_size
        self.seed = seed
        self._query_settings = QuerySettings(
            strategy=make_strategy(strategy),
            stopping=StoppingRules(max_labels, patience, min_agreement),
            seed=seed,
            num_draws=num_draws,
            element_score=element_score,
        )
        self._strategy = strategy
        self._models = models
        self._retraining_settings = RetrainingSettings(
            config=check_config(config),
            classes=classes,
            loss_fn=loss_fn,
            class_weights=class_weights,
            augmentation=augmentation,
            metrics=metrics,
        )
        self._session: Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self._session is not None:
            raise ConfigError(
                'learner: it has started a session, whose labels belong to one learner, so it can '
                'be neither copied nor pickled. Use save(path), and load(path, X_unlabeled) with a '
                'learner made in the same way; you can copy learner.model alone.'
            )
        # The user's strategy in place of the one made of it, whose functions can't be pickled.
        return vars(self) | {
            '_query_settings': dataclasses.replace(self._query_settings, strategy=self._strategy)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._query_settings = dataclasses.replace(
            self._query_settings, strategy=make_strategy(self._strategy)
        )

    @property
    def history(self) -> ActiveHistory:
        """Returns the queries, and the metrics after each.

        Raises:
            DataError: before `start`.
        """
        return self._require_session('history').store.history

    @property
    def labels(self) -> dict[int, Any]:
        """Returns the labels that were added, by row of the pool, in the order they were added.

        Raises:
            DataError: before `start`.
        """
        return dict(self._require_session('labels').store.labels)

    @property
    def waiting(self) -> np.ndarray:
        """Returns the queried rows that have no label yet and were not skipped.

        Raises:
            DataError: before `start`.
        """
        return self._require_session('waiting').store.waiting

    # --- in one call ----------------------------------------------------------------------------

    def train(
        self,
        X_labeled: Inputs = None,
        y_labeled: Labels = None,
        X_unlabeled: Inputs = None,
        n_iterations: int = 5,
        *,
        oracle: Oracle | None = None,
        y_unlabeled: Labels = None,
        X_val: Inputs = None,
        y_val: Labels = None,
        retrain: Retrain = 'reset',
        baseline: bool = False,
        progress: bool = True,
    ) -> ActiveHistory:
        """Trains, and in each iteration requests labels and trains again.

        Without ``oracle`` and ``y_unlabeled`` there is no source of labels. Then the model is
        trained once, and the rows of ``n_iterations`` queries are chosen, all of them different,
        for you to label; continue with `teach`.

        Args:
            X_labeled: inputs that have labels, of any kind that `ModelTrainer.train` takes; None
                for none: then the first rows to label are typical ones.
            y_labeled: their labels.
            X_unlabeled: the pool: inputs without labels. Data that is stored on disk, or comes in
                batches, is read when it is needed and never as a whole.
            n_iterations: the number of queries.
            oracle: a function ``oracle(X, indices)`` that returns a label for each row, None or
                NaN if it has none; that row is not queried again.
            y_unlabeled: the labels of the pool, for an experiment.
            X_val: validation inputs.
            y_val: their labels.
            retrain: train each time from the initial weights (``'reset'``) or from the last ones
                (``'warm'``).
            baseline: True to run the same experiment first with rows chosen at random, for
                comparison; needs ``y_unlabeled``.
            progress: True to print a line on stderr for each iteration.

        Warns:
            ThinkMLWarning: if there is no source of labels, or if an experiment begins with a
                model that was trained before.

        Returns:
            The history, with a query for each iteration.

        Raises:
            DataError: for data that do not match each other or the model.
            ConfigError: for settings that are impossible, or a strategy that does not fit the task.
            ModelTypeError: for a model that lacks what the strategy needs: dropout, a last dense
                layer.
        """
        check_switches(baseline=baseline, progress=progress)
        if not is_whole(n_iterations) or n_iterations < 1:
            raise ConfigError(
                f'n_iterations: got {n_iterations!r}, expected a whole number of at least 1.'
            )
        if not (oracle is None or callable(oracle)):
            raise ConfigError(
                f'oracle: got {type(oracle).__name__}, expected a function oracle(X, indices) that '
                'returns a label for each row.'
            )
        if oracle is not None and y_unlabeled is not None:
            raise ConfigError('oracle: got it together with y_unlabeled, expected one of them.')
        if baseline and y_unlabeled is None:
            raise ConfigError('baseline: got True without y_unlabeled, expected both.')
        labels = None if y_unlabeled is None else as_array(y_unlabeled, 'y_unlabeled')
        pool = self._make_pool(X_unlabeled, X_labeled, y_labeled)
        session = self._start_session(pool, X_val, y_val, labels, retrain)
        if labels is not None:
            check_lengths({'X_unlabeled': pool.rows, 'y_unlabeled': labels})
            oracle = KnownLabels(labels)
            if session.retraining.is_trained:
                warn_user(
                    'model: it was trained before, so the experiment begins with a trained model. '
                    'Make a new model for each experiment if that is not intended.'
                )
        strategy, size = self._query_settings.strategy, self.query_size
        if oracle is None:
            return plan_queries(session, strategy, size, n_iterations, progress=progress)
        max_labels, random_history = self._query_settings.stopping.max_labels, None
        if baseline:
            random = STRATEGIES['random']
            random_history = run_queries(
                session, random, oracle, size, n_iterations, max_labels, progress=False
            )
            self._session = session = session.restart()
        history = run_queries(
            session, strategy, oracle, size, n_iterations, max_labels, progress=progress
        )
        history.baseline = random_history
        return history

    # --- step by step ---------------------------------------------------------------------------

    def start(
        self,
        X_unlabeled: Inputs,
        X_labeled: Inputs = None,
        y_labeled: Labels = None,
        X_val: Inputs = None,
        y_val: Labels = None,
        *,
        retrain: Retrain = 'reset',
    ) -> None:
        """Starts a session: checks the data, and queries nothing yet.

        Args:
            X_unlabeled: as in `train`.
            X_labeled: as in `train`.
            y_labeled: as in `train`.
            X_val: as in `train`.
            y_val: as in `train`.
            retrain: as in `train`.

        Raises:
            DataError: as `train` does.
            ConfigError: as `train` does.
            ModelTypeError: as `train` does.
        """
        pool = self._make_pool(X_unlabeled, X_labeled, y_labeled)
        self._start_session(pool, X_val, y_val, None, retrain)

    def query(self, n: int | None = None) -> np.ndarray:
        """Returns the rows to label next, the most useful first, int64 ``[rows]``.

        If there are new labels, the model is trained first. Rows that were queried before are not
        returned again; see `waiting`. Returns fewer than ``n`` rows, or none, once the pool is
        exhausted.

        Args:
            n: the number of rows; None for ``query_size``.

        Raises:
            ConfigError: if ``n`` is not a number of rows.
            DataError: before `start`, or if the labels can't be learned.
        """
        session, count = self._require_session('query'), self._check_count(n)
        session.fit_if_needed()
        return session.query(self._query_settings.strategy, count)

    def teach(self, indices: ArrayLike, y: Labels) -> None:
        """Adds labels. If the session is stored on disk, they are saved before this returns.

        Any rows can be labelled, queried or not; the label of a labelled row is replaced.

        Args:
            indices: rows of the pool.
            y: a label for each row; None or NaN for a row that has none, which is skipped. For
                tokens and pixels the label of a row is an array. Rows and elements with the label
                -100 are not learned from.

        Raises:
            DataError: for rows that are not in the pool, and labels that the model can't learn;
                then no label is added.
            OSError: if the labels can't be written; then no label is added.
        """
        self._require_session('teach').teach(indices, y)

    def skip(self, indices: ArrayLike) -> None:
        """Skips rows: they are not queried again, and their labels, if any, are removed.

        Args:
            indices: rows of the pool.

        Raises:
            DataError: for rows that are not in the pool.
        """
        self._require_session('skip').skip(indices)

    def update_label(self, index: int, y: Any) -> None:
        """Replaces the label of a row.

        Args:
            index: a row of the pool that has a label.
            y: the new label.

        Raises:
            DataError: if the row has no label yet, or the new one can't be learned.
        """
        session = self._require_session('update_label')
        [row] = session.pool.check_rows([index])
        if row not in session.store.labels:
            raise DataError(f'index: row {row} has no label yet. Add one with teach.')
        session.teach([row], [y])

    def fit(self) -> dict[str, float]:
        """Trains on all labels so far, and returns the metrics.

        With too few labels (none, or of one class only) nothing is trained, and no metrics are
        returned. If a stopping rule applies, `history` has a ``stop_reason`` afterwards.

        Raises:
            DataError: before `start`, or if the labels can't be learned.
            ConfigError: for metrics or a strategy that do not fit the task.
            KeyboardInterrupt: after Ctrl-C; the next `query` or `fit` trains again.
        """
        return self._require_session('fit').fit()

    def ask_in_notebook(
        self, n: int | None = None, *, show: Callable[[int], str | ArrayLike] | None = None
    ) -> Widget:
        """Returns a widget to label the next rows in a notebook; each click calls `teach`.

        Args:
            n: the number of rows; None for ``query_size``. Rows that wait for labels come first.
            show: a function of a row of the pool that returns the content to show: text, or the
                array of an image. None shows the row itself.

        Raises:
            ConfigError: if ipywidgets is not installed, if the possible labels are not known, or
                if ``n`` is not a number of rows.
            DataError: before `start`.
        """
        session = self._require_session('ask_in_notebook')
        task = session.retraining.task
        if session.retraining.has_elements:
            raise ConfigError(
                'ask_in_notebook: it is for one label a row, and the model has outputs for each '
                'element of a row. Use query() and teach(rows, labels).'
            )
        if task is None or task.classes is None or not task.type.has_one_class:
            raise ConfigError(
                'classes: the possible labels are not known yet. Pass ActiveLearner(classes=[...]).'
            )
        count = self._check_count(n)
        rows = [int(row) for row in self.waiting[:count]]
        if len(rows) < count:
            rows += [int(row) for row in self.query(count - len(rows))]

        def show_inputs(row: int) -> ArrayLike:
            return jax.tree.leaves(session.pool.rows.take(np.array([row])))[0][0]

        def answer(row: int, label: Any) -> None:
            self.teach([row], [label])

        return labelling_widget(rows, task.classes, show or show_inputs, answer)

    # --- on disk --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the session to a new directory: every query, label and metric.

        Later queries and labels are written to it at once, so that nothing is lost whenever the
        process ends. The data and the model are not saved: pass them again to `load`, and save a
        trained model with `ModelManager`.

        Args:
            path: the directory.

        Raises:
            DataError: before `start`, or if the path exists already.
            OSError: if it can't be written.
        """
        session = self._require_session('save')
        session.store.save(local_path(path), session.fingerprints() | session.weights_hash())

    def load(
        self,
        path: str | os.PathLike[str],
        X_unlabeled: Inputs,
        X_labeled: Inputs = None,
        y_labeled: Labels = None,
        X_val: Inputs = None,
        y_val: Labels = None,
        *,
        retrain: Retrain = 'reset',
    ) -> None:
        """Continues a saved session, with a learner made in the same way as the saved one.

        The next `query` or `fit` trains on all its labels, from the model's present weights.

        Args:
            path: the directory.
            X_unlabeled: as it was passed to `start` or `train`.
            X_labeled: as it was passed to `start` or `train`.
            y_labeled: as it was passed to `start` or `train`.
            X_val: as in `train`.
            y_val: as in `train`.
            retrain: as in `train`.

        Warns:
            ThinkMLWarning: if the model's weights are not those that the session began with.

        Raises:
            DataError: if the data is not that of the session, if its files are damaged, or if
                another process has it open.
        """
        pool = self._make_pool(X_unlabeled, X_labeled, y_labeled)
        session = self._start_session(pool, X_val, y_val, None, retrain)
        self._session = None  # so that no labels can be added if loading fails
        saved = session.store.load(local_path(path), session.fingerprints())
        self._session = session
        if saved.get('weights') != session.weights_hash()['weights']:
            warn_user(
                'model: its weights are not those that the session began with, so it will learn '
                'and choose rows differently. Make it with the same seed.'
            )

    def close(self) -> None:
        """Closes a session on disk, so that another learner or process can load it.

        This learner can then add no more labels; its history and labels can still be read.
        """
        if self._session is not None:
            self._session.store.close()

    # --- private --------------------------------------------------------------------------------

    def _make_pool(self, X_unlabeled: Inputs, X_labeled: Inputs, y_labeled: Labels) -> Pool:
        return Pool(X_unlabeled, X_labeled, y_labeled, trained_input_spec(self._models))

    def _start_session(
        self,
        pool: Pool,
        X_val: Inputs,
        y_val: Labels,
        pool_labels: np.ndarray | None,
        retrain: Retrain,
    ) -> Session:
        retraining = Retraining(
            models=self._models,
            settings=self._retraining_settings,
            pool=pool,
            X_val=X_val,
            y_val=y_val,
            pool_labels=pool_labels,
            retrain=retrain,
        )
        session = Session(pool, retraining, self._query_settings)
        self.close()
        self._session = session
        return session

    def _check_count(self, n: int | None) -> int:
        if n is not None and not (is_whole(n) and n >= 1):
            raise ConfigError(f'n: got {n!r}, expected a whole number of at least 1.')
        return n or self.query_size

    def _require_session(self, method: str) -> Session:
        if self._session is None:
            raise DataError(
                f'{method}: there is no pool yet. Call start(X_unlabeled), load(path, X_unlabeled) '
                'or train(...) first.'
            )
        return self._session
