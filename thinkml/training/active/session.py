"""One pool, what was asked of it, and what was learned."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from thinkml.core.active.selection import Selection, at_random
from thinkml.errors import ModelTypeError
from thinkml.training.active.label_store import LabelStore
from thinkml.training.active.pool import Pool
from thinkml.training.active.pool_predictions import PoolPredictions
from thinkml.training.active.retraining import Retraining
from thinkml.training.active.stopping import StoppingRules, kappa
from thinkml.training.active.strategies import Strategy, check_strategy, select_typical


@dataclasses.dataclass(frozen=True)
class QuerySettings:
    """How rows are chosen, see `ActiveLearner`."""

    strategy: Strategy
    stopping: StoppingRules
    seed: int
    num_draws: int


class Session:
    """One pool, what was asked of it, and what was learned.

    Args:
        pool: the rows.
        learning: the models.
        asking: how rows are chosen.

    Attributes:
        pool: as passed.
        learning: as passed.
        book: the questions and labels.

    Raises:
        ConfigError: for a strategy or a stopping rule that does not fit the task.
        ModelTypeError: for a model that lacks what the strategy needs.
    """

    def __init__(self, pool: Pool, learning: Retraining, asking: QuerySettings):
        self.pool = pool
        self.learning = learning
        self.book = LabelStore(len(pool.rows))
        self._asking = asking
        self._num_fitted = -1  # changes of labels that the models know of
        self._view: PoolPredictions | None = None
        self._predictions: np.ndarray | None = None
        self._check()

    def _check(self) -> None:
        learning, asking = self.learning, self._asking
        asking.stopping.check(learning.task, has_validation=learning.has_validation)
        check_strategy(asking.strategy, learning.models, self.pool.rows, learning.task)

    def anew(self) -> 'Session':
        """The same before anything was asked, the models with their first weights."""
        self.learning.reset()
        return Session(self.pool, self.learning, self._asking)

    def about(self) -> dict[str, Any]:
        """What identifies the data."""
        return self.pool.about()

    def weights(self) -> dict[str, str]:
        """What identifies the weights that the session began with."""
        return {'weights': self.learning.weights_hash}

    # --- labels -----------------------------------------------------------------------------------

    @property
    def num_labels(self) -> int:
        """Of the beginning and those given."""
        first = self.pool.first_labels
        return len(self.book.labels) + (0 if first is None else len(first))

    def teach(self, indices: Any, y: Any, argument: str = 'y') -> None:
        """Takes labels, all of them or none; where one is missing the row is skipped."""
        rows = self.pool.check_rows(indices)
        labels = self.pool.check_labels(y, rows, self.learning.task, self.book.labels, argument)
        self._note_labels(rows, labels)

    def skip(self, indices: Any) -> None:
        """Notes that rows get no label."""
        rows = self.pool.check_rows(indices)
        self._note_labels(rows, [None] * len(rows))

    def _note_labels(self, rows: list[int], labels: list[Any]) -> None:
        if rows:
            self.book.note({'event': 'teach', 'indices': rows, 'labels': labels})

    # --- training ---------------------------------------------------------------------------------

    def fit_if_due(self) -> None:
        """Trains if there are labels that the models don't know of."""
        if self._num_fitted != self.book.num_changes:
            self.fit()

    def fit(self) -> dict[str, float]:
        """Trains on all labels, and returns the metrics, see `ActiveLearner.fit`."""
        began = time.perf_counter()
        num_changes, labels = self.book.num_changes, dict(self.book.labels)
        self._view = None
        x, y = self.pool.labeled(labels)
        metrics = self.learning.fit(x, y)
        self._num_fitted = num_changes  # others may have come meanwhile
        if metrics is not None and y is not None:
            self._note_fit(metrics, len(y), began)
        self.book.history.stop_reason = self._asking.stopping.reason(
            self.book.history, len(labels), self.learning.metric if metrics else None
        )
        return metrics or {}

    def _note_fit(self, metrics: dict[str, float], num_labels: int, began: float) -> None:
        self._check()  # now that the task is known
        agreement = float('nan')
        if self._asking.stopping.min_agreement is not None:
            before, self._predictions = self._predictions, self.view.predictions
            if before is not None:
                agreement = kappa(before, self._predictions)
        self.book.note(
            {
                'event': 'fit', 'num_labels': num_labels, 'metrics': metrics,
                'agreement': agreement, 'seconds': time.perf_counter() - began,
            }
        )  # fmt: skip

    # --- asking -----------------------------------------------------------------------------------

    @property
    def view(self) -> PoolPredictions:
        """What the models say of the pool; computed once for each training."""
        if self._view is None:
            key = jax.random.fold_in(jax.random.key(self._asking.seed + 1), self.book.num_queries)
            self._view = PoolPredictions(
                self.learning.models, self.learning.task, self.pool.rows, self.pool.first,
                self._asking.num_draws, key,
            )  # fmt: skip
        return self._view

    def ask(self, strategy: Strategy, count: int) -> np.ndarray:
        """Chooses rows and notes that they were asked for; none where the pool is at its end."""
        began = time.perf_counter()
        chosen = self.choose(strategy, count)
        if len(chosen.indices):
            self.note_query(chosen, time.perf_counter() - began)
        return chosen.indices

    def note_query(self, chosen: Selection, seconds: float) -> None:
        """Notes that rows were asked for, and what it took to choose them."""
        indices, scores = chosen
        self.book.note({'event': 'query', 'indices': indices, 'scores': scores, 'seconds': seconds})

    def choose(self, strategy: Strategy, count: int) -> Selection:
        """Chooses rows: by the strategy, or typical ones as long as no model has learned."""
        available = self.book.available
        key = jax.random.fold_in(jax.random.key(self._asking.seed), self.book.num_queries)
        if self.learning.has_learned or strategy.name == 'random':
            return strategy.select(self.view, count, key, available)
        try:
            return select_typical(self.view, count, key, available)
        except ModelTypeError:  # no features to tell what is typical
            return at_random(len(available), count, key, available)
