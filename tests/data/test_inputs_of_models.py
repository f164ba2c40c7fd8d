import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from tests.data.sources import BATCHES, COLUMNS, LABELLED, ROWS, X, Y, kinds
from thinkml.core import predict_outputs
from thinkml.data import check_inputs_of, device_budget, fits, open_rows, place
from thinkml.errors import DataError
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import ArraySpec, InputSpec, record_of
from thinkml.models import predict, predict_proba
from thinkml.tasks import Task

INPUTS = InputSpec(ArraySpec((3,), 'float32', tuple(COLUMNS)))


@pytest.fixture
def model():
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    record = record_of(model)
    record.task, record.input_spec = Task('multiclass', (0, 1, 2), 3), INPUTS
    return model


@pytest.mark.parametrize('kind', kinds(ROWS))
def test_predictions_are_those_of_the_array(kind, model, tmp_path):
    source = ROWS[kind](tmp_path)
    np.testing.assert_array_equal(predict_proba(model, source), predict_proba(model, X))
    expected = ModelEvaluator().evaluate(model, X, Y)
    assert ModelEvaluator().evaluate(model, source, Y).metrics == expected.metrics


@pytest.mark.parametrize('kind', kinds(BATCHES))
def test_predictions_of_batches_are_those_of_the_array(kind, model):
    np.testing.assert_allclose(
        predict_proba(model, BATCHES[kind]()), predict_proba(model, X), rtol=1e-6
    )
    evaluation = ModelEvaluator().evaluate(model, BATCHES[kind]())
    assert evaluation.metrics == pytest.approx(ModelEvaluator().evaluate(model, X, Y).metrics)
    with pytest.raises(DataError, match='y_test: got a ndarray beside batches'):
        ModelEvaluator().evaluate(model, BATCHES[kind](), Y)


@pytest.mark.parametrize('kind', kinds(LABELLED))
def test_labels_come_with_the_inputs(kind, model):
    expected = ModelEvaluator().evaluate(model, X, Y)
    assert ModelEvaluator().evaluate(model, LABELLED[kind]()).metrics == expected.metrics
    name = dict.fromkeys(('pandas', 'polars', 'arrow', 'hugging face'), 'label') | {
        'dict': 'target'
    }
    if kind in name:
        named = ModelEvaluator().evaluate(model, LABELLED[kind](), name[kind])
        assert named.metrics == expected.metrics
    if kind not in ('dict', 'pandas', 'polars', 'arrow'):
        np.testing.assert_array_equal(predict(model, LABELLED[kind]()), expected.predictions)


def test_columns_in_another_order_give_the_same_predictions(model):
    frame = pd.DataFrame(X, columns=COLUMNS)
    np.testing.assert_array_equal(predict(model, frame[['b', 'c', 'a']]), predict(model, frame))


class TwoInputs(nnx.Module):
    def __init__(self):
        self.image = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def __call__(self, inputs):
        return self.image(inputs['image']) * inputs['scale'][:, None]


def test_a_model_of_several_inputs():
    model, scale = TwoInputs(), np.arange(23.0)
    checked = check_inputs_of(model, {'image': X, 'scale': scale}, 'X')
    outputs = predict_outputs(model, checked, batch_size=5)
    expected = np.asarray(model.image(X)) * scale[:, None]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match='X_test: got rows of'):
        check_inputs_of(model, {'image': X[:, :2], 'scale': scale})


@pytest.mark.parametrize('batch_size', [None, 1, 5, 23, 64])
def test_rows_are_read_once_each_and_in_order(batch_size):
    read = []

    class Source:
        spec = jax.ShapeDtypeStruct((23, 3), np.float32)

        def take(self, indices):
            read.extend(indices)
            return X[indices]

    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    outputs = predict_outputs(model, Source(), batch_size=batch_size)
    np.testing.assert_allclose(outputs, predict_outputs(model, X), atol=1e-6)
    assert read == list(range(23))


def test_several_inputs_and_weights_are_placed():
    rows = open_rows({'a': X, 'b': X[:, 0]})
    data = place(rows.all(), Y.astype(np.int32), weight=np.arange(23, dtype=np.float32))
    np.testing.assert_array_equal(data.x['b'][:23], X[:, 0])
    np.testing.assert_array_equal(data.weight[:23], np.arange(23))
    assert place(X, Y.astype(np.int32)).weight is None


def test_the_budget_is_the_least_of_what_is_free_and_the_limit(monkeypatch):
    monkeypatch.setattr('thinkml.data.device_placement._free_bytes', lambda device: 1000)
    assert (device_budget(), device_budget(300), device_budget(10**6)) == (700, 300, 700)
    assert fits(700) and not fits(701) and not fits(301, limit=300)
    with pytest.raises(DataError, match='x, y: got'):
        place({'a': X, 'b': X, 'c': X}, Y)
    monkeypatch.setattr('thinkml.data.device_placement._free_bytes', lambda device: None)
    assert device_budget() is None and fits(10**18) and device_budget(300) == 300


@pytest.mark.parametrize(
    ('spec', 'text'),
    [
        (InputSpec(ArraySpec((28, 28, 1), 'uint8')), '28 x 28 x 1 uint8'),
        (InputSpec(ArraySpec((), 'bfloat16')), 'bfloat16'),
        (INPUTS, '3 float32 (a, b, c)'),
        (
            InputSpec({'x': (ArraySpec((2,), 'int32'), ArraySpec((), 'bool')), 'y': INPUTS.arrays}),
            'x: (2 int32, bool), y: 3 float32 (a, b, c)',
        ),
    ],
)
def test_specs_are_worded_and_come_back(spec, text):
    assert str(spec) == text
    assert InputSpec.from_dict(spec.to_dict()) == spec
