"""Training programs for devices that are not attached: those of ThinkML, and those written by hand.

Nothing is computed: models, states and data are shapes and placements, and the compiler's text of
the program is what is compared.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from thinkml.core import (
    DeviceData,
    functionalize,
    get_compute_dtype,
    get_loss,
    init_state,
    make_metrics,
    make_optimizer,
    make_train_step,
)
from thinkml.core.parallel.sharding import Layout
from thinkml.core.train import dispatch

LEARNING_RATE = 1e-3
# Steps in the data, which are those of a loop by hand.
STEPS = dispatch.LOOP_LENGTH


class Case(NamedTuple):
    """A training to compile.

    Attributes:
        model: a Flax NNX module, whose arrays may be shapes only.
        x: the shape of the inputs of a step, of all devices.
        num_classes: the number of the model's outputs.
        layout: the devices.
        precision: that of the training.
    """

    model: nnx.Module
    x: tuple[int, ...]
    num_classes: int
    layout: Layout
    precision: str = 'float32'


class Training(NamedTuple):
    """ThinkML's step with the shapes and placements of its arguments."""

    step: Any
    state: Any
    totals: Any
    data: DeviceData
    plan: jax.ShapeDtypeStruct


def lower_by_thinkml(case: Case) -> jax.stages.Lowered:
    """Returns the program that a training of ThinkML runs on these devices."""
    training = training_of(case)
    if case.layout.platform == 'gpu':
        losses = _placed(case.layout, (STEPS,), np.float32)
        return dispatch._run_loop.lower(
            training.step, case.layout, STEPS, training.data, training.plan,
            (training.state, training.totals, losses), 0, 0, STEPS,
        )  # fmt: skip
    return dispatch._run_steps.lower(
        training.step, True, case.layout, training.data, training.plan,
        (training.state, training.totals), 0, STEPS,
    )  # fmt: skip


def training_of(case: Case) -> Training:
    """Returns ThinkML's step of a case."""
    layout, found = case.layout, []
    x = jax.ShapeDtypeStruct(case.x, np.float32)

    def arrays(key):
        dtype = get_compute_dtype(case.precision)
        functional = functionalize(case.model, x, key, compute_dtype=dtype)
        found.append(functional.apply)
        return functional.params, functional.model_state

    tx = make_optimizer('adam')
    metrics = make_metrics(('accuracy',), kind='multiclass', num_outputs=case.num_classes)

    def init(params, model_state, key):
        return init_state(params, model_state, tx, key, learning_rate=LEARNING_RATE)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, *jax.eval_shape(arrays, key), key)
    step = make_train_step(found[0], get_loss('cross_entropy'), tx, metrics, layout=layout)
    data, plan = data_of(case)
    return Training(
        step=step,
        state=jax.tree.map(_with_sharding, state, layout.state_sharding(state)),
        totals=_replicated(layout, jax.eval_shape(metrics.empty)),
        data=data,
        plan=plan,
    )


def data_of(case: Case) -> tuple[DeviceData, jax.ShapeDtypeStruct]:
    """Returns the shapes of the data, which is on every device, and of an epoch's plan."""
    rows = STEPS * case.x[0]
    place = functools.partial(_placed, case.layout)
    data = DeviceData(
        x=place((rows, *case.x[1:]), np.float32), y=place((rows,), np.int32),
        rows=place((rows,), np.int32), num_rows=place((), np.int32),
    )  # fmt: skip
    return data, place((STEPS, case.x[0]), np.int32)


def lower_by_hand(case: Case) -> jax.stages.Lowered:
    """Returns a scan over the steps of the same net, written with Flax and optax alone."""
    graph, params, stats, rest = nnx.split(case.model, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = map(nnx.to_pure_dict, (params, stats, rest))
    tx, layout = optax.adam(LEARNING_RATE), case.layout
    opt_state = jax.eval_shape(tx.init, params)
    is_narrow = case.precision == 'bfloat16'

    def narrow(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree) if is_narrow else tree

    def loss_fn(params, stats, rest, x, y):
        net = nnx.merge(graph, narrow(params), stats, rest)
        logits = net(narrow(x)).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        accuracy = (logits.argmax(-1) == y).mean()
        return loss, (nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)), accuracy)

    def step(x, y, rest, carry, rows):
        params, stats, opt_state = carry
        batch = jax.lax.with_sharding_constraint((x[rows], y[rows]), _rows_sharding(layout))
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (stats, accuracy)), grads = grad_fn(params, stats, rest, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), (loss, accuracy)

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry, rest, x, y, plan):
        return jax.lax.scan(functools.partial(step, x, y, rest), carry, plan)

    data, plan = data_of(case)
    carry = (params, stats, opt_state)
    carry = jax.tree.map(_with_sharding, carry, layout.state_sharding(carry))
    return epoch.lower(carry, _replicated(layout, rest), data.x, data.y, plan)


def _rows_sharding(layout: Layout) -> NamedSharding:
    return NamedSharding(layout.mesh, PartitionSpec(layout.mesh.axis_names[0]))


def _placed(layout: Layout, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.replicated)


def _with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _replicated(layout: Layout, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _placed(layout, leaf.shape, leaf.dtype), tree)
