"""The plots draw the numbers of the evaluation, without a display."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics as sk
from matplotlib.figure import Figure

from thinkml.errors import ConfigError
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.plots.axes import thin_points

from .make_evaluations import FEW, binary, classification
from .plot_reading import PLAIN, analyze, four_epochs, has_band, labels_of, line

CURVES = ('plot_roc_curve', 'plot_precision_recall_curve', 'plot_gain')
OF_CLASSES = (*CURVES, 'plot_calibration', 'plot_confusion_matrix')
EVERY = [
    *((plot, kind) for plot in OF_CLASSES for kind in ('binary', 'multiclass', 'multilabel')),
    *(('plot_threshold', kind) for kind in ('binary', 'multilabel')),
    ('plot_residuals', 'regression'),
    ('plot_learning_curve', 'regression'),
]


def draw(plot, kind, **settings):
    analysis = dataclasses.replace(analyze(kind), runs=[four_epochs()])
    return getattr(analysis, plot)(**settings)


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'ax': 3}, 'ax: got int, expected axes'),
        ({'path': 'curve.abc'}, "path: got 'curve.abc', expected a file that ends in .png"),
        ({'path': Figure()}, 'path: got Figure, expected the name of a file. Pass axes to draw'),
    ],
)
def test_places_nothing_can_be_drawn_into(arguments, message):
    with pytest.raises(ConfigError, match=message):
        draw('plot_roc_curve', 'binary', **arguments)


@pytest.mark.parametrize(('plot', 'kind'), EVERY)
def test_draws_into_given_axes_and_writes_files(plot, kind, tmp_path):
    figure = Figure(figsize=(8, 4))
    left, right = figure.subplots(1, 2)
    path = tmp_path / 'plots' / 'curve.png'
    assert draw(plot, kind, path=path, ax=right) is figure
    assert path.read_bytes().startswith(b'\x89PNG')
    assert not left.has_data()
    assert right.has_data()


@pytest.mark.parametrize(('plot', 'kind'), EVERY)
def test_notebooks_get_a_picture(plot, kind):
    figure = draw(plot, kind)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b'\x89PNG')
    ax = figure.axes[0]
    assert ax.get_title()
    assert ax.get_ylabel()
    assert ax.get_xlabel() or (plot, kind) == ('plot_confusion_matrix', 'multilabel')


@pytest.mark.parametrize('plot', OF_CLASSES)
def test_regression_has_no_such_plots(plot):
    with pytest.raises(ConfigError, match=f'{plot}: got the evaluation of a regression model'):
        getattr(analyze('regression'), plot)()


@pytest.mark.parametrize('plot', [*CURVES, 'plot_calibration', 'plot_threshold'])
def test_without_probabilities_there_are_no_such_plots(plot):
    evaluation = analyze('binary').evaluation
    data = dataclasses.replace(evaluation.scored, probabilities=None)
    analysis = PerformanceAnalysis(dataclasses.replace(evaluation, scored=data))
    with pytest.raises(ConfigError, match=f'{plot}: got the evaluation of a model without'):
        getattr(analysis, plot)()
    assert analysis.plot_confusion_matrix()


@pytest.mark.parametrize('kind', ['binary', 'multiclass', 'multilabel'])
@pytest.mark.parametrize('plot', CURVES)
def test_bands_are_drawn_where_there_is_confidence(plot, kind):
    shaded, plain = (
        getattr(analyze(kind, resampling=resampling), plot)().axes[0] for resampling in (FEW, PLAIN)
    )
    assert has_band(shaded)
    assert labels_of(shaded)[-1] == '95% band'
    assert not has_band(plain)
    assert '95% band' not in labels_of(plain)


@pytest.mark.parametrize('plot', [*CURVES, 'plot_calibration', 'plot_threshold'])
def test_a_row_of_weight_two_is_two_rows(plot):
    rng = np.random.default_rng(0)
    labels, p, weight = rng.integers(2, size=40), rng.random(40).round(1), rng.integers(4, size=40)
    weighted = binary(labels, p, weight.astype(float), resampling=PLAIN)
    repeated = binary(labels.repeat(weight), p.repeat(weight), resampling=PLAIN)
    axes = [getattr(PerformanceAnalysis(each), plot)().axes[0] for each in (weighted, repeated)]
    for one, other in zip(*(ax.get_lines() for ax in axes), strict=True):
        np.testing.assert_allclose(one.get_xydata(), other.get_xydata(), atol=1e-12)
    assert labels_of(axes[0]) == labels_of(axes[1])


# --- curves of rankings -----------------------------------------------------------------------


def test_binary_curves_have_the_area_of_the_metric():
    analysis = analyze('binary', metrics=['roc_auc', 'average_precision'])
    metrics = analysis.get_metrics()
    ax = analysis.plot_roc_curve().axes[0]
    x, y = line(ax, f'AUC = {metrics["roc_auc"]:.3f}')
    assert np.trapezoid(y, x) == pytest.approx(metrics['roc_auc'])
    assert 'yes' in ax.get_title()
    ax = analysis.plot_precision_recall_curve().axes[0]
    recall, precision = line(ax, f'AP = {metrics["average_precision"]:.3f}')
    area = np.sum(np.diff(recall) * precision[1:])
    assert area == pytest.approx(metrics['average_precision'])


def test_gain_is_the_fraction_of_positives_among_the_first_rows():
    evaluation = binary([1, 1, 0, 1, 0, 0, 0, 0, 0, 0], np.linspace(0.9, 0, 10))
    ax = PerformanceAnalysis(evaluation).plot_gain().axes[0]
    x, y = line(ax, 'lift at 10% = 3.333')
    np.testing.assert_allclose(x, np.arange(11) / 10)
    np.testing.assert_allclose(y, np.array([0, 1, 2, 2, *[3] * 7]) / 3)
    np.testing.assert_allclose(line(ax, 'perfect'), [[0, 0.3, 1], [0, 1, 1]])


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel'])
def test_one_curve_per_class_and_their_mean(kind):
    analysis = analyze(kind, metrics=['roc_auc', 'average_precision'])
    metrics = analysis.get_metrics()
    for plot, name in zip(CURVES, metrics, strict=False):
        ax = getattr(analysis, plot)().axes[0]
        labels = [label for label in labels_of(ax) if label not in ('chance', '95% band')]
        names = [label.rsplit(' (')[0] for label in labels]
        assert names == [*analysis.evaluation.task.classes, 'mean']
        areas = [float(label.rsplit('(')[1][:-1]) for label in labels]
        assert np.mean(areas[:-1]) == pytest.approx(areas[-1], abs=1e-3)
        assert areas[-1] == pytest.approx(metrics[name], abs=1e-3)
        x, y = line(ax, labels[-1])
        assert np.trapezoid(y, x) == pytest.approx(metrics[name], abs=0.01)


def test_a_class_without_examples_is_left_out_of_the_curves():
    evaluation = classification(('a', 'b', 'c'), 60, metrics=['accuracy'])
    kept = evaluation.scored.take(evaluation.scored.labels != 2)
    analysis = PerformanceAnalysis(dataclasses.replace(evaluation, scored=kept))
    for plot in CURVES:
        shown = labels_of(getattr(analysis, plot)().axes[0])
        names = [label.split(' (')[0] for label in shown]
        assert [name for name in names if name not in ('chance', '95% band')] == (
            ['a', 'b', 'mean, 2 of 3']
        )


@pytest.mark.parametrize('plot', [*CURVES, 'plot_threshold'])
def test_without_positives_it_says_so(plot):
    ax = getattr(PerformanceAnalysis(binary([0, 0, 0], [0.1, 0.2, 0.3])), plot)().axes[0]
    assert any('to draw a curve from' in text.get_text() for text in ax.texts)


def test_of_many_classes_the_worst_are_named():
    evaluation = classification(tuple(f'class {i}' for i in range(14)), 900)
    labels, probabilities = evaluation.scored.labels, evaluation.probabilities
    areas = {
        name: sk.roc_auc_score(labels == index, probabilities[:, index])
        for index, name in enumerate(evaluation.task.classes)
    }
    worst = sorted(areas, key=areas.__getitem__)[:3]
    shown = labels_of(PerformanceAnalysis(evaluation).plot_roc_curve().axes[0])
    assert [label.split(' (')[0] for label in shown] == [
        'chance', 'all 14; the worst:', *worst, 'mean', '95% band'
    ]  # fmt: skip


@pytest.mark.parametrize('plot', CURVES)
def test_classes_that_begin_with_an_underscore_are_in_the_legend(plot):
    analysis = PerformanceAnalysis(classification(('_a', 'b', '__c'), 60))
    shown = [label.split(' (')[0].strip() for label in labels_of(getattr(analysis, plot)().axes[0])]
    assert [label for label in shown if label not in ('chance', 'mean', '95% band')] == (
        ['_a', 'b', '__c']
    )


@pytest.mark.parametrize('plot', OF_CLASSES)
def test_dollars_in_names_are_no_formulas(plot):
    analysis = PerformanceAnalysis(classification(('$5', '$_{', 'none'), 60))
    assert getattr(analysis, plot)()._repr_png_()


def test_large_curves_are_thinned_without_moving():
    analysis = analyze('binary', n=30_000, metrics=['roc_auc'])
    area = analysis.get_metrics()['roc_auc']
    x, y = line(analysis.plot_roc_curve().axes[0], f'AUC = {area:.3f}')
    assert len(x) <= 2000
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(area, abs=1e-4)


def test_thinned_points_are_some_of_the_points():
    x = np.sort(np.random.default_rng(0).random(10_000))
    few = thin_points(x, x**2)
    assert len(few[0]) <= 2000
    assert np.isin(few[0], x).all()
    np.testing.assert_array_equal(few[1], few[0] ** 2)
    assert np.diff(few[0]).max() < 0.002


# --- confusion matrix -------------------------------------------------------------------------


def test_confusion_matrix_shows_every_count():
    analysis = analyze('multiclass')
    ax = analysis.plot_confusion_matrix().axes[0]
    counts = np.array([int(text.get_text()) for text in ax.texts]).reshape(4, 4)
    np.testing.assert_array_equal(counts, analysis.evaluation.confusion_matrix)
    fractions = ax.get_images()[0].get_array()
    np.testing.assert_allclose(np.sum(fractions, axis=1), 1)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == list(analysis.evaluation.task.classes)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('predicted', 'true')


def test_weights_in_the_confusion_matrix():
    weight = np.random.default_rng(0).random(150) / 100
    analysis = analyze('binary', weight=weight)
    ax = analysis.plot_confusion_matrix().axes[0]
    shown = [text.get_text() for text in ax.texts]
    matrix = analysis.evaluation.confusion_matrix
    assert shown == [f'{value:.1f}' for value in matrix.ravel()]
    np.testing.assert_allclose(np.sum(ax.get_images()[0].get_array(), axis=1), 1)


def test_multilabel_confusion_has_a_row_per_label():
    analysis = analyze('multilabel')
    ax = analysis.plot_confusion_matrix().axes[0]
    counts = np.array([int(text.get_text()) for text in ax.texts]).reshape(3, 2, 2)
    np.testing.assert_array_equal(counts, analysis.evaluation.confusion_matrix)
