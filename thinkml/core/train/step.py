"""Training and evaluation steps as pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Collection

from thinkml.core.model.adapters import ApplyFn
from thinkml.core.model.forward import eval_outputs
from thinkml.core.model.sown_values import Collected
from thinkml.core.objectives.elements import ElementShape
from thinkml.core.objectives.heads import Head, HeadLosses, OneOutput, as_heads
from thinkml.core.objectives.losses import LossFn
from thinkml.core.objectives.model_objective import ObjectiveLoss
from thinkml.core.parallel.parameter_gathering import gathered_at_use
from thinkml.core.parallel.sharding import (
    ONE_DEVICE,
    Layout,
    pin_state,
    replicate,
    split_rows,
)
from thinkml.core.train.aux_losses import NO_AUX_LOSSES, AuxLosses
from thinkml.core.train.optimizers import update_with_loss
from thinkml.core.train.scoring import make_scoring
from thinkml.core.train.state import TrainState
from thinkml.core.xla.cpu_convolutions import fast_convolutions
from thinkml.core.xla.rematerialization import rematerialized
from thinkml.core.xla.target import tracing_for
from thinkml.typing import PyTree


class Batch(NamedTuple):
    """A batch of encoded examples.

    Attributes:
        x: inputs, ``[batch, ...]``.
        y: labels or targets, ``[batch]`` or ``[batch, k]``, with the axes of the elements of a row
            after the first; a dict of them for a model with several heads.
        weight: float32 ``[batch]``, the weight of each example's loss; 0 for padding. Or the weight
            of each element, ``[batch, *element_shape]``; or a dict of them by head.
        mask: float32 ``[batch]``, the weight of each example in all other metrics: 1, or 0 for
            padding. None uses ``weight``.
    """

    x: PyTree
    y: PyTree
    weight: PyTree
    mask: PyTree = None


class StepOutput(NamedTuple):
    """The result of a training step.

    Attributes:
        loss: the batch's weighted mean loss, a float scalar.
        metrics: the batch's metrics, a CLU collection. A custom step returns a dict of numbers to
            record, or None.
    """

    loss: jax.Array
    metrics: Any = None


class _Totals(NamedTuple):
    """The sums of the weights of a batch: those of the losses by head, and that of the rows."""

    of_heads: PyTree
    of_rows: Any


AugmentFn = Callable[[jax.Array, PyTree, jax.Array], tuple[PyTree, jax.Array]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]
EvalStep = Callable[[PyTree, PyTree, Batch], Collection]


@functools.lru_cache(maxsize=64)
def make_train_step(
    apply: ApplyFn,
    loss_fn: LossFn | HeadLosses | ObjectiveLoss,
    tx: optax.GradientTransformation,
    metrics: type[Collection],
    *,
    augment: AugmentFn | None = None,
    accumulate_steps: int = 1,
    remat: bool = False,
    element_shape: ElementShape = (),
    aux_losses: AuxLosses = NO_AUX_LOSSES,
    layout: Layout = ONE_DEVICE,
) -> TrainStep:
    """Returns the pure ``train_step(state, batch) -> (state, StepOutput)``.

    The step follows the gradient of ``sum(weight * loss) / sum(weight)``. Both sums are over the
    full batch, regardless of the number of parts it is computed in. Random numbers are drawn from
    ``(state.key, state.step)``. Equal arguments return the same function, so a program compiled for
    it is used again.

    Args:
        apply: the model's forward pass, from `functionalize`.
        loss_fn: the loss ``(logits, labels) -> [batch]``, see `get_loss`; the losses of several
            heads, `HeadLosses`; or an `ObjectiveLoss`.
        tx: an optax transformation, see `make_optimizer`.
        metrics: a CLU collection class, see `make_metrics` and `make_head_metrics`. The metrics use
            the labels from before the augmentation; for elements and heads those after it.
        augment: a function ``(key, x, y) -> (x, y)``, applied to each part of the batch; to all of
            it if rows have elements.
        accumulate_steps: the number of parts that the batch is computed in, one after another. It
            must divide the batch's length. Only one part's activations are in memory at a time, and
            BatchNorm sees one part at a time. A part that is only padding changes nothing.
        remat: True to compute activations again for the gradient instead of storing them, see
            `rematerialized`. This takes less memory and a third more time.
        element_shape: the axes of a row that have a label each, such as ``(tokens,)``. The sums are
            over these elements, and the metrics count them. A label of -1 is ignored. A loss
            may return values ``[batch, *element_shape]``, or ``[batch]`` for sums over rows. Not
            used with `HeadLosses`, which have one for each head.
        aux_losses: the values that the model sows and that are added to the loss. The metrics of
            the step are then of ``aux_losses.metrics_class(metrics)``. In a batch of several parts
            a value of one number is the mean over the parts, each weighted by its rows.
        layout: the layout of the arrays.

    Example:
        See ``examples/02_own_loop.py`` for a whole loop.
    """

    def forward(
        params: PyTree, model_state: PyTree, x: PyTree, key: jax.Array
    ) -> tuple[PyTree, Collected]:
        outputs, state = scored_apply(params, model_state, x, key=key, train=True)
        return outputs, aux_losses.collected(state)

    heads = as_heads(loss_fn, element_shape)
    scoring = make_scoring(heads, metrics, layout)
    scored_apply = scoring.forward(aux_losses.collecting(apply))
    # Rematerialized parts gather again anyway.
    forward = gathered_at_use(forward, layout, twice=not remat)
    forward = rematerialized(forward) if remat else forward
    # Moved targets change which elements count, so they are moved before the weights are summed.
    has_elements = bool(element_shape) or isinstance(heads, HeadLosses)
    augment_rows, augment_part = (augment, None) if has_elements else (None, augment)

    def gradients(
        params: PyTree, model_state: PyTree, batch: Batch, totals: _Totals, key: jax.Array
    ):
        """Returns ``batch``'s part of the loss, its gradients, the new state, and its scores."""
        x, y = batch.x, batch.y
        if augment_part is not None:
            x, y = augment_part(jax.random.fold_in(key, AUGMENT), x, y)

        def partial_loss(params):
            inputs = scoring.inputs(x, y, batch.weight)
            outputs, (new_state, sown) = forward(params, model_state, inputs, key)
            losses, scored = scoring.losses(outputs, y, batch.y, batch.weight, _mask_of(batch))
            means = heads.map(Head.mean, losses, batch.weight, totals.of_heads)
            aux = aux_losses.means(sown, batch.weight, totals.of_rows)
            return aux_losses.add(heads.total(means), aux), (new_state, (scored, aux))

        loss_and_grad = fast_convolutions(jax.value_and_grad(partial_loss, has_aux=True))
        (loss, (new_state, scored)), grads = loss_and_grad(params)
        return loss, grads, new_state, scored

    def accumulated(
        params: PyTree, model_state: PyTree, batch: Batch, totals: _Totals, key: jax.Array
    ):
        """Returns the same as `gradients`, summed over the parts. Parts of padding are ignored."""

        def add_part(carry, part):
            index, has_rows, batch = part
            loss, grads, model_state = carry
            part_loss, part_grads, new_state, scored = gradients(
                params, model_state, batch, totals, jax.random.fold_in(key, index)
            )
            sums = (loss + part_loss, jax.tree.map(jnp.add, grads, part_grads))
            keep = functools.partial(jnp.where, has_rows)
            # A `cond` and not a `where` on each number: XLA would fuse that with the computation of
            # the statistics, which changes their rounding and is slower on a CPU.
            model_state = jax.lax.cond(
                has_rows, lambda new, old: new, lambda new, old: old, new_state, model_state
            )
            return (*jax.tree.map(keep, sums, (loss, grads)), model_state), scored

        has_rows = functools.reduce(
            jnp.logical_or,
            (
                jnp.any(mask.reshape(accumulate_steps, -1) != 0, axis=1)
                for mask in jax.tree.leaves(_mask_of(batch))
            ),
        )
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(accumulate_steps, -1, *leaf.shape[1:]), batch
        )
        parts = split_rows(layout, parts, axis=1)
        start = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params), model_state)
        (loss, grads, model_state), scored = jax.lax.scan(
            add_part, start, (jnp.arange(accumulate_steps), has_rows, parts)
        )
        scored, aux = scored
        aux = jax.tree.map(lambda leaf: leaf.sum(axis=0), aux)
        return loss, grads, model_state, (scoring.joined(scored), aux)

    @tracing_for(layout.device, layout.mesh)
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
        key = jax.random.fold_in(state.key, state.step)
        # Each device computes the weights of all rows, so that their sum needs no exchange.
        weight, mask = replicate(layout, (batch.weight, batch.mask))
        if augment_rows is not None:
            x, y = augment_rows(jax.random.fold_in(key, AUGMENT), batch.x, batch.y)
            batch = batch._replace(x=x, y=y)
        batch = _with_element_weights(heads, batch._replace(weight=weight, mask=mask))
        totals = _Totals(
            heads.map(Head.totals, batch.weight), aux_losses.total_weight(batch.weight)
        )
        if accumulate_steps == 1:
            batch = split_rows(layout, batch)
        compute = gradients if accumulate_steps == 1 else accumulated
        loss, grads, model_state, (scored, aux) = compute(
            state.params, state.model_state, batch, totals, key
        )
        updates, opt_state = update_with_loss(tx, grads, state.opt_state, state.params, loss)
        params = optax.apply_updates(state.params, updates)
        collected = scoring.metrics(
            scored, batch.y, batch.weight, _mask_of(batch),
            grads=grads, params=params, updates=updates,
        )  # fmt: skip
        collected = aux_losses.with_means(collected, aux, totals.of_rows)
        state = state.after_step(params, model_state, opt_state)
        return pin_state(layout, state), replicate(layout, StepOutput(loss, collected))

    return train_step


# Differs from the numbers that models fold into the same key.
AUGMENT = 2**31


@functools.lru_cache(maxsize=64)
def make_eval_step(
    apply: ApplyFn,
    loss_fn: LossFn | HeadLosses | ObjectiveLoss,
    metrics: type[Collection],
    *,
    element_shape: ElementShape = (),
    layout: Layout = ONE_DEVICE,
) -> EvalStep:
    """Returns the pure ``eval_step(params, model_state, batch) -> metrics``, in eval mode.

    Equal arguments return the same function. See `make_train_step` for ``element_shape``.
    """
    heads = as_heads(loss_fn, element_shape)
    scoring = make_scoring(heads, metrics, layout)
    scored_apply = scoring.forward(apply)

    @tracing_for(layout.device, layout.mesh)
    def eval_step(params: PyTree, model_state: PyTree, batch: Batch) -> Collection:
        batch = split_rows(layout, _with_element_weights(heads, batch))
        y, weight, mask = batch.y, batch.weight, _mask_of(batch)
        inputs = scoring.inputs(batch.x, y, weight)
        outputs = eval_outputs(scored_apply, params, model_state, inputs, layout)
        _, scored = scoring.losses(outputs, y, y, weight, mask)
        return replicate(layout, scoring.metrics(scored, y, weight, mask))

    return eval_step


def _with_element_weights(heads: OneOutput | HeadLosses, batch: Batch) -> Batch:
    weight = heads.map(Head.element_weights, batch.weight, batch.y)
    if batch.mask is None:
        return batch._replace(weight=weight)
    return batch._replace(weight=weight, mask=heads.map(Head.element_weights, batch.mask, batch.y))


def _mask_of(batch: Batch) -> PyTree:
    return batch.weight if batch.mask is None else batch.mask
