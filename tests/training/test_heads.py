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
from thinkml.data import split_rows
from thinkml.errors import ConfigError, DataError, ModelTypeError
from thinkml.model_record import ModelRecord, attach_record, record_of
from thinkml.models import ModelManager, predict, predict_proba
from thinkml.tasks import Composite, Task
from thinkml.training import ActiveLearner, ModelTrainer, TrainingConfig
from thinkml.training.metric_monitor import MetricNames, monitor_for

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
    names = MetricNames(['loss', 'kind_loss', 'val_loss', 'val_kind_loss', 'val_kind_accuracy'])
    names.heads = ('kind',)
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
        (1, bits, None, "binary, 2 classes (0, 1); task='regression' for numbers; 24 rows"),
        (1, bits, 'binary_cross_entropy', 'binary, 2 classes (0, 1); 24 rows'),
        (1, KIND != 'a', None, 'binary, 2 classes (False, True); 24 rows'),
        (
            2,
            np.eye(2)[bits],
            None,
            "; task='multilabel' for a yes or no in each column",
        ),
        (2, both, None, "multilabel, 2 labels (0, 1); task='regression' for numbers"),
    )
    for outputs, y, loss_fn, line in cases:
        model = nnx.Linear(4, outputs, rngs=nnx.Rngs(0))
        ModelTrainer(config).train(model, x, y, loss_fn=loss_fn)
        assert line in capfd.readouterr().err


@pytest.mark.parametrize(
    ('outputs', 'y', 'task', 'kind'),
    [
        (1, (X[:, 0] > 0) * 1, 'regression', 'regression'),
        (2, np.eye(2)[(X[:, 0] > 0) * 1], 'multilabel', 'multilabel'),
        (3, KIND, 'multiclass', 'multiclass'),
        (3, (X[:, 0] > 0) * 2, Task('multiclass', (0, 1, 2), 3), 'multiclass'),
    ],
)
def test_the_task_may_be_passed(outputs, y, task, kind):
    model, _ = train(nnx.Linear(4, outputs, rngs=nnx.Rngs(0)), y, settings={'epochs': 1}, task=task)
    assert record_of(model).task.kind == kind


def test_the_tasks_of_heads_may_be_passed():
    model, _ = train(
        y={'kind': KIND, 'price': (X[:, 0] > 0) * 1},
        task={'price': 'regression'},
        settings={'epochs': 1},
    )
    assert record_of(model).task.by_name['price'].kind == 'regression'
    assert record_of(model).task.by_name['kind'].kind == 'multiclass'


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


# --- targets, weights and names ---------------------------------------------------------------


@pytest.mark.parametrize('change', [lambda y: y[:5], lambda y: np.r_[y, y]], ids=['short', 'long'])
def test_the_rows_of_each_head_are_counted(change):
    for name in Y:
        other = Y | {name: change(Y[name])}
        for arguments in ({'y': other}, {'y': other, 'settings': {'device_data_bytes': 100}}):
            with pytest.raises(DataError, match=rf"y_train\['{name}'\] with \d+ rows"):
                train(**arguments)
        with pytest.raises(DataError, match=rf"y_val\['{name}'\] with \d+ rows"):
            train(X_val=X, y_val=other)


@pytest.mark.parametrize('form', [tuple, list], ids=['tuple', 'list'])
def test_batches_may_hold_tuples_of_targets(form):
    def pairs():
        yield X, form((KIND, PRICE))

    model, _ = train(TupleModel(), None, X=pairs, settings={'epochs': 2})
    again, _ = train(TupleModel(), (KIND, PRICE), settings={'epochs': 2})
    assert_close(params_of(model), params_of(again), 1e-6)
    np.testing.assert_array_equal(predict(model, pairs)[0], predict(model, X)[0])


def test_batches_keep_their_heads_and_the_form_of_their_weights():
    def batches(second, weights=(None, None)):
        for part, names, weight in zip(
            (slice(12), slice(12, 24)), (Y, second), weights, strict=True
        ):
            y = {name: Y[name][part] for name in names}
            yield (X[part], y) if weight is None else (X[part], y, weight)

    run = functools.partial(train, y=None, settings={'epochs': 1})
    with pytest.raises(
        DataError, match=r"batch 2: got targets of 'kind', expected .* as in batch 1"
    ):
        run(X=lambda: batches(['kind']))
    of_tags, of_rows = {'tags': np.ones((12, TOKENS))}, {'tags': np.ones(12)}
    with pytest.raises(DataError, match=r"head 'tags': got weights of elements"):
        run(X=lambda: batches(Y, (of_rows, of_tags)))
    run(X=lambda: batches(Y, (of_tags, of_rows)))
    with pytest.raises(DataError, match=r"got weights of 'sort', expected those of"):
        run(X=lambda: batches(Y, ({'sort': np.ones(12)}, of_rows)))


def test_a_head_without_targets_adds_nothing_to_the_loss():
    def batches():
        yield X, Y, {'price': np.zeros(ROWS)}

    _, history = train(X=batches, y=None, settings={'epochs': 1})
    losses = [history[f'{name}_loss'][0] for name in ('kind', 'tags')]
    assert np.isnan(history['price_loss'][0])
    assert history['loss'][0] == pytest.approx(sum(losses))


def test_each_head_of_a_data_set_needs_targets_that_count():
    empty = Y | {'tags': np.full((ROWS, TOKENS), -100)}
    with pytest.raises(DataError, match=r"y_val\['tags'\]: each element is ignored"):
        train(X_val=X, y_val=empty)


@pytest.mark.parametrize('name', ['val', 'val_kind', 'learning', ''])
def test_a_head_must_not_take_the_name_of_another_value(name):
    class Renamed(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(4, 1, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return {name: self.out(x)}

    def rate(outputs, labels):
        return (outputs - labels) ** 2

    with pytest.raises(ConfigError, match='Give the output another name'):
        train(Renamed(), {name: PRICE}, metrics=[rate])


def test_rows_held_out_have_all_combinations_of_classes():
    rare = np.arange(ROWS) >= ROWS - 4
    task = Composite((('a', Task('binary', (0, 1), 2)), ('b', Task('regression', None, 1))))
    for seed in range(10):
        _, held_out = split_rows({'a': rare * 1, 'b': PRICE}, task, 0.25, seed)
        assert rare[held_out].sum() == 1


def test_rows_of_weight_0_are_in_the_statistics_of_any_number_of_parts():
    class Normed(nnx.Module):
        def __init__(self):
            self.norm, self.inner = nnx.BatchNorm(4, rngs=nnx.Rngs(0)), DictModel()

        def __call__(self, x):
            return self.inner(self.norm(x))

    weight = dict.fromkeys(['kind', 'price'], np.arange(ROWS) < 12)
    y = {'kind': KIND, 'price': PRICE}
    settings = {'epochs': 1, 'batch_size': 12, 'accumulate_steps': 2}
    model, _ = train(Normed(), y, settings=settings, sample_weight=weight)
    alone, _ = train(
        nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.Linear(4, 1, rngs=nnx.Rngs(0))),
        PRICE,
        settings=settings,
        sample_weight=weight['price'],
    )
    np.testing.assert_allclose(
        model.norm.mean.get_value(), alone.layers[0].mean.get_value(), atol=1e-6
    )


def test_probabilities_keep_the_positions_of_a_tuple():
    class Swapped(TupleModel):
        def __call__(self, x):
            return super().__call__(x)[::-1]

    model, _ = train(Swapped(), (PRICE, KIND), settings={'epochs': 1})
    numbers, classes = predict_proba(model, X)
    assert numbers is None and classes.shape == (ROWS, 3)
    model, _ = train(DictModel(), {'price': PRICE}, settings={'epochs': 1})
    with pytest.raises(DataError, match='heads predict numbers'):
        predict_proba(model, X)


def test_positions_name_the_heads_of_a_tuple():
    _, history = train(
        TupleModel(), (KIND, PRICE), loss_weights={1: 0.1}, metrics={1: ['r2']},
        settings={'epochs': 1},
    )  # fmt: skip
    assert history['loss'][0] == pytest.approx(history['0_loss'][0] + 0.1 * history['1_loss'][0])


def test_heads_that_are_not_trained_again_are_still_predicted():
    model, _ = train(settings={'epochs': 1})
    train(model, {'kind': KIND}, settings={'epochs': 1})
    assert list(predict(model, X)) == ['kind', 'price', 'tags']


def test_the_learning_rate_is_measured_for_the_loss_that_is_trained():
    trainer = ModelTrainer(TrainingConfig(**SETTINGS))
    found = trainer.find_learning_rate(DictModel(), X, Y, loss_weights={'price': 0.0})
    again = trainer.find_learning_rate(DictModel(), X, Y)
    assert found.losses[0] < again.losses[0]
    assert trainer.find_batch_size(DictModel(), X, Y, loss_weights=WEIGHTS) >= 16


def test_weights_of_pixels_beside_moving_pixels_are_refused_by_head():
    pictures, masks = np.zeros((8, 8, 8, 1), np.float32), np.zeros((8, 8, 8), int)
    masks[:, 0] = 1

    class Net(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(1, 2, (1, 1), rngs=nnx.Rngs(0))

        def __call__(self, x):
            return {'mask': self.conv(x), 'kind': self.conv(x).mean((1, 2))}

    def run(weight, **more):
        y = {'mask': masks, 'kind': np.arange(8) % 2}
        batches = lambda: iter([(pictures, y) if weight is None else (pictures, y, weight)])  # noqa: E731
        train(Net(), None, X=batches, augmentation='flip', settings={'epochs': 1}, **more)

    run(None, class_weights={'kind': {0: 2.0}})
    with pytest.raises(ConfigError, match='beside weights of pixels'):
        run({'mask': np.ones((8, 8, 8))})
    with pytest.raises(ConfigError, match='beside weights of pixels'):
        run(None, class_weights={'mask': {0: 2.0}})


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
        ({'y': KIND}, DataError, r"returns a dict of 'features', .* by these names"),
        ({'y': {'sort': KIND}}, DataError, r"targets of 'sort', but the model returns 'features'"),
        ({'y': {'knd': KIND}}, DataError, r"Did you mean 'kind'"),
        ({'y': {}}, DataError, 'an empty dict'),
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
        ({'ignore_label': {'price': 3}}, ConfigError, r"ignore_label\['price'\]: got 3 for regr"),
        ({'ignore_label': {'tags': 'a'}}, ConfigError, "ignore_label: got 'a'"),
        ({'task': {'kind': 'regression'}}, DataError, r"y_train\['kind'\]: got text"),
        ({'task': {'price': 'multilabel'}}, DataError, r"y_train\['price'\]: got"),
        ({'task': {'tags': 'multilabel'}}, DataError, "task: got 'multilabel', but y_train"),
        ({'task': {'kind': 'clasification'}}, ConfigError, "task: got 'clasification'"),
        ({'task': 3}, ConfigError, 'task: got 3, expected a Task or binary'),
        ({'metrics': ['f1']}, ConfigError, r"Pass a dict by head: metrics=\{'price'"),
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


def test_outputs_that_are_not_arrays_of_rows_are_named():
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
