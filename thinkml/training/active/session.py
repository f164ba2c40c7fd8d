"""One pool, what was asked of it, and what was learned."""

from typing import Any

import numpy as np

from thinkml.training.active.book import LabelBook
from thinkml.training.active.learning import Learning
from thinkml.training.active.pool import Pool
from thinkml.training.active.stopping import kappa
from thinkml.training.active.views import View


class Session:
    """One pool, what was asked of it, and what was learned.

    Attributes:
        pool: the rows.
        learning: the models.
        book: the questions and labels.
        num_fitted: changes of labels that the models know of; -1 where they know nothing.
        view: what they say of the pool; None until it is asked for.
    """

    def __init__(self, pool: Pool, learning: Learning):
        self.pool = pool
        self.learning = learning
        self.book = LabelBook(len(pool.rows))
        self.num_fitted = -1
        self.view: View | None = None
        self._predictions: np.ndarray | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether the models know all labels."""
        return self.num_fitted == self.book.num_changes

    @property
    def num_labels(self) -> int:
        """Of the beginning and those given."""
        first = self.pool.first_labels
        return len(self.book.labels) + (0 if first is None else len(first))

    def note_query(self, indices: np.ndarray, scores: np.ndarray, seconds: float) -> None:
        self.book.note({'event': 'query', 'indices': indices, 'scores': scores, 'seconds': seconds})

    def note_labels(self, rows: list[int], labels: list[Any]) -> None:
        """Notes labels, all of them or none; where one is None the row is skipped."""
        if rows:
            self.book.note({'event': 'teach', 'indices': rows, 'labels': labels})

    def agreement(self, predictions: np.ndarray) -> float:
        """How much predictions agree with those before; NaN the first time."""
        before, self._predictions = self._predictions, predictions
        return float('nan') if before is None else kappa(before, predictions)

    def about(self) -> dict[str, Any]:
        """What identifies the data."""
        return self.pool.about()

    def weights(self) -> dict[str, str]:
        """What identifies the weights that the session began with."""
        return {'weights': self.learning.weights_hash}
