"""Residuals and learning curves are drawn as they are."""

import dataclasses

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from thinkml.errors import ConfigError, NotTrainedError
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.plots.axes import sample_rows
from thinkml.evaluation.plots.residuals import trend
from thinkml.history import History

from .make_evaluations import FEW, regression
from .plot_reading import PLAIN, analyze, four_epochs, has_band, labels_of, line

# --- regression -------------------------------------------------------------------------------


def test_every_residual_is_a_dot_and_in_the_distribution():
    analysis = analyze('regression')
    data = analysis.evaluation.scored
    ax = analysis.plot_residuals().axes[0]
    [dots] = [part for part in ax.collections if not isinstance(part, PolyCollection)]
    residuals = data.labels - data.predictions
    np.testing.assert_allclose(dots.get_offsets(), np.stack([data.predictions, residuals], 1))
    [beside] = ax.child_axes
    heights, edges, _ = beside.patches[0].get_data()
    np.testing.assert_allclose(heights, np.histogram(residuals, edges, density=True)[0])
    assert (edges[0], edges[-1]) == (residuals.min(), residuals.max())


def test_the_mean_residual_with_its_interval():
    rng = np.random.default_rng(0)
    evaluation = regression(n=100, weight=rng.integers(3, size=100).astype(float))
    target = type('Target', (), {'predicted': rng.random(100), 'residual': rng.normal(size=100)})
    flat = np.ones(100)
    found = trend(target, flat, FEW)
    order = np.argsort(target.predicted).reshape(5, 20)
    np.testing.assert_allclose(found.predicted, target.predicted[order].mean(axis=1))
    mean = target.residual[order].mean(axis=1)
    np.testing.assert_allclose(found.mean, mean)
    error = target.residual[order].std(axis=1, ddof=1) / np.sqrt(20)
    np.testing.assert_allclose(found.high - mean, 1.959964 * error, rtol=1e-6)
    np.testing.assert_allclose(mean - found.low, 1.959964 * error, rtol=1e-6)
    groups = dataclasses.replace(FEW, groups=np.arange(100))
    np.testing.assert_allclose(trend(target, flat, groups), found)
    assert has_band(PerformanceAnalysis(evaluation).plot_residuals().axes[0])
    plain = dataclasses.replace(evaluation, resampling=PLAIN)
    assert not has_band(PerformanceAnalysis(plain).plot_residuals().axes[0])


def test_rows_of_one_group_are_one_draw_of_the_mean_residual():
    rng = np.random.default_rng(0)
    predicted, residual = rng.random(30), rng.normal(size=30)
    target = type('Target', (), {'predicted': predicted.repeat(4), 'residual': residual.repeat(4)})
    found = trend(target, np.ones(120), dataclasses.replace(FEW, groups=np.arange(120) // 4))
    order = np.argsort(predicted).reshape(6, 5)
    error = residual[order].std(axis=1, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.high - found.mean, 1.959964 * error, rtol=1e-6)


def test_weights_of_residuals():
    weight = np.random.default_rng(0).integers(3, size=120).astype(float)
    evaluation = regression(weight=weight)
    data = evaluation.scored
    ax = PerformanceAnalysis(evaluation).plot_residuals().axes[0]
    [dots] = [part for part in ax.collections if not isinstance(part, PolyCollection)]
    kept = weight > 0
    np.testing.assert_allclose(dots.get_offsets()[:, 0], data.predictions[kept])
    np.testing.assert_allclose(
        dots.get_sizes() / dots.get_sizes().mean(), weight[kept] / np.mean(weight[kept])
    )
    heights, edges, _ = ax.child_axes[0].patches[0].get_data()
    residuals = (data.labels - data.predictions).repeat(weight.astype(int))
    np.testing.assert_allclose(heights, np.histogram(residuals, edges, density=True)[0])


@pytest.mark.parametrize('targets', [3, 8])
def test_several_targets_are_in_their_standard_deviations(targets):
    evaluation = regression(targets)
    data = evaluation.scored
    ax = PerformanceAnalysis(evaluation).plot_residuals().axes[0]
    error = np.sqrt(np.mean((data.labels - data.predictions) ** 2, axis=0))
    relative = error / data.labels.std(axis=0)
    shown = range(3) if targets == 3 else np.argsort(-relative)[:3]
    assert labels_of(ax) == [f'target {index}' for index in shown]
    for dots, index in zip(ax.collections, shown, strict=True):
        squares = np.mean(dots.get_offsets()[:, 1] ** 2)
        assert np.sqrt(squares) == pytest.approx(relative[index])


def test_of_very_many_rows_some_are_drawn_by_weight():
    weight = np.array([0.0, 1.0, 3.0]).repeat(10_000)
    rows = sample_rows(weight, 4000)
    assert len(np.unique(rows)) == 4000
    counts = np.histogram(rows, [0, 10_000, 20_000, 30_000])[0]
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.25)
    np.testing.assert_array_equal(rows, sample_rows(weight, 4000))
    np.testing.assert_array_equal(sample_rows(weight[9_998:10_002], 4000), [2, 3])


def test_classification_has_no_residuals():
    with pytest.raises(ConfigError, match='plot_residuals: got the evaluation of a classification'):
        analyze('binary').plot_residuals()


# --- learning ---------------------------------------------------------------------------------


def test_learning_curves_are_what_was_recorded():
    second = History()
    second.add_epoch({'loss': 0.2, 'accuracy': 0.9})
    second.add_epoch({'loss': float('nan'), 'accuracy': 0.95})
    analysis = PerformanceAnalysis(analyze('binary').evaluation, runs=[four_epochs(), second])
    ax = analysis.plot_learning_curve().axes[0]
    assert labels_of(ax) == ['training', 'validation', 'best epoch']
    np.testing.assert_allclose(line(ax, 'training'), [[1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4]])
    np.testing.assert_allclose(line(ax, 'validation')[1], four_epochs()['val_loss'])
    np.testing.assert_allclose(line(ax, 'best epoch')[0], [2, 2])
    assert ax.get_ylabel() == 'loss'
    drawn = [each.get_xydata().tolist() for each in ax.get_lines()]
    assert [[5, pytest.approx(0.2)]] in drawn, 'the next training follows, without NaN'
    ax = analysis.plot_learning_curve(metric='accuracy').axes[0]
    np.testing.assert_allclose(line(ax, 'training'), [[5, 6], [0.9, 0.95]])
    with pytest.raises(ConfigError, match=r"metric: got 'acuracy', .* Did you mean 'accuracy'"):
        analysis.plot_learning_curve(metric='acuracy')


@pytest.mark.parametrize('runs', [(), [History()]])
def test_a_model_that_was_not_trained_here_has_no_learning_curve(runs):
    analysis = PerformanceAnalysis(analyze('binary').evaluation, runs=runs)
    with pytest.raises(NotTrainedError, match='plot_learning_curve: got a model without'):
        analysis.plot_learning_curve()
