"""The query loop: iterations of querying, labelling and training, with and without an oracle."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.core.active.selection import Selection
from thinkml.errors import warn_user
from thinkml.training.active.history import ActiveHistory
from thinkml.training.active.session import Session
from thinkml.training.active.strategies import Strategy, diversify
from thinkml.typing import Inputs

Oracle = Callable[[Any, np.ndarray], Any]

_POOL_EXHAUSTED = 'all rows of the pool were queried'


class KnownLabels:
    """An oracle that has all labels of the pool."""

    def __init__(self, labels: np.ndarray):
        self._labels = labels

    def __call__(self, X: Inputs, indices: np.ndarray) -> list[Any]:
        return self._labels[indices].tolist()


def run_queries(
    session: Session,
    strategy: Strategy,
    oracle: Oracle,
    query_size: int,
    n_iterations: int,
    max_labels: int | None,
    *,
    progress: bool,
) -> ActiveHistory:
    """Trains, and in each iteration queries rows, has the oracle label them, and trains again."""
    store = session.store
    session.fit()
    _print_progress(progress, f'start: {session.num_labels} labels')
    for number in range(1, n_iterations + 1):
        budget = query_size if max_labels is None else max_labels - len(store.labels)
        rows = session.query(strategy, min(query_size, budget))
        if not len(rows):
            store.history.stop_reason = _POOL_EXHAUSTED
            break
        session.teach(rows, oracle(session.pool.rows.take(rows), rows), 'oracle')
        session.fit_if_needed()  # not if every row was skipped
        _print_progress(progress, f'{number}: {store.history[-1]}')
        if store.history.stop_reason is not None:
            _print_progress(progress, f'ended: {store.history.stop_reason}')
            break
    return store.history


def plan_queries(
    session: Session, strategy: Strategy, query_size: int, n_iterations: int, *, progress: bool
) -> ActiveHistory:
    """Trains once, and selects the rows of all queries together, so that they are diverse.

    Rows of tokens or pixels are selected by their scores alone.
    """
    history = session.store.history
    session.fit()
    total = n_iterations * query_size
    start = time.perf_counter()
    chosen = strategy if session.retraining.has_elements else diversify(strategy)
    selection = session.select(chosen, total)
    seconds = (time.perf_counter() - start) / n_iterations
    for first in range(0, len(selection.indices), query_size):
        part = slice(first, first + query_size)
        session.record_query(Selection(selection.indices[part], selection.scores[part]), seconds)
    if len(selection.indices) < total:
        history.stop_reason = _POOL_EXHAUSTED
    _print_progress(progress, str(history))
    warn_user(
        'oracle: got None, and no y_unlabeled, so nobody labels: the model was trained on '
        f'{session.num_labels} labels, and {len(selection.indices)} rows were chosen for you to '
        'label. Their indices are history[0].indices and so on; pass their labels to '
        'teach(indices, y), then call query() for the next ones or fit() to train.'
    )
    return history


def _print_progress(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr)
