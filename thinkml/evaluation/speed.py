"""How fast a model predicts."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.errors import DataError

_MAX_BATCH = 1024
_MAX_CALLS = 100
_SHORTEST = 1e-9  # seconds, for clocks that had not moved


@dataclasses.dataclass(frozen=True)
class Speed:
    """How fast a model predicts, without the time it takes to prepare it and to read the rows.

    Attributes:
        latency_seconds: what a prediction of one row takes, the median of several.
        rows_per_second: what is predicted in batches, from the median time of a batch.
        batch_rows: how many rows such a batch has.
    """

    latency_seconds: float
    rows_per_second: float
    batch_rows: int


def measure_speed(
    predict: Callable[[Any], Any],
    rows: Any,
    budget_seconds: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Times predictions, of one row and of a batch, after a first call of each.

    A result that is still being computed on a device is waited for and fetched.

    Args:
        predict: takes rows and returns an array.
        rows: what to predict: anything whose first ``n`` rows are ``rows[:n]``, such as an array, a
            frame or a list, or a dict or tuple of these. Up to 1,024 rows are used.
        budget_seconds: when it has passed, no call is made but the first that is timed of each.
        clock: tells the time in seconds.

    Raises:
        DataError: if there are no rows.

    Example:
        >>> speed = measure_speed(lambda x: x.sum(axis=1), np.ones((2000, 3)))
        >>> speed.batch_rows, speed.latency_seconds > 0
        (1024, True)
    """
    num_rows = _count(rows)
    if not num_rows:
        raise DataError('rows: got none, expected at least one row to predict.')
    batch_rows = min(num_rows, _MAX_BATCH)

    def seconds(count: int) -> float:
        x = _first(rows, count)
        return _median_seconds(lambda: np.asarray(predict(x)), budget_seconds / 2, clock)

    return Speed(seconds(1), batch_rows / seconds(batch_rows), batch_rows)


def _count(rows: Any) -> int:
    if isinstance(rows, dict | tuple):
        return _count(next(iter(rows.values() if isinstance(rows, dict) else rows)))
    return rows.shape[0] if hasattr(rows, 'shape') else len(rows)  # sparse matrices have no length


def _first(rows: Any, count: int) -> Any:
    if isinstance(rows, dict):
        return {name: _first(part, count) for name, part in rows.items()}
    if isinstance(rows, tuple):
        return tuple(_first(part, count) for part in rows)
    return rows[:count]


def _median_seconds(
    call: Callable[[], Any], budget_seconds: float, clock: Callable[[], float]
) -> float:
    call()  # compiles
    times: list[float] = []
    while not times or (sum(times) < budget_seconds and len(times) < _MAX_CALLS):
        start = clock()
        call()
        times.append(clock() - start)
    return max(float(np.median(times)), _SHORTEST)
