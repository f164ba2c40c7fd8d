"""The report shows the values of the evaluation, with a baseline that scikit-learn has too."""

import json
import re

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier, DummyRegressor

from thinkml.errors import ConfigError
from thinkml.evaluation import ModelEvaluator, Report
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.evaluation_data import EvaluationData
from thinkml.evaluation.metrics.registry import metrics_for
from thinkml.evaluation.result import Slice
from thinkml.evaluation.threshold_choice import choose_threshold

from . import make_evaluations
from .models import Shifted, known, logits_and_labels

NONE = Resampling(confidence=None)
FEW = Resampling(num_resamples=50)


def classification(classes=('ant', 'bee', 'cat'), n=120, resampling=NONE, **fields):
    return make_evaluations.classification(classes, n, resampling=resampling, **fields)


def multilabel(resampling=NONE, **fields):
    return make_evaluations.multilabel(resampling=resampling, **fields)


def regression(targets=1, resampling=NONE, **fields):
    return make_evaluations.regression(targets, resampling=resampling, **fields)


def said(evaluation):
    return Report(evaluation).to_dict()


# --- the baseline -----------------------------------------------------------------------------


def dummy(strategy, evaluation, weight=None):
    rows = np.zeros((evaluation.num_rows, 1))
    model = (DummyRegressor if strategy == 'mean' else DummyClassifier)(strategy=strategy)
    return model.fit(rows, evaluation.labels, weight), rows


@pytest.mark.parametrize('weight', [None, np.random.default_rng(0).integers(4, size=120) / 2.0])
def test_classification_baseline_equals_the_dummy_classifier(weight):
    evaluation = classification(weight=weight)
    model, rows = dummy('prior', evaluation, weight)
    y, predictions = evaluation.labels, model.predict(rows)
    baseline = said(evaluation)['baseline']
    assert list(baseline) == list(evaluation.metrics)
    assert baseline == pytest.approx(
        {
            'accuracy': sk.accuracy_score(y, predictions, sample_weight=weight),
            'log_loss': sk.log_loss(y, model.predict_proba(rows), sample_weight=weight),
            'roc_auc': 0.5,
            **{
                name: score(y, predictions, average='macro', sample_weight=weight, zero_division=0)
                for name, score in (
                    ('precision', sk.precision_score),
                    ('recall', sk.recall_score),
                    ('f1', sk.f1_score),
                )
            },
        }
    )


def test_regression_baseline_equals_the_dummy_regressor():
    evaluation = regression()
    model, rows = dummy('mean', evaluation)
    expected = sk.root_mean_squared_error(evaluation.labels, model.predict(rows))
    baseline = said(evaluation)['baseline']
    assert baseline['rmse'] == pytest.approx(expected)
    assert baseline['r2'] == pytest.approx(0, abs=1e-12)


def test_multilabel_baseline_is_each_labels_most_frequent_value():
    evaluation = multilabel()
    y = evaluation.labels
    baseline = said(evaluation)['baseline']
    most = np.tile(y.mean(axis=0) > 0.5, (len(y), 1))
    assert baseline['accuracy'] == pytest.approx(sk.accuracy_score(y, most))
    assert baseline['roc_auc'] == 0.5


# --- the content ------------------------------------------------------------------------------


def test_means_of_the_table_by_class_equal_scikit_learns():
    for evaluation in (classification(), classification(('no', 'yes')), multilabel()):
        averages = said(evaluation)['averages']
        for average in ('macro', 'weighted'):
            expected = sk.precision_recall_fscore_support(
                evaluation.labels, evaluation.predictions, average=average
            )[:3]
            mean = averages[f'{average} mean']
            assert [mean[n] for n in ('precision', 'recall', 'f1')] == pytest.approx(expected)
            assert mean['support'] == sum(r['support'] for r in evaluation.per_class.values())


def test_intervals_are_those_of_the_evaluation():
    evaluation = classification(('no', 'yes'), resampling=FEW)
    content = said(evaluation)
    assert content['confidence'] == 0.95
    for name, interval in evaluation.confidence_intervals.items():
        assert content['confidence_intervals'][name] == list(interval)
    for label, intervals in evaluation.per_class_intervals.items():
        assert content['per_class_intervals'][label] == {n: list(i) for n, i in intervals.items()}
    assert '50 bootstrap resamples of rows (seed 0)' in ' '.join(content['notes'])
    assert said(classification())['confidence_intervals'] == {}


def test_calibration_equals_scikit_learns_curve():
    evaluation = classification(('no', 'yes'), n=400)
    found = said(evaluation)['calibration']
    truth, probability = evaluation.labels == 'yes', evaluation.probabilities[:, 1]
    fractions, means = calibration_curve(truth, probability, n_bins=15)
    assert [row['share_true'] for row in found['bins']] == pytest.approx(fractions)
    assert [row['mean_probability'] for row in found['bins']] == pytest.approx(means)
    counts = [row['count'] for row in found['bins']]
    assert sum(counts) == 400
    assert found['ece'] == pytest.approx(np.average(np.abs(fractions - means), weights=counts))


def test_calibration_is_of_the_predicted_class_and_of_each_label():
    evaluation = classification(n=300)
    right = evaluation.labels == evaluation.predictions
    fractions, _ = calibration_curve(right, evaluation.probabilities.max(axis=1), n_bins=15)
    bins = said(evaluation)['calibration']['bins']
    assert [row['share_true'] for row in bins] == pytest.approx(fractions)

    evaluation = multilabel()
    bins = said(evaluation)['calibration']['bins']
    truth, probability = evaluation.labels.ravel(), evaluation.probabilities.ravel()
    fractions, _ = calibration_curve(truth, probability, n_bins=15)
    assert [row['share_true'] for row in bins] == pytest.approx(fractions)


def test_thresholds_are_the_predictions_and_the_best_ones():
    evaluation = classification(('no', 'yes'))
    found = said(evaluation)['thresholds']
    predicted, best, youden = found['rows']
    assert predicted['threshold'] == 0.5
    for name in ('precision', 'recall', 'f1'):
        assert predicted[name] == pytest.approx(evaluation[name])
    assert best['threshold'] == choose_threshold(evaluation, 'f1').threshold
    assert youden['threshold'] == choose_threshold(evaluation, 'youden').threshold
    calls = evaluation.probabilities[:, 1] >= best['threshold']
    assert best['f1'] == pytest.approx(sk.f1_score(evaluation.labels == 'yes', calls))
    assert 'on validation data' in found['note']
    assert said(classification())['thresholds'] is None


def test_errors_are_the_wrong_rows_by_falling_probability():
    evaluation = classification(n=200)
    found = said(evaluation)['errors']
    wrong = np.flatnonzero(evaluation.labels != evaluation.predictions)
    sure = evaluation.probabilities.max(axis=1)
    assert found['count'] == len(wrong)
    assert [row['row'] for row in found['rows']] == sorted(wrong, key=lambda r: -sure[r])[:10]
    for row in found['rows']:
        assert row['true'] == evaluation.labels[row['row']]
        assert row['predicted'] == evaluation.predictions[row['row']]
        assert row['probability'] == sure[row['row']]


def test_rows_that_count_nothing_are_no_errors():
    weight = np.ones(120)
    wrong = said(classification())['errors']
    weight[[row['row'] for row in wrong['rows']]] = 0
    rest = said(classification(weight=weight))['errors']
    assert rest['count'] == wrong['count'] - 10
    assert not {row['row'] for row in rest['rows']} & {row['row'] for row in wrong['rows']}


def test_errors_of_labels_are_the_surest_of_each_row_and_label():
    evaluation = multilabel()
    found = said(evaluation)['errors']
    truth, p = evaluation.labels, evaluation.probabilities
    wrong = (p > 0.5) != truth
    assert found['count'] == wrong.sum()
    sure = np.sort(np.where(wrong, np.maximum(p, 1 - p), 0), axis=None)[::-1]
    assert [row['probability'] for row in found['rows']] == pytest.approx(sure[:10])
    labels = evaluation.task.classes
    for row in found['rows']:
        assert row['true'] == truth[row['row'], labels.index(row['label'])]
        assert row['predicted'] is not row['true']


def test_residuals_are_the_largest_in_units_of_their_target():
    units = np.array([1, 1000])
    data = regression(targets=2).scored
    data = EvaluationData('regression', 2, data.labels * units, data.predictions * units)
    evaluation = make_evaluations.make_evaluation(regression(targets=2).task, data, resampling=NONE)
    residual = data.labels - data.predictions
    size = np.abs(residual) / np.sqrt((residual**2).mean(axis=0))
    largest = np.sort(size, axis=None)[::-1][:10]
    rows = said(evaluation)['errors']['rows']
    assert [size[row['row'], row['target']] for row in rows] == pytest.approx(largest)
    for row in rows:
        assert row['residual'] == pytest.approx(row['true'] - row['predicted'])


def test_confusions_are_the_largest_cells_off_the_diagonal():
    evaluation = classification(tuple(range(25)), n=2000)
    found = said(evaluation)['confusions']
    wrong = sk.confusion_matrix(evaluation.labels, evaluation.predictions)
    support = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    assert [row['count'] for row in found] == sorted(wrong.ravel(), reverse=True)[:10]
    for row in found:
        true, predicted = int(row['true']), int(row['predicted'])
        assert row['count'] == wrong[true, predicted]
        assert row['share'] == pytest.approx(row['count'] / support[true])


def test_a_model_without_probabilities_is_reported_without_what_needs_them():
    evaluation = make_evaluations.without_probabilities(classification())
    content = said(evaluation)
    assert content['calibration'] is content['thresholds'] is None
    wrong = np.flatnonzero(evaluation.labels != evaluation.predictions)
    assert [row['row'] for row in content['errors']['rows']] == list(wrong[:10])
    assert {row['probability'] for row in content['errors']['rows']} == {None}
    assert '; the first:' in str(Report(evaluation))


# --- text -------------------------------------------------------------------------------------


def rows_of(text, title):
    """Returns the cells of the table after a line that starts with ``title``, by first cell."""
    lines = text[text.index(title) :].lstrip('\n').split('\n')[1:]
    table = lines[: lines.index('')] if '' in lines else lines
    return {cells[0]: cells[1:] for cells in (re.split(r'\s{2,}', line) for line in table)}


def test_text_tells_metrics_classes_and_confusions():
    evaluation = classification()
    text = str(Report(evaluation))
    assert text.startswith('multiclass, 3 classes (ant, bee, cat), 120 rows\n')

    baseline = said(evaluation)['baseline']
    metrics = rows_of(text, '            model  baseline')
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

    matrix = rows_of(text, 'rows: true, columns: predicted')
    assert matrix[''] == ['ant', 'bee', 'cat']
    for label, counts in zip(('ant', 'bee', 'cat'), evaluation.confusion_matrix, strict=True):
        assert matrix[label] == [str(count) for count in counts]
    assert max(map(len, text.split('\n'))) <= 100


def test_intervals_stand_beside_the_values():
    evaluation = classification(resampling=FEW)
    text = str(Report(evaluation))
    low, high = evaluation.confidence_intervals['f1']
    shown = f'{evaluation["f1"]:.4f} [{low:.4f}, {high:.4f}]'
    assert rows_of(text, '            model [95% interval]  baseline')['f1'][0] == shown
    low, high = evaluation.per_class_intervals['bee']['recall']
    recall = evaluation.per_class['bee']['recall']
    assert rows_of(text, '\nclass ')['bee'][1] == f'{recall:.3f} [{low:.3f}, {high:.3f}]'


def test_macro_mean_is_the_metric_where_a_class_neither_occurs_nor_is_predicted():
    logits, labels = logits_and_labels(80, 3)
    logits = np.pad(logits, ((0, 0), (0, 1)), constant_values=-50)
    model = known(Shifted(), 'multiclass', (0, 1, 2, 3), 4)
    evaluation = ModelEvaluator().evaluate(
        model, logits, labels, ['precision', 'recall', 'f1'], confidence=None
    )
    text = str(Report(evaluation))
    assert rows_of(text, '\nclass ')['3'] == ['0.000', '0.000', '0.000', '0']
    means = rows_of(f'means\n{text[text.index("macro mean") :]}', 'means')
    assert means['macro mean'][:3] == [f'{value:.3f}' for value in evaluation.metrics.values()]


def test_columns_line_up():
    text = str(Report(classification(('benign', 'malignant'), n=5000)))
    for block in text.split('\n\n'):
        if block.startswith(('class', ' ')):
            assert len({len(line) for line in block.split('\n')}) == 1
    assert 'of class malignant' in text


def test_wide_letters_line_up_in_a_terminal():
    text = str(Report(classification(('猫', 'e\u0301te\u0301', 'dog'))))
    lines = text[text.index('\nclass ') :].split('\n')[2:5]
    assert [line.rstrip()[-3:].strip().isdigit() for line in lines] == [True] * 3
    assert [len(line) for line in lines] == [len(lines[2]) - 1, len(lines[2]) + 2, len(lines[2])]


def test_many_classes_show_the_worst_and_no_matrix():
    evaluation = classification(tuple(range(60)), n=3000)
    text = str(Report(evaluation))
    shown = list(rows_of(text, '\nclass '))
    worst = sorted(evaluation.per_class, key=lambda label: evaluation.per_class[label]['f1'])[:50]
    assert 'The 50 of 60 classes with the lowest F1' in text
    assert shown == [str(label) for label in worst]
    assert 'Confusion matrix' not in text
    assert 'Most frequent confusions' in text


def test_a_matrix_too_wide_continues_below():
    names = tuple(f'class number {index:02}' for index in range(20))
    text = str(Report(classification(names, n=2000)))
    assert max(map(len, text.split('\n'))) <= 100
    title = text.index('rows: true, columns: predicted')
    lines = text[title : text.index('Calibration')].split('\n')
    assert sum(line.startswith('class number 07') for line in lines) > 1


def test_regression_text():
    evaluation = regression()
    text = str(Report(evaluation))
    assert text.startswith('regression, 1 target, 120 rows\n')
    assert f'{evaluation["r2"]:.4f}' in text
    assert 'Baseline: always the mean of the true values.' in text
    assert 'class' not in text


def sliced():
    supported = Slice('site = B', 40, {'accuracy': 0.5}, {'accuracy': (0.4, 0.6)}, {}, True)
    supported.gaps['accuracy'] = -0.25
    few = Slice('site = C', 3, {}, {}, {}, False)
    return classification(metrics=['accuracy'], slices={'site = B': supported, 'site = C': few})


def test_slices_tell_value_interval_and_gap_and_mark_those_of_too_few_rows():
    rows = rows_of(str(Report(sliced())), '\nslice')
    assert rows['site = B'] == ['40', '0.5000 [0.4000, 0.6000]', '-0.2500']
    assert rows['site = C'] == ['3', 'too few rows']


def test_warnings_fingerprint_versions_and_seed_are_told():
    evaluation = classification(
        warnings=('f1: no predictions of 1 of 3 classes; set to 0 there.',),
        data_fingerprint={'rows': 120, 'sha256': 'ab' * 32},
        versions={'jax': '0.10.2'},
    )
    text = str(Report(evaluation))
    assert '\nWarnings\n- f1: no predictions of 1 of 3 classes; set to 0 there.\n' in text
    origin = rows_of(text, 'Data, versions, seed')
    assert origin['data: sha256'] == ['ab' * 32]
    assert origin['jax'] == ['0.10.2']
    assert origin['seed'] == ['0']


# --- several data sets ------------------------------------------------------------------------


def several():
    return {
        'test': classification(name='test'),
        'site B': classification(seed=1, n=80, name='site B'),
    }


def test_several_data_sets_stand_side_by_side_and_each_by_itself():
    evaluations = several()
    report = Report(evaluations)
    content = report.to_dict()
    assert list(content['data_sets']) == ['test', 'site B']
    for name, evaluation in evaluations.items():
        assert content['data_sets'][name] == said(evaluation)
    text = str(report)
    assert text.startswith('2 evaluations: test, site B\n')
    table = rows_of(text, '             test')
    for name in evaluations['test'].metrics:
        assert table[name] == [f'{part[name]:.4f}' for part in evaluations.values()]
    assert 'test: multiclass, 3 classes (ant, bee, cat), 120 rows\n=====' in text


def test_what_evaluate_returns_of_several_data_sets_can_be_reported():
    logits, labels = logits_and_labels(60, 3)
    model = known(Shifted(), 'multiclass', (0, 1, 2), 3)
    evaluator = ModelEvaluator()
    evaluations = evaluator.evaluate(
        model, {'a': (logits, labels), 'b': (logits[:30], labels[:30])}, confidence=None
    )
    content = evaluator.generate_report(evaluations).to_dict()
    assert {name: part['num_rows'] for name, part in content['data_sets'].items()} == {
        'a': 60,
        'b': 30,
    }


@pytest.mark.parametrize('value', [None, {}, {'test': 1}, [1]])
def test_anything_else_is_refused(value):
    with pytest.raises(ConfigError, match='expected the result of evaluate'):
        Report(value)


# --- data and files ---------------------------------------------------------------------------

EVERY = {
    'binary': lambda: classification(('no', 'yes'), metrics=metrics_for('binary')),
    'multiclass': lambda: classification(weight=np.linspace(0, 2, 120)),
    'multilabel': multilabel,
    'regression': regression,
    'targets': lambda: regression(targets=3),
    'several': several,
    'slices': sliced,
}


@pytest.mark.parametrize('kind', EVERY)
def test_json_is_strict_and_holds_what_to_dict_gives(kind):
    report = Report(EVERY[kind]())

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(report.to_json(), parse_constant=refuse)
    assert content == report.to_dict()
    assert content['schema'] == 1


def test_nan_is_null():
    data = classification(n=1).scored
    task = classification().task
    evaluation = make_evaluations.make_evaluation(task, data, resampling=NONE)
    values = json.loads(Report(evaluation).to_json())
    assert values['metrics']['roc_auc'] is None
    assert 'undefined' in str(Report(evaluation))
    assert values['num_rows'] == 1
    assert values['classes'] == ['ant', 'bee', 'cat']
    assert values['per_class']['ant'].keys() == {'precision', 'recall', 'f1', 'iou', 'support'}
    assert np.sum(values['confusion_matrix']) == 1


def test_to_dict_gives_a_copy():
    report = Report(classification())
    report.to_dict()['metrics']['f1'] = 2
    assert report.to_dict()['metrics']['f1'] == report.evaluation['f1']


def test_save_writes_the_format_of_the_ending_and_leaves_nothing_else(tmp_path):
    report = Report(regression())
    expected = {
        '.txt': f'{report}\n',
        '.md': report.to_markdown(),
        '.html': report.to_html(),
        '.JSON': report.to_json(),
    }
    for ending, text in expected.items():
        path = tmp_path / 'reports' / f'digits{ending}'
        report.save(path)
        report.save(str(path))
        assert path.read_text(encoding='utf-8') == text
    names = {file.name for file in (tmp_path / 'reports').iterdir()}
    assert names == {f'digits{ending}' for ending in expected}


@pytest.mark.parametrize('name', ['report.pdf', 'report', 'report.txt.gz'])
def test_save_names_the_endings_it_knows(tmp_path, name):
    with pytest.raises(ConfigError, match=r'\.txt, \.md, \.html, \.json'):
        Report(regression()).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'report.txt'
    path.write_text('old')
    monkeypatch.setattr(Report, '__str__', lambda self: '\udcff')  # cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        Report(regression()).save(path)
    assert path.read_text() == 'old'
    assert [file.name for file in tmp_path.iterdir()] == ['report.txt']
