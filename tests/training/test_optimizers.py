"""Optax transformations that need the loss, and optimizers by the paths of parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from tests.models_for_tests import DropoutBatchNorm, mlp
from thinkml.errors import ConfigError
from thinkml.model_record import record_of
from thinkml.models import ModelManager, from_functions, from_linen, predict_proba
from thinkml.training import (
    CrossEntropy,
    ModelTrainer,
    Objective,
    TrainingConfig,
    TransferLearner,
    load_checkpoint,
)

ROWS = 24
SETTINGS = {'epochs': 6, 'batch_size': ROWS}  # one batch is all rows: their order plays no part
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
Y = X[:, :3].argmax(1)


def train(model=None, *, loss_fn=None, metrics=None, resume=False, progress=False, **settings):
    """Trains a model, and returns it with its history."""
    model = mlp(4, 3, hidden=8) if model is None else model
    trainer = ModelTrainer(TrainingConfig(**SETTINGS | settings))
    history = trainer.train(
        model, X, Y, loss_fn=loss_fn, metrics=metrics, resume=resume, progress=progress
    )
    return model, history


def params_of(model):
    return jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def by_hand(tx, num_steps=SETTINGS['epochs'], takes_loss=False, penalty=lambda params: 0.0):
    """Returns the parameters and the losses of a loop written by hand."""
    graph, params = nnx.split(mlp(4, 3, hidden=8), nnx.Param)
    params = nnx.to_pure_dict(params)
    state, losses = tx.init(params), []

    @jax.jit
    def step(params, state):
        def loss_of(params):
            logits = nnx.merge(graph, params)(X)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()
            return loss + penalty(params), loss

        (_, loss), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        more = {'value': loss} if takes_loss else {}
        updates, state = tx.update(grads, state, params, **more)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(num_steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, losses


def assert_close(a, b, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=atol), a, b)


# --- transformations that need more than gradients ---------------------------------------------


def test_a_transformation_that_needs_the_loss_gets_it():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0)
    tx = optax.chain(optax.polyak_sgd(max_learning_rate=0.5), plateau)
    model, history = train(optimizer=tx)
    params, losses = by_hand(tx, takes_loss=True)
    np.testing.assert_allclose(history['loss'], losses, atol=1e-6)
    assert_close(params_of(model), params)


@pytest.mark.parametrize(
    ('optimizer', 'missing'),
    [
        (optax.lbfgs(), "'value' and 'grad' and 'value_fn'"),
        (optax.lbfgs, "'value' and 'grad' and 'value_fn'"),
        (optax.chain(optax.polyak_sgd(), optax.scale_by_zoom_linesearch(5)), "'grad' and 'value_"),
        (optax.masked(optax.lbfgs(), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
         "'value_fn'"),
    ],
    ids=['lbfgs', 'function', 'chain', 'masked'],
)  # fmt: skip
def test_a_line_search_is_refused_by_the_config(optimizer, missing):
    with pytest.raises(ConfigError, match=rf'(?s)optimizer: its update needs .*{missing}.*linesea'):
        TrainingConfig(optimizer=optimizer)


@pytest.mark.parametrize(
    ('tx', 'says'),
    [
        # The masks fit this model alone, so that the config can not know of the first.
        (lambda mask: optax.masked(optax.lbfgs(), mask), "its update needs 'value' and 'grad'"),
        (lambda mask: optax.masked(optax.sgd(0.1), {'layers': mask}), 'failed with ValueError'),
        (lambda mask: optax.contrib.sophia(0.1), 'obj_fn must be provided'),
    ],
    ids=['lbfgs', 'another mask', 'no function'],
)
def test_what_fails_for_the_parameters_is_told_before_a_compile(tx, says, count_compiles):
    model = mlp(4, 3, hidden=8)
    mask = jax.tree.map(lambda _: True, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    config = TrainingConfig(optimizer=tx(mask), **SETTINGS)

    def refused():
        with pytest.raises(ConfigError, match=f'^optimizer: .*{says}'):
            ModelTrainer(config).train(model, X, Y, progress=False)

    assert count_compiles(refused) == 0


def test_a_transformation_that_takes_no_further_arguments_gets_none():
    sharpness_aware = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01))
    model, _ = train(optimizer=sharpness_aware)
    assert_close(params_of(model), by_hand(sharpness_aware)[0])


# --- optimizers by the paths of parameters -----------------------------------------------------

PATTERNS = {
    'layers/2/kernel': 'frozen',
    '.*/kernel': {'optimizer': 'adamw', 'learning_rate': 0.3, 'weight_decay': 0.1},
    'layers/2/.*': optax.sgd(0.2),
    '.*': 'momentum',
}
OF_PATTERNS = {'optimizer': PATTERNS, 'learning_rate': 0.1, 'gradient_clip_norm': 0.3}


def partition():
    """Returns the optimizer of the settings above with a cosine schedule, as optax has it."""
    labels = {'layers': {0: {'bias': 'd', 'kernel': 'b'}, 2: {'bias': 'c', 'kernel': 'a'}}}
    cosine = functools.partial(optax.cosine_decay_schedule, decay_steps=SETTINGS['epochs'])
    frozen = jax.tree.map(lambda label: label == 'a', labels)
    return optax.chain(
        optax.masked(optax.set_to_zero(), frozen),  # before the norm is computed
        optax.clip_by_global_norm(0.3),
        optax.multi_transform(
            {
                'a': optax.set_to_zero(),
                'b': optax.adamw(cosine(0.3), weight_decay=0.1),
                'c': optax.sgd(0.2),
                'd': optax.sgd(cosine(0.1), momentum=0.9),
            },
            labels,
        ),
    )


@pytest.fixture(scope='module')
def trained():
    return train(**OF_PATTERNS, lr_schedule='cosine', callbacks=['lr_monitor'])


def test_they_are_the_partition_written_by_hand(trained):
    model, history = trained
    params, losses = by_hand(partition())
    np.testing.assert_allclose(history['loss'], losses, atol=1e-6)
    assert_close(params_of(model), params)
    # The rate of the config, which the last pattern follows.
    rates = [0.1 * (1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    np.testing.assert_allclose(history['learning_rate'], rates, rtol=1e-5)


def test_frozen_parameters_have_no_updates_no_gradients_and_no_optimizer_state(trained):
    model, history = trained
    before = params_of(mlp(4, 3, hidden=8))
    np.testing.assert_array_equal(model.layers[2].kernel[...], before['layers'][2]['kernel'])
    names = [name.split('layers/')[-1] for name in record_of(model).optimizer if 'layers' in name]
    assert sorted(names) == ['0/bias', '0/kernel', '0/kernel']  # adamw has two arrays, sgd none

    @jax.jit
    def gradient_norm(last):
        return optax.tree.norm(jax.grad(loss_of)(last))

    def loss_of(last):
        params = before | {'layers': {**before['layers'], 2: last}}
        logits = nnx.merge(nnx.graphdef(mlp(4, 3, hidden=8)), params)(X)
        return optax.softmax_cross_entropy_with_integer_labels(logits, Y).mean()

    _, history = train(optimizer={'layers/0/.*': 'frozen', '.*': 'sgd'}, metrics=['grad_norm'])
    expected = float(gradient_norm(before['layers'][2]))
    assert history['grad_norm'][0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('numbers', [{}, {'weight_decay': 0.5}], ids=['defaults', 'decay'])
def test_a_pattern_for_all_parameters_is_the_optimizer_itself(numbers):
    settings = {'learning_rate': 0.05, 'lr_schedule': 'reduce_on_plateau', **numbers}
    model, history = train(optimizer={'.*': 'adamw'}, **settings)
    expected, expected_history = train(optimizer='adamw', **settings)
    assert history == expected_history
    assert_close(params_of(model), params_of(expected), atol=0)


def test_other_numbers_compile_nothing(trained, count_compiles):
    again = PATTERNS['.*/kernel'] | {'learning_rate': 0.1, 'weight_decay': 0.0}
    settings = OF_PATTERNS | {'optimizer': PATTERNS | {'.*/kernel': again}, 'learning_rate': 0.2}
    more = {'lr_schedule': 'cosine', 'callbacks': ['lr_monitor']}
    assert count_compiles(train, **settings, **more) == 0
    followed = OF_PATTERNS | {'optimizer': PATTERNS | {'.*/kernel': 'adamw'}}
    assert count_compiles(train, **followed, **more) == 0


def test_the_run_says_how_many_parameters_each_pattern_has(capsys):
    train(**OF_PATTERNS, epochs=1, progress=True)
    assert capsys.readouterr().err.splitlines()[:5] == [
        'multiclass, 3 classes (0, 1, 2); 24 rows of 4 float32; 67 parameters; cross_entropy, '
        'optimizers by pattern; cpu',
        '  layers/2/kernel: 24 parameters, frozen',
        '  .*/kernel: 32 parameters, adamw 0.3, weight decay 0.1',
        '  layers/2/.*: 3 parameters, a custom optimizer',
        '  .*: 8 parameters, momentum 0.1',
    ]


def test_frozen_parameters_are_in_the_plan():
    config = TrainingConfig(optimizer={'layers/0/.*': 'frozen', '.*': 'adam'}, **SETTINGS)
    parts = {part.name: part.num_bytes for part in ModelTrainer(config).plan(mlp(4, 3), X, Y).parts}
    assert (parts['frozen parameters'], parts['parameters']) == (4 * 5 * 16, 4 * 17 * 3)


# --- what else a training does ------------------------------------------------------------------


def network():
    return DropoutBatchNorm(4, 3, nnx.Rngs(0))


FINE_TUNED = {
    'optimizer': {'hidden/.*': 'frozen', '.*/bias': optax.sgd(0.1, momentum=0.9), '.*': 'adam'},
    'lr_schedule': 'reduce_on_plateau', 'ema_decay': 0.9, 'batch_size': 4, 'accumulate_steps': 2,
    'learning_rate': 0.05, 'epochs': 4,
}  # fmt: skip


class Stop:
    def __init__(self, after):
        self.after = after

    def on_epoch_end(self, run):
        if run.epoch == self.after:
            run.stop('enough')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp('uninterrupted')
    saved = {'callbacks': ['checkpoint', Stop(None)], 'checkpoint_dir': directory}
    return (*train(network(), **FINE_TUNED, **saved), directory)


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(uninterrupted, tmp_path):
    model, history, _ = uninterrupted
    for after in (2, None):
        settings = {'callbacks': ['checkpoint', Stop(after)], 'checkpoint_dir': tmp_path}
        resume = False if after else 'continue'
        resumed, again = train(network(), resume=resume, **FINE_TUNED, **settings)
    assert again['loss'] == history['loss']
    assert_close(nnx.to_pure_dict(nnx.state(resumed, nnx.Param)), params_of(model), atol=0)


@pytest.mark.parametrize(
    'patterns',
    [
        {'.*/bias': 'frozen', 'hidden/.*': optax.sgd(0.1, momentum=0.9), '.*': 'adam'},
        {**FINE_TUNED['optimizer'], '.*': {'optimizer': 'adam', 'weight_decay': 0.1}},
    ],
    ids=['other patterns', 'decay'],
)
def test_a_run_of_other_patterns_is_another_one(uninterrupted, patterns):
    settings = FINE_TUNED | {'optimizer': patterns, 'checkpoint_dir': uninterrupted[2]}
    with pytest.raises(ConfigError, match=r'- optimizer: "\{\'hidden/\.\*\': \'frozen\', .* now'):
        train(network(), resume=True, callbacks=['checkpoint', Stop(None)], **settings)


def test_checkpoints_and_files_hold_all_parameters(uninterrupted, tmp_path):
    model, _, directory = uninterrupted
    other = network()
    nnx.update(other, jax.tree.map(jnp.zeros_like, nnx.state(other, nnx.Param)))
    loaded = load_checkpoint(directory, other, 'latest')
    np.testing.assert_array_equal(predict_proba(loaded, X), predict_proba(model, X))
    path = ModelManager().save_model(model, tmp_path / 'model', include_optimizer=True)
    loaded = ModelManager().load_model(path, include_optimizer=True)
    record_of(model).continues = True
    for one in (model, loaded):
        train(one, **FINE_TUNED | {'epochs': 1})
    assert_close(params_of(loaded), params_of(model), atol=0)


LINEN = linen.Sequential([linen.Dense(8), linen.BatchNorm(True), linen.Dense(3)])


@pytest.mark.parametrize('kind', ['linen', 'functions'])
def test_models_of_all_kinds(kind):
    shapes = jax.eval_shape(lambda: LINEN.init(jax.random.key(0), X))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), shapes)
    if kind == 'linen':
        model = from_linen(LINEN, variables)
    else:
        params = {0: jnp.ones((4, 3)), 1: [jnp.zeros(3)]}
        apply = lambda params, x: x @ params[0] + params[1][0]  # noqa: E731
        model = from_functions(lambda key, x: params, apply, params)
    arrays = lambda: model.variables if kind == 'linen' else model.params  # noqa: E731
    before = jax.device_get(arrays())
    frozen = 'layers_0/.*' if kind == 'linen' else '0'
    train(model, optimizer={frozen: 'frozen', '.*': 'adam'})
    is_same = jax.tree.map(lambda a, b: bool((a == b).all()), before, arrays())
    if kind == 'functions':
        assert is_same == {0: True, 1: [False]}
    else:
        layers = ('layers_0', True), ('layers_1', False), ('layers_2', False)
        trained = {name: dict.fromkeys(is_same['params'][name], same) for name, same in layers}
        assert is_same['params'] == trained


def test_a_frozen_last_layer_and_a_loss_in_chunks():
    settings = {'optimizer': {'layers/2/.*': 'frozen', '.*': 'sgd'}, 'learning_rate': 0.1}
    one, _ = train(**settings)
    other, _ = train(**settings, loss_fn=CrossEntropy(chunk=8))
    assert_close(params_of(one), params_of(other))
    before = params_of(mlp(4, 3, hidden=8))['layers'][2]
    assert_close(params_of(other)['layers'][2], before, atol=0)


def test_an_objective_calls_the_whole_model():
    def fn(model, batch, key):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(model.layers[2](nnx.relu(model.layers[0](batch.x))), batch.y)

    settings = {'optimizer': {'layers/2/.*': 'frozen', '.*': 'sgd'}, 'learning_rate': 0.1}
    one, _ = train(**settings)
    other, _ = train(**settings, loss_fn=Objective(fn))
    assert_close(params_of(one), params_of(other))


def test_callbacks_see_and_change_the_whole_model():
    def change(run):
        run.model.layers[0].bias[...] = run.model.layers[0].bias[...] + run.epoch

    patterns = {'layers/0/.*': 'frozen', '.*': 'sgd'}
    model, _ = train(optimizer=patterns, epochs=2, callbacks=[change])
    np.testing.assert_array_equal(model.layers[0].bias[...], np.full(8, 3.0, np.float32))


def test_the_rate_is_found_for_the_patterns_without_one():
    patterns = {'layers/0/.*': {'optimizer': 'sgd', 'learning_rate': 1e-3}, '.*': 'sgd'}
    _, history = train(optimizer=patterns, learning_rate='auto', callbacks=['lr_monitor'])
    assert history['learning_rate'][0] > 1e-3


def test_a_callback_assigns_the_rate_of_the_patterns_without_one():
    def assign(run):
        run.learning_rate = 0.5

    patterns = {'layers/0/.*': {'optimizer': 'sgd', 'learning_rate': 0.1}, '.*': 'sgd'}
    model, history = train(
        optimizer=patterns, learning_rate=0.2, epochs=2, callbacks=[assign, 'lr_monitor']
    )
    np.testing.assert_allclose(history['learning_rate'], [0.2, 0.5], rtol=1e-6)
    steps = optax.piecewise_constant_schedule(0.2, {1: 2.5})
    labels = {'layers': {0: 'a', 2: 'b'}}
    tx = optax.multi_transform({'a': optax.sgd(0.1), 'b': optax.sgd(steps)}, labels)
    assert_close(params_of(model), by_hand(tx, 2)[0])
    with pytest.raises(ConfigError, match=r'learning_rate: .* no pattern of the optimizer follows'):
        train(optimizer={'.*': {'optimizer': 'sgd', 'learning_rate': 0.1}}, callbacks=[assign])


# --- errors -------------------------------------------------------------------------------------

WRONG = [
    ({}, r"^  - optimizer: got an empty dict, expected patterns, such as \{'\.\*': 'adam'\}"),
    ({'[': 'adam'}, r"optimizer: got the pattern '\[', expected a regular expression"),
    ({3: 'adam'}, 'optimizer: got the pattern 3, expected a regular'),
    ({'a': 'adm'}, r"optimizer\['a'\]: got 'adm', expected one of .* Did you mean 'adam'"),
    ({'a': None}, r"optimizer\['a'\]: got None, .* pass 'frozen'"),
    ({'a': {'optimizer': 'adam', 'learningrate': 1}}, "got the key 'learningrate', .*'learning_ra"),
    ({'a': {'learning_rate': 1}}, r"optimizer\['a'\]: got no 'optimizer'"),
    ({'a': {'optimizer': 'adam', 'learning_rate': 0}}, r"\['learning_rate'\]: got 0, expected"),
    ({'a': {'optimizer': 'adam', 'weight_decay': -1}}, r"\['weight_decay'\]: got -1, expected"),
    ({'a': {'optimizer': optax.sgd(1), 'weight_decay': 1}}, 'a number for an optax transformation'),
    ({'a': {'optimizer': 'frozen', 'learning_rate': 1}}, 'got a number for frozen parameters'),
    ({'a': 'frozen'}, "optimizer: got 'frozen' for every pattern"),
    ({'a': optax.lbfgs(), '.*': 'adam'}, r"optimizer\['a'\]: its update needs 'value'"),
]  # fmt: skip


@pytest.mark.parametrize(('patterns', 'says'), WRONG)
def test_what_can_not_be_an_optimizer_by_pattern(patterns, says):
    with pytest.raises(ConfigError, match=f'(?sm){says}'):
        TrainingConfig(optimizer=patterns)


def test_settings_that_no_pattern_follows():
    with pytest.raises(ConfigError, match="lr_schedule: got 'cosine', but the optimizer is an opt"):
        TrainingConfig(optimizer={'a': 'frozen', '.*': optax.sgd(0.1)}, lr_schedule='cosine')
    own = {'.*': {'optimizer': 'sgd', 'learning_rate': 0.1}}
    with pytest.raises(ConfigError, match="learning_rate: got 'auto', but each pattern has"):
        TrainingConfig(optimizer=own, learning_rate='auto')
    with pytest.raises(ConfigError, match=r'optimizer: got .* patterns that all have their own'):
        ModelTrainer(TrainingConfig(optimizer=own)).find_learning_rate(mlp(4, 3), X, Y)
    with pytest.raises(ConfigError, match='optimizer: got patterns, expected one optimizer'):
        TransferLearner(mlp(4, 3), config=TrainingConfig(optimizer={'.*': 'adam'}))


@pytest.mark.parametrize(
    ('patterns', 'says'),
    [
        (['layers/0/.*'], r"no pattern matches 'layers/2/bias', 'layers/2/kernel'. Add '\.\*'"),
        (['.*', 'layers/0/.*'], r"'layers/0/\.\*': earlier patterns such as '\.\*' match all"),
        (['layers/0', '.*'], r"'layers/0': it matches no whole path, but 'layers/0/\.\*' does"),
        (['bias', '.*'], r"'bias': it matches no whole path, but '\.\*/bias' does"),
        (['layer/2/kernel', '.*'], "'layer/2/kernel': it .*mean 'layers/2/kernel', 'layers/0/k"),
        (['zz', '.*'], "'zz': it matches no parameter. The paths are 'layers/0/bias', 'l"),
    ],
)  # fmt: skip
def test_patterns_that_do_not_fit_the_model_are_told_before_a_compile(
    patterns, says, count_compiles
):
    config = TrainingConfig(optimizer=dict.fromkeys(patterns, 'adam'), **SETTINGS)

    def refused():
        with pytest.raises(ConfigError, match=rf'(?s)^optimizer: .*\n  - {says}'):
            ModelTrainer(config).train(mlp(4, 3, hidden=8), X, Y, progress=False)

    assert count_compiles(refused) == 0


# --- regularisers by the paths of parameters ----------------------------------------------------


def test_a_masked_decay_of_the_gradients_is_an_l2_penalty_of_some_parameters():
    mask = {'layers': {0: False, 2: True}}

    def with_penalty(rate):
        return optax.chain(optax.masked(optax.add_decayed_weights(0.1), mask), optax.adam(rate))

    model, history = train(optimizer=with_penalty, learning_rate=0.05)
    penalty = lambda params: 0.05 * optax.tree.norm(params['layers'][2], squared=True)  # noqa: E731
    params, losses = by_hand(optax.adam(0.05), penalty=penalty)
    assert_close(params_of(model), params)
    np.testing.assert_allclose(history['loss'], losses, atol=1e-6)
