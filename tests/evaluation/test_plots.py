"""The plots draw the numbers of the evaluation, without a display."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics as sk
from matplotlib.figure import Figure

from thinkml.errors import ConfigError
from thinkml.evaluation import ModelEvaluator
from thinkml.evaluation.metrics import metrics_for

from .models import Shifted, known, logits_and_labels

PLOTS = ('plot_roc_curve', 'plot_precision_recall_curve', 'plot_confusion_matrix')


def analyze(kind, num_classes, n=150):
    classes = tuple(f'class {index}' for index in range(num_classes))
    logits, labels = logits_and_labels(n, num_classes)
    model = known(Shifted(), kind, classes, num_classes)
    return ModelEvaluator().analyze_performance(model, logits, np.asarray(classes)[labels])


@pytest.mark.parametrize('plot', PLOTS[:2])
def test_classes_that_begin_with_an_underscore_are_in_the_legend(plot):
    classes = ('_a', 'b', '__c')
    logits, labels = logits_and_labels(60, 3)
    model = known(Shifted(), 'multiclass', classes, 3)
    analysis = ModelEvaluator().analyze_performance(model, logits, np.asarray(classes)[labels])
    shown = [label.split(' (')[0].strip() for label in labels_of(getattr(analysis, plot)().axes[0])]
    assert [label for label in shown if label not in ('chance', 'mean')] == list(classes)


def analyze_multilabel():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=(80, 3))
    logits = (2 * y - 1 + rng.normal(size=y.shape)).astype(np.float32)
    return ModelEvaluator().analyze_performance(Shifted(), logits, y)


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines_by_label(ax):
    return {line.get_label(): line.get_xydata().T for line in ax.get_lines()}


def test_metrics_are_all_that_fit_the_task():
    analysis = analyze('binary', 2)
    metrics = analysis.get_metrics()
    assert list(metrics) == metrics_for('binary')
    assert metrics['f1'] == pytest.approx(
        sk.f1_score(
            analysis.evaluation.labels, analysis.evaluation.predictions, pos_label='class 1'
        )
    )
    metrics.clear()
    assert analysis.get_metrics()


def test_binary_curves_have_the_area_of_the_metric():
    analysis = analyze('binary', 2)
    metrics = analysis.get_metrics()

    ax = analysis.plot_roc_curve().axes[0]
    x, y = lines_by_label(ax)[f'AUC = {metrics["roc_auc"]:.3f}']
    assert np.trapezoid(y, x) == pytest.approx(metrics['roc_auc'])
    assert 'class 1' in ax.get_title()

    ax = analysis.plot_precision_recall_curve().axes[0]
    recall, precision = lines_by_label(ax)[f'AP = {metrics["average_precision"]:.3f}']
    area = np.sum(np.diff(recall) * precision[1:])
    assert area == pytest.approx(metrics['average_precision'])


@pytest.mark.parametrize('kind', ['multiclass', 'multilabel'])
def test_one_curve_per_class_and_their_mean(kind):
    analysis = analyze(kind, 4) if kind == 'multiclass' else analyze_multilabel()
    metrics = analysis.get_metrics()
    names = [str(name) for name in analysis.evaluation.task.classes]
    for plot, name in (
        ('plot_roc_curve', 'roc_auc'),
        ('plot_precision_recall_curve', 'average_precision'),
    ):
        ax = getattr(analysis, plot)().axes[0]
        labels = [label for label in labels_of(ax) if label != 'chance']
        assert [label.rsplit(' (')[0] for label in labels] == [*names, 'mean']
        areas = [float(label.rsplit('(')[1][:-1]) for label in labels]
        assert np.mean(areas[:-1]) == pytest.approx(areas[-1], abs=1e-3)
        assert areas[-1] == pytest.approx(metrics[name], abs=1e-3)
        x, y = lines_by_label(ax)[labels[-1]]
        assert np.trapezoid(y, x) == pytest.approx(metrics[name], abs=0.01)


def test_a_class_without_examples_is_left_out_of_the_curves():
    logits, labels = logits_and_labels(60, 3)
    kept = labels != 2
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    with pytest.warns(match='classes|average_precision|roc_auc|recall|balanced'):
        analysis = ModelEvaluator().analyze_performance(model, logits[kept], labels[kept])
    for plot in PLOTS[:2]:
        labels_shown = labels_of(getattr(analysis, plot)().axes[0])
        names = [label.split(' (')[0] for label in labels_shown if label != 'chance']
        assert names == ['0', '1', 'mean, 2 of 3']


def test_of_many_classes_the_worst_are_named():
    analysis = analyze('multiclass', 14, n=900)
    evaluation = analysis.evaluation
    areas = {
        name: sk.roc_auc_score(evaluation.labels == name, evaluation.probabilities[:, index])
        for index, name in enumerate(evaluation.task.classes)
    }
    worst = sorted(areas, key=areas.__getitem__)[:3]
    shown = labels_of(analysis.plot_roc_curve().axes[0])
    assert [label.split(' (')[0] for label in shown] == [
        'chance', 'all 14; the worst:', *worst, 'mean'
    ]  # fmt: skip


def test_large_curves_are_thinned_without_moving():
    analysis = analyze('binary', 2, n=30_000)
    metrics = analysis.get_metrics()
    x, y = lines_by_label(analysis.plot_roc_curve().axes[0])[f'AUC = {metrics["roc_auc"]:.3f}']
    assert len(x) <= 2000
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(metrics['roc_auc'], abs=1e-4)


def test_confusion_matrix_shows_every_count():
    analysis = analyze('multiclass', 4)
    ax = analysis.plot_confusion_matrix().axes[0]
    counts = np.array([int(text.get_text()) for text in ax.texts]).reshape(4, 4)
    np.testing.assert_array_equal(counts, analysis.evaluation.confusion_matrix)
    shares = ax.get_images()[0].get_array()
    np.testing.assert_allclose(np.sum(shares, axis=1), 1)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        f'class {index}' for index in range(4)
    ]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('predicted', 'true')


def test_multilabel_confusion_has_a_row_per_label():
    analysis = analyze_multilabel()
    ax = analysis.plot_confusion_matrix().axes[0]
    counts = np.array([int(text.get_text()) for text in ax.texts]).reshape(3, 2, 2)
    np.testing.assert_array_equal(counts, analysis.evaluation.confusion_matrix)


@pytest.mark.parametrize('plot', PLOTS)
def test_draws_into_given_axes_and_writes_files(plot, tmp_path):
    analysis = analyze('multiclass', 3)
    figure = Figure(figsize=(8, 4))
    left, right = figure.subplots(1, 2)
    path = tmp_path / 'plots' / 'curve.png'
    assert getattr(analysis, plot)(path=path, ax=right) is figure
    assert path.read_bytes().startswith(b'\x89PNG')
    assert not left.has_data()
    assert right.has_data()


@pytest.mark.parametrize('plot', PLOTS)
def test_notebooks_get_a_picture(plot):
    figure = getattr(analyze('binary', 2), plot)()
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b'\x89PNG')


@pytest.mark.parametrize('plot', PLOTS)
def test_regression_has_no_such_plots(plot):
    X = np.arange(10, dtype=np.float32)[:, None]
    analysis = ModelEvaluator().analyze_performance(Shifted(), X, X[:, 0] + 0.5)
    assert analysis.get_metrics() == pytest.approx(
        {'rmse': 0.5, 'mae': 0.5, 'mse': 0.25, 'r2': 1 - 0.25 / np.var(X)}
    )
    with pytest.raises(ConfigError, match=f'{plot}: got the evaluation of a regression model'):
        getattr(analysis, plot)()


def test_matplotlib_is_imported_when_first_drawn_and_pyplot_never():
    program = (
        'import sys, numpy as np\n'
        'from flax import nnx\n'
        'from thinkml.evaluation import ModelEvaluator\n'
        'model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))\n'
        'X, y = np.eye(2, dtype=np.float32).repeat(5, axis=0), np.arange(10) % 2\n'
        'analysis = ModelEvaluator().analyze_performance(model, X, y)\n'
        'assert "matplotlib" not in sys.modules\n'
        'analysis.plot_roc_curve()\n'
        'analysis.plot_confusion_matrix()\n'
        'assert "matplotlib.pyplot" not in sys.modules\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
