"""Evaluations of models with several heads."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models_with_heads import TOKENS, DictModel, TupleModel
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import attach_record, record_of
from thinkml.models import predict
from thinkml.tasks import Composite, Task

ROWS = 30
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 4)).astype(np.float32)
TAGS = np.where(RNG.random((ROWS, TOKENS)) < 0.2, -100, RNG.integers(0, 2, (ROWS, TOKENS)))
Y = {'kind': np.array(['a', 'b', 'c'])[X[:, :3].argmax(1)], 'price': X.sum(1), 'tags': TAGS}
TASKS = {
    'kind': Task('multiclass', ('a', 'b', 'c'), 3),
    'price': Task('regression', None, 1),
    'tags': Task('binary', (0, 1), 2, element_shape=(TOKENS,), ignore_label=-100),
}


class One(nnx.Module):
    """Returns one of the heads."""

    def __init__(self, model, head):
        self.model, self.head = model, head

    def __call__(self, x):
        return self.model(x)[self.head]


def with_task(model, task):
    record = record_of(model)
    record.task = task
    attach_record(model, record)
    return model


@pytest.fixture(scope='module')
def model():
    return with_task(DictModel(), Composite(tuple(TASKS.items())))


def test_each_head_is_evaluated_like_a_model_of_its_own(model):
    weight = np.linspace(0, 1, ROWS)
    found = ModelEvaluator().evaluate(
        model, X, Y, metrics={'price': ['r2']}, sample_weight={'kind': weight},
        slices={'first': np.arange(ROWS) < 15}, min_support=2, num_resamples=20,
    )  # fmt: skip
    assert list(found) == list(TASKS)
    for head, evaluation in found.items():
        alone = ModelEvaluator().evaluate(
            with_task(One(model, head), TASKS[head]), X, Y[head],
            metrics=['r2'] if head == 'price' else None,
            sample_weight=weight if head == 'kind' else None,
            slices={'first': np.arange(ROWS) < 15}, min_support=2, num_resamples=20,
        )  # fmt: skip
        assert dict(evaluation.metrics) == pytest.approx(dict(alone.metrics))
        assert evaluation.confidence_intervals == alone.confidence_intervals
        assert evaluation.slices.keys() == alone.slices.keys()
        assert evaluation.name == head


def test_batches_are_evaluated_by_head(model):
    def batches():
        for first in range(0, ROWS, 10):
            part = slice(first, first + 10)
            yield X[part], {name: values[part] for name, values in Y.items()}

    by_rows = ModelEvaluator().evaluate(model, X, Y, confidence=None)
    by_batches = ModelEvaluator().evaluate(model, batches, confidence=None)
    for head, evaluation in by_rows.items():
        assert dict(evaluation.metrics) == pytest.approx(dict(by_batches[head].metrics))


def test_weights_of_some_heads_in_batches_count(model):
    weight = np.linspace(0, 1, ROWS)
    found = ModelEvaluator().evaluate(model, lambda: iter([(X, Y, {'kind': weight})]))
    expected = ModelEvaluator().evaluate(model, X, Y, sample_weight={'kind': weight})
    for head in TASKS:
        assert dict(found[head].metrics) == pytest.approx(dict(expected[head].metrics))


def test_only_the_heads_with_targets_leave_the_device(model, monkeypatch):
    fetched, device_get = [], jax.device_get

    def record(arrays):
        fetched.extend(jax.tree.leaves(arrays))
        return device_get(arrays)

    monkeypatch.setattr(jax, 'device_get', record)
    ModelEvaluator().evaluate(model, X, {'price': Y['price']}, confidence=None)
    assert fetched and max(np.size(array) for array in fetched) <= 64


def test_some_heads_are_enough(model):
    found = ModelEvaluator().evaluate(model, X, {'kind': Y['kind']})
    assert list(found) == ['kind']
    assert found['kind']['accuracy'] == np.mean(predict(model, X)['kind'] == Y['kind'])


def test_the_task_of_an_untrained_model_is_inferred():
    found = ModelEvaluator().evaluate(TupleModel(), X, (Y['kind'], Y['price']), confidence=None)
    assert found['0'].task == TASKS['kind'] and found['1'].task == TASKS['price']


def test_data_sets_and_analyses_and_reports_have_heads(model):
    evaluator = ModelEvaluator()
    data_sets = {'test': (X, Y), 'other': (X[:9], part_of_rows(9))}
    found = evaluator.evaluate(model, data_sets, confidence=None)
    assert list(found) == [f'{name}, {head}' for name in ('test', 'other') for head in TASKS]
    assert 'test, kind' in str(evaluator.generate_report(found))
    heads = {head: found[f'other, {head}'] for head in TASKS}
    text = str(evaluator.generate_report(heads))
    assert text.startswith('3 evaluations: kind, price, tags\n')
    analyses = evaluator.analyze_performance(model, X, Y, confidence=None)
    assert list(analyses) == list(TASKS)


def part_of_rows(count):
    return {name: values[:count] for name, values in Y.items()}


@pytest.mark.parametrize(
    ('y', 'settings', 'error', 'message'),
    [
        (Y['kind'], {}, DataError, 'got one array, expected the targets of heads'),
        ({'sort': Y['kind']}, {}, DataError, "y_test: got 'sort', expected the targets of heads"),
        (Y, {'metrics': {'sort': ['f1']}}, ConfigError, "metrics: got a dict of 'sort'"),
        (Y, {'metrics': ['f1']}, ConfigError, "head 'price': .*'f1'"),
        (Y | {'kind': ['z'] * ROWS}, {}, DataError, r"y_test\['kind'\]: got labels"),
        (Y | {'price': Y['price'][:9]}, {}, DataError, r"y_test\['price'\] with 9 rows"),
    ],
)
def test_what_does_not_fit_is_refused(model, y, settings, error, message):
    with pytest.raises(error, match=message):
        ModelEvaluator().evaluate(model, X, y, **settings)
