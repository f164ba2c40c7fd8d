"""Threshold and calibration plots show scikit-learn's values."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve

from thinkml.errors import ConfigError
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.confidence_intervals import wilson
from thinkml.evaluation.metrics.calibration import NUM_BINS
from thinkml.evaluation.threshold_choice import choose_threshold

from .make_evaluations import binary, classification, multilabel
from .plot_reading import PLAIN, analyze, labels_of, line

# --- thresholds -------------------------------------------------------------------------------


def test_rates_are_those_at_each_threshold():
    evaluation = analyze('binary').evaluation
    labels, p = evaluation.scored.labels, evaluation.probabilities[:, 1]
    ax = PerformanceAnalysis(evaluation).plot_threshold().axes[0]
    scores = {'precision': sk.precision_score, 'recall': sk.recall_score, 'F1': sk.f1_score}
    for label, score in scores.items():
        x, y = line(ax, label)
        assert x[0] == 0
        assert x[-1] == p.max()
        for threshold in (0.0, 0.2, 0.5, 0.77, p.max()):
            drawn = y[np.searchsorted(x, threshold)]  # steps hold back to the point before
            assert drawn == pytest.approx(score(labels, p >= threshold))


def test_the_chosen_threshold_is_marked():
    analysis = analyze('binary')
    best = choose_threshold(analysis.evaluation)
    ax = analysis.plot_threshold().axes[0]
    assert line(ax, 'best F1 here')[0] == pytest.approx(best.threshold)
    validation = classification(('no', 'yes'), 90, seed=5)
    choice = choose_threshold(validation, 'precision', min_recall=0.9)
    ax = analysis.plot_threshold(choice=choice).axes[0]
    x, _ = line(ax, f'chosen by precision: {choice.threshold:.3g}')
    assert x == pytest.approx(choice.threshold)
    called = analysis.evaluation.probabilities[:, 1] >= choice.threshold
    dots = [each.get_xydata()[0] for each in ax.get_lines() if len(each.get_xdata()) == 1]
    expected = [
        score(analysis.evaluation.scored.labels, called)
        for score in (sk.precision_score, sk.recall_score, sk.f1_score)
    ]
    np.testing.assert_allclose(dots, [(choice.threshold, value) for value in expected])
    none = dataclasses.replace(choice, threshold=np.inf)
    assert 'chosen by precision: none positive' in labels_of(
        analysis.plot_threshold(choice=none).axes[0]
    )


def test_each_label_has_its_threshold_marked():
    analysis = analyze('multilabel')
    chosen = choose_threshold(analysis.evaluation)
    for choice in (None, chosen):
        ax = analysis.plot_threshold(choice=choice).axes[0]
        dots = [each.get_xydata()[0] for each in ax.get_lines() if len(each.get_xdata()) == 1]
        np.testing.assert_allclose(dots, [(one.threshold, one.f1) for one in chosen.values()])
        assert [label.split(' (')[0] for label in labels_of(ax)[:-1]] == list(chosen)
        assert labels_of(ax)[0] == f'red ({chosen["red"].f1:.3f})'


def test_of_many_labels_those_with_the_lowest_f1_are_named():
    evaluation = multilabel(tuple(range(12)), 200)
    ax = PerformanceAnalysis(evaluation).plot_threshold().axes[0]
    best = {label: one.f1 for label, one in choose_threshold(evaluation).items()}
    worst = sorted(best, key=best.__getitem__)[:3]
    assert [label.split(' (')[0] for label in labels_of(ax)] == [
        'all 12; the worst:', *map(str, worst), 'best F1 here'
    ]  # fmt: skip


def test_what_has_no_thresholds_and_what_is_no_choice():
    with pytest.raises(ConfigError, match='plot_threshold: got a multiclass evaluation'):
        analyze('multiclass').plot_threshold()
    one, several = (choose_threshold(analyze(kind).evaluation) for kind in ('binary', 'multilabel'))
    for kind, choice in (('binary', several), ('multilabel', one), ('binary', 0.5)):
        with pytest.raises(ConfigError, match=f'choice: got .*, expected .* a {kind} model'):
            analyze(kind).plot_threshold(choice=choice)


# --- calibration ------------------------------------------------------------------------------


def test_calibration_is_that_of_scikit_learn():
    analysis = analyze('binary', n=400, metrics=['ece'])
    evaluation = analysis.evaluation
    labels, p = evaluation.scored.labels, evaluation.probabilities[:, 1]
    ax = analysis.plot_calibration().axes[0]
    predicted, true = line(ax, f'model (ECE = {analysis.get_metrics()["ece"]:.3f})')
    expected = calibration_curve(labels, p, n_bins=NUM_BINS)
    np.testing.assert_allclose([true, predicted], expected)
    counts = np.histogram(p, NUM_BINS, (0, 1))[0]
    heights = [patch.get_height() for patch in ax.patches]
    np.testing.assert_allclose(heights, 0.12 * counts / counts.max())
    [intervals] = ax.collections
    bounds = [segment[:, 1] for segment in intervals.get_segments()]
    filled = counts[counts > 0]
    np.testing.assert_allclose(
        bounds, [wilson(share * n, n) for share, n in zip(true, filled, strict=True)]
    )


def test_calibration_of_multiclass_is_that_of_the_predicted_class():
    analysis = analyze('multiclass', n=400, metrics=['ece'])
    data = analysis.evaluation.scored
    ax = analysis.plot_calibration().axes[0]
    predicted, true = line(ax, f'model (ECE = {analysis.get_metrics()["ece"]:.3f})')
    right = data.predictions == data.labels
    expected = calibration_curve(right, data.probabilities.max(axis=1), n_bins=NUM_BINS)
    np.testing.assert_allclose([true, predicted], expected)


def test_each_label_has_its_calibration():
    analysis = analyze('multilabel', n=400, metrics=['ece'])
    data = analysis.evaluation.scored
    ax = analysis.plot_calibration().axes[0]
    errors = []
    for index, name in enumerate(('red', 'green', 'blue')):
        predicted, true = line(ax, name)
        expected = calibration_curve(
            data.labels[:, index], data.probabilities[:, index], n_bins=NUM_BINS
        )
        np.testing.assert_allclose([true, predicted], expected)
        [label] = [label for label in labels_of(ax) if label.startswith(name)]
        errors.append(float(label.split('(')[1][:-1]))
    assert np.mean(errors) == pytest.approx(analysis.get_metrics()['ece'], abs=1e-3)


def test_rows_of_one_group_are_one_in_the_intervals_of_calibration():
    labels, p = np.array([0, 1, 1, 0, 1, 1]), np.array([0.3, 0.31, 0.32, 0.7, 0.71, 0.72])
    groups = Resampling(groups=np.arange(18) // 3)
    tripled = binary(labels.repeat(3), p.repeat(3), resampling=groups)
    axes = [
        PerformanceAnalysis(each).plot_calibration().axes[0]
        for each in (binary(labels, p), tripled)
    ]
    one, three = (ax.collections[0].get_segments() for ax in axes)
    np.testing.assert_allclose(one, three)
    none = PerformanceAnalysis(binary(labels, p, resampling=PLAIN)).plot_calibration()
    assert not none.axes[0].collections
