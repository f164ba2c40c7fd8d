"""Confidence bands are the percentiles of resampled curves."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics as sk

from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.plots import confidence_bands
from thinkml.evaluation.plots.confidence_bands import bands, draw_counts, make_cells
from thinkml.evaluation.plots.curve_types import GAIN, OVER_THRESHOLD, PRECISION_RECALL, ROC
from thinkml.evaluation.threshold_counts import all_threshold_counts, each_ranking

from .make_evaluations import binary, classification, multilabel

SIXTY = Resampling(num_resamples=60, seed=3)
KINDS = [ROC, PRECISION_RECALL, GAIN, *OVER_THRESHOLD.values()]


def some(n=80, seed=0, weighted=False, resampling=SIXTY):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    probabilities = np.round(np.clip(0.3 * labels + 0.7 * rng.random(n), 0, 1), 2)
    weight = rng.exponential(size=n) if weighted else None
    return binary(labels, probabilities, weight, resampling=resampling)


def around(curves, curve, confidence=0.95):
    """Returns percentiles of curves around their median, which is shifted to ``curve``."""
    low, middle, high = np.quantile(
        curves, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2], axis=0
    )
    return np.clip([curve + low - middle, curve + high - middle], 0, 1)


@pytest.mark.parametrize('weighted', [False, True])
def test_they_are_percentiles_of_scikit_learns_curves_of_resampled_rows(weighted):
    evaluation = some(weighted=weighted)
    data = evaluation.scored
    [band] = bands(evaluation, [ROC])

    def curve(counts):
        x, y, _ = sk.roc_curve(
            data.labels, data.probabilities[:, 1], sample_weight=data.weights * counts
        )
        return np.interp(band.x, x, y)

    counts = list(draw_counts(SIXTY, 80, 60))
    expected = around([curve(drawn) for drawn in counts], curve(np.ones(80)))
    np.testing.assert_allclose([band.low, band.high], expected, atol=1e-12)
    assert band.confidence == 0.95


def test_rates_over_the_threshold_are_those_of_resampled_rows():
    evaluation = some()
    labels, p = evaluation.scored.labels, evaluation.scored.probabilities[:, 1]
    found = dict(zip(OVER_THRESHOLD, bands(evaluation, list(OVER_THRESHOLD.values())), strict=True))
    at = 100  # of the grid
    threshold = found['recall'].x[at]

    def rates(counts):
        settings = {'sample_weight': counts, 'zero_division': 0}
        called = p >= threshold
        return [score(labels, called, **settings) for score in scores]

    scores = (sk.precision_score, sk.recall_score, sk.f1_score)
    drawn = [rates(counts) for counts in draw_counts(SIXTY, 80, 60)]
    expected = around(drawn, rates(np.ones(80)))
    for index, rate in enumerate(('precision', 'recall', 'f1')):
        np.testing.assert_allclose([found[rate].low[at], found[rate].high[at]], expected[:, index])


@pytest.mark.parametrize('make', [classification, multilabel])
def test_of_several_it_is_that_of_their_mean(make):
    evaluation = make(n=60, resampling=SIXTY)
    [band] = bands(evaluation, [GAIN])
    data = evaluation.scored
    truth = data.labels if data.labels.ndim == 2 else np.eye(3)[data.labels]

    def curve(counts):
        each = []
        for labels, scores in zip(truth.T, data.probabilities.T, strict=True):
            order = np.argsort(-scores)
            x, y = np.cumsum(counts[order]), np.cumsum((counts * labels)[order])
            each.append(np.interp(band.x, np.append(0, x / x[-1]), np.append(0, y / y[-1])))
        return np.mean(each, axis=0)

    expected = around([curve(drawn) for drawn in draw_counts(SIXTY, 60, 60)], curve(np.ones(60)))
    np.testing.assert_allclose([band.low, band.high], expected, atol=1e-12)


def test_they_hold_the_curve_and_widen_with_confidence():
    evaluation = some(n=200)
    narrow = dataclasses.replace(evaluation, resampling=dataclasses.replace(SIXTY, confidence=0.5))
    for kind, wide, less in zip(KINDS, bands(evaluation, KINDS), bands(narrow, KINDS), strict=True):
        curve = kind.mean_at(wide.x, list(all_threshold_counts(evaluation.scored)))
        drawn = ~np.isnan(curve)
        assert np.all((wide.low <= curve + 1e-12) & (curve <= wide.high + 1e-12), where=drawn)
        assert np.all((wide.low <= less.low) & (less.high <= wide.high), where=drawn)
        assert np.any(wide.low < less.low)


def test_there_are_none_without_confidence_or_a_curve():
    plain = some(resampling=Resampling(confidence=None))
    assert bands(plain, [ROC, GAIN]) == [None, None]
    positives = binary([1, 1, 1], [0.1, 0.5, 0.9], resampling=SIXTY)
    [roc, gain] = bands(positives, [ROC, GAIN])
    assert roc is None
    assert gain is not None


def test_groups_are_drawn_whole():
    groups = np.arange(40) // 4
    resampling = dataclasses.replace(SIXTY, groups=groups)
    for counts in draw_counts(resampling, 40, 5):
        assert counts.sum() == 40
        assert np.ptp(counts.reshape(10, 4), axis=1).max() == 0


def test_strata_keep_their_sizes():
    strata = np.random.default_rng(0).integers(3, size=50)
    resampling = dataclasses.replace(SIXTY, strata=strata)
    drawn = list(draw_counts(resampling, 50, 5))
    for counts in drawn:
        np.testing.assert_array_equal(np.bincount(strata, counts), np.bincount(strata))
    assert np.ptp(drawn, axis=0).max() > 0


def test_bands_of_groups_are_wider_than_those_of_as_many_rows():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    labels = np.repeat(rng.integers(2, size=60), 10)
    p = np.repeat(np.clip(rng.normal(0.35 + 0.3 * (labels[::10]), 0.2), 0, 1), 10)
    grouped = dataclasses.replace(SIXTY, groups=groups)
    [wide] = bands(binary(labels, p, resampling=grouped), [ROC])
    [narrow] = bands(binary(labels, p, resampling=SIXTY), [ROC])
    ratio = np.sum(wide.high - wide.low) / np.sum(narrow.high - narrow.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.4)


@pytest.mark.parametrize('grouped', [False, True])
def test_a_part_of_very_many_rows_gives_about_the_same(grouped, monkeypatch):
    n = 6000
    groups = np.arange(n) // 3 if grouped else None
    resampling = Resampling(num_resamples=200, groups=groups)
    evaluation = some(n, resampling=resampling)
    whole = bands(evaluation, [ROC, GAIN])
    monkeypatch.setattr(confidence_bands, '_MAX_ROW_VISITS', 200 * 1500)
    monkeypatch.setattr(confidence_bands, '_MIN_ROWS', 1500)
    part = bands(evaluation, [ROC, GAIN])
    for kind, complete, subsampled in zip((ROC, GAIN), whole, part, strict=True):
        curve = kind.mean_at(complete.x, list(all_threshold_counts(evaluation.scored)))
        widths = [np.sum(band.high - band.low) for band in (complete, subsampled)]
        assert widths[1] == pytest.approx(widths[0], rel=0.25)
        assert np.all((subsampled.low <= curve + 1e-12) & (curve <= subsampled.high + 1e-12))


def test_cells_are_pieces_of_the_ranking(monkeypatch):
    monkeypatch.setattr(confidence_bands, '_MAX_CELLS', 50)
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.05).astype(int)
    scores = rng.random(2000).round(3)
    data = binary(labels, scores).scored
    [ranking], weight = each_ranking(data), rng.exponential(size=2000)
    cells = make_cells(ranking, weight)
    assert len(cells.scores) <= 50
    np.testing.assert_array_equal(cells.cell % 2, labels)
    # A row's cell is the first whose lowest score is not above the row's score.
    expected = (scores[:, None] < cells.scores).sum(axis=1)
    np.testing.assert_array_equal(cells.cell // 2, expected)
    assert cells.scores[-1] == scores.min()
