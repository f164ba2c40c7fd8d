"""`analyze_performance`: every metric that fits, speed, and the plots."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.linear_model import LogisticRegression

from thinkml.errors import NotTrainedError
from thinkml.evaluation import ModelEvaluator
from thinkml.evaluation.analysis import PerformanceAnalysis
from thinkml.evaluation.metrics.registry import metrics_for
from thinkml.evaluation.speed import Speed
from thinkml.model_record import record_of

from .models import Shifted, known, logits_and_labels
from .plot_reading import analyze, four_epochs, line

SPEED = ('latency_seconds', 'rows_per_second')


def analyzed(model=None):
    logits, labels = logits_and_labels(150, 2)
    model = model or known(Shifted(), 'binary', ('no', 'yes'), 2)
    return ModelEvaluator().analyze_performance(model, logits, np.array(['no', 'yes'])[labels])


def test_metrics_are_all_that_fit_the_task_and_speed():
    analysis = analyzed()
    metrics = analysis.get_metrics()
    assert list(metrics) == [*metrics_for('binary'), *SPEED]
    evaluation = analysis.evaluation
    assert metrics['f1'] == pytest.approx(
        sk.f1_score(evaluation.labels, evaluation.predictions, pos_label='yes')
    )
    assert metrics['latency_seconds'] == analysis.speed.latency_seconds > 0
    assert metrics['rows_per_second'] == analysis.speed.rows_per_second > 0
    assert all(type(value) is float for value in metrics.values())
    metrics.clear()
    assert analysis.get_metrics()


def test_speed_and_runs_are_optional():
    evaluation = analyze('binary').evaluation
    analysis = PerformanceAnalysis(evaluation)
    assert analysis.get_metrics() == evaluation.metrics
    timed = PerformanceAnalysis(evaluation, speed=Speed(0.5, 20.0, 64))
    assert timed.get_metrics() == evaluation.metrics | dict(zip(SPEED, (0.5, 20.0), strict=True))
    assert repr(timed) == f'PerformanceAnalysis({evaluation!r})'


def test_learning_curves_are_those_of_the_model():
    model = known(Shifted(), 'binary', ('no', 'yes'), 2)
    record_of(model).runs.append(four_epochs())
    ax = analyzed(model).plot_learning_curve().axes[0]
    np.testing.assert_allclose(line(ax, 'training')[1], four_epochs()['loss'])


def test_models_of_other_libraries():
    logits, labels = logits_and_labels(150, 2)
    model = LogisticRegression().fit(logits, np.array(['no', 'yes'])[labels])
    analysis = analyzed(model)
    area = sk.roc_auc_score(labels, model.predict_proba(logits)[:, 1])
    x, y = line(analysis.plot_roc_curve().axes[0], f'AUC = {area:.3f}')
    assert np.trapezoid(y, x) == pytest.approx(area)
    assert analysis.get_metrics()['rows_per_second'] > 0
    with pytest.raises(NotTrainedError, match='plot_learning_curve'):
        analysis.plot_learning_curve()


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
        'analysis.plot_calibration()\n'
        'analysis.plot_confusion_matrix()\n'
        'assert "matplotlib.pyplot" not in sys.modules\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
