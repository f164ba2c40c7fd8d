"""The report says what the evaluation found, beside a baseline that scikit-learn has too."""

import json
import re

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.dummy import DummyClassifier, DummyRegressor

from thinkml.errors import ThinkMLWarning
from thinkml.evaluation import ModelEvaluator, Report
from thinkml.evaluation.metrics import metrics_for

from .models import Shifted, known, logits_and_labels


def evaluate(kind, classes, n=120, seed=0):
    if kind == 'regression':
        rng = np.random.default_rng(seed)
        y = rng.normal(50, 10, size=n)
        predicted = (y + rng.normal(size=n)).astype(np.float32)[:, None]
        return ModelEvaluator().evaluate(Shifted(), predicted, y, metrics_for(kind))
    logits, labels = logits_and_labels(n, len(classes), seed)
    model = known(Shifted(), kind, classes, len(classes))
    return ModelEvaluator().evaluate(model, logits, np.asarray(classes)[labels], metrics_for(kind))


def dummy(strategy, evaluation):
    rows = np.zeros((evaluation.num_rows, 1))
    model = (DummyRegressor if strategy == 'mean' else DummyClassifier)(strategy=strategy)
    return model.fit(rows, evaluation.labels), rows


def test_classification_baseline_equals_the_dummy_classifier():
    evaluation = evaluate('multiclass', ('ant', 'bee', 'cat'))
    model, rows = dummy('prior', evaluation)
    y, predictions, probabilities = (
        evaluation.labels,
        model.predict(rows),
        model.predict_proba(rows),
    )
    baseline = Report(evaluation).baseline()
    assert list(baseline) == list(evaluation.metrics)
    assert baseline['accuracy'] == pytest.approx(sk.accuracy_score(y, predictions))
    assert baseline['log_loss'] == pytest.approx(sk.log_loss(y, probabilities))
    assert baseline['f1'] == pytest.approx(sk.f1_score(y, predictions, average='macro'))
    assert baseline['roc_auc'] == 0.5


def test_regression_baseline_equals_the_dummy_regressor():
    evaluation = evaluate('regression', None)
    model, rows = dummy('mean', evaluation)
    expected = sk.root_mean_squared_error(evaluation.labels, model.predict(rows))
    baseline = Report(evaluation).baseline()
    assert baseline['rmse'] == pytest.approx(expected)
    assert baseline['r2'] == pytest.approx(0, abs=1e-12)


def test_multilabel_baseline_is_each_labels_most_frequent_value():
    rng = np.random.default_rng(0)
    y = (rng.random((90, 3)) < [0.2, 0.5, 0.9]).astype(int)
    logits = (2 * y - 1 + rng.normal(size=y.shape)).astype(np.float32)
    evaluation = ModelEvaluator().evaluate(Shifted(), logits, y)
    most = np.tile(y.mean(axis=0) > 0.5, (90, 1))
    baseline = ModelEvaluator().generate_report(evaluation).baseline()
    assert baseline['accuracy'] == pytest.approx(sk.accuracy_score(y, most))
    assert baseline['roc_auc'] == 0.5


def rows_of(text, title):
    """The cells of the table that follows a line starting with ``title``, by first cell."""
    lines = text[text.index(title) :].lstrip('\n').split('\n')[1:]
    table = lines[: lines.index('')] if '' in lines else lines
    return {cells[0]: cells[1:] for cells in (re.split(r'\s{2,}', line) for line in table)}


def test_text_tells_metrics_classes_and_confusions():
    evaluation = evaluate('multiclass', ('ant', 'bee', 'cat'))
    text = str(ModelEvaluator().generate_report(evaluation))
    assert text.startswith('multiclass, 3 classes (ant, bee, cat), 120 rows\n')

    baseline = Report(evaluation).baseline()
    metrics = rows_of(text, '                    model  baseline')
    for name, value in evaluation.metrics.items():
        assert metrics[name] == [f'{value:.4f}', f'{baseline[name]:.4f}']

    classes = rows_of(text, '\nclass ')
    expected = sk.precision_recall_fscore_support(evaluation.labels, evaluation.predictions)
    for index, label in enumerate(('ant', 'bee', 'cat')):
        *scores, support = (column[index] for column in expected)
        assert classes[label] == [*(f'{score:.3f}' for score in scores), str(support)]
    means = rows_of(f'means\n{text[text.index("macro mean") :]}', 'means')
    for average in ('macro', 'weighted'):
        expected = sk.precision_recall_fscore_support(
            evaluation.labels, evaluation.predictions, average=average
        )
        assert means[f'{average} mean'] == [*(f'{value:.3f}' for value in expected[:3]), '120']

    matrix = rows_of(text, 'Confusion matrix (rows: true, columns: predicted)')
    assert matrix[''] == ['ant', 'bee', 'cat']
    for label, counts in zip(('ant', 'bee', 'cat'), evaluation.confusion_matrix, strict=True):
        assert matrix[label] == [str(count) for count in counts]
    assert max(map(len, text.split('\n'))) <= 100


def test_macro_mean_is_the_metric_where_a_class_neither_occurs_nor_is_predicted():
    logits, labels = logits_and_labels(80, 3)
    logits = np.pad(logits, ((0, 0), (0, 1)), constant_values=-50)
    model = known(Shifted(), 'multiclass', (0, 1, 2, 3), 4)
    evaluation = ModelEvaluator().evaluate(model, logits, labels, ['precision', 'recall', 'f1'])
    text = str(Report(evaluation))
    assert rows_of(text, '\nclass ')['3'] == ['0.000', '0.000', '0.000', '0']
    means = rows_of(f'means\n{text[text.index("macro mean") :]}', 'means')
    assert means['macro mean'][:3] == [f'{value:.3f}' for value in evaluation.metrics.values()]


def test_columns_line_up():
    text = str(Report(evaluate('binary', ('benign', 'malignant'), n=5000)))
    for block in text.split('\n\n'):
        if block.startswith(('class', ' ')):
            assert len({len(line) for line in block.split('\n')}) == 1
    assert 'of class malignant' in text


def test_many_classes_show_the_worst_and_no_matrix():
    evaluation = evaluate('multiclass', tuple(range(60)), n=3000)
    text = str(Report(evaluation))
    shown = list(rows_of(text, '\nclass '))
    worst = sorted(evaluation.per_class, key=lambda label: evaluation.per_class[label]['f1'])[:50]
    assert 'The 50 of 60 classes with the lowest F1' in text
    assert shown == [str(label) for label in worst]
    assert 'Confusion matrix' not in text


def test_regression_text():
    evaluation = evaluate('regression', None)
    text = str(Report(evaluation))
    assert text.startswith('regression, 1 target, 120 rows\n')
    assert f'{evaluation["r2"]:.4f}' in text
    assert 'Baseline: always the mean of the true values.' in text
    assert 'class' not in text


def test_to_dict_is_json_without_nan():
    logits, _ = logits_and_labels(1, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    with pytest.warns(ThinkMLWarning):
        evaluation = ModelEvaluator().evaluate(model, logits, logits.argmax(axis=1))
    values = json.loads(json.dumps(Report(evaluation).to_dict(), allow_nan=False))
    assert values['metrics']['roc_auc'] is None
    assert values['metrics']['accuracy'] == 1.0
    assert values['num_rows'] == 1
    assert values['classes'] == ['0', '1', '2']
    assert values['per_class']['0'].keys() == {'precision', 'recall', 'f1', 'support'}
    assert np.sum(values['confusion_matrix']) == 1


def test_save_writes_the_text_and_leaves_nothing_else(tmp_path):
    report = Report(evaluate('regression', None))
    path = tmp_path / 'reports' / 'digits.txt'
    report.save(path)
    report.save(str(path))
    assert path.read_text() == f'{report}\n'
    assert [file.name for file in path.parent.iterdir()] == ['digits.txt']


def test_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'report.txt'
    path.write_text('old')
    monkeypatch.setattr(Report, '__str__', lambda self: '\udcff')  # cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        Report(evaluate('regression', None)).save(path)
    assert path.read_text() == 'old'
    assert [file.name for file in tmp_path.iterdir()] == ['report.txt']
