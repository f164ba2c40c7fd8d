"""Rounds of asking and training, with someone who labels and without."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.core.active.selection import Selection
from thinkml.errors import warn_user
from thinkml.training.active.history import ActiveHistory
from thinkml.training.active.session import Session
from thinkml.training.active.strategies import Strategy, spread_out

Oracle = Callable[[Any, np.ndarray], Any]

_AT_END = 'all rows of the pool were asked for'


class KnownLabels:
    """An oracle that has all labels of the pool."""

    def __init__(self, labels: np.ndarray):
        self._labels = labels

    def __call__(self, X: Any, indices: np.ndarray) -> list[Any]:
        return self._labels[indices].tolist()


def iterate(
    session: Session,
    strategy: Strategy,
    oracle: Oracle,
    query_size: int,
    n_iterations: int,
    max_labels: int | None,
    *,
    progress: bool,
) -> ActiveHistory:
    """Trains, and in each iteration asks, has the rows labelled, and trains again."""
    book = session.book
    session.fit()
    _show(progress, f'start: {session.num_labels} labels')
    for number in range(1, n_iterations + 1):
        left = query_size if max_labels is None else max_labels - len(book.labels)
        rows = session.ask(strategy, min(query_size, left))
        if not len(rows):
            book.history.stop_reason = _AT_END
            break
        session.teach(rows, oracle(session.pool.rows.take(rows), rows), 'oracle')
        session.fit_if_due()  # not where each row was skipped
        _show(progress, f'{number}: {book.history[-1]}')
        if book.history.stop_reason is not None:
            _show(progress, f'ended: {book.history.stop_reason}')
            break
    return book.history


def plan(
    session: Session, strategy: Strategy, query_size: int, n_iterations: int, *, progress: bool
) -> ActiveHistory:
    """Trains once, and chooses the rows of all queries at once, so that all are unlike."""
    history = session.book.history
    session.fit()
    total = n_iterations * query_size
    began = time.perf_counter()
    chosen = session.choose(spread_out(strategy), total)
    seconds = (time.perf_counter() - began) / n_iterations
    for first in range(0, len(chosen.indices), query_size):
        some = slice(first, first + query_size)
        session.note_query(Selection(chosen.indices[some], chosen.scores[some]), seconds)
    if len(chosen.indices) < total:
        history.stop_reason = _AT_END
    _show(progress, str(history))
    warn_user(
        f'oracle: got none, and no y_unlabeled, so nobody labels: the model was trained on '
        f'{session.num_labels} labels, and {len(chosen.indices)} rows were chosen for you to '
        'label. Their numbers are history[0].indices and so on; pass their labels to '
        'teach(indices, y), then call query() for the next ones or fit() to train.'
    )
    return history


def _show(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr)
