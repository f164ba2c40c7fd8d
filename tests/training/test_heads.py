"""Trainings of models with several heads: dicts and tuples of outputs, losses and metrics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import f1_score, r2_score

from tests.models_with_heads import TOKENS, Both, DictModel, NamedModel, TupleModel
from thinkml.core import functionalize, is_higher_better
from thinkml.core.model.exported_forward import ExportedModel, export_forward
from thinkml.errors import ConfigError, DataError, ModelTypeError
from thinkml.model_record import ModelRecord, attach_record, record_of
from thinkml.models import ModelManager, predict, predict_proba
from thinkml.training import ActiveLearner, ModelTrainer, TrainingConfig
from thinkml.training.metric_monitor import monitor_for

ROWS = 24
SETTINGS = {'epochs': 20, 'batch_size': ROWS, 'learning_rate': 0.05, 'validation_split': 0}
WEIGHTS = {'price': 0.1}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 4)).astype(np.float32)
KIND = np.array(['a', 'b', 'c'])[X[:, :3].argmax(1)]
PRICE = X.sum(1)
COUNTS = np.arange(TOKENS) < RNG.integers(2, TOKENS + 1, ROWS)[:, None]
TAGS = np.where(COUNTS, X[:, :1] + np.arange(TOKENS) > 2, -100).astype(np.int64)
Y = {'kind': KIND, 'price': PRICE, 'tags': TAGS}


def train(model=None, y=Y, X=X, settings=None, **more):
    model = DictModel() if model is None else model
    config = TrainingConfig(**SETTINGS | (settings or {}))
    return model, ModelTrainer(config).train(model, X, y, progress=False, **more)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_close(a, b, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), a, b)


def loss_by_hand(outputs, weight):
    of_labels = optax.softmax_cross_entropy_with_integer_labels
    kind = of_labels(outputs['kind'], np.unique(KIND, return_inverse=True)[1])
    price = (outputs['price'][:, 0] - PRICE) ** 2
    tags = of_labels(outputs['tags'], jnp.maximum(TAGS, 0))
    price = jnp.sum(weight * price) / jnp.sum(weight)
    return kind.mean() + 0.1 * price + jnp.sum(tags * COUNTS) / jnp.sum(COUNTS)


def by_hand(weight):
    graph, params = nnx.split(DictModel(), nnx.Param)
    params, tx = nnx.to_pure_dict(params), optax.adam(SETTINGS['learning_rate'])
    state, losses = tx.init(params), []

    @jax.jit
    def step(params, state):
        loss_of = lambda params: loss_by_hand(nnx.merge(graph, params)(X), weight)  # noqa: E731
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(SETTINGS['epochs']):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, losses


def test_it_trains_as_a_loop_written_by_hand():
    model, history = train(loss_weights=WEIGHTS)
    params, losses = by_hand(np.ones(ROWS))
    np.testing.assert_allclose(history['loss'], losses, atol=1e-6)
    assert_close(params_of(model), params, 1e-5)


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_missing_targets_count_nowhere_in_any_number_of_parts(parts):
    missing = np.arange(ROWS) % 3 == 0
    price = np.where(missing, 1e6, PRICE)
    model, history = train(
        y=Y | {'price': price}, loss_weights=WEIGHTS, metrics={'price': ['mae']},
        sample_weight={'price': ~missing},
        settings={'batch_size': ROWS // parts, 'accumulate_steps': parts},
    )  # fmt: skip
    params, losses = by_hand(~missing * 1.0)
    np.testing.assert_allclose(history['loss'], losses, atol=2e-6)
    assert_close(params_of(model), params, 1e-5)
    assert max(history['price_mae']) < 100


def test_the_history_has_the_loss_and_the_metrics_of_each_head():
    model, history = train(
        metrics={'kind': ['f1'], 'price': ['r2']}, loss_weights={'kind': 2},
        X_val=X, y_val=Y, loss_fn={'price': 'huber'}, settings={'epochs': 2},
    )  # fmt: skip
    names = ['loss', 'kind_loss', 'kind_accuracy', 'kind_f1', 'price_loss', 'price_r2', 'tags_loss',
             'tags_accuracy']  # fmt: skip
    assert list(history) == [*names, *(f'val_{name}' for name in names)]
    predicted = predict(model, X)
    last = {name: values[-1] for name, values in history.items()}
    assert last['val_kind_f1'] == pytest.approx(f1_score(KIND, predicted['kind'], average='macro'))
    assert last['val_price_r2'] == pytest.approx(r2_score(PRICE, predicted['price']), abs=1e-5)
    assert last['val_tags_accuracy'] == pytest.approx((predicted['tags'] == TAGS)[COUNTS].mean())
    total = 2 * last['val_kind_loss'] + last['val_price_loss'] + last['val_tags_loss']
    assert last['val_loss'] == pytest.approx(total)


def test_one_list_of_metrics_is_for_all_heads():
    _, history = train(
        y={'kind': KIND, 'tags': TAGS}, metrics=['f1', 'grad_norm'], settings={'epochs': 1}
    )
    assert list(history) == [
        'loss', 'kind_loss', 'kind_accuracy', 'kind_f1', 'tags_loss', 'tags_accuracy', 'tags_f1',
        'grad_norm',
    ]  # fmt: skip


def test_a_monitor_knows_the_direction_of_a_heads_metric():
    names = ('loss', 'kind_loss', 'kind_accuracy', 'val_loss', 'val_kind_loss', 'val_kind_accuracy')
    assert monitor_for('val_kind_accuracy', None, names).mode == 'max'
    assert monitor_for('val_kind_loss', None, names).mode == 'min'
    assert is_higher_better('kind_accuracy') is None


@pytest.mark.parametrize(
    ('make', 'y', 'form'),
    [
        (TupleModel, (KIND, PRICE), tuple),
        (NamedModel, Both(KIND, PRICE), dict),
        (NamedModel, {'price': PRICE}, dict),
    ],
)
def test_predictions_have_the_form_of_the_targets(make, y, form):
    model, _ = train(make(), y, settings={'epochs': 1})
    predicted = predict(model, X[:3])
    assert type(predicted) is form
    labels = predicted[0] if form is tuple else predicted.get('kind')
    assert labels is None or set(labels) <= set('abc')
    expected = y if form is tuple or isinstance(y, dict) else y._asdict()
    assert jax.tree.map(np.shape, predicted) == jax.tree.map(lambda _: (3,), expected)


def test_probabilities_are_those_of_the_classifying_heads():
    model, _ = train(settings={'epochs': 1})
    found = predict_proba(model, X)
    assert list(found) == ['kind', 'tags']
    np.testing.assert_allclose(found['kind'], jax.nn.softmax(model(X)['kind']), atol=1e-6)
    np.testing.assert_allclose(found['tags'], jax.nn.softmax(model(X)['tags']), atol=1e-6)


def test_the_line_of_a_run_names_the_other_reading(capfd):
    x, bits = X, (X[:, 0] > 0) * 1
    config = TrainingConfig(**SETTINGS | {'epochs': 1})
    both = np.column_stack([bits, bits])
    cases = (
        (1, bits, None, "binary, 2 classes (0, 1); loss_fn='mse' for numbers; 24 rows"),
        (1, bits, 'binary_cross_entropy', 'binary, 2 classes (0, 1); 24 rows'),
        (1, KIND != 'a', None, 'binary, 2 classes (False, True); 24 rows'),
        (
            2,
            np.eye(2)[bits],
            None,
            "; loss_fn='binary_cross_entropy' for a yes or no in each column",
        ),
        (2, both, None, "multilabel, 2 labels (0, 1); loss_fn='mse' for numbers"),
    )
    for outputs, y, loss_fn, line in cases:
        model = nnx.Linear(4, outputs, rngs=nnx.Rngs(0))
        ModelTrainer(config).train(model, x, y, loss_fn=loss_fn)
        assert line in capfd.readouterr().err


# --- the same run -------------------------------------------------------------------------------


def batches():
    for first in range(0, ROWS, 8):
        part = slice(first, first + 8)
        yield X[part], {name: values[part] for name, values in Y.items()}


def test_streamed_rows_give_the_same_bits():
    settings = {'epochs': 2, 'batch_size': 8}
    resident, history = train(settings=settings)
    streamed, again = train(settings=settings | {'device_data_bytes': 100})
    jax.tree.map(np.testing.assert_array_equal, params_of(resident), params_of(streamed))
    assert dict(history) == dict(again)


def test_batches_hold_dicts_of_targets_and_weights():
    def weighted():
        yield X, Y, {'price': X[:, 0] > 0}

    settings = {'epochs': 2}
    model, history = train(X=weighted, y=None, X_val=batches, settings=settings)
    again, _ = train(sample_weight={'price': X[:, 0] > 0}, settings=settings)
    assert_close(params_of(model), params_of(again), 1e-6)
    accuracy = np.mean(predict(model, X)['kind'] == KIND)
    assert history['val_kind_accuracy'][-1] == pytest.approx(accuracy)
    jax.tree.map(np.testing.assert_array_equal, predict(model, X), predict(model, batches))


def test_a_resumed_run_is_the_same_run(tmp_path):
    settings = {'epochs': 4, 'batch_size': 8, 'callbacks': ['checkpoint']}
    run = functools.partial(train, loss_weights=WEIGHTS, X_val=X, y_val=Y, metrics={'kind': ['f1']})
    whole, history = run(settings=settings | {'checkpoint_dir': str(tmp_path / 'whole')})
    part = settings | {'checkpoint_dir': str(tmp_path / 'part')}
    run(settings=part | {'max_steps': 7})
    resumed, again = run(settings=part, resume='continue')
    assert dict(history) == dict(again)
    jax.tree.map(np.testing.assert_array_equal, params_of(whole), params_of(resumed))


def test_another_weight_of_a_head_is_another_run(tmp_path):
    settings = {'epochs': 2, 'callbacks': ['checkpoint'], 'checkpoint_dir': str(tmp_path)}
    train(settings=settings | {'max_steps': 1}, loss_weights=WEIGHTS)
    with pytest.raises(ConfigError, match=r'0\.1 mse'):
        train(settings=settings, loss_weights={'price': 0.2}, resume='continue')


# --- files and evaluation -----------------------------------------------------------------------


def test_a_model_file_keeps_the_heads(tmp_path):
    model, _ = train(settings={'epochs': 1})
    record = record_of(model)
    assert ModelRecord.from_dict(record.to_dict()).task == record.task
    ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(tmp_path / 'model')
    jax.tree.map(np.testing.assert_array_equal, predict(model, X), predict(loaded, X))


@pytest.mark.parametrize('make', [DictModel, TupleModel, NamedModel])
def test_the_exported_program_predicts_the_heads(make):
    y = (KIND, PRICE) if make is TupleModel else {'kind': KIND, 'price': PRICE}
    model, _ = train(make(), y, settings={'epochs': 1})
    forward = export_forward(model, X)
    program = ExportedModel(forward, list(map(str, range(len(forward.arrays)))))
    attach_record(program, record_of(model))
    predicted = predict(program, X)
    assert_close(
        predict(model, X)['price'] if make is not TupleModel else predict(model, X)[1],
        predicted['price'] if make is not TupleModel else predicted[1],
        1e-5,
    )


def test_a_trained_model_is_trained_again():
    model, _ = train(settings={'epochs': 1})
    _, history = train(model, settings={'epochs': 1})
    assert len(record_of(model).runs) == 2 and len(history['loss']) == 1


def test_masks_move_along_with_pictures():
    class Net(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(1, 2, (1, 1), rngs=nnx.Rngs(0))

        def __call__(self, x):
            mask = self.conv(x)
            return {'mask': mask, 'kind': mask.mean((1, 2))}

    pictures = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32)
    masks = (pictures[..., 0] > 0).astype(int)
    _, history = train(
        Net(), {'mask': masks, 'kind': masks[:, 0, 0]}, X=pictures, augmentation='flip',
        settings={'batch_size': 16, 'learning_rate': 0.3},
    )  # fmt: skip
    assert history['mask_accuracy'][-1] > 0.9  # 0.75 if masks stay in place


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'y': KIND}, DataError, r"returns a dict of 'features', .* \{'features': \.\.\.\}"),
        ({'y': {'sort': KIND}}, DataError, r"targets of 'sort', but the model returns 'features'"),
        ({'y': {'knd': KIND}}, DataError, r"Did you mean 'kind'"),
        ({'y': {}}, DataError, 'an empty dict'),
        ({'y': {'kind': KIND[:5], 'price': PRICE}}, DataError, r'expected one target per example'),
        ({'y': {'kind': KIND, 'price': TAGS}}, DataError, r"y_train\['price'\]"),
        ({'loss_fn': {'sort': 'mse'}}, ConfigError, r"loss_fn: got 'sort'"),
        ({'loss_fn': {'kind': 'mse'}}, DataError, r"y_train\['kind'\]: got text"),
        ({'loss_fn': 'mse'}, DataError, r"y_train\['kind'\]: got text"),
        ({'loss_weights': {'kind': -1}}, ConfigError, r"loss_weights\['kind'\]: got -1"),
        ({'loss_weights': [1, 2]}, ConfigError, r'a dict of a number for each head'),
        ({'loss_weights': dict.fromkeys(Y, 0)}, ConfigError, 'got 0 for each head'),
        ({'metrics': {'kind': ['grad_norm']}}, ConfigError, "'grad_norm' for the head 'kind'"),
        ({'metrics': {'price': ['f1']}}, ConfigError, r"head 'price': metrics: got 'f1'"),
        ({'class_weights': 'balanced'}, ConfigError, r"class_weights: got 'balanced' for"),
        ({'sample_weight': {'kind': -np.ones(ROWS)}}, DataError, r"head 'kind': sample_weight"),
        ({'augmentation': 'mixup'}, ConfigError, 'expected one output to mix'),
        ({'ignore_label': {'price': 3}}, ConfigError, 'ignore_label: got 3 for regression'),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, error, message):
    model = DictModel()
    before = params_of(model)
    with pytest.raises(error, match=message):
        train(model, **arguments)
    jax.tree.map(np.testing.assert_array_equal, before, params_of(model))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'y': Y}, "got a dict of 'kind', 'price', 'tags'"),
        (
            {'y': PRICE, 'loss_weights': WEIGHTS},
            'loss_weights: got a dict',
        ),
        ({'y': PRICE, 'metrics': {'kind': ['f1']}}, 'metrics: got a dict'),
    ],
)
def test_a_model_of_one_output_has_no_heads(arguments, message):
    with pytest.raises((ConfigError, DataError), match=message):
        train(nnx.Linear(4, 1, rngs=nnx.Rngs(0)), **arguments)


def test_a_tuple_needs_a_target_for_each_output():
    with pytest.raises(DataError, match='returns a tuple of 2 arrays'):
        train(TupleModel(), KIND)


def test_outputs_that_are_no_arrays_of_rows_are_named():
    class Nested(nnx.Module):
        def __call__(self, x):
            return {'a': x, 'b': {'c': x}}

    class Scalar(nnx.Module):
        def __call__(self, x):
            return {'a': x, 'b': x.sum()}

    with pytest.raises(ModelTypeError, match='a dict with names or a tuple'):
        train(Nested(), {'a': X})
    with pytest.raises(DataError, match=r"its output 'b' has shape \(\)"):
        train(Scalar(), {'a': X})


def test_active_learning_needs_one_output():
    with pytest.raises(ModelTypeError, match='expected one array'):
        ActiveLearner(DictModel()).start(X)


def test_functionalize_takes_models_with_heads():
    functional = functionalize(DictModel(), X[:1], jax.random.key(0))
    outputs, _ = functional.apply(
        functional.params, functional.model_state, X, key=None, train=False
    )
    assert outputs['kind'].shape == (ROWS, 3)
