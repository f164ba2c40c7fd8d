import gc
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import (
    Attention,
    DropoutBatchNorm,
    Recurrent,
    Tied,
    WithFlag,
    apply_mlp,
    init_mlp,
    mlp,
)
from thinkml.core import functionalize, last_activation, make_predict, num_outputs, predict_outputs
from thinkml.core.model import forward
from thinkml.core.model.adapters import from_functions, from_linen
from thinkml.errors import DataError, ModelTypeError
from thinkml.model_record import record_to_change

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def key(seed=0):
    return jax.random.key(seed)


def modes(model):
    return [
        (getattr(module, 'deterministic', None), getattr(module, 'use_running_average', None))
        for _, module in nnx.iter_modules(model)
    ]


@pytest.mark.parametrize('train', [True, False])
def test_an_nnx_model_is_called_as_in_that_mode_and_stays_as_it_was(train):
    model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    twin = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    before = modes(model)
    functional = functionalize(model, X, key())
    twin.train() if train else twin.eval()
    twin.dropout.rate = 0.0  # it draws from another random stream
    model.dropout.rate = 0.0
    functional = functionalize(model, X, key())
    outputs, state = functional.apply(
        functional.params, functional.model_state, X, key=key(), train=train
    )
    np.testing.assert_allclose(outputs, twin(X), rtol=1e-5)
    np.testing.assert_allclose(state['norm']['mean'], twin.norm.mean[...], rtol=1e-5)
    assert modes(model) == before
    np.testing.assert_array_equal(model.norm.mean[...], np.zeros(16))


@pytest.mark.parametrize(
    'model',
    [
        DropoutBatchNorm(4, 3, nnx.Rngs(0)),
        Attention(3, nnx.Rngs(0)),
        WithFlag(4, 3, nnx.Rngs(0)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_random_draws_depend_on_the_key_alone(model):
    functional = functionalize(model, X, key())

    def outputs(seed):
        return functional.apply(
            functional.params, functional.model_state, X, key=key(seed), train=True
        )[0]

    np.testing.assert_array_equal(outputs(1), outputs(1))
    assert (outputs(1) != outputs(2)).any()


@pytest.mark.parametrize(
    'make',
    [
        lambda seed: mlp(4, 3, seed=seed),
        lambda seed: DropoutBatchNorm(4, 3, nnx.Rngs(seed)),
        lambda seed: Recurrent(3, nnx.Rngs(seed)),
        lambda seed: Attention(3, nnx.Rngs(seed)),
        lambda seed: Tied(4, 3, nnx.Rngs(seed)),
        lambda seed: from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])),
        lambda seed: from_functions(init_mlp, apply_mlp),
    ],
    ids=['mlp', 'batchnorm', 'lstm', 'attention', 'tied', 'linen', 'functions'],
)
def test_models_of_one_structure_share_their_compiled_program(make):
    one, two = (functionalize(make(seed), X, key(seed)) for seed in (0, 1))
    assert one.apply == two.apply and hash(one.apply) == hash(two.apply)
    outputs, state = one.apply(one.params, one.model_state, X, key=key(), train=True)
    assert outputs.shape == (6, 3)
    assert jax.tree.structure(state) == jax.tree.structure(one.model_state)


def test_tied_weights_are_one_array():
    model = Tied(4, 3, nnx.Rngs(0))
    functional = functionalize(model, X, key())
    assert len(jax.tree.leaves(functional.params)) == 4
    functional.write(jax.tree.map(jnp.zeros_like, functional.params), {})
    assert model.first is model.second
    assert not model.second.kernel[...].any()


def test_integer_parameters_are_state_not_params():
    class WithTable(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.arange(3))
            self.scale = nnx.Param(jnp.ones(3))

        def __call__(self, x):
            return x[:, :3] * self.scale + self.table

    functional = functionalize(WithTable(), X, key())
    assert list(functional.params) == ['scale'] and list(functional.model_state) == ['table']


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.Dense(16)(x)
        x = nn.BatchNorm(use_running_average=deterministic)(x)
        x = nn.Dropout(0.5, deterministic=deterministic)(x)
        return nn.Dense(3)(x)


def test_linen_statistics_dropout_and_flag():
    model = from_linen(LinenNet())
    functional = functionalize(model, X, key())
    assert model.variables is None, 'functionalize must not change the model'
    params, state = functional.params, functional.model_state
    trained, new_state = functional.apply(params, state, X, key=key(1), train=True)
    other, _ = functional.apply(params, state, X, key=key(2), train=True)
    assert (trained != other).any()
    assert (new_state['batch_stats']['BatchNorm_0']['mean'] != 0).any()
    expected = LinenNet().apply({'params': params, **state}, X, deterministic=True)
    plain, same_state = functional.apply(params, state, X, key=None, train=False)
    np.testing.assert_array_equal(plain, expected)
    jax.tree.map(np.testing.assert_array_equal, same_state, state)
    functional.write(params, new_state)
    expected = LinenNet().apply({'params': params, **new_state}, X, deterministic=True)
    np.testing.assert_allclose(predict_outputs(model, X), expected, rtol=1e-5, atol=1e-6)


def test_functions_may_take_key_and_flag():
    def apply(params, x, *, key, training):
        noise = jax.random.normal(key, x.shape) if training else 0.0
        return (x + noise) @ params

    model = from_functions(lambda key, x: jnp.ones((4, 2)), apply)
    functional = functionalize(model, X, key())
    plain, _ = functional.apply(functional.params, {}, X, key=None, train=False)
    noisy, _ = functional.apply(functional.params, {}, X, key=key(), train=True)
    np.testing.assert_allclose(plain, X @ np.ones((4, 2)), rtol=1e-6)
    assert (plain != noisy).any()


@pytest.mark.parametrize(
    ('thing', 'says'),
    [
        (nn.Dense(3), 'from_linen'),
        ((init_mlp, apply_mlp), 'from_functions'),
        (Tied, 'an instance'),
        ('resnet50', 'builtins.str'),
    ],
)
def test_the_error_for_other_objects_says_how_to_wrap_them(thing, says):
    with pytest.raises(ModelTypeError, match=says):
        functionalize(thing, X, key())


def test_adapters_refuse_other_objects():
    with pytest.raises(ModelTypeError, match=r'module: got .*Linear'):
        from_linen(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ModelTypeError, match='apply: got int'):
        from_functions(init_mlp, 3)


def test_num_outputs_compiles_nothing_and_explains(count_compiles):
    model = from_linen(nn.Dense(5))
    assert count_compiles(num_outputs, model, X) == 0
    assert num_outputs(model, X) == 5
    assert num_outputs(from_functions(lambda key, x: 0, lambda params, x: x[:, 0]), X) == 1
    assert model.variables is None
    with pytest.raises(DataError, match=r'X_train: got rows of \(4,\) float32'):
        num_outputs(mlp(7, 3), X)
    with pytest.raises(DataError, match='X_train: got rows of'):
        num_outputs(mlp(2, 2), X[:2, 0])  # one number per row is not a row of two
    with pytest.raises(DataError, match=r'returns shape \(rows, 4, 1\)'):
        num_outputs(from_functions(lambda key, x: 0, lambda params, x: x[..., None]), X)
    with pytest.raises(ModelTypeError, match='returns a tuple'):
        num_outputs(from_functions(lambda key, x: 0, lambda params, x: (x, x)), X)
    with pytest.raises(ModelTypeError, match='TracerBoolConversionError'):
        num_outputs(from_functions(lambda key, x: 0, lambda params, x: x if x[0, 0] else -x), X)


@pytest.mark.parametrize('num_rows', [1, 15, 16, 17, 3000])
def test_predict_outputs_any_number_of_rows(num_rows):
    x = np.random.default_rng(1).normal(size=(num_rows, 4)).astype(np.float32)
    model = mlp(4, 3)
    np.testing.assert_allclose(predict_outputs(model, x), model(x), rtol=1e-5, atol=1e-6)


def test_a_model_is_functionalized_once_for_many_calls(monkeypatch):
    model, x = mlp(4, 3), np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    expected = predict_outputs(model, x)
    predict = make_predict(model, x)
    monkeypatch.setattr(forward, 'functionalize', None)
    for rows in (slice(0, 1), slice(3, 40), slice(0, 100)):
        np.testing.assert_allclose(predict(x[rows]), expected[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('activation', 'found'),
    [
        (nnx.sigmoid, 'sigmoid'),
        (nnx.softmax, 'softmax'),
        (lambda x: nnx.sigmoid(x)[:, 0], None),
        (lambda x: nnx.sigmoid(x).squeeze(), 'sigmoid'),
        (nnx.relu, None),
        (nnx.log_softmax, None),
        (lambda x: x / 2, None),
        (lambda x: x, None),
    ],
)
def test_the_last_activation(activation, found):
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.sigmoid, activation)
    if found is None and activation is not nnx.relu:
        model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), activation)
    assert last_activation(model, X) == found


def test_predicting_a_few_rows_runs_a_few_rows(monkeypatch):
    seen = []

    def apply(params, x):
        seen.append(len(x))
        return x

    model = from_functions(lambda key, x: {}, apply, {})
    outputs = predict_outputs(model, X[:5])
    np.testing.assert_array_equal(outputs, X[:5])
    assert set(seen) == {8}


def test_settings_changed_in_place_are_seen():
    class Scaled(nnx.Module):
        def __init__(self):
            self.settings = {'scale': 1.0}
            self.bias = nnx.Param(jnp.zeros(()))

        def __call__(self, x):
            return x * self.settings['scale'] + self.bias

    model = Scaled()
    np.testing.assert_allclose(predict_outputs(model, X), X)
    model.settings['scale'] = 3.0
    np.testing.assert_allclose(predict_outputs(model, X), 3 * X, rtol=1e-6)


class Scaled(nnx.Module):
    """A model that counts how often it is traced."""

    traces = 0

    def __init__(self, scale):
        self.scale = scale
        self.layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        Scaled.traces += 1
        factor = self.scale['factor'] if isinstance(self.scale, dict) else self.scale
        return self.layer(x) * factor


def traces(function, *arguments):
    before = Scaled.traces
    function(*arguments)
    return Scaled.traces - before


def test_models_of_one_structure_are_traced_once():
    assert traces(num_outputs, Scaled(2.0), X) == 1
    assert traces(num_outputs, Scaled(2.0), X[:2]) == 0
    assert traces(num_outputs, Scaled(3.0), X) == 1
    assert traces(num_outputs, Scaled(2.0), X.astype(np.float16)) == 1
    with jax.default_matmul_precision('float32'):
        assert traces(num_outputs, Scaled(2.0), X) == 1


def test_a_model_that_fails_is_traced_each_time():
    def fail():
        with pytest.raises(DataError, match='which the model can not take'):
            num_outputs(Scaled(2.0), X[:, :3])

    assert [traces(fail), traces(fail)] == [1, 1]


def test_the_caches_keep_no_part_of_a_model_alive():
    model = mlp(4, 3)
    record, layer = record_to_change(model), model.layers[0]
    record.config = {'of': 'the first'}
    num_outputs(model, X)
    held = [weakref.ref(kept) for kept in (layer, layer.kernel.get_raw_value(), record)]
    del model, record, layer
    gc.collect()
    assert [ref() for ref in held] == [None] * 3


def test_models_with_equal_settings_do_not_share_them():
    one, two = Scaled({'factor': 2.0}), Scaled({'factor': 2.0})
    expected = predict_outputs(two, X)
    predict_one, predict_two = make_predict(one, X), make_predict(two, X)
    one.scale['factor'] = 30.0  # before the programs for one row are traced
    np.testing.assert_allclose(predict_two(X[:1]), expected[:1], rtol=1e-6)
    np.testing.assert_allclose(predict_one(X[:1]), 15 * expected[:1], rtol=1e-6)


def test_values_sown_by_earlier_calls_are_not_state():
    class Sowing(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            self.seen = nnx.Intermediate((*getattr(self, 'seen', ()), x))
            return self.out(x)

    model = Sowing()
    model(X)
    functional = functionalize(model, X, key())
    _, state = functional.apply(functional.params, functional.model_state, X, key=key(), train=True)
    assert state == functional.model_state == {}


# --- inputs by keyword ------------------------------------------------------------------------


class Masked(nnx.Module):
    def __call__(self, tokens, mask=None, *, train=False):
        return tokens.sum(-1) if mask is None else (tokens * mask).sum(-1)


class MaskedLinen(nn.Module):
    @nn.compact
    def __call__(self, tokens, mask=None):
        return Masked()(tokens, mask)


def call(model, x):
    functional = functionalize(model, x, jax.random.key(0))
    outputs, _ = functional.apply(
        functional.params, functional.model_state, x, key=None, train=False
    )
    return outputs.tolist()


@pytest.mark.parametrize(
    'make',
    [
        Masked,
        lambda: from_linen(MaskedLinen()),
        lambda: from_functions(
            lambda key, tokens, mask=None: {},
            lambda params, tokens, mask=None: Masked()(tokens, mask),
        ),
    ],
    ids=['nnx', 'linen', 'functions'],
)  # fmt: skip
def test_a_dict_is_passed_by_keyword_if_its_names_are_parameters(make):
    tokens, mask = np.float32([[1, 2], [3, 4]]), np.float32([[1, 0], [1, 1]])
    assert call(make(), {'tokens': tokens, 'mask': mask}) == [1, 7]
    assert call(make(), {'tokens': tokens}) == [3, 7]
    assert call(make(), tokens) == [3, 7]


def test_other_names_are_passed_as_a_dict():
    class Dict(nnx.Module):
        def __call__(self, x, scale=None):
            return x['a'] + x['scale']

    assert call(Dict(), {'a': np.ones(2, np.float32), 'scale': np.ones(2, np.float32)}) == [2, 2]


# --- models that draw when they predict -------------------------------------------------------


class Noisy(nnx.Module):
    """Adds noise in every mode; a stream of its own, an argument, or none."""

    def __init__(self, stream):
        self.stream = nnx.Rngs(0) if stream else None
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x, rngs=None):
        key = (self.stream or rngs).noise()
        return self.dropout(x) + jax.random.normal(key, x.shape)


@pytest.mark.parametrize('stream', [True, False])
def test_each_row_has_its_own_draws(stream):
    x = np.zeros((64, 3), np.float32)
    model = Noisy(stream)
    found = predict_outputs(model, x)
    assert len(np.unique(found)) == found.size
    for size in (1, 16, 64):
        np.testing.assert_allclose(predict_outputs(model, x, batch_size=size), found, atol=1e-6)
    np.testing.assert_allclose(make_predict(model, x[:5])(x[:5], 7), found[7:12], atol=1e-6)
    assert np.abs(predict_outputs(model, x, seed=1) - found).min() > 0


def test_models_without_draws_are_computed_in_batches(monkeypatch):
    def refuse(*_):
        raise AssertionError('it draws nothing')

    monkeypatch.setattr(forward, '_drawn_outputs', refuse)
    x = np.ones((5, 3), np.float32)
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    assert predict_outputs(model, x).shape == (5, 2)
