"""Prediction speed: the latency of one row and the rows per second in batches."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from thinkml.errors import DataError
from thinkml.typing import Inputs

_MAX_BATCH = 1024
_MAX_CALLS = 100
_MIN_SECONDS = 1e-9  # for clocks too coarse to measure a call


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of predictions, without the time to compile the model and to read the rows.

    Attributes:
        latency_seconds: the median time to predict one row.
        rows_per_second: the rows predicted per second in batches, from the median time of a batch.
        batch_rows: the number of rows in such a batch.
    """

    latency_seconds: float
    rows_per_second: float
    batch_rows: int


def measure_speed(
    predict: Callable[[Any], Any],
    rows: Inputs,
    budget_seconds: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Measures the time to predict one row and a batch, after a first call of each.

    The time includes waiting for the device and fetching the result.

    Args:
        predict: takes rows and returns an array.
        rows: the rows to predict: anything whose first ``n`` rows are ``rows[:n]``, such as an
            array, a frame or a list, or a dict or tuple of these. Up to 1,024 rows are used.
        budget_seconds: the time after which no further call is made. One row and the batch are
            each timed at least once.
        clock: returns the time in seconds.

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


def _count(rows: Inputs) -> int:
    if isinstance(rows, dict | tuple):
        return _count(next(iter(rows.values() if isinstance(rows, dict) else rows)))
    return rows.shape[0] if hasattr(rows, 'shape') else len(rows)  # sparse matrices have no length


def _first(rows: Inputs, count: int) -> Inputs:
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
    return max(float(np.median(times)), _MIN_SECONDS)
