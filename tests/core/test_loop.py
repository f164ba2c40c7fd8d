import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_softmax

from tests.models_for_tests import DropoutBatchNorm, WithFlag, apply_mlp, init_mlp, mlp
from thinkml.core import (
    Batch,
    Position,
    ResidentFeed,
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
from thinkml.core.model.adapters import from_functions
from thinkml.core.parallel.sharding import Layout
from thinkml.core.train import batch_feed
from thinkml.core.train.loop import _Pace
from thinkml.core.train.state import Ema
from thinkml.core.xla.jit import forget_programs
from thinkml.data import place

pytestmark = pytest.mark.compiled  # equal bits

METRICS = make_metrics(('accuracy',))


@pytest.fixture(params=['one loop', 'calls of a loop'])
def dispatch_kind(request, monkeypatch):
    """Runs a test with the dispatches of a CPU, and with those of a GPU."""
    if request.param == 'calls of a loop':
        monkeypatch.setattr(Layout, 'platform', 'gpu')


def problem(num_rows=50, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int32) + (x[:, 2] > 1)


def prepare(model, x, optimizer='adam', learning_rate=0.01, ema_decay=None, **options):
    functional = functionalize(model, x[:1], jax.random.key(0))
    tx = make_optimizer(optimizer)
    step = make_train_step(functional.apply, get_loss('cross_entropy'), tx, METRICS, **options)
    state = init_state(
        functional.params, functional.model_state, tx, jax.random.key(1), learning_rate,
        ema_decay=ema_decay,
    )  # fmt: skip
    return step, state


def feed_of(x, y, batch_size=8, seed=2, **options):
    key = jax.random.key(seed)
    data = place(x, y)
    return ResidentFeed(data, num_rows=len(x), batch_size=batch_size, shuffle_key=key, **options)


def run(step, state, x, y, *, batch_size=8, epochs=2, seed=2, **options):
    feed = feed_of(x, y, batch_size, seed)
    return list(train_chunks(step, METRICS, state, feed, epochs=epochs, **options))


def logits_of(functional, x):
    def evaluate(params):
        return functional.apply(params, {}, x, key=None, train=False)[0]

    return np.asarray(jax.jit(evaluate)(functional.params))


def cross_entropies(logits, y):
    return -log_softmax(logits.astype(float), axis=1)[np.arange(len(y)), y]


def visited_rows(num_rows, batch_size=1, epochs=1, seed=2):
    """Returns the order in which rows are visited, from a loss that is the row's number."""
    x = np.arange(num_rows, dtype=np.float32)[:, None]
    model = from_functions(lambda key, x: jnp.zeros(()), lambda params, x: x + 0 * params)
    functional = functionalize(model, x[:1], jax.random.key(0))
    tx = optax.sgd(0.0)
    step = make_train_step(functional.apply, lambda logits, labels: logits, tx, make_metrics())
    chunks = train_chunks(
        step, make_metrics(), init_state(functional.params, {}, tx, jax.random.key(0)),
        feed_of(x, np.zeros(num_rows, np.int32), batch_size, seed), epochs=epochs,
    )  # fmt: skip
    return np.concatenate([chunk.step_losses() for chunk in chunks])


def test_each_epoch_visits_every_row_once_in_its_own_order():
    order = visited_rows(150, epochs=3).reshape(3, 150).astype(int)
    for epoch in order:
        assert sorted(epoch) == list(range(150))
    assert (order[0] != order[1]).any() and (order[1] != order[2]).any()
    np.testing.assert_array_equal(order.ravel(), visited_rows(150, epochs=3))
    assert (order.ravel() != visited_rows(150, epochs=3, seed=3)).any()


def plans(num_rows, room, batch_size, seed):
    """Returns the plans of an epoch from the host and from a device."""
    key = None if seed is None else jax.random.key(seed)
    rows = np.random.default_rng(0).permutation(room).astype(np.int32)
    data = place(np.zeros((room, 1)), np.zeros(room, np.int32))
    data = data.replace(rows=rows, num_rows=jnp.int32(num_rows))
    # The data's own count decides, not the feed's.
    made = ResidentFeed(data, num_rows=room, batch_size=batch_size, shuffle_key=key)
    plan = next(made.blocks(1, 0)).plan
    assert sorted(plan.ravel()[:num_rows]) == sorted(rows[:num_rows])
    return plan, batch_feed._plan(batch_size, data.rows, data.num_rows, key, 1)


@pytest.mark.parametrize('seed', [None, 0, 7])
@pytest.mark.parametrize(
    ('num_rows', 'room', 'batch_size'), [(1, 1, 1), (53, 64, 8), (64, 64, 64), (5, 32, 16)]
)
def test_a_plan_made_on_the_host_is_the_one_that_devices_make(seed, num_rows, room, batch_size):
    np.testing.assert_array_equal(*plans(num_rows, room, batch_size, seed))


def test_the_filled_up_rows_of_the_last_batch_weigh_nothing():
    order = visited_rows(10)
    losses = visited_rows(10, batch_size=4)
    expected = [order[:4].mean(), order[4:8].mean(), order[8:].mean()]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_data_set_smaller_than_the_batch_is_one_batch():
    np.testing.assert_allclose(visited_rows(5, batch_size=32), [2.0])


@pytest.mark.usefixtures('dispatch_kind')
@pytest.mark.parametrize(
    'model', [mlp(4, 3), DropoutBatchNorm(4, 3, nnx.Rngs(0))], ids=['mlp', 'dropout-batchnorm']
)
def test_chunks_equal_a_python_loop_over_the_same_step(model):
    x, y = problem(50)
    # A bias before BatchNorm has no gradient, and Adam takes steps of full size along its rounding.
    optimizer = 'sgd' if isinstance(model, DropoutBatchNorm) else 'adam'
    step, state = prepare(model, x, optimizer)
    chunks = run(step, state, x, y, batch_size=8, epochs=2)
    last = chunks[-1]

    # A data set of row numbers shows the order of each epoch.
    order = visited_rows(50, epochs=2).reshape(2, 50).astype(int)
    _, state = prepare(model, x, optimizer)
    jitted = jax.jit(step)
    losses = []
    for epoch in order:
        padded = np.concatenate([epoch, epoch[:6]])
        for first in range(0, 56, 8):
            rows = padded[first : first + 8]
            weight = (first + np.arange(8) < 50).astype(np.float32)
            state, output = jitted(state, Batch(x[rows], y[rows], weight))
            losses.append(float(output.loss))
    found = np.concatenate([chunk.step_losses() for chunk in chunks])
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    chex.assert_trees_all_close(
        (last.state.params, last.state.model_state),
        (state.params, state.model_state),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.usefixtures('dispatch_kind')
def test_where_an_epoch_is_cut_changes_no_bit_and_compiles_nothing(count_compiles):
    x, y = problem(50)
    model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    results = []

    def train(steps_per_dispatch):
        step, state = prepare(model, x)
        chunks = run(step, state, x, y, epochs=3, steps_per_dispatch=steps_per_dispatch)
        losses = np.concatenate([chunk.step_losses() for chunk in chunks])
        arrays = (chunks[-1].state.params, chunks[-1].state.opt_state)
        results.append(jax.device_get((arrays, losses, chunks[-1].epoch_metrics())))

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

    loss, grads = jax.jit(jax.value_and_grad(reference))(params)
    np.testing.assert_allclose(output.loss, loss, rtol=1e-6)
    jax.tree.map(
        lambda new, old, grad: np.testing.assert_allclose(new, old - 0.1 * grad, atol=1e-6),
        new_state.params, params, grads,
    )  # fmt: skip


@pytest.mark.usefixtures('dispatch_kind')
@pytest.mark.parametrize(
    ('num_rows', 'batch_sizes'),
    [
        (7, (3, 32)),
        (129, (1, 32)),
        *(pytest.param(n, (1, 3, 32, 200), marks=pytest.mark.slow) for n in (1, 7, 64, 129)),
    ],
)
def test_batch_size_does_not_change_an_evaluation(num_rows, batch_sizes):
    x, y = problem(num_rows)
    functional = functionalize(mlp(4, 3), x, jax.random.key(0))
    step = make_eval_step(functional.apply, get_loss('cross_entropy'), METRICS)
    logits = logits_of(functional, x)
    expected = {
        'loss': cross_entropies(logits, y).mean(),
        'accuracy': (logits.argmax(1) == y).mean(),
    }
    for batch_size in batch_sizes:
        values = evaluate(step, METRICS, functional.params, {}, place(x, y), batch_size=batch_size)
        assert values == pytest.approx(jax.tree.map(float, expected), rel=1e-6)


@pytest.mark.usefixtures('dispatch_kind')
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
    # Not Adam: it would amplify the rounding errors of gradients that are zero, before BatchNorm.
    step, one = prepare(DropoutBatchNorm(4, 3, nnx.Rngs(0)), x, 'sgd')
    _, two = prepare(DropoutBatchNorm(4, 3, nnx.Rngs(1)), x, 'sgd', learning_rate=0.1)
    both = jax.jit(lambda *states: jax.tree.map(lambda a, b: jnp.stack([a, b]), *states))(one, two)
    states, outputs = jax.jit(jax.vmap(step, in_axes=(0, None)))(both, batch)
    losses, params = jax.device_get((outputs.loss, states.params))
    jitted = jax.jit(step)
    for index, state in enumerate((one, two)):
        alone, output = jitted(state, batch)
        np.testing.assert_allclose(losses[index], output.loss, rtol=1e-5)
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, index=index: leaf[index], params), alone.params, atol=1e-5
        )


def test_every_step_draws_anew():
    # All rows are equal and nothing is learned, so neither order nor weights change the loss.
    x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    step, state = prepare(WithFlag(4, 3, nnx.Rngs(0)), x, 'sgd', learning_rate=1e-30)
    chunks = run(step, state, x, y, epochs=5)
    losses = np.concatenate([chunk.step_losses() for chunk in chunks])
    assert len(np.unique(losses)) == 5


def final(chunks):
    """Returns the final state of a run, on the host."""
    return jax.device_get((chunks[-1].state.replace(key=0), chunks[-1].epoch_metrics()))


@pytest.mark.usefixtures('dispatch_kind')
@pytest.mark.parametrize('stop', [1, 3, 7, 9])
def test_a_run_goes_on_at_any_step_as_if_nothing_had_happened(stop):
    x, y = problem(50)
    model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    whole = run(*prepare(model, x, ema_decay=0.9), x, y, epochs=3)
    step, state = prepare(model, x, ema_decay=0.9)
    *_, half = run(step, state, x, y, epochs=3, max_steps=stop)
    assert int(half.state.step) == stop
    state, position = jax.tree.map(jnp.copy, (half.state, half.position))
    rest = run(step, state, x, y, epochs=3, start=Position(*position))
    chex.assert_trees_all_equal(final(whole), final(rest))


@pytest.mark.parametrize(
    'model',
    [mlp(4, 3), pytest.param(from_functions(init_mlp, apply_mlp), marks=pytest.mark.slow)],
)
def test_accumulated_parts_equal_one_batch(model):
    x, y = problem(6)
    weight = np.array([1, 2, 0, 0.5, 1, 0], np.float32)
    ends = []
    for parts in (1, 2, 3):
        step, state = prepare(model, x, 'sgd', 0.1, accumulate_steps=parts)
        state, output = jax.jit(step)(state, Batch(x, y, weight))
        ends.append(jax.device_get((state.params, output.loss, output.metrics.compute())))
    chex.assert_trees_all_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(ends[0], ends[2], rtol=1e-6, atol=1e-7)


class Statistics(nnx.Module):
    """A model with state besides its parameters: BatchNorm's averages, a count of calls."""

    def __init__(self):
        self.norm = nnx.BatchNorm(4, momentum=0.5, use_scale=False, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls.set_value(self.calls.get_value() + 1)
        return self.head(self.norm(x))


def test_parts_of_filler_rows_alone_leave_statistics_as_they_are():
    x, y = problem(33)
    step, state = prepare(Statistics(), x, 'sgd', 1e-30, accumulate_steps=4)
    feed = ResidentFeed(place(x, y), num_rows=33, batch_size=32, shuffle_key=None)
    *_, chunk = train_chunks(step, METRICS, state, feed, epochs=1)
    mean = np.zeros(4)
    filled_up = np.concatenate([x, x[:7]])  # the 33rd row's part; three more are only padding
    for part in filled_up.reshape(5, 8, 4):
        mean = 0.5 * mean + 0.5 * part.mean(axis=0)
    left = chunk.state.model_state
    assert int(left['calls']) == 5
    np.testing.assert_allclose(left['norm']['mean'], mean, rtol=1e-5, atol=1e-6)


def test_parts_of_filler_rows_alone_change_nothing_even_if_they_are_nan():
    x, y = problem(16)
    weight = np.repeat([1.0, 0.0, 1.0, 0.0], 4).astype(np.float32)
    broken = np.where(weight[:, None] > 0, x, np.nan).astype(np.float32)
    ends = []
    for rows in (x, broken):
        step, state = prepare(DropoutBatchNorm(4, 3, nnx.Rngs(0)), x, 'sgd', accumulate_steps=4)
        state, output = jax.jit(step)(state, Batch(rows, y, weight))
        ends.append(jax.device_get((state.replace(key=0), output.loss, output.metrics.compute())))
    chex.assert_trees_all_equal(*ends)
    assert np.isfinite(ends[0][1])


def test_accumulation_draws_anew_in_every_part():
    x, y = np.ones((8, 4), np.float32), np.zeros(8, np.int32)
    model = WithFlag(4, 3, nnx.Rngs(0))
    ends = []
    for parts in (1, 4):
        step, state = prepare(model, x, 'sgd', accumulate_steps=parts)
        ends.append(float(jax.jit(step)(state, Batch(x, y, np.ones(8, np.float32)))[1].loss))
    assert ends[0] != ends[1]


def test_a_weight_of_two_equals_the_row_twice():
    x, y = problem(12)
    twice = y == 1
    model = mlp(4, 3)
    step, state = prepare(model, x, 'sgd', 0.1)
    weighted, _ = jax.jit(step)(state, Batch(x, y, np.where(twice, 2, 1).astype(np.float32)))
    _, state = prepare(model, x, 'sgd', 0.1)
    x, y = np.concatenate([x, x[twice]]), np.concatenate([y, y[twice]])
    doubled, _ = jax.jit(step)(state, Batch(x, y, np.ones(len(x), np.float32)))
    chex.assert_trees_all_close(weighted.params, doubled.params, rtol=1e-6, atol=1e-7)


def test_weights_of_the_data_weigh_the_loss_and_no_metric():
    x, y = problem(50)
    weight = np.random.default_rng(1).uniform(0, 2, 50).astype(np.float32)
    functional = functionalize(mlp(4, 3), x, jax.random.key(0))
    step = make_eval_step(functional.apply, get_loss('cross_entropy'), METRICS)
    data = place(x, y)
    padded = np.concatenate([weight, np.full(len(data.y) - 50, 9, np.float32)])
    data = data.replace(weight=jnp.asarray(padded))
    values = evaluate(step, METRICS, functional.params, {}, data, batch_size=16)
    logits = logits_of(functional, x)
    losses = cross_entropies(logits, y)
    assert values['loss'] == pytest.approx(np.average(losses, weights=weight), rel=1e-6)
    assert values['accuracy'] == pytest.approx((logits.argmax(1) == y).mean())


def test_a_batch_without_any_weight_teaches_nothing():
    x, y = problem(6)
    step, state = prepare(mlp(4, 3), x, 'sgd', 0.1)
    before = jax.device_get(state.params)
    state, output = jax.jit(step)(state, Batch(x, y, np.zeros(6, np.float32)))
    chex.assert_trees_all_equal(before, jax.device_get(state.params))
    assert float(output.loss) == 0


@pytest.mark.usefixtures('dispatch_kind')
def test_an_evaluation_in_parts_equals_the_whole():
    x, y = problem(50)
    functional = functionalize(mlp(4, 3), x, jax.random.key(0))
    step = make_eval_step(functional.apply, get_loss('cross_entropy'), METRICS)
    parts = [place(x[:20], y[:20]), place(x[20:], y[20:])]
    whole = evaluate(step, METRICS, functional.params, {}, place(x, y), batch_size=8)
    split = evaluate(step, METRICS, functional.params, {}, parts, batch_size=8)
    assert split == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize('decay', [0.2, 0.999])
def test_the_average_of_the_parameters_is_the_exponential_one_after_a_warm_up(decay):
    x, y = problem(6)
    step, state = prepare(mlp(4, 3), x, 'sgd', 0.5, ema_decay=decay)
    average = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), jax.device_get(state.params))
    for index, now in enumerate([0, *(min(decay, t / (t + 9)) for t in range(1, 6))]):
        state, _ = jax.jit(step)(state, Batch(x, y, np.ones(6, np.float32)))
        params = jax.device_get(state.params)
        # The first step replaces the initial parameters.
        average = params if index == 0 else jax.tree.map(
            lambda a, p, now=now: now * a + (1 - now) * p, average, params
        )  # fmt: skip
        chex.assert_trees_all_close(state.eval_params, average, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('num_steps', [1, 20, 300])
def test_a_short_run_averages_what_it_learned_and_not_where_it_began(num_steps, dtype):
    """The parameters rise from 0 to 1 at constant speed, so the average shows its age."""
    average = Ema.of(jnp.zeros((), dtype), 0.999)
    for step in range(num_steps):
        average = average.update(jnp.asarray((step + 1) / num_steps, dtype), step)
    assert float(average.params) > 0.88


def test_augmentation_draws_by_seed_and_step_and_metrics_see_the_true_labels():
    x, y = problem(6)
    drawn = []

    def augment(key, x, y):
        jax.debug.callback(lambda value: drawn.append(float(value)), jax.random.uniform(key))
        return x, 2 - y  # other labels for the loss

    step, state = prepare(mlp(4, 3), x, 'sgd', 1e-30, augment=augment)
    step = jax.jit(step)
    weight = np.ones(6, np.float32)
    first, output = step(state, Batch(x, y, weight))
    jax.effects_barrier()
    for later in (first, state):
        step(later, Batch(x, y, weight))
        jax.effects_barrier()
    assert drawn[0] != drawn[1] and drawn[0] == drawn[2]
    plain = jax.jit(prepare(mlp(4, 3), x, 'sgd', 1e-30)[0])
    _, expected = plain(state, Batch(x, y, weight))
    assert output.metrics.compute()['accuracy'] == expected.metrics.compute()['accuracy']
    _, flipped = plain(state, Batch(x, 2 - y, weight))
    np.testing.assert_allclose(output.loss, flipped.loss, rtol=1e-6)


def test_dispatches_end_at_the_borders_asked_for():
    x, y = problem(50)
    step, state = prepare(mlp(4, 3), x)
    chunks = run(step, state, x, y, epochs=2, border_every=3, steps_per_dispatch=2)
    assert [chunk.last for chunk in chunks[:5]] == [2, 3, 5, 6, 7]


def test_periods_go_through_the_epochs_and_end_when_they_are_told_to():
    x, y = problem(24)  # three steps in an epoch
    step, state = prepare(mlp(4, 3), x)
    feed = feed_of(x, y)
    whole = [chunk.step_losses() for chunk in train_chunks(step, METRICS, state, feed, epochs=4)]
    step, state = prepare(mlp(4, 3), x)
    losses, ends, means = [], [], []
    for chunk in train_chunks(step, METRICS, state, feed, epochs=4, period=5, steps_per_dispatch=1):
        losses += chunk.step_losses().tolist()
        if len(losses) == 7:  # in the middle of the second period and of an epoch
            chunk.ends_period = True
        if chunk.ends_period:
            ends.append(len(losses))
            means.append(chunk.epoch_metrics()['loss'])
        assert (chunk.position.metrics is None) == chunk.ends_period
    assert ends == [5, 7, 10]
    periods = np.split(losses[:10], [5, 7])
    np.testing.assert_allclose(means, [period.mean() for period in periods], rtol=1e-5)
    np.testing.assert_allclose(losses, np.concatenate(whole), rtol=1e-6)


def test_an_epoch_may_be_limited():
    x, y = problem(50)
    step, state = prepare(mlp(4, 3), x)
    feed = feed_of(x, y, limit_steps=3)
    chunks = list(train_chunks(step, METRICS, state, feed, epochs=2))
    assert int(chunks[-1].state.step) == 6 and sum(chunk.ends_epoch for chunk in chunks) == 2


@pytest.mark.usefixtures('dispatch_kind')
@pytest.mark.parametrize('steps_per_dispatch', [1, 4, 100])
def test_a_loss_that_is_not_finite_ends_the_training_at_its_step(steps_per_dispatch):
    x, y = problem(50)
    order = visited_rows(50).astype(int)
    x[order[40]] = np.nan  # in the sixth step
    step, state = prepare(mlp(4, 3), x)
    start = jax.device_get(state.params)
    kept = [jax.tree.map(jnp.copy, state)]
    chunks = []
    feed = feed_of(x, y)
    options = {'epochs': 2, 'steps_per_dispatch': steps_per_dispatch}
    for chunk in train_chunks(step, METRICS, state, feed, **options):
        chunks.append(chunk)
        kept.append(jax.tree.map(jnp.copy, chunk.state))
    losses = np.concatenate([chunk.step_losses() for chunk in chunks])
    assert len(losses) == 6 and np.isnan(losses[5]) and np.isfinite(losses[:5]).all()
    assert not chunks[-1].is_finite

    # The chunk is run again from the state before it, up to the state before that step.
    before = chunks[-1].rerun(kept[-2], 5 - chunks[-1].first)
    step, state = prepare(mlp(4, 3), x)
    *_, expected = run(step, state, x, y, max_steps=5)
    chex.assert_trees_all_equal(
        jax.device_get(before.params), jax.device_get(expected.state.params)
    )
    assert int(before.step) == 5 and (start['layers'][0]['bias'] == 0).all()


@pytest.mark.usefixtures('dispatch_kind')
def test_a_loss_that_is_not_finite_may_be_ignored():
    x, y = problem(50)
    x[0] = np.nan
    step, state = prepare(mlp(4, 3), x)
    *_, last = run(step, state, x, y, epochs=2, stop_nonfinite=False)
    assert int(last.state.step) == 14


@pytest.mark.parametrize(
    ('fixed', 'border', 'done', 'remaining', 'steps'),
    [
        (None, None, 0, 32, 8),  # four of 8 and not three of 10 and a short one
        (None, None, 0, 7, 7),
        (None, 15, 4, 32, 6),  # two of 6 and 5 up to the border
        (12, None, 0, 32, 12),
        (12, 15, 10, 32, 5),
    ],
)
def test_an_epoch_is_cut_into_dispatches_of_nearly_equal_length(
    fixed, border, done, remaining, steps
):
    pace = _Pace(fixed, border)
    if fixed is None:
        pace.steps = 10
    assert pace.steps_from(done, remaining) == steps


# --- last, since it forgets programs ---------------------------------------------------------


def test_a_plan_made_on_the_host_is_that_of_devices_where_rows_draw_the_same_bits(monkeypatch):
    drawn, (without, _) = batch_feed._bits, plans(300, 320, 8, 0)
    monkeypatch.setattr(batch_feed, '_bits', lambda *args: drawn(*args) | jnp.uint32(0xFFFFFFF0))
    forget_programs()
    plan, expected = plans(300, 320, 8, 0)
    forget_programs()
    np.testing.assert_array_equal(plan, expected)
    assert (plan != without).any()
