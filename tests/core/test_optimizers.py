import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from thinkml.core.model.adapters import from_linen
from thinkml.core.model.functional import functionalize
from thinkml.core.train.hyperparameters import (
    get_learning_rate,
    scale_learning_rate,
    set_hyperparams,
    set_learning_rate,
)
from thinkml.core.train.optimizers import OPTIMIZERS, decay_mask, make_optimizer
from thinkml.core.train.schedules import SCHEDULES
from thinkml.errors import ConfigError

# Rates at which 300 steps suffice; all others train at 0.05.
RATES = {'adadelta': 20.0, 'adagrad': 0.5, 'lars': 20.0, 'lion': 0.02, 'radam': 0.1}
# The optax optimizer of each name, without weight decay.
PLAIN = {
    'adamaxw': functools.partial(optax.adamaxw, weight_decay=0.0),
    'adamw': functools.partial(optax.adamw, weight_decay=0.0),
    'lion': functools.partial(optax.lion, weight_decay=0.0),
    'momentum': functools.partial(optax.sgd, momentum=0.9),
    'muon': optax.contrib.muon,
    'nadamw': functools.partial(optax.nadamw, weight_decay=0.0),
    'nesterov': functools.partial(optax.sgd, momentum=0.9, nesterov=True),
}


def make_params():
    values = np.random.default_rng(0).normal(size=12).astype(np.float32)
    return {
        'layers': {
            0: {'kernel': jnp.array(values.reshape(3, 4))},
            1: {'kernel': jnp.array(values.reshape(1, 2, 2, 3)), 'bias': jnp.array(values[:5])},
        }
    }


MASK = {'layers': {0: {'kernel': True}, 1: {'kernel': True, 'bias': False}}}


def loss(params):
    """Returns a quadratic loss whose curvature differs by a factor of 9 between directions."""
    return sum(
        ((np.linspace(1.0, 3.0, leaf.size, dtype=np.float32) * (leaf.ravel() - 1.3)) ** 2).sum()
        for leaf in jax.tree.leaves(params)
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def descend(tx, params, opt_state, num_steps):
    def body(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), (params, get_learning_rate(opt_state))

    return jax.lax.scan(body, (params, opt_state), None, num_steps)


def descent(tx, num_steps=6, **numbers):
    """Returns the parameters after every step."""
    params = make_params()
    opt_state = tx.init(params)
    opt_state = set_hyperparams(opt_state, **numbers) if numbers else opt_state
    return jax.device_get(descend(tx, params, opt_state, num_steps)[1][0])


@functools.partial(jax.jit, static_argnums=(0, 3))
def descend_together(transformations, params, states, num_steps):
    ends = zip(transformations, states, strict=True)
    return [descend(tx, params, state, num_steps)[1][0] for tx, state in ends]


def descents(ours, theirs, num_steps=6, **numbers):
    """Returns two optimizers' parameters after every step; ThinkML's gets its hyperparameters."""
    params = make_params()
    states = set_hyperparams(ours.init(params), **numbers), theirs.init(params)
    return jax.device_get(descend_together((ours, theirs), params, states, num_steps))


def assert_close(one, two, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, two)


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_name_is_optaxs_optimizer_and_minimises_a_convex_function(name):
    rate = RATES.get(name, 0.05)
    theirs = (PLAIN.get(name) or getattr(optax, name))(rate)
    ours, theirs = descents(make_optimizer(name), theirs, 300, learning_rate=rate, weight_decay=0.0)
    first, last = (jax.tree.map(lambda leaf, at=at: leaf[at], ours) for at in (slice(20), -1))
    assert_close(first, jax.tree.map(lambda leaf: leaf[:20], theirs), rtol=1e-4)
    assert loss(last) < 0.02 * loss(jax.device_get(make_params()))


@pytest.mark.parametrize('name', ['adamw', 'adamaxw', 'nadamw', 'lion'])
def test_those_that_decay_by_default_keep_optaxs_number_but_not_for_biases(name):
    expected = getattr(optax, name)(0.5, mask=MASK)
    assert_close(*descents(make_optimizer(name), expected, learning_rate=0.5))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('adamw', optax.adamw(0.05, weight_decay=0.3, mask=MASK)),
        ('adam', optax.adamw(0.05, weight_decay=0.3, mask=MASK)),
        ('lion', optax.lion(0.05, weight_decay=0.3, mask=MASK)),
        ('lamb', optax.lamb(0.05, weight_decay=0.3, mask=MASK)),
        ('lars', optax.lars(0.05, weight_decay=0.3, weight_decay_mask=MASK)),
        (
            'momentum',
            optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.3, MASK), optax.scale(-0.05)),
        ),
        (
            'muon',
            optax.contrib.muon(0.05, weight_decay=0.3, weight_decay_mask=decay_mask),
        ),
    ],
)
def test_weight_decay_is_decoupled_and_masked(name, expected):
    ours, theirs = descents(make_optimizer(name), expected, learning_rate=0.05, weight_decay=0.3)
    if name == 'muon':  # optax decays only the parameters that muon updates; ThinkML all kernels
        ours, theirs = (tree['layers'][0] for tree in (ours, theirs))
    assert_close(ours, theirs)


def test_all_at_once_equals_the_chain_written_by_hand():
    rate = optax.warmup_cosine_decay_schedule(0, 0.1, 4, 20)
    expected = optax.chain(
        optax.clip_by_global_norm(0.7),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.2, MASK),
        optax.scale_by_learning_rate(rate),
    )
    tx = make_optimizer('adam', schedule='warmup_cosine', clip_gradients=True)
    ours = descent(
        tx, 25, learning_rate=0.1, weight_decay=0.2, gradient_clip_norm=0.7, total_steps=20,
        warmup_steps=4,
    )  # fmt: skip
    assert_close(ours, descent(expected, 25))


def test_clipping_is_by_the_norm_of_all_gradients():
    tx = make_optimizer('sgd', clip_gradients=True)
    params = {'a': jnp.zeros(1), 'b': jnp.zeros((1, 1))}
    grads = {'a': jnp.full(1, 3.0), 'b': jnp.full((1, 1), 4.0)}
    for norm, expected in ((1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0])):
        state = set_hyperparams(tx.init(params), learning_rate=1.0, gradient_clip_norm=norm)
        updates, _ = jax.jit(tx.update)(grads, state, params)
        np.testing.assert_allclose([float(u.sum()) for u in updates.values()], expected, rtol=1e-6)


# --- the mask ---------------------------------------------------------------------------------


class AllLayers(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(10, 8, rngs=rngs)
        self.conv = nnx.Conv(8, 8, (3,), rngs=rngs)
        self.batch_norm = nnx.BatchNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, normalize_qk=True, rngs=rngs)
        self.layer_norm = nnx.LayerNorm(8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, x):
        x = self.batch_norm(self.conv(self.embed(x)))
        x = self.layer_norm(x + self.attention(x)).mean(axis=1)
        return self.layers[1](self.layers[0](x))


class LinenLayers(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (3,))(nn.Embed(10, 8)(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.LayerNorm()(nn.MultiHeadDotProductAttention(2)(x, x))
        return nn.Dense(3)(x.mean(axis=1))


TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6) % 10
KEY = jax.random.key(0)


@pytest.fixture(scope='module', params=['nnx', 'linen'])
def model_params(request):
    model = AllLayers(nnx.Rngs(0)) if request.param == 'nnx' else from_linen(LinenLayers())
    return jax.tree.map(lambda leaf: np.array(leaf) + 1, functionalize(model, TOKENS, KEY).params)


@functools.partial(jax.jit, static_argnums=0)
def first_update(tx, grads, params, numbers):
    state = tx.init(params)
    state = set_hyperparams(state, **numbers) if numbers else state
    return tx.update(grads, state, params)[0]


def test_kernels_and_embeddings_decay_norms_and_biases_do_not(model_params):
    zeros = jax.tree.map(np.zeros_like, model_params)
    numbers = {'learning_rate': 0.5, 'weight_decay': 0.1}
    updates = first_update(make_optimizer('sgd'), zeros, model_params, numbers)
    leaves = jax.tree_util.tree_leaves_with_path(model_params)
    seen = set()
    for (path, leaf), update in zip(leaves, jax.tree.leaves(updates), strict=True):
        name = path[-1].key
        decays = name in ('kernel', 'embedding')
        np.testing.assert_allclose(update, (-0.05 if decays else 0) * leaf, rtol=1e-6)
        seen.add(name)
    assert seen == {'kernel', 'embedding', 'bias', 'scale'}


@pytest.mark.parametrize(
    ('model_params', 'name'),
    [
        ('nnx', 'muon'),
        ('linen', 'adafactor'),
        pytest.param('linen', 'muon', marks=pytest.mark.slow),
        pytest.param('nnx', 'adafactor', marks=pytest.mark.slow),
    ],
    indirect=['model_params'],
)
def test_parameters_of_whole_models(model_params, name):
    grads = jax.tree.map(np.cos, model_params)
    expected = (PLAIN.get(name) or getattr(optax, name))(0.01)
    ours = first_update(make_optimizer(name), grads, model_params, {'learning_rate': 0.01})
    assert_close(ours, first_update(expected, grads, model_params, {}), rtol=1e-4)


# --- schedules --------------------------------------------------------------------------------

OPTAX_SCHEDULES = {
    'constant': lambda total: optax.constant_schedule(0.3),
    'cosine': lambda total: optax.cosine_decay_schedule(0.3, total),
    'linear': lambda total: optax.linear_schedule(0.3, 0.0, total),
    'exponential': lambda total: optax.exponential_decay(0.3, total, 0.01, end_value=0.003),
    'warmup_cosine': lambda total: optax.warmup_cosine_decay_schedule(0, 0.3, total // 20, total),
    'one_cycle': lambda total: optax.cosine_onecycle_schedule(total, 0.3),
}


@functools.cache
def schedule_of_ours(name):
    return jax.jit(jax.vmap(SCHEDULES[name], (0, None, None)))


TOTALS = [10, 207, *(pytest.param(n, marks=pytest.mark.slow) for n in (50, 1000, 12_345))]


@pytest.mark.parametrize('total', TOTALS)
@pytest.mark.parametrize('name', SCHEDULES)
def test_schedules_are_optaxs_at_every_step(name, total):
    steps = np.arange(max(total, 300) + 20)
    ours = 0.3 * np.asarray(schedule_of_ours(name)(steps, total, -1))
    theirs = jax.jit(jax.vmap(OPTAX_SCHEDULES[name](total)))(steps)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(('name', 'end'), [('cosine', 0.0), ('linear', 0.0), ('constant', 1.0)])
def test_any_schedule_can_have_a_warmup(name, end):
    rate = np.asarray(schedule_of_ours(name)(np.arange(101), 100, 10))
    np.testing.assert_allclose(rate[:11], np.arange(11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rate[-1], end, atol=1e-6)


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize(('total', 'warmup'), [(1, -1), (1, 0), (3, 3), (5, 9)])
def test_schedules_of_few_steps_stay_between_0_and_1(name, total, warmup):
    rate = np.asarray(schedule_of_ours(name)(np.arange(12), total, warmup))
    assert ((rate >= 0) & (rate <= 1)).all()


def test_the_rate_of_every_update_can_be_read_and_scaled():
    tx = make_optimizer('adam', schedule='linear')
    params = make_params()
    state = set_hyperparams(tx.init(params), learning_rate=0.2, total_steps=10)
    assert get_learning_rate(state) == 0
    (params, state), (_, rates) = descend(tx, params, state, 4)
    np.testing.assert_allclose(rates, [0.2, 0.18, 0.16, 0.14], rtol=1e-6)
    state = scale_learning_rate(scale_learning_rate(state, 0.5), 0.5)
    (params, state), (_, rates) = descend(tx, params, state, 4)
    np.testing.assert_allclose(rates, [0.03, 0.025, 0.02, 0.015], rtol=1e-5)
    assert get_learning_rate(state) == rates[-1]


def test_a_schedule_of_ones_own_gives_the_rate():
    schedule = optax.piecewise_constant_schedule(0.1, {3: 0.1})
    tx = make_optimizer('adam', schedule=schedule)
    assert_close(descent(tx), descent(optax.adam(schedule)))
    with pytest.raises(ConfigError, match='learning_rate: this optimizer has its own built in'):
        set_learning_rate(tx.init(make_params()), 0.1)
    _, (_, rates) = descend(tx, make_params(), scale_learning_rate(tx.init(make_params()), 0.5), 6)
    np.testing.assert_allclose(rates, [0.05] * 3 + [0.005] * 3, rtol=1e-6)


# --- custom optimizers ------------------------------------------------------------------------


def test_a_function_of_the_learning_rate_gets_ours():
    optimizer = functools.partial(optax.sgd, momentum=0.8)
    tx = make_optimizer(optimizer, schedule='cosine')
    rate = optax.cosine_decay_schedule(0.02, 10)
    ours = descent(tx, learning_rate=0.02, total_steps=10)
    assert_close(ours, descent(optax.sgd(rate, momentum=0.8)))
    decayed = descent(make_optimizer(optax.adam), learning_rate=0.05, weight_decay=0.3)
    assert_close(decayed, descent(optax.adamw(0.05, weight_decay=0.3, mask=MASK)))


def test_a_transformation_is_used_as_it_is():
    theirs = optax.sgd(0.02, momentum=0.8)
    assert make_optimizer(theirs) is theirs
    clipped = make_optimizer(theirs, clip_gradients=True)
    expected = optax.chain(optax.clip_by_global_norm(0.5), theirs)
    assert_close(descent(clipped, gradient_clip_norm=0.5), descent(expected))
    assert get_learning_rate(clipped.init(make_params())) is None
    assert get_learning_rate(theirs.init(make_params())) is None
    for name in ('learning_rate', 'weight_decay', 'total_steps', 'learning_rate_scale'):
        for tx in (theirs, clipped):
            with pytest.raises(ConfigError, match=f'^{name}: this optimizer'):
                set_hyperparams(tx.init(make_params()), **{name: 1})
    with pytest.raises(ConfigError, match=r'^learning_rate_scale: this optimizer has its'):
        scale_learning_rate(clipped.init(make_params()), 0.5)


def test_a_rate_injected_by_optax_can_be_set_and_read():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    assert_close(descent(tx, learning_rate=0.02), descent(optax.sgd(0.02)))
    assert get_learning_rate(set_learning_rate(tx.init(make_params()), 0.25)) == 0.25


@dataclasses.dataclass
class Unhashable:
    rate: float

    def __call__(self, step):
        return self.rate


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({'optimizer': 'adamm'}, "optimizer: got 'adamm', .* Did you mean 'adam'?"),
        ({'optimizer': 3}, 'optimizer: got 3, expected a name'),
        ({'optimizer': None}, 'optimizer: got None, expected a name'),
        ({'optimizer': optax.identity}, 'optimizer: called with a learning rate, .*failed'),
        ({'optimizer': lambda rate: rate}, 'returned a float, expected an optax'),
        ({'optimizer': Unhashable(1)}, r'optimizer: got a Unhashable without.*frozen=True'),
        ({'schedule': 'cosin'}, "schedule: got 'cosin', .* Did you mean 'cosine'?"),
        ({'schedule': 0.1}, 'schedule: got 0.1, expected a name'),
        ({'schedule': Unhashable(1)}, 'schedule: got a Unhashable without'),
        ({'schedule': lambda step: jnp.ones(2)}, r'schedule: it returned shape \(2,\)'),
        ({'schedule': lambda step: 0.1 if step < 3 else 0.0}, 'schedule: .*TracerBool.*jnp.where'),
        ({'optimizer': optax.sgd(0.1), 'schedule': 'cosine'}, "schedule: got 'cosine' with an"),
    ],
)
def test_what_can_not_be_an_optimizer(arguments, says):
    with pytest.raises(ConfigError, match=f'(?s)^{says}' if ':' in says[:10] else says):
        make_optimizer(**arguments)


def test_numbers_that_are_not_there():
    state = make_optimizer('adam').init(make_params())
    with pytest.raises(ConfigError, match=r"got 'weight_decey', .*Did you mean 'weight_decay'"):
        set_hyperparams(state, weight_decey=0.1)
    with pytest.raises(ConfigError, match=r'gradient_clip_norm: .*clip_gradients=True'):
        set_hyperparams(state, gradient_clip_norm=1.0)
    with pytest.raises(ConfigError, match='total_steps: not set'):
        descent(make_optimizer('adam', schedule='cosine'))
    with pytest.raises(ConfigError, match='gradient_clip_norm: not set'):
        descent(make_optimizer('adam', clip_gradients=True))
    assert set_hyperparams(state, learning_rate=None, weight_decay=None) is state


# --- optimizers by pattern --------------------------------------------------------------------

LABELS = {'layers': {0: {'kernel': 'a'}, 1: {'kernel': 'b', 'bias': 'c'}}}
PATTERNS = {'layers/0/.*': 'adamw', '.*/bias': optax.sgd(0.1), '.*': 'momentum'}


def test_patterns_share_the_schedule_the_scale_and_the_norm_and_have_their_own_numbers():
    cosine = functools.partial(optax.cosine_decay_schedule, decay_steps=10)
    expected = optax.chain(
        optax.clip_by_global_norm(0.7),
        optax.multi_transform(
            {
                'a': optax.adamw(cosine(0.04), weight_decay=0.2),
                'b': optax.chain(
                    optax.trace(0.9),
                    optax.add_decayed_weights(0.3),
                    optax.scale_by_learning_rate(cosine(0.01)),
                ),
                'c': optax.sgd(0.1),
            },
            LABELS,
        ),
    )
    tx = make_optimizer(PATTERNS, schedule='cosine', clip_gradients=True)
    ours, theirs = descents(
        tx, expected, learning_rate=0.02, learning_rate_scale=0.5, weight_decay=0.3,
        group_learning_rates=[0.08, 0, -1], group_weight_decays=[0.2, 0, -1],
        gradient_clip_norm=0.7, total_steps=10,
    )  # fmt: skip
    assert_close(ours, theirs, rtol=1e-6)


def test_the_decay_of_a_pattern_is_that_of_its_optimizer_by_default():
    expected = optax.multi_transform(
        {'a': optax.adamw(0.02), 'b': optax.sgd(0.02, momentum=0.9), 'c': optax.sgd(0.1)}, LABELS
    )
    assert_close(*descents(make_optimizer(PATTERNS), expected, learning_rate=0.02), rtol=1e-6)


def test_the_rate_of_a_pattern_stays_beside_a_schedule_of_ones_own():
    schedule = optax.piecewise_constant_schedule(0.1, {3: 0.1})
    tx = make_optimizer({'layers/0/.*': 'sgd', '.*': 'adam'}, schedule=schedule)
    both = {'a': optax.sgd(0.03), 'b': optax.adam(schedule), 'c': optax.adam(schedule)}
    expected = optax.multi_transform(both, LABELS)
    assert_close(*descents(tx, expected, group_learning_rates=[0.03, -1]), rtol=1e-6)
    state = set_hyperparams(tx.init(make_params()), group_learning_rates=[0.03, -1])
    _, (_, rates) = descend(tx, make_params(), state, 6)
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.01] * 3, rtol=1e-6)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_name_trains_some_of_the_parameters(name):
    params = jax.eval_shape(make_params)
    tx = make_optimizer({'layers/1/.*': name, '.*': optax.sgd(0.1)})
    state = jax.eval_shape(tx.init, params)
    alone = jax.eval_shape(make_optimizer(name).init, params['layers'][1])
    shapes = [
        sorted(leaf.shape for leaf in jax.tree.leaves(tree))
        for tree in (state.inner_state.inner_states[0], alone.inner_state)
    ]
    assert shapes[0] == shapes[1]
    assert jax.eval_shape(tx.update, params, state, params) == (params, state)


def test_patterns_of_transformations_alone_are_a_transformation():
    tx = make_optimizer({'.*/bias': optax.sgd(0.1), '.*': optax.adam(0.1)})
    labels = jax.tree.map(lambda label: 'c' if label == 'c' else 'a', LABELS)
    expected = optax.multi_transform({'c': optax.sgd(0.1), 'a': optax.adam(0.1)}, labels)
    assert_close(descent(tx), descent(expected), rtol=1e-6)
    assert get_learning_rate(tx.init(make_params())) is None
    with pytest.raises(ConfigError, match=r'^group_learning_rates: this optimizer has no'):
        set_hyperparams(make_optimizer('adam').init(make_params()), group_learning_rates=[1.0])


# --- compiled programs ------------------------------------------------------------------------


def test_other_numbers_need_no_other_program(count_compiles):
    def run(**numbers):
        tx = make_optimizer('adamw', schedule='warmup_cosine', clip_gradients=True)
        state = initialise(tx, make_params(), numbers)
        return jax.block_until_ready(descend(tx, make_params(), state, 5)[0][0])

    first = {'learning_rate': 0.1, 'weight_decay': 0.1, 'gradient_clip_norm': 1.0}
    one = run(**first, total_steps=10, warmup_steps=2)
    others = {'learning_rate': 0.2, 'weight_decay': 0.0, 'gradient_clip_norm': 5.0}
    assert count_compiles(run, **others, total_steps=999, warmup_steps=7) == 0
    two = run(**others, total_steps=999, warmup_steps=7)
    one, two = (np.asarray(params['layers'][1]['bias']) for params in (one, two))
    assert (one != two).all()


@functools.partial(jax.jit, static_argnums=0)
def initialise(tx, params, numbers):
    return set_hyperparams(tx.init(params), **numbers)


def test_equal_arguments_return_the_same_object():
    optimizer = functools.partial(optax.sgd, momentum=0.8)
    schedule = optax.cosine_decay_schedule(0.1, 10)
    theirs = optax.sgd(0.1)
    for arguments in (
        {'optimizer': 'adam'},
        {'optimizer': 'adam', 'schedule': 'cosine', 'clip_gradients': True},
        {'optimizer': optimizer, 'schedule': schedule},
        {'optimizer': theirs, 'clip_gradients': True},
        {'optimizer': {'a': 'adam', '.*': theirs}},
        {'optimizer': {'a': theirs, '.*': theirs}},
    ):
        assert make_optimizer(**arguments) is make_optimizer(**arguments)
    assert make_optimizer('adam') is make_optimizer('adam', schedule='constant')
    assert make_optimizer('adam') is not make_optimizer('adam', schedule='linear')
    assert make_optimizer({'.*': 'adam'}) is not make_optimizer({'a': 'adam'})
    assert hash(make_optimizer('adam')) == hash(make_optimizer())


NUMBERS = {'learning_rate': 0.1, 'weight_decay': 0.1, 'gradient_clip_norm': 0.1, 'total_steps': 9}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_the_state_is_arrays_in_buffers_of_their_own(name):
    params = make_params()
    same = jnp.float32(0.1)  # passed twice
    numbers = NUMBERS | {'learning_rate': same, 'weight_decay': same}
    state = make_optimizer(name, clip_gradients=True).init(params)
    state = set_hyperparams(state, **numbers)
    leaves = jax.tree.leaves((params, state, same))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert not any(leaf.weak_type for leaf in leaves)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.parametrize('name', ['adam', 'adafactor', 'muon'])
def test_the_state_can_be_donated_and_keeps_its_shapes(name):
    tx = make_optimizer(name, schedule='one_cycle', clip_gradients=True)
    params = make_params()
    state = set_hyperparams(tx.init(params), **NUMBERS)
    shapes = jax.tree.map(jnp.shape, state), jax.tree.map(jnp.result_type, state)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    expected = descent(tx, 2, **NUMBERS)
    for _ in range(2):
        params, state = step(params, state)
    assert_close(params, jax.tree.map(lambda leaf: leaf[-1], expected))
    assert shapes == (jax.tree.map(jnp.shape, state), jax.tree.map(jnp.result_type, state))


def test_states_of_many_rates_train_side_by_side():
    tx = make_optimizer('adamw', schedule='cosine', clip_gradients=True)
    rates = [0.01, 0.1]
    one_by_one = [descent(tx, **NUMBERS | {'learning_rate': rate}) for rate in rates]
    params = jax.tree.map(lambda leaf: np.stack([leaf] * 2), make_params())
    state = set_hyperparams(jax.jit(jax.vmap(tx.init))(params), learning_rate=np.array(rates))
    state = set_hyperparams(state, weight_decay=0.1)
    assert state.hyperparams['weight_decay'].shape == (2,)
    steps = jnp.full(2, 9)
    state = set_hyperparams(state, total_steps=steps, gradient_clip_norm=jnp.full(2, 0.1))
    side_by_side = jax.jit(jax.vmap(lambda p, s: descend(tx, p, s, 6)[1][0]))(params, state)
    assert_close(side_by_side, jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one))
