"""Learning curves of recorded queries."""

import json

import numpy as np
import pytest
from scipy import stats

from thinkml.errors import ConfigError, DataError
from thinkml.training import ActiveHistory, ActiveQuery


def history_of(values, start=10, baseline=None):
    queries = [
        ActiveQuery(
            np.arange(5), np.ones(5), 'trained', start + 5 * number,
            {'loss': -value, 'val_accuracy': value},
        )
        for number, value in enumerate(values[1:], start=1)
    ]  # fmt: skip
    first = (start, {'loss': 0.0, 'val_accuracy': values[0]})
    return ActiveHistory(first, queries, baseline=baseline)


def lines(figure):
    [ax] = figure.axes
    return {line.get_label(): line for line in ax.lines}, ax


def test_a_curve_is_drawn_with_its_baseline(tmp_path):
    history = history_of([0.5, 0.7, 0.8], baseline=history_of([0.5, 0.6, 0.65]))
    drawn, ax = lines(history.plot_learning_curve(path=tmp_path / 'curve.png'))
    assert drawn.keys() == {'active', 'at random'}
    np.testing.assert_array_equal(drawn['active'].get_xydata(), [[10, 0.5], [15, 0.7], [20, 0.8]])
    np.testing.assert_array_equal(drawn['at random'].get_ydata(), [0.5, 0.6, 0.65])
    assert ax.get_ylabel() == 'val_accuracy' and not ax.collections
    assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
    drawn, _ = lines(history.plot_learning_curve(metric='loss'))
    np.testing.assert_array_equal(drawn['active'].get_ydata(), [0, -0.7, -0.8])


def test_over_seeds_it_is_the_mean_with_students_interval():
    values = np.random.default_rng(0).uniform(size=(4, 3))
    drawn, ax = lines(history_of(values[0]).plot_learning_curve(*map(history_of, values[1:])))
    np.testing.assert_allclose(drawn['active, 4 seeds'].get_ydata(), values.mean(0))
    low, high = stats.t.interval(0.95, 3, values.mean(0), stats.sem(values))
    [shaded] = ax.collections
    corners = shaded.get_paths()[0].vertices
    for count, *expected in zip((10, 15, 20), low, high, strict=True):
        found = corners[corners[:, 0] == count][:, 1]
        np.testing.assert_allclose([found.min(), found.max()], expected)


def test_curves_of_other_lengths_are_compared_where_both_are():
    drawn, _ = lines(history_of([0.5, 0.7, 0.9]).plot_learning_curve(history_of([0.3, 0.5])))
    np.testing.assert_allclose(drawn['active, 2 seeds'].get_xydata(), [[10, 0.4], [15, 0.6]])
    with pytest.raises(DataError, match='others: got histories that have no number of labels'):
        history_of([0.5, 0.7]).plot_learning_curve(history_of([0.5, 0.7], start=12))


def test_what_was_not_recorded_is_told():
    with pytest.raises(ConfigError, match="metric: got 'val_f1'"):
        history_of([0.5, 0.7]).plot_learning_curve(metric='val_f1')
    with pytest.raises(DataError, match='no model was trained yet'):
        ActiveHistory().plot_learning_curve()
    with pytest.raises(DataError, match='has one point'):
        history_of([0.5]).area()


def test_it_goes_to_json():
    history = history_of([0.5, 0.7], baseline=history_of([0.5, 0.6]))
    saved = json.loads(json.dumps(history.to_dict(), allow_nan=False))
    assert saved['queries'][0]['indices'] == [0, 1, 2, 3, 4]
    assert saved['queries'][0]['agreement'] is None
    assert saved['baseline']['start'] == [10, {'loss': 0.0, 'val_accuracy': 0.5}]
