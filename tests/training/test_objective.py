"""Trainings whose loss calls the model: VAEs, contrastive pairs, distillation, flow matching."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from tests.models_for_tests import mlp
from tests.recipes import LABELS, ROWS, Vae, X, contrast, distil, elbo, linear, params_of
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.models import ModelManager, from_functions, from_linen, predict
from thinkml.training import ModelTrainer, Objective, StepOutput, TrainingConfig

SETTINGS = {'epochs': 10, 'batch_size': ROWS, 'learning_rate': 0.02, 'validation_split': 0}


# --- trainings --------------------------------------------------------------------------------


def train(model, objective, y=None, X=X, settings=None, **more):
    config = TrainingConfig(**SETTINGS | (settings or {}))
    trainer = ModelTrainer(config)
    return model, trainer.train(model, X, y, loss_fn=objective, progress=False, **more)


def test_values_are_recorded_as_means_over_the_epoch():
    _, history = train(Vae(), Objective(elbo), X_val=X, settings={'batch_size': 10, 'epochs': 2})
    names = ['loss', 'reconstruction', 'kl']
    assert list(history) == [*names, *(f'val_{name}' for name in names)]
    for prefix in ('', 'val_'):
        parts = [history[f'{prefix}{name}'] for name in names]
        np.testing.assert_allclose(parts[0], np.add(parts[1], parts[2]), rtol=1e-5)


def test_the_model_predicts_is_evaluated_and_saved(tmp_path):
    model, _ = train(linear(), Objective(distil), LABELS, settings={'epochs': 2})
    assert set(predict(model, X)) <= {0, 1}
    evaluation = ModelEvaluator().evaluate(model, X, LABELS, metrics=['accuracy'])
    assert evaluation['accuracy'] == np.mean(predict(model, X) == LABELS)
    ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(tmp_path / 'model')
    np.testing.assert_array_equal(predict(loaded, X), predict(model, X))
    model, _ = train(Vae(), Objective(elbo), settings={'epochs': 1})
    np.testing.assert_allclose(predict(model, X), model(X), atol=1e-6)
    assert str(record_of(model).task) == 'regression, 6 targets'


def test_linen_modules_and_functions_have_objectives():
    class Coder(nn.Module):
        def setup(self):
            self.encoder, self.decoder = nn.Dense(3), nn.Dense(6)

        def encode(self, x):
            return self.encoder(x)

        def __call__(self, x):
            return self.decoder(self.encode(x))

    def sparse(model, batch, key):
        return jnp.square(model(batch.x) - batch.x).sum(-1) + jnp.abs(model.encode(batch.x)).sum(-1)

    _, history = train(from_linen(Coder()), Objective(sparse))
    assert history['loss'][-1] < history['loss'][0]

    def squared(model, batch, key):
        return jnp.square(model(batch.x) - batch.y)

    functions = from_functions(lambda key, x: jnp.zeros(6), lambda w, x: x @ w)
    _, history = train(functions, Objective(squared), X.sum(axis=1), settings={'epochs': 40})
    assert history['loss'][-1] < 0.9 * history['loss'][0]


def test_accumulated_parts_give_the_same_parameters():
    whole, _ = train(linear(), Objective(distil), LABELS)
    settings = {'batch_size': ROWS // 4, 'accumulate_steps': 4}
    parts, _ = train(linear(), Objective(distil), LABELS, settings=settings)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), params_of(whole), params_of(parts)
    )


def test_a_run_is_not_resumed_with_another_objective(tmp_path):
    settings = {'callbacks': ['checkpoint'], 'checkpoint_dir': str(tmp_path), 'epochs': 2}
    train(Vae(), Objective(elbo), settings=settings)

    def other(model, batch, key):
        losses, values = elbo(model, batch, key)
        return 2 * losses, values

    other.__name__ = 'elbo'
    with pytest.raises(ConfigError, match='loss_fn: it has the name of the one in the checkpoint'):
        train(Vae(), Objective(other), settings=settings | {'epochs': 6}, resume='continue')


def test_weights_of_rows_count():
    weight = np.arange(ROWS) % 2
    model, _ = train(linear(), Objective(distil), LABELS, sample_weight=weight)
    half, _ = train(
        linear(), Objective(distil), LABELS[1::2], X=X[1::2], settings={'batch_size': ROWS // 2}
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5), params_of(model), params_of(half)
    )


# --- errors -----------------------------------------------------------------------------------


def losses_of(model, batch):
    return jnp.square(model(batch.x) - batch.x).mean(axis=1)


RESULTS = {
    # of losses
    'None': (lambda m, b: None, False, 'returned None for a batch of 13 rows, expected a loss'),
    'a string': (lambda m, b: 'loss', False, 'returned a str for a batch'),
    'a float': (lambda m, b: 1.0, True, 'returned a float for a batch'),
    'a list': (lambda m, b: [losses_of(m, b), {}], False, 'returned a list for a batch'),
    'a dict': (lambda m, b: {'loss': losses_of(m, b)}, False, 'returned a dict for a batch'),
    'three': (lambda m, b: (losses_of(m, b), {}, 1), False, 'returned a tuple of 3 values for'),
    'None and values': (lambda m, b: (None, {'a': 1.0}), False, 'returned None for a batch'),
    'a number': (lambda m, b: losses_of(m, b).mean(), False, r'shape \(\) .*coupled=True\)'),
    'one too many': (lambda m, b: jnp.append(losses_of(m, b), 1), False, r'shape \(14,\) for a'),
    'some': (lambda m, b: losses_of(m, b)[::2], False, r'shape \(7,\) for a batch of 13 rows'),
    'outputs': (lambda m, b: m(b.x), False, r'shape \(rows, 6\) .*mean over the other axes'),
    'a column': (lambda m, b: m(b.x)[:, :1], False, r'shape \(rows, 1\) .*losses\[:, 0\]'),
    'rows if coupled': (losses_of, True, 'expected one number, since it is coupled. Return'),
    'integers': (lambda m, b: m(b.x).argmax(axis=1), False, 'returned int32, expected floats'),
    'booleans': (lambda m, b: m(b.x)[:, 0] > 0, False, 'returned bool, expected floats'),
    'complex': (lambda m, b: m(b.x)[:, 0] + 1j, False, 'returned complex64, expected floats'),
    # of values
    'a list of values': (lambda m, b: (losses_of(m, b), [1]), False, 'a list, expected a dict of'),
    'two arrays': (lambda m, b: (losses_of(m, b), m(b.x)), False, 'expected a dict of values to'),
    'no name': (lambda m, b: (losses_of(m, b), {1: 1.0}), False, 'expected a dict of values to'),
    'wide values': (lambda m, b: (losses_of(m, b), {'a': b.x}), False, r"'a' of shape \(rows, 6"),
    'text': (lambda m, b: (losses_of(m, b), {'a': 'b'}), False, "'a' as a str, expected numbers"),
    'no value': (lambda m, b: (losses_of(m, b), {'a': None}), False, "'a' as a NoneType, expected"),
    'nested': (lambda m, b: (losses_of(m, b), {'a': {}}), False, "'a' as a dict, expected numbers"),
    'complex values': (
        lambda m, b: (losses_of(m, b), {'a': m(b.x)[:, 0] + 1j}), False, "'a' as complex64, expect"
    ),
    'step': (lambda m, b: (losses_of(m, b), {'step': 1.0}), False, "called 'step'"),
    # of calls
    'no method': (lambda m, b: m.nothing(), False, 'AttributeError'),
    'no labels': (lambda m, b: b.y + 1, False, 'failed with the model in training mode'),
}  # fmt: skip


@pytest.mark.parametrize('name', RESULTS)
def test_other_results_are_refused_before_a_compile(name, count_compiles):
    result, coupled, message = RESULTS[name]
    model = Vae()
    before = params_of(model)

    def refused():
        with pytest.raises(ConfigError, match=message):
            train(model, Objective(lambda m, batch, key: result(m, batch), coupled=coupled))

    assert count_compiles(refused) == 0
    jax.tree.map(np.testing.assert_array_equal, before, params_of(model))


def test_values_have_the_same_names_in_both_modes():
    class Mode(nnx.Module):
        def __init__(self):
            self.dropout, self.out = nnx.Dropout(0.5, rngs=nnx.Rngs(0)), linear()

        def __call__(self, x):
            return self.out(x)

    def fn(model, batch, key):
        name = 'b' if model.dropout.deterministic else 'a'
        return jnp.square(model(batch.x)).mean(axis=1), {name: 1.0}

    with pytest.raises(ConfigError, match='the values a in training mode and b in evaluation mode'):
        train(Mode(), Objective(fn))


def test_what_does_not_go_with_an_objective_is_refused():
    coupled = Objective(contrast, coupled=True)
    with pytest.raises(ConfigError, match='accumulate_steps: got 2 beside a coupled objective'):
        train(linear(), coupled, settings={'accumulate_steps': 2, 'batch_size': 12})
    with pytest.raises(ConfigError, match="metrics: got 'f1' beside an objective"):
        train(linear(), Objective(distil), LABELS, metrics=['f1'])
    with pytest.raises(DataError, match='labels or batches beside training rows without labels'):
        train(Vae(), Objective(elbo), X_val=X, y_val=LABELS)
    with pytest.raises(ConfigError, match='expected a function'):
        Objective(3)
    with pytest.raises(ConfigError, match='coupled: got 1'):
        Objective(elbo, coupled=1)


# --- losses of one number ---------------------------------------------------------------------


def root_mean_squared(outputs, targets):
    return jnp.sqrt(jnp.mean((outputs - targets) ** 2))


def correlation(outputs, targets):
    return -jnp.corrcoef(outputs, targets)[0, 1]


@pytest.mark.parametrize('loss_fn', [root_mean_squared, correlation])
def test_a_number_that_depends_on_several_rows_is_refused(loss_fn):
    with pytest.raises(ConfigError, match=r'several rows together.*Objective\(fn, coupled=True\)'):
        train(linear(1), loss_fn, X.sum(axis=1))


@pytest.mark.parametrize('reduce', [jnp.mean, jnp.sum])
def test_means_and_sums_over_rows_are_losses(reduce):
    def squared(outputs, targets):
        return reduce((outputs - targets) ** 2)

    _, history = train(linear(1), squared, X.sum(axis=1))
    assert history['loss'][-1] < history['loss'][0]


def test_batches_hold_the_labels_of_an_objective():
    def batches():
        yield X, LABELS

    model, _ = train(linear(), Objective(distil), X=batches, settings={'epochs': 2})
    again, _ = train(linear(), Objective(distil), LABELS, settings={'epochs': 2})
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5), params_of(model), params_of(again)
    )


# --- data and settings beside an objective ----------------------------------------------------


def test_the_task_may_be_passed():
    seen = {}

    def squared(model, batch, key):
        return jnp.square(model(batch.x)[:, 0] - batch.y), {'y': batch.y}

    _, history = train(linear(1), Objective(squared), LABELS + 1, task='regression')
    seen['y'] = history['y'][-1]
    assert seen['y'] == pytest.approx(LABELS.mean() + 1)
    for name, value in {'loss_weights': {'a': 1.0}, 'ignore_label': 0}.items():
        with pytest.raises(ConfigError, match=f'{name}: got .* beside an objective'):
            train(linear(1), Objective(squared), LABELS, **{name: value})


def test_weights_are_those_of_rows():
    class Pixels(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(1, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.out(x[..., None])

    def of_pixels(model, batch, key):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(model(batch.x), batch.y).mean(axis=1)

    y = (X > 0).astype(int)
    train(Pixels(), Objective(of_pixels), y, sample_weight=np.ones(ROWS))
    for weights in ({'class_weights': 'balanced'}, {'sample_weight': np.ones((ROWS, 6))}):
        with pytest.raises(DataError):
            train(Pixels(), Objective(of_pixels), y, **weights)


class OfPixels(nnx.Module):
    def __init__(self):
        self.out = nnx.Linear(1, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(x)


IMAGES = np.random.default_rng(0).normal(size=(ROWS, 4, 4, 1)).astype(np.float32)


@pytest.mark.parametrize('dtype', ['int32', 'float32'])
@pytest.mark.parametrize('kind', ['objective', 'step', 'step with a loss'])
def test_flips_move_the_targets_of_pixels_along(kind, dtype):
    def distance(batch):
        return jnp.abs((batch.x[..., 0] > 0) - batch.y).mean(axis=(1, 2))

    def objective(model, batch, key):
        return model(batch.x).mean(axis=(1, 2, 3)), {'distance': distance(batch)}

    def step(state, batch):
        return state, StepOutput(jnp.zeros(()), {'distance': distance(batch).mean()})

    y = (IMAGES[..., 0] > 0).astype(dtype)
    more = {'loss_fn': Objective(objective)} if kind == 'objective' else {'step': step}
    if kind == 'step with a loss':
        more |= {'loss_fn': Objective(objective), 'X_val': IMAGES, 'y_val': y}
    trainer = ModelTrainer(TrainingConfig(**SETTINGS | {'epochs': 1}))
    history = trainer.train(OfPixels(), IMAGES, y, augmentation='flip', progress=False, **more)
    assert history['distance'] == [0.0]
    with pytest.raises(ConfigError, match='RandomFlip: got targets for 2x2 elements beside images'):
        trainer.train(OfPixels(), IMAGES, y[:, :2, :2], augmentation='flip', progress=False, **more)


def test_flips_move_the_targets_of_heads_along():
    class Heads(OfPixels):
        def __call__(self, x):
            return {'mask': self.out(x), 'kind': self.out(x).mean(axis=(1, 2))}

    def objective(model, batch, key):
        distance = jnp.abs((batch.x[..., 0] > 0) - batch.y['mask']).mean(axis=(1, 2))
        return model(batch.x)['kind'][:, 0], {'distance': distance}

    y = {'mask': (IMAGES[..., 0] > 0).astype(int), 'kind': np.arange(ROWS) % 2}
    _, history = train(Heads(), Objective(objective), y, IMAGES, {'epochs': 1}, augmentation='flip')
    assert history['distance'] == [0.0]


def test_class_indices_are_not_mixed():
    def step(state, batch):
        return state, StepOutput(jnp.zeros(()))

    y = np.arange(ROWS) % 2
    for more in (
        {'loss_fn': Objective(losses_of)}, {'step': step},
        {'step': step, 'loss_fn': 'cross_entropy', 'X_val': X, 'y_val': y},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match='augmentation: got one that mixes examples, but'):
            ModelTrainer().train(mlp(6, 2), X, y, augmentation='mixup', progress=False, **more)


def test_a_model_with_heads_needs_no_labels():
    class Heads(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(6, 6, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return {'a': self.out(x), 'b': x.sum(-1)}

    def copied(model, batch, key):
        return jnp.square(model(batch.x)['a'] - batch.x).mean(axis=1)

    model, history = train(Heads(), Objective(copied), sample_weight=np.ones(ROWS))
    assert history['loss'][-1] < history['loss'][0] and set(predict(model, X)) == {'a', 'b'}


def test_a_model_with_heads_has_labels_of_each(capsys):
    def squared(model, batch, key):
        outputs = model(batch.x)
        return jnp.square(outputs['a'] - batch.y['a']) + jnp.square(outputs['b'] - batch.y['b'])

    class Heads(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(6, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return {'a': self.out(x)[:, 0], 'b': self.out(x)[:, 1]}

    y = {'a': X[:, 0], 'b': X[:, 1]}
    _, history = train(Heads(), Objective(squared), y, settings={'callbacks': ['progress']})
    assert history['loss'][-1] < history['loss'][0]
    assert 'a (regression, 1 target), b (regression, 1 target);' in capsys.readouterr().err


def test_a_coupled_objective_is_validated_in_batches_of_training():
    sizes = []

    def coupled(model, batch, key):
        sizes.append(len(batch.x))
        return jnp.square(model(batch.x)).mean()

    train(linear(), Objective(coupled, coupled=True), X_val=X, settings={'batch_size': 8})
    assert 8 in sizes and max(sizes) <= 13  # 13 rows were traced, 8 were compiled


def test_functions_get_the_mode():
    modes = []

    def apply(w, x, *, train, key):
        modes.append((train, key is not None))
        return x @ w

    def squared(model, batch, key):
        return jnp.square(model(batch.x) - batch.y)

    functions = from_functions(lambda key, x: jnp.zeros(6), apply)
    train(functions, Objective(squared), X.sum(axis=1), X_val=X, y_val=X.sum(axis=1))
    assert {(True, True), (False, False)} <= set(modes)


@pytest.mark.parametrize('name', ['loss', 'grad_norm', 'val_a', ''])
def test_values_must_not_take_other_names(name):
    def fn(model, batch, key):
        return jnp.square(model(batch.x)).mean(axis=1), {name: 1.0}

    with pytest.raises(ConfigError, match='loss_fn: fn returned'):
        train(linear(), Objective(fn), metrics=['grad_norm'])


def test_a_mean_over_the_tokens_that_count_is_a_loss():
    def masked(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (losses * (labels >= 0)).sum() / (labels >= 0).sum()

    model = nnx.Sequential(lambda x: x[..., None], nnx.Linear(1, 2, rngs=nnx.Rngs(0)))
    y = np.where(np.arange(6) <= np.arange(ROWS)[:, None] % 6, X > 0, -100).astype(int)
    _, history = train(model, masked, y)
    assert history['loss'][-1] < history['loss'][0]
