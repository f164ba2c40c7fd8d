"""Speed is measured by the clock, without compilation."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from thinkml.errors import DataError
from thinkml.evaluation.speed import Speed, measure_speed


class Machine:
    """A model and a clock: each kind of call takes a set time, the first one far longer."""

    def __init__(self, fixed, per_row, compiling=30.0):
        self.now, self.fixed, self.per_row, self.compiling = 0.0, fixed, per_row, compiling
        self.sizes = []

    def predict(self, x):
        rows = next(iter(x.values())) if isinstance(x, dict) else x
        rows = rows[0] if isinstance(rows, tuple) else rows
        count = rows.shape[0] if hasattr(rows, 'shape') else len(rows)
        self.now += self.fixed + self.per_row * count + self.compiling * (count not in self.sizes)
        self.sizes.append(count)
        return np.zeros(count)

    def clock(self):
        return self.now


@pytest.mark.parametrize(
    'rows',
    [
        np.zeros((3000, 2)),
        jnp.zeros((3000, 2)),
        [[0.0]] * 3000,
        pd.DataFrame({'a': np.zeros(3000)}),
        {'a': np.zeros((3000, 2)), 'b': np.zeros(3000)},
        (np.zeros((3000, 2)), np.zeros(3000)),
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_it_is_the_median_of_calls_after_the_first(rows):
    machine = Machine(fixed=0.001, per_row=0.0005)
    speed = measure_speed(machine.predict, rows, clock=machine.clock)
    assert (speed.latency_seconds, speed.batch_rows) == (pytest.approx(0.0015), 1024)
    assert speed.rows_per_second == pytest.approx(1024 / 0.513)
    assert set(machine.sizes) == {1, 1024}


def test_calls_end_with_the_budget():
    machine = Machine(fixed=0.01, per_row=0.0)
    measure_speed(machine.predict, np.zeros((5, 2)), budget_seconds=0.2, clock=machine.clock)
    assert len(machine.sizes) == pytest.approx(2 * (1 + 10), abs=2)
    slow = Machine(fixed=20.0, per_row=1.0)
    assert measure_speed(slow.predict, np.zeros((5, 2)), clock=slow.clock) == (
        Speed(21.0, 5 / 25.0, 5)
    )
    assert slow.sizes == [1, 1, 5, 5]
    quick = Machine(fixed=0.0, per_row=0.0)  # faster than the clock can measure
    assert measure_speed(quick.predict, np.zeros((5, 2)), clock=quick.clock).latency_seconds > 0
    assert len(quick.sizes) == 2 * (1 + 100)


def test_without_rows():
    with pytest.raises(DataError, match='rows: got none'):
        measure_speed(np.sum, np.zeros((0, 3)))
