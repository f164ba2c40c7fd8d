"""ActiveLearner: asks for the labels that are worth most, and learns from them."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from thinkml.core.objectives.losses import LossFn
from thinkml.data import as_array, check_lengths
from thinkml.errors import ConfigError, DataError, is_number, is_whole, warn_user
from thinkml.paths import local_path
from thinkml.training.active.history import ActiveHistory
from thinkml.training.active.labelling_widget import asking_widget
from thinkml.training.active.pool import Pool
from thinkml.training.active.query_loop import KnownLabels, Oracle, iterate, plan
from thinkml.training.active.retraining import Retrain, Retraining, RetrainingSettings, known_inputs
from thinkml.training.active.session import QuerySettings, Session
from thinkml.training.active.stopping import StoppingRules
from thinkml.training.active.strategies import STRATEGIES, make_strategy
from thinkml.training.config import TrainingConfig
from thinkml.training.train import check_config, check_switches


class ActiveLearner:
    """Chooses the rows whose labels teach a model most, has them labelled, and trains it.

    `train` does it for a number of iterations, with labels that are known (an experiment) or from a
    function. `start`, `query`, `teach` and `skip` do the same step by step, over days if need be:
    `save` keeps every label on disk from then on, `load` goes on.

    Args:
        model: as in `ModelTrainer.train`, trained in place; or a list of models of different
            initial weights, an ensemble, whose mean predicts.
        strategy: how rows are chosen. By how unsure the model is: ``'uncertainty'`` (least
            confident), ``'margin'``, ``'entropy'``; by how passes with dropout, or the models of an
            ensemble, differ: ``'bald'``, ``'variation_ratio'``, and for numbers ``'variance'``; by
            the gradient a label would cause: ``'expected_gradient_length'``; by how rows lie among
            others: ``'core_set'``, ``'typiclust'``; by both: ``'badge'``, `DiverseBatches`; or
            ``'random'``. A function ``(probabilities, key)`` or ``(features, key)`` of the rows
            that can be asked for returns them in its order, best first.
        config: the settings of each training; None for the defaults.
        query_size: rows of a query.
        seed: of what is random in the choice of rows.
        classes: all labels there may be, where the first ones don't show them all and they are no
            numbers from 0 on.
        num_draws: passes with dropout.
        loss_fn: as in `ModelTrainer.train`.
        class_weights: as in `ModelTrainer.train`; ``'balanced'`` where some classes are rare.
        augmentation: as in `ModelTrainer.train`.
        metrics: of the validation data, as in `ModelEvaluator.evaluate`; None for accuracy and
            log_loss, or rmse and r2, or of several labels accuracy and f1.
        max_labels: stop once so many labels were given, besides those of the beginning.
        patience: stop after so many iterations in a row in which the first of the validation
            metrics was not better than ever before; needs validation data.
        min_agreement: stop once the predictions of the pool are stable: the mean of the last three
            Cohen's kappas between a model's and the next one's is at least this. 0.99 is usual.
            Not for regression.

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
        method for stopping active learning based on stabilizing predictions*. Those of the
        strategies are in `thinkml.core`.
    """

    def __init__(
        self,
        model: Any,
        strategy: Any = 'uncertainty',
        *,
        config: TrainingConfig | None = None,
        query_size: int = 10,
        seed: int = 0,
        classes: Sequence[Any] | None = None,
        num_draws: int = 20,
        loss_fn: str | LossFn | None = None,
        class_weights: Any = None,
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
        models = list(model) if isinstance(model, list | tuple) else [model]
        if not models or len({id(one) for one in models}) < len(models):
            raise ConfigError(
                'model: got no model, or the same one twice, expected different ones.'
            )
        self.model = model
        self.query_size = query_size
        self.seed = seed
        self._asking = QuerySettings(
            make_strategy(strategy),
            StoppingRules(max_labels, patience, min_agreement),
            seed,
            num_draws,
        )
        self._strategy = strategy
        self._models = models
        self._settings = RetrainingSettings(
            check_config(config), classes, loss_fn, class_weights, augmentation, metrics
        )
        self._session: Session | None = None

    def __getstate__(self) -> dict[str, Any]:
        if self._session is not None:
            raise ConfigError(
                'learner: it has begun a session, whose labels belong to one learner, so it can be '
                'neither copied nor pickled. Use save(path), and load(path, X_unlabeled) with a '
                'learner made in the same way; copies of learner.model alone are possible.'
            )
        return {name: value for name, value in vars(self).items() if name != '_asking'} | {
            '_asking': dataclasses.replace(self._asking, strategy=self._strategy)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._asking = dataclasses.replace(
            self._asking, strategy=make_strategy(self._asking.strategy)
        )

    @property
    def history(self) -> ActiveHistory:
        """What was asked, and what it brought.

        Raises:
            DataError: before `start`.
        """
        return self._started('history').book.history

    @property
    def labels(self) -> dict[int, Any]:
        """The labels that were given, by row of the pool, in the order they came.

        Raises:
            DataError: before `start`.
        """
        return dict(self._started('labels').book.labels)

    @property
    def waiting(self) -> np.ndarray:
        """The rows that were asked for and have neither a label yet nor were skipped.

        Raises:
            DataError: before `start`.
        """
        return self._started('waiting').book.waiting

    # --- in one call ----------------------------------------------------------------------------

    def train(
        self,
        X_labeled: Any = None,
        y_labeled: Any = None,
        X_unlabeled: Any = None,
        n_iterations: int = 5,
        *,
        oracle: Oracle | None = None,
        y_unlabeled: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        retrain: Retrain = 'reset',
        baseline: bool = False,
        progress: bool = True,
    ) -> ActiveHistory:
        """Trains, and in each iteration asks for labels and trains again.

        Without ``oracle`` and ``y_unlabeled`` there is nobody to ask. Then the model is trained
        once, and the rows of ``n_iterations`` queries are chosen, all of them different, for you to
        label; go on with `teach`.

        Args:
            X_labeled: inputs that have labels, of any kind `ModelTrainer.train` takes; None for
                none: then the first rows to label are typical ones.
            y_labeled: their labels.
            X_unlabeled: the pool: inputs without labels. What is stored on disk, or comes in
                batches, is read when it is needed and never as a whole.
            n_iterations: how many queries.
            oracle: ``oracle(X, indices)`` returns a label for each row; None or NaN where it has
                none, and the row is not asked for again.
            y_unlabeled: the labels of the pool, for an experiment.
            X_val: validation inputs.
            y_val: their labels.
            retrain: each time from the first weights (``'reset'``) or from the last (``'warm'``).
            baseline: train before with as many rows chosen at random, to compare with; needs
                ``y_unlabeled``.
            progress: a line on stderr for each iteration.

        Warns:
            ThinkMLWarning: if nobody labels, or if an experiment begins with a model that was
                trained before.

        Returns:
            the history, a query for each iteration.

        Raises:
            DataError: for data that don't fit each other or the model.
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
        known = None if y_unlabeled is None else as_array(y_unlabeled, 'y_unlabeled')
        pool = self._pool(X_unlabeled, X_labeled, y_labeled)
        session = self._begin(pool, X_val, y_val, known, retrain)
        if known is not None:
            check_lengths({'X_unlabeled': pool.rows, 'y_unlabeled': known})
            oracle = KnownLabels(known)
            if session.learning.has_learned:
                warn_user(
                    'model: it was trained before, so that the experiment begins with what it '
                    'knows. Make a new model for each experiment if that is not intended.'
                )
        strategy, size = self._asking.strategy, self.query_size
        if oracle is None:
            return plan(session, strategy, size, n_iterations, progress=progress)
        budget, by_chance = self._asking.stopping.max_labels, None
        if baseline:
            by_chance = iterate(
                session, STRATEGIES['random'], oracle, size, n_iterations, budget, progress=False
            )
            self._session = session = session.anew()
        history = iterate(session, strategy, oracle, size, n_iterations, budget, progress=progress)
        history.baseline = by_chance
        return history

    # --- step by step ---------------------------------------------------------------------------

    def start(
        self,
        X_unlabeled: Any,
        X_labeled: Any = None,
        y_labeled: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        retrain: Retrain = 'reset',
    ) -> None:
        """Begins: checks the data, and asks nothing yet.

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
        self._begin(self._pool(X_unlabeled, X_labeled, y_labeled), X_val, y_val, None, retrain)

    def query(self, n: int | None = None) -> np.ndarray:
        """Returns the rows to label next, those worth most first, int64 ``[rows]``.

        If there are new labels, the model is trained first. Rows that were asked for before don't
        come again; see `waiting`. Fewer than asked for, or none, where the pool is at its end.

        Args:
            n: how many; None for ``query_size``.

        Raises:
            ConfigError: if ``n`` is no number of rows.
            DataError: before `start`, or if the labels can't be learned.
        """
        session, count = self._started('query'), self._count(n)
        session.fit_if_due()
        return session.ask(self._asking.strategy, count)

    def teach(self, indices: Any, y: Any) -> None:
        """Takes labels. Of a session on disk, they are there when this returns.

        Any rows may be labelled, asked for or not; a row that has a label gets the new one.

        Args:
            indices: rows of the pool.
            y: a label for each; None or NaN where there is none: these rows are skipped.

        Raises:
            DataError: for rows that are not in the pool, and labels the model can't learn; then
                none of them is taken.
            OSError: if they can't be written; then none of them is taken.
        """
        self._started('teach').teach(indices, y)

    def skip(self, indices: Any) -> None:
        """Notes that rows get no label: they are not asked for again, and lose a label they have.

        Args:
            indices: rows of the pool.

        Raises:
            DataError: for rows that are not in the pool.
        """
        self._started('skip').skip(indices)

    def update_label(self, index: int, y: Any) -> None:
        """Replaces the label of a row.

        Args:
            index: a row of the pool that has a label.
            y: the new one.

        Raises:
            DataError: if it has none yet, or the new one can't be learned.
        """
        session = self._started('update_label')
        [row] = session.pool.check_rows([index])
        if row not in session.book.labels:
            raise DataError(f'index: row {row} has no label yet. Give it one by teach.')
        session.teach([row], [y])

    def fit(self) -> dict[str, float]:
        """Trains on all labels there are, and returns the metrics.

        With too few of them (none, or of one class only) nothing is trained, and there are none.
        Where a stopping rule says that it is enough, `history` has a ``stop_reason`` afterwards.

        Raises:
            DataError: before `start`, or if the labels can't be learned.
            ConfigError: for metrics or a strategy that don't fit the task.
            KeyboardInterrupt: after Ctrl-C; the next `query` or `fit` trains again.
        """
        return self._started('fit').fit()

    def ask_in_notebook(self, n: int | None = None, *, show: Callable[[int], Any] | None = None):
        """Returns a widget that asks for the labels of the next rows; each click is a `teach`.

        Args:
            n: how many rows; None for ``query_size``. Those that wait for labels come first.
            show: gives what is shown of a row of the pool: text, or the array of an image. None
                shows the row itself.

        Raises:
            ConfigError: if ipywidgets is not installed, if it is not known which labels there are,
                or if ``n`` is no number of rows.
            DataError: before `start`.
        """
        session = self._started('ask_in_notebook')
        task = session.learning.task
        if task is None or task.classes is None or task.kind == 'multilabel':
            raise ConfigError(
                'classes: it is not known which labels there are. Pass '
                'ActiveLearner(classes=[...]).'
            )
        count = self._count(n)
        rows = [int(row) for row in self.waiting[:count]]
        if len(rows) < count:
            rows += [int(row) for row in self.query(count - len(rows))]

        def row_itself(row: int) -> Any:
            return jax.tree.leaves(session.pool.rows.take(np.array([row])))[0][0]

        def answer(row: int, label: Any) -> None:
            self.teach([row], [label])

        return asking_widget(rows, task.classes, show or row_itself, answer)

    # --- on disk --------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the session to a new directory: every query, label and metric.

        What comes later is added to it at once, so that nothing is lost whenever the process ends.
        The data and the model are not in it: pass them again to `load`, and save a trained model by
        `ModelManager`.

        Args:
            path: the directory.

        Raises:
            DataError: before `start`, or if there is something at the path already.
            OSError: if it can't be written.
        """
        session = self._started('save')
        session.book.save(local_path(path), session.about() | session.weights())

    def load(
        self,
        path: str | os.PathLike[str],
        X_unlabeled: Any,
        X_labeled: Any = None,
        y_labeled: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        retrain: Retrain = 'reset',
    ) -> None:
        """Goes on with a session that was saved; the learner is made as it was for it.

        The next `query` or `fit` trains on all its labels, from the weights the model has now.

        Args:
            path: the directory.
            X_unlabeled: as it was passed to `start` or `train`.
            X_labeled: likewise.
            y_labeled: likewise.
            X_val: as in `train`.
            y_val: as in `train`.
            retrain: as in `train`.

        Warns:
            ThinkMLWarning: if the model has other weights than the one the session began with.

        Raises:
            DataError: if the data is not that of the session, or its files are damaged, or another
                process has it open.
        """
        session = self._begin(
            self._pool(X_unlabeled, X_labeled, y_labeled), X_val, y_val, None, retrain
        )
        self._session = None  # nothing takes labels where that fails
        saved = session.book.load(local_path(path), session.about())
        self._session = session
        if saved.get('weights') != session.weights()['weights']:
            warn_user(
                'model: its weights are not those the session began with, so that it will learn '
                'and choose otherwise than it would have. Make it with the same seed.'
            )

    def close(self) -> None:
        """Lets a session on disk go, so that another learner or process may load it.

        This learner then takes no more labels; what it knows can still be read.
        """
        if self._session is not None:
            self._session.book.close()

    # --- inside ---------------------------------------------------------------------------------

    def _pool(self, X_unlabeled: Any, X_labeled: Any, y_labeled: Any) -> Pool:
        return Pool(X_unlabeled, X_labeled, y_labeled, known_inputs(self._models))

    def _begin(
        self, pool: Pool, X_val: Any, y_val: Any, known: np.ndarray | None, retrain: Retrain
    ) -> Session:
        learning = Retraining(self._models, self._settings, pool, X_val, y_val, known, retrain)
        session = Session(pool, learning, self._asking)
        self.close()
        self._session = session
        return session

    def _count(self, n: int | None) -> int:
        if n is not None and not (is_whole(n) and n >= 1):
            raise ConfigError(f'n: got {n!r}, expected a whole number of at least 1.')
        return n or self.query_size

    def _started(self, what: str) -> Session:
        if self._session is None:
            raise DataError(
                f'{what}: there is no pool yet. Call start(X_unlabeled), load(path, X_unlabeled) '
                'or train(...) first.'
            )
        return self._session
