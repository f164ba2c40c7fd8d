"""Training programs for devices that are not attached: those of ThinkML, and those written by hand.

Nothing is computed: models, states and data are shapes and placements, and the compiler's text of
the program is what is compared.
"""

import functools
import unittest.mock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from thinkml.core import (
    Batch,
    DeviceData,
    functionalize,
    get_compute_dtype,
    get_loss,
    init_state,
    make_eval_step,
    make_metrics,
    make_optimizer,
    make_train_step,
)
from thinkml.core.model import forward
from thinkml.core.model.mixed_precision import set_nnx_dtype
from thinkml.core.parallel.sharding import Layout
from thinkml.core.train import dispatch
from thinkml.core.xla.jit import Jit
from thinkml.core.xla.target import tracing_for

LEARNING_RATE = 1e-3
# Steps in the data, which are those of a loop by hand.
STEPS = dispatch.LOOP_LENGTH


class Case(NamedTuple):
    """A training to compile.

    Attributes:
        model: a Flax NNX module, whose arrays may be shapes only.
        x: the shape of the inputs of a step, of all devices.
        num_classes: the number of classes of a label.
        layout: the devices.
        precision: that of the training.
        tokens: True if the inputs are tokens, each of which has a label.
        sharded: True if each device holds its rows of the data, as streamed data is; False if each
            holds all rows.
    """

    model: nnx.Module
    x: tuple[int, ...]
    num_classes: int
    layout: Layout
    precision: str = 'float32'
    tokens: bool = False
    sharded: bool = False


class Training(NamedTuple):
    """ThinkML's steps with the shapes and placements of their arguments."""

    apply: Any
    step: Any
    eval_step: Any
    state: Any
    totals: Any
    data: DeviceData
    plan: jax.ShapeDtypeStruct


def lower_by_thinkml(case: Case) -> jax.stages.Lowered:
    """Returns the program that a dispatch of ThinkML runs on these devices."""
    training, programs = training_of(case), {}

    def lower(program: Jit, *arguments: Any) -> Any:
        programs[program] = lowered = program.lower(*arguments)
        return _replicated(case.layout, lowered.out_info)

    with unittest.mock.patch.object(Jit, '__call__', lower):
        dispatch.run_steps(
            training.step, True, case.layout, training.data, training.plan,
            (training.state, training.totals), 0, STEPS,
        )  # fmt: skip
    (chunk,) = programs.keys() & {dispatch._run_loop, dispatch._run_steps}
    return programs[chunk]


def lower_evaluation(case: Case) -> jax.stages.Lowered:
    """Returns ThinkML's program that evaluates the data."""
    training, batch = training_of(case), case.x[0]
    arguments = (training.totals, training.state.params, training.state.model_state, training.data)
    if case.layout.platform == 'gpu':
        return dispatch._add_batch.lower(training.eval_step, batch, case.layout, *arguments, 0)
    return dispatch._run_eval.lower(training.eval_step, batch, case.layout, *arguments)


def lower_prediction(case: Case) -> jax.stages.Lowered:
    """Returns ThinkML's program that predicts a batch."""
    training = training_of(case)
    x = jax.ShapeDtypeStruct(case.x, _input_dtype(case), sharding=case.layout.rows)
    arrays = training.state.params, training.state.model_state
    reduce = forward.largest_output if case.tokens else None  # as for labels of tokens
    rows = np.uint32(0), np.uint32(0)  # the first row and the seed
    return forward._forward.lower(training.apply, case.layout, reduce, *arrays, x, *rows)


def training_of(case: Case) -> Training:
    """Returns ThinkML's steps of a case."""
    layout, found = case.layout, []
    x = jax.ShapeDtypeStruct(case.x, _input_dtype(case))

    def arrays(key):
        dtype = get_compute_dtype(case.precision)
        functional = functionalize(case.model, x, key, compute_dtype=dtype)
        found.append(functional.apply)
        return functional.params, functional.model_state

    tx = make_optimizer('adam')
    names = () if case.tokens else ('accuracy',)
    metrics = make_metrics(names, kind='multiclass', num_outputs=case.num_classes)
    loss = _mean_over_tokens if case.tokens else get_loss('cross_entropy')

    def init(params, model_state, key):
        return init_state(params, model_state, tx, key, learning_rate=LEARNING_RATE)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(init, *jax.eval_shape(arrays, key), key)
    data, plan = data_of(case)
    return Training(
        apply=found[0],
        step=make_train_step(found[0], loss, tx, metrics, layout=layout),
        eval_step=make_eval_step(found[0], loss, metrics, layout=layout),
        state=_placed_state(layout, state),
        totals=_replicated(layout, jax.eval_shape(metrics.empty)),
        data=data,
        plan=plan,
    )


def _mean_over_tokens(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(-1)


def _input_dtype(case: Case) -> Any:
    return np.int32 if case.tokens else np.float32


def _label_shape(case: Case) -> tuple[int, ...]:
    return case.x if case.tokens else case.x[:1]


def data_of(case: Case) -> tuple[DeviceData, jax.ShapeDtypeStruct]:
    """Returns the shapes of the data and of an epoch's plan."""
    rows, layout = STEPS * case.x[0], case.layout
    parted = layout.sharded_rows(aligned=True) if case.sharded else None
    place = functools.partial(_placed, layout)
    place_data = (
        functools.partial(jax.ShapeDtypeStruct, sharding=layout.rows) if case.sharded else place
    )
    data = DeviceData(
        x=place_data((rows, *case.x[1:]), _input_dtype(case)),
        y=place_data((rows, *_label_shape(case)[1:]), np.int32),
        rows=place((rows,), np.int32), num_rows=place((), np.int32), parted=parted,
    )  # fmt: skip
    return data, place((STEPS, case.x[0]), np.int32)


def batch_of(case: Case) -> Batch:
    """Returns the shapes of a batch of a step."""
    shape = jax.ShapeDtypeStruct
    y, weight = shape(_label_shape(case), np.int32), shape(case.x[:1], np.float32)
    return Batch(shape(case.x, _input_dtype(case)), y, weight, weight)


def lower_by_hand(case: Case) -> jax.stages.Lowered:
    """Returns a scan over the steps of the same net, written with Flax and optax alone."""
    model = nnx.clone(case.model)
    if case.precision == 'bfloat16':
        set_nnx_dtype(model, jnp.bfloat16)  # as if each layer had been given the dtype
    graph, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    params, stats, rest = map(nnx.to_pure_dict, (params, stats, rest))
    tx, layout = optax.adam(LEARNING_RATE), case.layout
    opt_state = jax.eval_shape(tx.init, params)

    def loss_fn(params, stats, rest, x, y):
        net = nnx.merge(graph, params, stats, rest)
        with tracing_for(layout.device, layout.mesh):  # the same attention
            logits = net(x).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        accuracy = 0.0 if case.tokens else (logits.argmax(-1) == y).mean()
        return loss, (nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)), accuracy)

    def step(rest, carry, batch):
        params, stats, opt_state = carry
        batch = jax.lax.with_sharding_constraint(batch, layout.rows)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (stats, accuracy)), grads = grad_fn(params, stats, rest, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), (loss, accuracy)

    def rows_step(x, y, rest, carry, rows):
        return step(rest, carry, (x[rows], y[rows]))

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry, rest, x, y, plan):
        if case.sharded:  # the batches of each step, as a loader hands them over
            return jax.lax.scan(functools.partial(step, rest), carry, (x, y))
        return jax.lax.scan(functools.partial(rows_step, x, y, rest), carry, plan)

    data, plan = data_of(case)
    x, y = data.x, data.y
    if case.sharded:
        by_step = NamedSharding(layout.mesh, PartitionSpec(None, *layout.mesh.axis_names))
        x, y = (
            jax.ShapeDtypeStruct((STEPS, *shape), leaf.dtype, sharding=by_step)
            for shape, leaf in ((case.x, x), (_label_shape(case), y))
        )
    carry = (params, stats, opt_state)
    carry = _placed_state(layout, carry)
    return epoch.lower(carry, _replicated(layout, rest), x, y, plan)


def _placed(layout: Layout, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    sharding = None if layout.mesh is None else layout.replicated
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _with_sharding(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _placed_state(layout: Layout, state: Any) -> Any:
    if layout.mesh is None:
        return state
    return jax.tree.map(_with_sharding, state, layout.state_sharding(state))


def _replicated(layout: Layout, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _placed(layout, leaf.shape, leaf.dtype), tree)
