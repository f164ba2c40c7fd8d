"""Trainings of rows with a target for each element: tokens, pixels, images and forecasts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from thinkml.errors import ConfigError, DataError, ThinkMLWarning
from thinkml.model_record import record_of
from thinkml.models import ModelManager, predict, predict_proba
from thinkml.training import ModelTrainer, TrainingConfig

ROWS, TOKENS, WORDS, SIDE = 24, 6, 5, 8
SETTINGS = {'epochs': 20, 'batch_size': ROWS, 'learning_rate': 0.05, 'validation_split': 0}


class Tagger(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(WORDS, 8, rngs=rngs)
        self.out = nnx.Linear(8, WORDS, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.embed(x)).cumsum(axis=1))


class PixelNet(nnx.Module):
    def __init__(self, outputs):
        self.conv = nnx.Conv(1, outputs, (3, 3), rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(x)


class Forecast(nnx.Module):
    def __init__(self):
        self.out = nnx.Linear(7, 4 * 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(x).reshape(-1, 4, 2)


def rng():
    return np.random.default_rng(0)


def words():
    x = rng().integers(0, WORDS, (ROWS, TOKENS))
    lengths = rng().integers(2, TOKENS + 1, ROWS)
    return x, np.where(np.arange(TOKENS) < lengths[:, None], (x + 1) % WORDS, -100)


def pictures():
    x = rng().normal(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32)
    return x, (x[..., 0] > 0.3).astype(np.int64) + (x[..., 0] > 1)


def series():
    x = rng().normal(size=(ROWS, 7)).astype(np.float32)
    return x, np.stack([x[:, :4], x[:, 3:]], axis=-1) * 0.2


CASES = {
    'tokens': (Tagger, words, 'multiclass', (TOKENS,)),
    'pixels': (functools.partial(PixelNet, 3), pictures, 'multiclass', (SIDE, SIDE)),
    'forecast': (Forecast, series, 'regression', (4,)),
}


def train(make, data, **more):
    model, (x, y) = make(), data()
    config = TrainingConfig(**SETTINGS | more.pop('settings', {}))
    history = ModelTrainer(config).train(model, x, y, progress=False, **more)
    return model, history


def loss_by_hand(outputs, y, kind):
    if kind == 'regression':
        return jnp.mean(jnp.square(outputs - y))
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(y, 0))
    return jnp.sum(losses * (y >= 0)) / jnp.sum(y >= 0)


def by_hand(make, data, kind):
    model, (x, y) = make(), data()
    graph, params = nnx.split(model, nnx.Param)
    params, tx = nnx.to_pure_dict(params), optax.adam(SETTINGS['learning_rate'])
    state, losses = tx.init(params), []

    @jax.jit
    def step(params, state):
        loss_of = lambda params: loss_by_hand(nnx.merge(graph, params)(x), y, kind)  # noqa: E731
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(SETTINGS['epochs']):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, losses


@pytest.mark.parametrize('case', CASES)
def test_it_trains_as_a_loop_written_by_hand(case):
    make, data, kind, element_shape = CASES[case]
    model, history = train(make, data)
    params, losses = by_hand(make, data, kind)
    np.testing.assert_allclose(history['loss'], losses, atol=1e-6)
    ours = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), ours, params)
    task = record_of(model).task
    assert (task.kind, task.element_shape) == (kind, element_shape)


def test_the_outputs_of_tokens_do_not_leave_the_device(monkeypatch):
    model, _ = train(Tagger, words)
    x, _ = words()
    fetched, device_get = [], jax.device_get

    def record(arrays):
        fetched.extend(jax.tree.leaves(arrays))
        return device_get(arrays)

    monkeypatch.setattr(jax, 'device_get', record)
    predict(model, x)
    assert fetched and max(array.size for array in fetched) <= 32 * TOKENS


def test_a_token_whose_outputs_are_nan_has_no_label():
    model, _ = train(Tagger, words)
    model.out.bias.set_value(model.out.bias.get_value().at[0].set(jnp.nan))
    with pytest.raises(DataError, match='NaN for 24 of 24 rows, the first at row 0'):
        predict(model, words()[0])


@pytest.mark.parametrize('parts', [2, 4])
def test_uneven_tokens_are_accumulated_exactly(parts):
    whole, _ = train(Tagger, words)
    settings = {'accumulate_steps': parts, 'batch_size': ROWS // parts}
    in_parts, _ = train(Tagger, words, settings=settings)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6),
        *(nnx.to_pure_dict(nnx.state(model, nnx.Param)) for model in (in_parts, whole)),
    )


@pytest.mark.parametrize('case', CASES)
def test_predictions_have_the_form_of_the_targets(case, tmp_path):
    make, data, kind, _ = CASES[case]
    model, _history = train(make, data)
    x, y = data()
    found = predict(model, x)
    assert found.shape == y.shape
    if kind != 'regression':
        counts = y != -100
        accuracy = (found == y)[counts].mean()
        assert accuracy > 0.6
        outputs = predict_proba(model, x)
        np.testing.assert_allclose(outputs.sum(-1), 1)
        assert outputs.shape[:-1] == y.shape
    ModelManager(tmp_path).save_model(model, 'kept')
    loaded = ModelManager(tmp_path).load_model('kept')
    assert record_of(loaded).task == record_of(model).task
    np.testing.assert_array_equal(predict(loaded, x), found)


def test_the_accuracy_of_the_history_leaves_ignored_tokens_out():
    model, history = train(Tagger, words, settings={'epochs': 1, 'learning_rate': 1e-9})
    x, y = words()
    right = (np.asarray(model(x)).argmax(-1) == y)[y != -100]
    np.testing.assert_allclose(history['accuracy'], [right.mean()], rtol=1e-6)


def test_another_label_can_be_ignored():
    x, y = words()
    other = np.where(y == -100, 255, y)
    model, history = train(Tagger, lambda: (x, other), ignore_label=255)
    _, expected = train(Tagger, words)
    assert list(history['loss']) == list(expected['loss'])
    assert record_of(model).task.ignore_label == 255


def test_weights_of_elements_count_like_ignored_ones():
    x, y = words()
    weight, filled = (y != -100).astype(np.float32), np.where(y == -100, 0, y)
    _, weighted = train(Tagger, lambda: (x, filled), sample_weight=weight)
    _, ignored = train(Tagger, words)
    np.testing.assert_allclose(weighted['loss'], ignored['loss'], rtol=1e-6)


def test_class_weights_apply_to_elements():
    _x, y = words()
    labels = dict.fromkeys(range(WORDS), 1.0) | {2: 3.0}
    _, by_class = train(Tagger, words, class_weights=labels)
    _, by_element = train(Tagger, words, sample_weight=np.where(y == 2, 3.0, 1.0))
    np.testing.assert_allclose(by_class['loss'], by_element['loss'], rtol=1e-6)
    _, balanced = train(Tagger, words, class_weights='balanced')
    assert np.isfinite(balanced['loss']).all()


def test_validation_and_batches_of_a_source():
    x, y = words()
    settings = {'validation_split': 0.25, 'epochs': 2, 'batch_size': 6}
    _, history = train(Tagger, words, settings=settings)
    assert np.isfinite(history['val_loss']).all() and np.isfinite(history['val_accuracy']).all()

    def source():
        yield x, y

    from_source = ModelTrainer(TrainingConfig(**SETTINGS)).train(Tagger(), source, progress=False)
    _, from_arrays = train(Tagger, words)
    np.testing.assert_allclose(from_source['loss'], from_arrays['loss'], rtol=1e-6)


@pytest.mark.parametrize(
    ('labels', 'outputs', 'kind', 'classes'),
    [
        (lambda y: y > 0, 1, 'binary', (False, True)),
        (lambda y: (y > 0).astype(np.float32), 1, 'binary', (0.0, 1.0)),
        (lambda y: y.astype(str), 3, 'multiclass', ('0', '1', '2')),
        (lambda y: np.eye(3)[y], 3, 'multiclass', (0, 1, 2)),
        (lambda y: np.stack([y > 0, y > 1], -1).astype(int), 2, 'multilabel', (0, 1)),
        (lambda y: y + 0.5, 1, 'regression', None),
    ],
)
def test_the_task_follows_from_the_shapes_and_values(labels, outputs, kind, classes):
    x, y = pictures()
    model, history = train(
        functools.partial(PixelNet, outputs), lambda: (x, labels(y)), settings={'epochs': 2}
    )
    task = record_of(model).task
    assert (task.kind, task.classes, task.element_shape) == (kind, classes, (SIDE, SIDE))
    assert predict(model, x).shape == labels(y).shape
    assert np.isfinite(history['loss']).all()


def test_a_loss_for_regression_decides_for_pictures_of_zeros_and_ones():
    x, y = pictures()
    model, _ = train(
        functools.partial(PixelNet, 1), lambda: (x, (y > 0).astype(np.float32)), loss_fn='mse',
        settings={'epochs': 1},
    )  # fmt: skip
    assert record_of(model).task.kind == 'regression'


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        (lambda x, y: (x, y[:, :-1]), DataError, r'shape \(24, 5\), int64, beside outputs'),
        (lambda x, y: (x, np.full_like(y, -100)), DataError, 'each label is -100'),
        (lambda x, y: (x, np.where(y == -100, 77, y)), DataError, '6 different labels'),
        (lambda x, y: (x, y + 0.5), DataError, 'expected whole numbers'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_both_shapes(change, error, match):
    x, y = words()
    with pytest.raises(error, match=match):
        train(Tagger, lambda: change(x, y))


@pytest.mark.parametrize('augmentation', [['flip', 'vertical_flip'], ['crop'], ['rotate']])
@pytest.mark.parametrize('parts', [1, 2])
def test_targets_move_along_with_the_pixels(augmentation, parts):
    settings = {'epochs': 60, 'accumulate_steps': parts, 'batch_size': ROWS // parts}
    model = nnx.Conv(1, 3, (1, 1), rngs=nnx.Rngs(0))  # it sees one pixel
    _, y = pictures()
    _, history = train(
        lambda: model, lambda: (y[..., None].astype(np.float32), y),
        augmentation=augmentation, settings=settings,
    )  # fmt: skip
    # Interpolated pixels have other values than their labels.
    assert history['accuracy'][-1] > (0.6 if augmentation == ['rotate'] else 0.97)


def test_augmentations_that_mix_rows_are_refused():
    with pytest.raises(ConfigError, match='expected one a row, which can be mixed'):
        train(functools.partial(PixelNet, 3), pictures, augmentation=['mixup'])
    with pytest.raises(ConfigError, match='targets for 4 elements beside images of 8x8'):
        x, _ = pictures()
        net = nnx.Linear(SIDE * SIDE, 8, rngs=nnx.Rngs(0))

        class Four(nnx.Module):
            def __init__(self):
                self.net = net

            def __call__(self, x):
                return self.net(x.reshape(len(x), -1)).reshape(-1, 4, 2)

        train(Four, lambda: (x, np.zeros((ROWS, 4), int) + np.arange(4) % 2), augmentation='flip')


def test_weights_of_another_shape_are_refused():
    with pytest.raises(DataError, match=r'or \(24, 6\): one per element'):
        train(Tagger, words, sample_weight=np.ones((ROWS, TOKENS - 1)))


def test_an_unknown_label_in_a_later_batch_is_named():
    x, y = words()
    wrong = y.copy()
    wrong[-1, 0] = 99

    def source():
        for first in range(0, ROWS, 6):
            yield x[first : first + 6], wrong[first : first + 6]

    with pytest.raises(
        DataError, match=r'batch 4: got labels the model was not trained on: \[99\]'
    ):
        ModelTrainer(TrainingConfig(**SETTINGS)).train(Tagger(), source, progress=False)


def test_a_killed_run_continues_with_the_same_bits(tmp_path):
    def run(epochs, **more):
        settings = {'epochs': epochs, 'batch_size': 6, 'callbacks': ['checkpoint']}
        config = TrainingConfig(**SETTINGS | settings, checkpoint_dir=tmp_path)
        model = Tagger()
        return model, ModelTrainer(config).train(model, *words(), progress=False, **more)

    run(2)
    continued, _ = run(4, resume=True)
    whole, _ = train(Tagger, words, settings={'epochs': 4, 'batch_size': 6})
    jax.tree.map(np.testing.assert_array_equal, *map(nnx.state, (continued, whole)))


# --- labels, weights and earlier tasks --------------------------------------------------------


def retrained(model, x, y, **more):
    trainer = ModelTrainer(TrainingConfig(**SETTINGS | {'epochs': 1}))
    trainer.train(model, x, y, progress=False, **more)
    return record_of(model).task


def test_another_head_gets_a_task_of_its_own():
    model, _ = train(Tagger, words)
    model.out = nnx.Linear(8, 9, rngs=nnx.Rngs(1))
    x, y = words()
    with pytest.warns(ThinkMLWarning, match='its outputs change their meaning'):
        task = retrained(model, x, y)
    assert task.num_outputs == 9 and predict(model, x).shape == y.shape


def test_another_ignored_label_holds_for_the_next_training():
    model, _ = train(Tagger, words)
    x, y = words()
    task = retrained(model, x, np.where(y == -100, 0, y), ignore_label=0)
    assert task.ignore_label == 0 and task.num_outputs == WORDS


def test_classes_that_are_missing_later_keep_their_places():
    model, _ = train(Tagger, words)
    x, y = words()
    task = retrained(model, x, np.where(y > 2, -100, y))
    assert task == record_of(train(Tagger, words)[0]).task


def test_labels_may_have_an_axis_of_one():
    x, y = words()
    model, history = train(Tagger, lambda: (x, y[..., None]))
    _, expected = train(Tagger, words)
    assert list(history['loss']) == list(expected['loss'])
    assert predict(model, x).shape == (*y.shape, 1)


def test_an_ignored_label_without_effect_is_refused():
    x, y = series()
    with pytest.raises(ConfigError, match='ignore_label: got -100 for regression'):
        train(Forecast, lambda: (x, y), ignore_label=-100)


def test_a_marker_that_is_not_ignored_is_named():
    x, y = pictures()
    mask = np.where(x[..., 0] > 1, 255, y > 0)
    with pytest.warns(ThinkMLWarning, match='255 counts like the other.*pass ignore_label=255'):
        train(functools.partial(PixelNet, 1), lambda: (x, mask), settings={'epochs': 1})


def test_a_square_mask_with_a_diagonal_is_binary():
    x, _ = pictures()
    mask = np.broadcast_to(np.eye(SIDE, dtype=int), (ROWS, SIDE, SIDE))
    model, _ = train(functools.partial(PixelNet, 1), lambda: (x, mask), settings={'epochs': 1})
    task = record_of(model).task
    assert (task.kind, task.element_shape) == ('binary', (SIDE, SIDE))


@pytest.mark.parametrize('weights', ['class_weights', 'sample_weight'])
def test_weights_of_pixels_beside_moved_pixels_are_refused(weights):
    x, y = pictures()
    value = {0: 2.0} if weights == 'class_weights' else np.ones(y.shape)
    with pytest.raises(ConfigError, match='which would not move along'):
        train(functools.partial(PixelNet, 3), pictures, augmentation='flip', **{weights: value})
    rows = np.linspace(0.5, 1, len(x))
    train(functools.partial(PixelNet, 3), pictures, augmentation='flip', sample_weight=rows)


def test_validation_in_which_all_is_ignored_is_refused():
    x, y = words()
    with pytest.raises(DataError, match='y_val: each element is ignored'):
        ModelTrainer(TrainingConfig(**SETTINGS)).train(
            Tagger(), x, y, x, np.full_like(y, -100), progress=False
        )


@pytest.mark.parametrize('second', [(6,), (6, TOKENS)])
def test_batches_with_weights_of_elements(second):
    x, y = words()
    weight = np.random.default_rng(2).random((ROWS, TOKENS))

    def source():
        yield x[:6], y[:6], weight[:6]
        yield x[6:12], y[6:12], weight[6:12] if len(second) > 1 else np.ones(6)

    model = Tagger()
    settings = SETTINGS | {'epochs': 1, 'batch_size': 12, 'accumulate_steps': 2}
    config = TrainingConfig(**settings | {'batch_size': 6})
    history = ModelTrainer(config).train(model, source, progress=False)
    of_rows = weight[:12].copy()
    of_rows[6:] = weight[6:12] if len(second) > 1 else 1
    other = Tagger()
    config = TrainingConfig(**SETTINGS | {'epochs': 1, 'batch_size': 12})
    expected = ModelTrainer(config).train(
        other, x[:12], y[:12], sample_weight=of_rows, progress=False
    )
    np.testing.assert_allclose(history['loss'], expected['loss'], rtol=1e-5)


@pytest.mark.parametrize(
    ('weights', 'match'),
    [
        ([(6,), (6, TOKENS)], 'batch 2: got weights of elements'),
        ([(6, 3)], r'got shape \(6, 3\), expected \(6,\)'),
    ],
)
def test_batches_whose_weights_do_not_fit_are_refused(weights, match):
    x, y = words()

    def source():
        for index, shape in enumerate(weights):
            rows = slice(6 * index, 6 * index + 6)
            yield x[rows], y[rows], np.ones(shape)

    with pytest.raises(DataError, match=match):
        ModelTrainer(TrainingConfig(**SETTINGS)).train(Tagger(), source, progress=False)


def test_batches_of_one_target_a_row_have_no_weights_of_elements():
    def source():
        yield np.ones((6, 4), np.float32), np.full((6, 3), 0.5), np.ones((6, 3))

    net = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(DataError, match=r'got weights of shape \(6, 3\) for regression'):
        ModelTrainer(TrainingConfig(**SETTINGS)).train(net, source, progress=False)


def test_an_augmentation_must_keep_the_dtype_of_labels():
    _x, _y = pictures()
    with pytest.raises(ConfigError, match='it turns labels int32 into float32'):
        train(
            functools.partial(PixelNet, 3), pictures,
            augmentation=lambda key, x, y: (x, y.astype(jnp.float32)),
        )  # fmt: skip


def test_dice_logs_no_warning_of_masks(caplog):
    train(Tagger, words, loss_fn='dice', settings={'epochs': 1})
    assert 'mask' not in caplog.text
