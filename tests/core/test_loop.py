import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.models_for_tests import DropoutBatchNorm, WithFlag, apply_mlp, init_mlp, mlp
from thinkml.core import (
    Batch,
    evaluate,
    functionalize,
    get_loss,
    init_state,
    make_eval_step,
    make_metrics,
    make_optimizer,
    make_train_step,
    train_chunks,
)
from thinkml.core.adapters import from_functions
from thinkml.data import place

METRICS = make_metrics(('accuracy',))


def problem(num_rows=50, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int32) + (x[:, 2] > 1)


def prepare(model, x, optimizer='adam', learning_rate=0.01):
    functional = functionalize(model, x[:1], jax.random.key(0))
    tx = make_optimizer(optimizer)
    step = make_train_step(functional.apply, get_loss('cross_entropy'), tx, METRICS)
    state = init_state(
        functional.params, functional.model_state, tx, jax.random.key(1), learning_rate
    )
    return step, state


def run(step, state, x, y, *, batch_size=8, epochs=2, steps_per_dispatch=None, seed=2):
    chunks = list(
        train_chunks(
            step, METRICS, state, place(x, y), num_rows=len(x), batch_size=batch_size,
            epochs=epochs, shuffle_key=jax.random.key(seed), steps_per_dispatch=steps_per_dispatch,
        )
    )  # fmt: skip
    return chunks


def visited_rows(num_rows, batch_size=1, epochs=1, seed=2):
    """The order in which rows are visited, told by a loss that is the row's number."""
    x = np.arange(num_rows, dtype=np.float32)[:, None]
    model = from_functions(lambda key, x: jnp.zeros(()), lambda params, x: x + 0 * params)
    functional = functionalize(model, x[:1], jax.random.key(0))
    tx = optax.sgd(0.0)
    step = make_train_step(functional.apply, lambda logits, labels: logits, tx, make_metrics())
    chunks = train_chunks(
        step, make_metrics(), init_state(functional.params, {}, tx, jax.random.key(0)),
        place(x, np.zeros(num_rows, np.int32)), num_rows=num_rows, batch_size=batch_size,
        epochs=epochs, shuffle_key=jax.random.key(seed),
    )  # fmt: skip
    return np.concatenate([chunk.step_losses() for chunk in chunks])


def test_each_epoch_visits_every_row_once_in_its_own_order():
    order = visited_rows(150, epochs=3).reshape(3, 150).astype(int)
    for epoch in order:
        assert sorted(epoch) == list(range(150))
    assert (order[0] != order[1]).any() and (order[1] != order[2]).any()
    np.testing.assert_array_equal(order.ravel(), visited_rows(150, epochs=3))
    assert (order.ravel() != visited_rows(150, epochs=3, seed=3)).any()


def test_the_filled_up_rows_of_the_last_batch_weigh_nothing():
    order = visited_rows(10)
    losses = visited_rows(10, batch_size=4)
    expected = [order[:4].mean(), order[4:8].mean(), order[8:].mean()]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_data_set_smaller_than_the_batch_is_one_batch():
    np.testing.assert_allclose(visited_rows(5, batch_size=32), [2.0])


@pytest.mark.parametrize(
    'model', [mlp(4, 3), DropoutBatchNorm(4, 3, nnx.Rngs(0))], ids=['mlp', 'dropout-batchnorm']
)
def test_chunks_equal_a_python_loop_over_the_same_step(model):
    x, y = problem(50)
    step, state = prepare(model, x)
    *_, last = run(step, state, x, y, batch_size=8, epochs=2)

    # The order each epoch takes, told by a data set of row numbers.
    order = visited_rows(50, epochs=2).reshape(2, 50).astype(int)
    _, state = prepare(model, x)
    jitted = jax.jit(step)
    losses = []
    for epoch in order:
        padded = np.concatenate([epoch, epoch[:6]])
        for first in range(0, 56, 8):
            rows = padded[first : first + 8]
            weight = (first + np.arange(8) < 50).astype(np.float32)
            state, output = jitted(state, Batch(x[rows], y[rows], weight))
            losses.append(float(output.loss))
    np.testing.assert_allclose(last.losses[:7], losses[7:], rtol=1e-5)
    chex.assert_trees_all_close(
        (last.state.params, last.state.model_state),
        (state.params, state.model_state),
        rtol=1e-4,
        atol=1e-6,
    )


def test_where_an_epoch_is_cut_changes_no_bit_and_compiles_nothing(count_compiles):
    x, y = problem(50)
    model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    results = []

    def train(steps_per_dispatch):
        step, state = prepare(model, x)
        *_, last = run(step, state, x, y, epochs=3, steps_per_dispatch=steps_per_dispatch)
        results.append(jax.device_get((last.state.params, last.state.opt_state, last.losses)))

    train(None)
    assert count_compiles(train, 1) == 0
    assert count_compiles(train, 3) == 0
    assert count_compiles(train, 100) == 0
    for other in results[1:]:
        chex.assert_trees_all_equal(results[0], other)


def test_the_step_descends_along_the_weighted_mean():
    x, y = problem(6)
    weight = np.array([1, 2, 0, 0.5, 1, 0], np.float32)
    model = from_functions(init_mlp, apply_mlp)
    step, state = prepare(model, x, optimizer='sgd', learning_rate=0.1)
    params = jax.device_get(state.params)
    new_state, output = jax.jit(step)(state, Batch(x, y, weight))

    def reference(params):
        losses = optax.softmax_cross_entropy_with_integer_labels(apply_mlp(params, x), y)
        return jnp.average(losses, weights=weight)

    loss, grads = jax.value_and_grad(reference)(params)
    np.testing.assert_allclose(output.loss, loss, rtol=1e-6)
    jax.tree.map(
        lambda new, old, grad: np.testing.assert_allclose(new, old - 0.1 * grad, atol=1e-6),
        new_state.params, params, grads,
    )  # fmt: skip


@pytest.mark.parametrize('num_rows', [1, 7, 64, 129])
def test_batch_size_does_not_change_an_evaluation(num_rows):
    x, y = problem(num_rows)
    functional = functionalize(mlp(4, 3), x, jax.random.key(0))
    step = make_eval_step(functional.apply, get_loss('cross_entropy'), METRICS)
    logits, _ = functional.apply(functional.params, {}, x, key=None, train=False)
    expected = {
        'loss': optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(),
        'accuracy': (logits.argmax(1) == y).mean(),
    }
    for batch_size in (1, 3, 32, 200):
        values = evaluate(step, METRICS, functional.params, {}, place(x, y), batch_size=batch_size)
        assert values == pytest.approx(jax.tree.map(float, expected), rel=1e-6)


def test_the_state_is_donated_and_the_users_arrays_are_not():
    x, y = problem(50)
    model = mlp(4, 3)
    step, state = prepare(model, x)
    run(step, state, x, y, epochs=1)
    assert jax.tree.leaves(state.params)[0].is_deleted()
    assert not model.layers[0].kernel[...].is_deleted()


def test_metrics_lose_nothing_over_very_many_small_batches():
    def merge(index, metrics):
        loss = jnp.full(1, 0.1, jnp.float32)
        return metrics.merge(
            make_metrics().single_from_model_output(
                logits=loss, labels=loss, losses=loss, weight=jnp.ones(1)
            )
        )

    metrics = jax.lax.fori_loop(0, 2_000_000, merge, make_metrics().empty())
    assert float(metrics.compute()['loss']) == pytest.approx(0.1, rel=1e-7)


def test_many_models_train_at_once_under_vmap():
    x, y = problem(8)
    batch = Batch(x, y, np.ones(8, np.float32))
    # Not Adam: it would blow up the rounding of gradients that are zero, before BatchNorm.
    step, one = prepare(DropoutBatchNorm(4, 3, nnx.Rngs(0)), x, 'sgd')
    _, two = prepare(DropoutBatchNorm(4, 3, nnx.Rngs(1)), x, 'sgd', learning_rate=0.1)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two)
    states, outputs = jax.jit(jax.vmap(step, in_axes=(0, None)))(both, batch)
    for index, state in enumerate((one, two)):
        alone, output = jax.jit(step)(state, batch)
        np.testing.assert_allclose(outputs.loss[index], output.loss, rtol=1e-5)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], states.params),
            alone.params, atol=1e-5,
        )  # fmt: skip


def test_every_step_draws_anew():
    # All rows are equal and nothing is learned: neither order nor weights change the loss.
    x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    step, state = prepare(WithFlag(4, 3, nnx.Rngs(0)), x, 'sgd', learning_rate=1e-30)
    chunks = train_chunks(
        step, METRICS, state, place(x, y), num_rows=8, batch_size=8, epochs=5,
        shuffle_key=jax.random.key(2),
    )  # fmt: skip
    losses = np.concatenate([chunk.step_losses() for chunk in chunks])
    assert len(np.unique(losses)) == 5
