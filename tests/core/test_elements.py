"""Steps over elements, such as tokens and pixels, equal loops written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from thinkml import core
from thinkml.core.objectives import heads as heads_module
from thinkml.core.objectives.elements import IGNORED, loss_of_elements
from thinkml.errors import ConfigError

ROWS, TOKENS, WORDS = 8, 5, 7
RATE = 0.1


class Tagger(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(WORDS, 6, rngs=rngs)
        self.out = nnx.Linear(6, WORDS, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.embed(x)).cumsum(axis=1))


def tagged(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, WORDS, (ROWS, TOKENS))
    lengths = rng.integers(1, TOKENS + 1, ROWS)
    is_ignored = np.arange(TOKENS) >= lengths[:, None]
    return jnp.asarray(x), jnp.asarray(np.where(is_ignored, IGNORED, (x * 3 + 1) % WORDS))


def trained(x, y, *, loss='cross_entropy', accumulate_steps=1, steps=20, weight=None, metrics=()):
    """Returns the losses, the parameters and the metrics of a full-batch training."""
    functional = core.functionalize(Tagger(nnx.Rngs(0)), x, jax.random.key(0))
    tx = core.make_optimizer('sgd')
    collection = core.make_metrics(metrics, kind='multiclass', num_outputs=WORDS)
    step = jax.jit(
        core.make_train_step(
            functional.apply,
            core.get_loss(loss, (TOKENS,)),
            tx,
            collection,
            accumulate_steps=accumulate_steps,
            element_shape=(TOKENS,),
        )
    )
    state = core.init_state(
        functional.params, functional.model_state, tx, jax.random.key(0), learning_rate=RATE
    )
    weight = jnp.ones(len(x)) if weight is None else weight
    losses = []
    for _ in range(steps):
        state, output = step(state, core.Batch(x, y, weight))
        losses.append(float(output.loss))
    return losses, state.params, output.metrics


def by_hand(x, y, loss_of, steps=20):
    net = Tagger(nnx.Rngs(0))
    graph, params = nnx.split(net, nnx.Param)
    params = nnx.to_pure_dict(params)

    @jax.jit
    def step(params):
        loss, grads = jax.value_and_grad(lambda params: loss_of(nnx.merge(graph, params)(x), y))(
            params
        )
        return loss, jax.tree.map(lambda p, g: p - RATE * g, params, grads)

    losses = []
    for _ in range(steps):
        loss, params = step(params)
        losses.append(float(loss))
    return losses, params


def mean_over_tokens(logits, y):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
    return jnp.sum(losses * (y >= 0)) / jnp.sum(y >= 0)


def assert_same(ours, by_hand):
    (losses, params), (expected, expected_params) = ours[:2], by_hand
    np.testing.assert_allclose(losses, expected, atol=1e-6)
    flat = jax.tree.leaves(params), jax.tree.leaves(expected_params)
    for ours, theirs in zip(*flat, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_tokens_train_as_a_loop_by_hand_over_all_that_count():
    x, y = tagged()
    assert_same(trained(x, y), by_hand(x, y, mean_over_tokens))


@pytest.mark.parametrize('parts', [2, 4])
def test_the_parts_of_a_batch_do_not_change_the_parameters(parts):
    x, y = tagged()
    whole, in_parts = trained(x, y), trained(x, y, accumulate_steps=parts)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), in_parts[1], whole[1]
    )  # fmt: skip


def test_the_accuracy_counts_elements_that_are_not_ignored():
    x, y = tagged()
    losses, _, metrics = trained(x, y, steps=1, metrics=('accuracy', 'f1_macro'))
    logits = Tagger(nnx.Rngs(0))(x)
    right = np.asarray(logits.argmax(-1) == y)[np.asarray(y) >= 0]
    values = core.compute(metrics)
    np.testing.assert_allclose(values['accuracy'], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(values['loss'], losses[0], rtol=1e-6)


@pytest.mark.parametrize('shape', [(ROWS,), (ROWS, TOKENS)])
def test_weights_of_rows_and_of_elements(shape):
    x, y = tagged()
    weight = jnp.asarray(np.random.default_rng(1).random(shape), jnp.float32)
    of_tokens = jnp.broadcast_to(weight.reshape(*shape, *[1] * (2 - len(shape))), y.shape)
    of_tokens = of_tokens * (y >= 0)

    def loss_of(logits, y):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return jnp.sum(of_tokens * losses) / jnp.sum(of_tokens)

    assert_same(trained(x, y, weight=weight), by_hand(x, y, loss_of))


def per_token(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))


def per_row(logits, labels):
    losses = per_token(logits, labels) * (labels >= 0)
    return losses.sum(1) / (labels >= 0).sum(1)


def of_all(logits, labels):
    return per_row(logits, labels).mean()


@pytest.mark.parametrize('loss', [per_token, per_row, of_all])
@pytest.mark.parametrize('parts', [1, 4])
def test_custom_losses_return_values_of_elements_of_rows_or_one(loss, parts):
    x, y = tagged()
    expected = mean_over_tokens if loss is per_token else of_all
    assert_same(trained(x, y, loss=loss, accumulate_steps=parts), by_hand(x, y, expected))


def dice_by_numpy(p, y, counts, smooth):
    """Returns the loss of each row, from probabilities and truth ``[rows, elements, classes]``."""
    losses = []
    for row, is_counted in enumerate(counts):
        predicted, truth = p[row][is_counted], y[row][is_counted]
        both = 2 * (predicted * truth).sum(0) + smooth
        losses.append(1 - (both / (predicted.sum(0) + truth.sum(0) + smooth)).mean())
    return losses


@pytest.mark.parametrize('smooth', [1.0, 0.1])
def test_dice_is_its_formula(smooth):
    _, y = tagged()
    logits = jax.random.normal(jax.random.key(0), (ROWS, TOKENS, WORDS))
    counts = np.asarray(y) >= 0
    of_classes = dice_by_numpy(jax.nn.softmax(logits), np.eye(WORDS)[np.asarray(y)], counts, smooth)
    loss = core.get_loss(core.Dice(smooth), (TOKENS,))
    np.testing.assert_allclose(loss(logits, y), of_classes, rtol=1e-5)
    bits = jnp.where(y >= 0, y % 2, -1)
    of_mask = dice_by_numpy(
        jax.nn.sigmoid(logits[..., :1]), np.asarray(bits)[..., None], counts, smooth
    )
    np.testing.assert_allclose(loss(logits[..., 0], bits), of_mask, rtol=1e-5)
    labels = (logits > 0.5).astype(jnp.float32)
    everywhere = np.ones((ROWS, TOKENS), bool)
    of_labels = dice_by_numpy(jax.nn.sigmoid(logits), np.asarray(labels), everywhere, smooth)
    np.testing.assert_allclose(loss(logits, labels), of_labels, rtol=1e-5)


@pytest.mark.parametrize('parts', [1, 4])
def test_dice_trains_on_the_mean_over_the_rows(parts):
    x, y = tagged()

    def loss_of(logits, y):
        return core.Dice()(logits, y).mean()

    assert_same(trained(x, y, loss='dice', accumulate_steps=parts), by_hand(x, y, loss_of))


@pytest.mark.parametrize('smooth', [0, -1, 'a', None])
def test_dice_needs_a_number_above_0(smooth):
    with pytest.raises(ConfigError, match='smooth: got'):
        core.Dice(smooth)


def test_a_loss_of_another_shape_is_refused():
    x, y = tagged()
    with pytest.raises(ConfigError, match='one value per example or label'):
        trained(x, y, loss=lambda logits, labels: logits, steps=1)


def test_a_row_that_is_ignored_altogether_changes_nothing():
    x, y = tagged()
    more = jnp.concatenate([y, jnp.full_like(y, IGNORED)])
    ours = trained(jnp.concatenate([x, x]), more)
    assert_same(ours, by_hand(x, y, mean_over_tokens))
    losses, params, _ = trained(x, jnp.full_like(y, IGNORED), steps=2)
    assert losses == [0, 0] and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_an_evaluation_step_counts_the_same_elements():
    x, y = tagged()
    functional = core.functionalize(Tagger(nnx.Rngs(0)), x, jax.random.key(0))
    metrics = core.make_metrics(('accuracy',), kind='multiclass', num_outputs=WORDS)
    step = core.make_eval_step(
        functional.apply, core.get_loss('cross_entropy'), metrics, element_shape=(TOKENS,)
    )
    found = step(
        functional.params, functional.model_state, core.Batch(x, y, jnp.ones(ROWS), jnp.ones(ROWS))
    )
    logits = Tagger(nnx.Rngs(0))(x)
    np.testing.assert_allclose(
        core.compute(found)['loss'], float(mean_over_tokens(logits, y)), rtol=1e-5
    )


def test_steps_over_rows_compute_nothing_for_elements(monkeypatch):
    def refuse(*_):
        raise AssertionError('a row is an element')

    monkeypatch.setattr(heads_module, 'element_weights', refuse)
    monkeypatch.setattr(heads_module, 'as_elements', refuse)
    x, y = jnp.ones((6, 4)), jnp.zeros(6, jnp.int32)
    functional = core.functionalize(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), x, jax.random.key(0))
    tx, metrics, loss = core.make_optimizer('sgd'), core.make_metrics(), core.get_loss('hinge')
    assert loss_of_elements(loss, ()) is loss
    state = core.init_state(
        functional.params, functional.model_state, tx, jax.random.key(0), learning_rate=RATE
    )
    batch = core.Batch(x, y, jnp.ones(6))
    jax.eval_shape(core.make_train_step(functional.apply, loss, tx, metrics), state, batch)
