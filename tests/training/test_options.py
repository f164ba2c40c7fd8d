"""The options of a training, each against what it is to equal."""

import datetime
import functools
import inspect
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm, SmallCNN, mlp
from thinkml.errors import ConfigError, DivergedError, ThinkMLWarning
from thinkml.models import predict_proba
from thinkml.training import (
    CrossEntropy,
    EarlyStopping,
    Focal,
    MixUp,
    ModelTrainer,
    ReduceLROnPlateau,
    TrainingConfig,
)

SETTINGS = TrainingConfig.__dataclass_fields__


def rows(num_rows=100, seed=0):
    X = np.random.default_rng(seed).normal(size=(num_rows, 4)).astype(np.float32)
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)


def train(model=None, data=None, **arguments):
    config = {name: arguments.pop(name) for name in list(arguments) if name in SETTINGS}
    trainer = ModelTrainer(TrainingConfig(**{'epochs': 3, 'batch_size': 20} | config))
    X, y = data or rows()
    return trainer.train(model or mlp(4, 3), X, y, progress=False, **arguments)


def params_of(model):
    return jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def trained(**arguments):
    model = mlp(4, 3)
    train(model, **arguments)
    return params_of(model)


def assert_same(a, b, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), a, b)


# --- optimisation -----------------------------------------------------------------------------


def test_an_optax_transformation_and_a_function_of_the_rate_are_the_named_one():
    named = trained(optimizer='momentum', learning_rate=0.1)
    made = functools.partial(optax.sgd, momentum=0.9)
    assert_same(named, trained(optimizer=made, learning_rate=0.1), rtol=1e-6, atol=1e-7)
    assert_same(named, trained(optimizer=optax.sgd(0.1, momentum=0.9)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ('name', 'schedule'),
    [
        ('cosine', optax.cosine_decay_schedule(0.01, 15)),
        ('linear', optax.linear_schedule(0.01, 0, 15)),
        ('exponential', optax.exponential_decay(0.01, 15, 0.01)),
        ('constant', optax.constant_schedule(0.01)),
    ],
)
def test_schedules_are_those_of_optax(name, schedule):
    history = train(lr_schedule=name, learning_rate=0.01, callbacks=['lr_monitor'])
    # The rate of each epoch's last step.
    expected = [float(schedule(step)) for step in (4, 9, 14)]
    np.testing.assert_allclose(history['learning_rate'], expected, rtol=1e-5)


def test_warm_up_and_a_schedule_of_ones_own():
    warm = train(lr_schedule='warmup_cosine', warmup_steps=10, callbacks=['lr_monitor'])
    own = optax.warmup_cosine_decay_schedule(0.0, 0.001, 10, 15)
    expected = train(learning_rate=own, callbacks=['lr_monitor'])
    np.testing.assert_allclose(warm['learning_rate'], expected['learning_rate'], rtol=1e-5)
    np.testing.assert_allclose(warm['loss'], expected['loss'], rtol=1e-6)


def test_other_numbers_compile_nothing(count_compiles):
    model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    base = {
        'model': model, 'lr_schedule': 'cosine', 'weight_decay': 0.1, 'gradient_clip_norm': 1.0,
        'ema_decay': 0.9, 'warmup_steps': 2,
    }  # fmt: skip
    train(**base)
    for change in (
        {'learning_rate': 0.1}, {'weight_decay': 0.2}, {'gradient_clip_norm': 2.0},
        {'ema_decay': 0.5}, {'warmup_steps': 3}, {'epochs': 4}, {'seed': 4},
    ):  # fmt: skip
        assert count_compiles(train, **base | change) == 0, change


def test_weight_decay_shrinks_kernels_and_no_biases():
    still = {'optimizer': 'sgd', 'learning_rate': 0.1, 'epochs': 1, 'batch_size': 100}
    plain, decayed = trained(**still), trained(weight_decay=0.5, **still)
    before = params_of(mlp(4, 3))

    def check(path, plain, decayed, before):
        share = 0.1 * 0.5 if path[-1].key == 'kernel' else 0
        np.testing.assert_allclose(decayed, plain - share * before, rtol=1e-5, atol=1e-7)

    jax.tree_util.tree_map_with_path(check, plain, decayed, before)


def test_clipping_bounds_a_step():
    settings = {'optimizer': 'sgd', 'learning_rate': 1.0, 'epochs': 1, 'batch_size': 100}
    clipped = trained(gradient_clip_norm=0.01, **settings)
    moved = jax.tree.map(np.subtract, clipped, params_of(mlp(4, 3)))
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-4)


def test_the_average_of_the_parameters_is_validated_and_kept():
    model = mlp(4, 3)
    snapshots = []

    class Snapshots:
        def on_chunk_end(self, run):
            snapshots.append(jax.device_get(run.state.params))

    X, y = rows(60, seed=1)
    history = train(
        model, ema_decay=0.7, learning_rate=0.05, steps_per_dispatch=1, callbacks=[Snapshots()],
        X_val=X, y_val=y,
    )  # fmt: skip
    average = params_of(mlp(4, 3))
    for step, params in enumerate(snapshots):
        decay = min(0.7, step / (step + 9))
        average = jax.tree.map(
            lambda a, p, decay=decay: decay * a + (1 - decay) * p, average, params
        )
    assert_same(params_of(model), average, rtol=1e-4, atol=1e-6)
    shares = predict_proba(model, X)
    expected = -np.log(shares[np.arange(60), y]).mean()
    assert history['val_loss'][-1] == pytest.approx(expected, rel=1e-5)


def test_the_average_of_a_short_run_is_as_good_as_its_last_parameters():
    settings = {'X_val': rows(60, seed=1)[0], 'y_val': rows(60, seed=1)[1], 'learning_rate': 0.05}
    last, average = train(epochs=10, **settings), train(epochs=10, ema_decay=0.999, **settings)
    assert last['val_accuracy'][-1] > 0.9
    assert average['val_accuracy'][-1] == pytest.approx(last['val_accuracy'][-1], abs=0.05)


def test_bf16_learns_nearly_the_same_and_keeps_float32_parameters():
    model = mlp(4, 3)
    half = train(model, precision='bf16', learning_rate=0.01, epochs=10)
    full = train(precision='float32', learning_rate=0.01, epochs=10)
    assert half['loss'] != full['loss']
    assert half['loss'] == pytest.approx(full['loss'], rel=0.02)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params_of(model)))
    assert model.layers[0].dtype is None


def test_losses_with_settings():
    smooth = train(loss_fn=CrossEntropy(label_smoothing=0.2), learning_rate=1e-30)
    logits, y = mlp(4, 3)(rows()[0]), rows()[1]
    soft = 0.8 * jax.nn.one_hot(y, 3) + 0.2 / 3
    expected = optax.softmax_cross_entropy(logits, soft).mean()
    assert smooth['loss'][0] == pytest.approx(float(expected), rel=1e-5)
    assert train(loss_fn=Focal(gamma=0.0), learning_rate=1e-30)['loss'][0] == pytest.approx(
        train(learning_rate=1e-30)['loss'][0], rel=1e-5
    )
    with pytest.raises(ConfigError, match='mixes classes'):
        train(loss_fn='focal', augmentation='mixup')


# --- augmentation -----------------------------------------------------------------------------


@pytest.mark.parametrize('augmentation', [True, 'crop', ['flip', MixUp(0.4)]])
def test_augmentation_of_images_compiles_once(augmentation, digits, count_compiles):
    X, _, y, _ = digits
    data = X[:200].reshape(-1, 8, 8, 1), y[:200]

    def run(**settings):
        return train(SmallCNN(nnx.Rngs(0)), data, augmentation=augmentation, **settings)

    first = run()
    assert count_compiles(run, learning_rate=0.01) == 0
    assert run() == first, 'the same seed draws the same'
    assert run(seed=1) != first


def test_an_augmentation_of_ones_own():
    def negated(key, x, y):
        return -x, y

    X, y = rows()
    augmented = trained(augmentation=negated)
    assert_same(augmented, trained(data=(-X, y)), rtol=1e-5, atol=1e-6)


# --- early stopping and plateaus --------------------------------------------------------------


def with_losses(values, **settings):
    """The history of a run whose recorded training losses are these."""

    class Rewrite:
        def on_epoch_end(self, run):
            run.history._metrics['loss'][-1] = values[run.epoch - 1]

    callbacks = [Rewrite(), *settings.pop('callbacks', ())]
    return train(epochs=len(values), callbacks=callbacks, **settings)


@pytest.mark.parametrize(
    ('settings', 'epochs'),
    [
        ({'patience': 2}, 5),
        ({'patience': 2, 'min_delta': 0.5}, 4),
        ({'patience': 2, 'start_from_epoch': 5}, 8),
        ({'patience': 2, 'mode': 'max'}, 3),
    ],
)
def test_early_stopping_says_when(settings, epochs):
    losses = [3.0, 2.0, 1.9, 2.5, 2.5, 9.0, 9.5, 9.9]
    stopping = EarlyStopping(monitor='loss', restore_best=False, **settings)
    history = with_losses(losses, callbacks=[stopping])
    assert history.epochs == epochs
    assert 'early stopping' in history.events[-1][1]


def test_a_metric_of_ones_own_needs_a_mode():
    def gain(logits, labels):
        return logits[:, 0]

    with pytest.raises(ConfigError, match="mode: got None for 'gain'"):
        train(metrics=[gain], early_stopping=EarlyStopping(monitor='gain'))
    train(metrics=[gain], early_stopping=EarlyStopping(monitor='gain', mode='max'))


def test_the_rate_falls_where_the_loss_does_not():
    losses = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5]
    plateau = ReduceLROnPlateau(monitor='loss', factor=0.5, patience=2, min_rate=0.003)
    history = with_losses(
        losses, callbacks=[plateau, 'lr_monitor'], learning_rate=0.01, optimizer='sgd'
    )
    # The rate of an epoch's last step: it falls from the epoch after.
    expected = [0.01] * 4 + [0.005] * 4 + [0.003]
    np.testing.assert_allclose(history['learning_rate'], expected, rtol=1e-5)


def test_reduce_on_plateau_by_name():
    history = train(
        lr_schedule='reduce_on_plateau', learning_rate=1e-30, optimizer='sgd', epochs=24,
        callbacks=['lr_monitor'],
    )  # fmt: skip
    np.testing.assert_allclose(history['learning_rate'][10:12], [1e-30, 1e-31], rtol=1e-4)


# --- losses that are not finite ---------------------------------------------------------------


def broken_at(step):
    """Data that breaks the loss in one step of the first epoch, told by the order of a twin run."""
    X, y = rows()
    order = []

    def note(key, x, y):
        jax.debug.callback(lambda x: order.append(np.asarray(x)), x, ordered=True)
        return x, y

    train(data=(X, y), epochs=1, augmentation=note)
    jax.effects_barrier()
    X = X.copy()
    X[(order[step - 1][0] == X).all(axis=1)] = 3e38
    return X, y


@pytest.mark.parametrize('steps_per_dispatch', [1, 2, None])
def test_a_diverged_run_ends_with_the_state_before_the_bad_step(steps_per_dispatch):
    data, model = broken_at(4), mlp(4, 3)
    with pytest.warns(ThinkMLWarning, match=r'at step 4 \(epoch 1\)'):
        history = train(model, data, steps_per_dispatch=steps_per_dispatch)
    assert history.steps == 4 and history.epochs == 0
    assert_same(params_of(model), trained(data=data, max_steps=3), rtol=0)


def test_a_diverged_run_may_raise_or_go_on():
    data, model = broken_at(4), mlp(4, 3)
    with pytest.raises(DivergedError, match='at step 4'):
        train(model, data, on_nan='raise')
    assert_same(params_of(model), trained(data=data, max_steps=3), rtol=0)
    history = train(data=data, on_nan='ignore')
    assert history.epochs == 3 and np.isnan(history['loss'][-1])


def test_a_gradient_that_is_not_finite_before_the_loss_is():
    def root(logits, labels):
        return jnp.sqrt(jnp.abs(logits[:, 0] * 0))  # its derivative at 0 is infinite

    model = mlp(4, 3)
    with pytest.warns(ThinkMLWarning, match=r'the gradient is not finite at step 1 \(epoch 1\)'):
        train(model, loss_fn=root)
    assert_same(params_of(model), params_of(mlp(4, 3)), rtol=0)


@pytest.mark.parametrize('steps_per_dispatch', [1, 8, None])
def test_parameters_that_break_long_before_a_loss_does(steps_per_dispatch):
    class Looked(nnx.Module):
        """A row of the table breaks when its id first comes; no other loss ever sees it."""

        def __init__(self):
            self.table = nnx.Embed(8, 4, rngs=nnx.Rngs(0))
            self.table.embedding[...] = self.table.embedding[...].at[7].set(0.0)
            self.out = nnx.Linear(1, 2, rngs=nnx.Rngs(1))

        def __call__(self, x):
            rows = self.table(x)
            return self.out(jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True)))

    ids = np.random.default_rng(0).integers(0, 7, 160)
    ids[37] = 7
    model, data = Looked(), (ids, ids % 2)
    with pytest.warns(ThinkMLWarning, match='the gradient is not finite at step') as caught:
        train(model, data, steps_per_dispatch=steps_per_dispatch, epochs=1)
    assert np.isfinite(model.table.embedding[...]).all()
    twin = Looked()
    step = int(str(caught[0].message).split('at step ')[1].split()[0])
    if step > 1:
        train(twin, data, max_steps=step - 1, epochs=1)
    np.testing.assert_array_equal(model.table.embedding[...], twin.table.embedding[...])


def test_a_step_that_fails_costs_its_dispatch_alone():
    def fail(key, x, y):
        number = jax.pure_callback(lambda x: counted(), jax.ShapeDtypeStruct((), np.float32), x)
        return x + 0 * number, y

    seen = []

    def counted():
        seen.append(0)
        if len(seen) == 8:
            raise RuntimeError('the eighth step fails')
        return np.float32(0)

    model = mlp(4, 3)
    with (
        pytest.raises(Exception, match='the eighth step fails'),
        pytest.warns(ThinkMLWarning, match='the model has what was learned in the') as caught,
    ):
        train(model, augmentation=fail, steps_per_dispatch=3)
    steps = int(str(caught[0].message).split('in the ')[1].split()[0])
    assert 3 <= steps < 8
    assert_same(params_of(model), trained(max_steps=steps), rtol=1e-5, atol=1e-6)


# --- guards -----------------------------------------------------------------------------------


def test_a_trial_run_takes_one_step_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    history = train(
        fast_dev_run=True, validation_split=0.2, early_stopping=True,
        callbacks=['checkpoint', 'tensorboard', 'csv', lambda run: seen.append(run.step)],
    )  # fmt: skip
    assert history.steps == 1 and history.epochs == 1 and 'val_loss' in history
    assert seen == [1] and not list(tmp_path.iterdir())
    assert train(fast_dev_run=3).steps == 3


@pytest.mark.parametrize(('limit', 'steps'), [(2, 2), (0.4, 2), (1.0, 5), (99, 5), (0.01, 1)])
def test_epochs_may_be_cut_short(limit, steps):
    history = train(limit_train_batches=limit)
    assert history.epoch_ends == [steps, 2 * steps, 3 * steps]


def test_max_steps_measures_the_epoch_it_cuts_short():
    history = train(max_steps=7, learning_rate=1e-30)
    assert history.steps == 7 and history.epochs == 2
    whole = train(learning_rate=1e-30, epochs=2)
    assert history['loss'][0] == whole['loss'][0]
    assert history['loss'][1] == pytest.approx(np.mean(history.step_loss[5:]), rel=1e-6)


@pytest.mark.parametrize(
    'limit', [0.3, '00:00:01', datetime.timedelta(seconds=0.2)], ids=['number', 'text', 'delta']
)
def test_max_time_ends_a_run(limit):
    history = train(max_time=limit, epochs=1_000_000)
    assert 0 < history.epochs < 1_000_000 and 'max_time' in history.events[-1][1]


def test_a_run_that_is_complete_was_not_ended_by_the_time():
    assert train(max_time=1e-9, epochs=1, steps_per_dispatch=100).events == []


def test_a_rate_is_found(tmp_path):
    trainer = ModelTrainer(TrainingConfig(learning_rate='auto', epochs=30, batch_size=20))
    model, (X, y) = mlp(4, 3), rows()
    history = trainer.train(model, X, y, progress=False)
    found = trainer.learning_rate_range
    assert history['loss'][-1] < 0.5 * history['loss'][0]
    assert found.rates[0] == pytest.approx(1e-6) and (np.diff(found.rates) > 0).all()
    assert 1e-5 < found.suggestion <= found.rates[np.argmin(found.losses)] / 10
    again = ModelTrainer(TrainingConfig(batch_size=20)).find_learning_rate(mlp(4, 3), X, y)
    assert again.suggestion == found.suggestion
    again.plot(tmp_path / 'range.png')
    assert (tmp_path / 'range.png').stat().st_size > 10_000


def test_finding_a_rate_leaves_the_model_alone():
    model, (X, y) = mlp(4, 3), rows()
    ModelTrainer().find_learning_rate(model, X, y)
    assert_same(params_of(model), params_of(mlp(4, 3)), rtol=0)


def test_the_largest_batch_that_fits(monkeypatch):
    X, y = rows(3000)
    trainer = ModelTrainer()
    assert trainer.find_batch_size(mlp(4, 3), X, y) == 2048
    sizes = []
    for budget in (100_000, 400_000, 1_600_000):
        monkeypatch.setattr(
            'thinkml.training.tuning.device_budget', lambda layout, budget=budget: budget
        )
        sizes.append(trainer.find_batch_size(mlp(4, 3, hidden=64), X, y))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] <= 2048
    assert all(size & (size - 1) == 0 for size in sizes)


# --- held-out rows ----------------------------------------------------------------------------


def test_rows_in_order_of_time_and_groups():
    X, y = rows()
    model = mlp(4, 3)
    for split, last in (('last', 20), (('last', 0.1), 10)):
        history = train(model, validation_split=split, learning_rate=1e-30, epochs=1)
        shares = predict_proba(model, X[-last:])
        expected = -np.log(shares[np.arange(last), y[-last:]]).mean()
        assert history['val_loss'][0] == pytest.approx(expected, rel=1e-5)
    groups = np.arange(100) // 10
    history = train(model, validation_split=0.2, groups=groups, learning_rate=1e-30, epochs=1)
    losses = -np.log(predict_proba(model, X)[np.arange(100), y]).reshape(10, 10).mean(axis=1)
    pairs = [np.mean(pair) for pair in itertools.combinations(losses, 2)]
    assert np.min(np.abs(np.array(pairs) - history['val_loss'][0])) < 1e-5
    with pytest.raises(ConfigError, match='groups'):
        train(groups=groups)


# --- the table --------------------------------------------------------------------------------


def test_the_table_of_options_is_complete():
    page = (Path(__file__).parents[2] / 'docs/guides/training/options.md').read_text()
    parameters = list(inspect.signature(ModelTrainer.train).parameters)[1:]
    missing = [name for name in (*SETTINGS, *parameters) if f'`{name}`' not in page]
    assert missing == []
