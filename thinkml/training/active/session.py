"""Session: one pool with its queries, its labels and the models that learn from them."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from thinkml.core.active.selection import Selection, at_random
from thinkml.data.targets import elements_of
from thinkml.errors import ModelTypeError
from thinkml.training.active.label_store import LabelStore
from thinkml.training.active.pool import Pool
from thinkml.training.active.pool_predictions import ElementScore, PoolPredictions
from thinkml.training.active.retraining import Retraining
from thinkml.training.active.stopping import StoppingRules, prediction_agreement
from thinkml.training.active.strategies import Strategy, check_strategy, select_typical
from thinkml.typing import Labels


@dataclasses.dataclass(frozen=True)
class QuerySettings:
    """Settings of queries, see `ActiveLearner`."""

    strategy: Strategy
    stopping: StoppingRules
    seed: int
    num_draws: int
    element_score: ElementScore


class Session:
    """One pool with its queries, its labels and the models that learn from them.

    Args:
        pool: the rows.
        retraining: the models and how they are trained.
        settings: the settings of queries.

    Attributes:
        pool: as passed.
        retraining: as passed.
        store: the queries and labels.

    Raises:
        ConfigError: for a strategy or a stopping rule that does not fit the task.
        ModelTypeError: for a model that lacks what the strategy needs.
    """

    def __init__(self, pool: Pool, retraining: Retraining, settings: QuerySettings):
        self.pool = pool
        self.retraining = retraining
        self.store = LabelStore(len(pool.rows))
        self._settings = settings
        self._num_changes_trained = -1  # label changes that the last training included
        self._pool_predictions: PoolPredictions | None = None
        self._last_predictions: np.ndarray | None = None
        self._check()

    def _check(self) -> None:
        retraining, settings = self.retraining, self._settings
        settings.stopping.check(retraining.task, has_validation=retraining.has_validation)
        check_strategy(
            settings.strategy, retraining.models, self.pool.rows, retraining.task,
            has_elements=retraining.has_elements,
        )  # fmt: skip

    def restart(self) -> 'Session':
        """Returns a new session with the same pool; the models get their initial weights back."""
        self.retraining.reset()
        return Session(self.pool, self.retraining, self._settings)

    def fingerprints(self) -> dict[str, Any]:
        """Returns the fingerprints of the data, by argument."""
        return self.pool.fingerprints()

    def weights_hash(self) -> dict[str, str]:
        """Returns the hash of the weights that the session began with, as ``'weights'``."""
        return {'weights': self.retraining.weights_hash}

    # --- labels -----------------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Returns the number of initial plus added labels."""
        initial = self.pool.initial_labels
        return len(self.store.labels) + (0 if initial is None else len(initial))

    def teach(self, indices: ArrayLike, y: Labels, argument: str = 'y') -> None:
        """Adds all of the labels or none; a row whose label is missing is skipped."""
        rows = self.pool.check_rows(indices)
        labels = self.pool.check_labels(y, rows, self.retraining.task, self.store.labels, argument)
        self._record_labels(rows, labels)

    def skip(self, indices: ArrayLike) -> None:
        """Records that rows get no label."""
        rows = self.pool.check_rows(indices)
        self._record_labels(rows, [None] * len(rows))

    def _record_labels(self, rows: list[int], labels: list[Any]) -> None:
        if rows:
            self.store.record({'event': 'teach', 'indices': rows, 'labels': labels})

    # --- training ---------------------------------------------------------------------------------

    def fit_if_needed(self) -> None:
        """Trains if labels changed since the last training."""
        if self._num_changes_trained != self.store.num_changes:
            self.fit()

    def fit(self) -> dict[str, float]:
        """Trains on all labels, and returns the metrics, see `ActiveLearner.fit`."""
        start = time.perf_counter()
        num_changes, labels = self.store.num_changes, dict(self.store.labels)
        self._pool_predictions = None
        x, y = self.pool.labeled_rows(labels)
        metrics = self.retraining.fit(x, y)
        self._num_changes_trained = num_changes  # other threads may add labels meanwhile
        if metrics is not None and y is not None:
            self._record_fit(metrics, len(y), start)
        self.store.history.stop_reason = self._settings.stopping.stop_reason(
            self.store.history, len(labels), self.retraining.metric if metrics else None
        )
        return metrics or {}

    def _record_fit(self, metrics: dict[str, float], num_labels: int, start: float) -> None:
        self._check()  # now that the task is known
        agreement = float('nan')
        if self._settings.stopping.min_agreement is not None:
            before, self._last_predictions = (
                self._last_predictions,
                self.pool_predictions.predictions,
            )
            task = self.retraining.task
            if before is not None and task is not None:
                both = (elements_of(one, task) for one in (before, self._last_predictions))
                agreement = prediction_agreement(*both)
        self.store.record(
            {
                'event': 'fit', 'num_labels': num_labels, 'metrics': metrics,
                'agreement': agreement, 'seconds': time.perf_counter() - start,
            }
        )  # fmt: skip

    # --- queries ----------------------------------------------------------------------------------

    @property
    def pool_predictions(self) -> PoolPredictions:
        """Returns the models' predictions for the pool; computed once for each training."""
        if self._pool_predictions is None:
            seed, num_queries = self._settings.seed + 1, self.store.num_queries
            self._pool_predictions = PoolPredictions(
                models=self.retraining.models,
                task=self.retraining.task,
                rows=self.pool.rows,
                initial_rows=self.pool.initial_rows,
                num_draws=self._settings.num_draws,
                element_score=self._settings.element_score,
                key=jax.random.fold_in(jax.random.key(seed), num_queries),
            )
        return self._pool_predictions

    def query(self, strategy: Strategy, count: int) -> np.ndarray:
        """Selects rows and records the query; returns none once the pool is exhausted."""
        start = time.perf_counter()
        selection = self.select(strategy, count)
        if len(selection.indices):
            self.record_query(selection, time.perf_counter() - start)
        return selection.indices

    def record_query(self, selection: Selection, seconds: float) -> None:
        """Records a query, and the seconds that selecting its rows took."""
        indices, scores = selection
        self.store.record(
            {'event': 'query', 'indices': indices, 'scores': scores, 'seconds': seconds}
        )

    def select(self, strategy: Strategy, count: int) -> Selection:
        """Selects rows by the strategy, or typical rows as long as no model is trained.

        Rows of tokens or pixels are then selected at random.
        """
        available = self.store.available
        key = jax.random.fold_in(jax.random.key(self._settings.seed), self.store.num_queries)
        if self.retraining.is_trained or strategy.name == 'random':
            return strategy.select(self.pool_predictions, count, key, available)
        if self.retraining.has_elements:  # features of elements are not those of rows
            return at_random(len(available), count, key, available)
        try:
            return select_typical(self.pool_predictions, count, key, available)
        except ModelTypeError:  # the model has no features, by which rows are typical
            return at_random(len(available), count, key, available)
