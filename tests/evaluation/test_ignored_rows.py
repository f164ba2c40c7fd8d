"""Evaluations leave out rows whose one label is ignored: results are those of the other rows."""

import json

import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression

from thinkml.errors import DataError
from thinkml.evaluation import ModelEvaluator, Report, choose_threshold, compare

ROWS = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 4)).astype(np.float32)
Y = (X[:, 0] + 0.8 * RNG.normal(size=ROWS) > 0).astype(np.int64)
COUNTS = RNG.random(ROWS) < 0.7
MARKED = np.where(COUNTS, Y, -100)
MODEL = LogisticRegression().fit(X, Y)


def evaluate(x=X, y=MARKED, model=MODEL, **settings):
    return ModelEvaluator().evaluate(model, x, y, num_resamples=50, **settings)


WEIGHT, GROUPS, MASK = RNG.random(ROWS), np.arange(ROWS) // 3, X[:, 1] > 0


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'stratify': True, 'slices': {'part': MASK}, 'min_support': 1},
        {'sample_weight': WEIGHT, 'groups': GROUPS},
    ],
)
def test_an_evaluation_is_the_one_of_the_rows_that_count(settings):
    alone = {
        name: {'part': MASK[COUNTS]} if name == 'slices' else value
        for name, value in settings.items()
    }
    alone |= {name: alone[name][COUNTS] for name in ('sample_weight', 'groups') if name in alone}
    found, expected = evaluate(**settings), evaluate(X[COUNTS], Y[COUNTS], **alone)
    assert found.metrics == expected.metrics and found.per_class == expected.per_class
    assert found.confidence_intervals == expected.confidence_intervals
    np.testing.assert_array_equal(found.confusion_matrix, expected.confusion_matrix)
    assert found.slices == expected.slices
    assert found.num_rows == expected.num_rows == COUNTS.sum()
    assert found.num_ignored == ROWS - COUNTS.sum() and expected.num_ignored == 0
    assert len(found.predictions) == ROWS and found.labels.tolist() == MARKED.tolist()


def test_the_report_says_how_many_rows_are_ignored_and_numbers_the_rows_of_the_data():
    evaluation = evaluate()
    ignored = ROWS - COUNTS.sum()
    line = f'binary, 2 classes (0, 1), {COUNTS.sum()} rows, {ignored} more with an ignored label'
    assert evaluation.headline() == line
    report = Report(evaluation)
    assert line in report.to_markdown()
    errors = json.loads(report.to_json())['errors']
    wrong = np.flatnonzero(COUNTS & (MODEL.predict(X) != Y))
    assert errors['count'] == len(wrong)
    assert {row['row'] for row in errors['rows']} <= set(wrong.tolist())
    assert 'element' not in errors['rows'][0]


def test_models_without_classes_ignore_the_label_too():
    class Rule:
        def predict(self, x):
            return (x[:, 0] > 0).astype(np.int64)

    evaluation = evaluate(model=Rule(), metrics=['accuracy'])
    assert evaluation.task.classes == (0, 1)
    assert evaluation['accuracy'] == np.mean(((X[:, 0] > 0) == Y)[COUNTS])


def test_streams_thresholds_and_comparisons_leave_the_rows_out():
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    found = evaluate(lambda: iter([(X[:30], MARKED[:30]), (X[30:], MARKED[30:])]), None, model)
    assert found.metrics == pytest.approx(evaluate(X[COUNTS], Y[COUNTS], model).metrics)
    chosen, expected = (
        choose_threshold(evaluate(*data), 'f1') for data in ((), (X[COUNTS], Y[COUNTS]))
    )
    assert chosen.threshold == expected.threshold
    other = LogisticRegression(C=0.01).fit(X, Y)
    differences = compare(evaluate(), evaluate(model=other))
    alone = compare(evaluate(X[COUNTS], Y[COUNTS]), evaluate(X[COUNTS], Y[COUNTS], other))
    assert str(differences) == str(alone)


def test_an_evaluation_in_which_no_row_counts_is_an_error():
    with pytest.raises(DataError, match='y_test: each row is ignored or has weight 0'):
        evaluate(y=np.full(ROWS, -100))
