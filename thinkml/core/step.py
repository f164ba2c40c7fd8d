"""One training step and one evaluation step, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu.metrics import Collection

from thinkml.core.adapters import ApplyFn
from thinkml.core.convolutions import fast_convolutions
from thinkml.core.losses import LossFn, weighted_mean
from thinkml.core.state import TrainState


class Batch(NamedTuple):
    """A batch of encoded examples.

    Attributes:
        x: inputs, ``[batch, ...]``.
        y: labels or targets, ``[batch]`` or ``[batch, k]``.
        weight: float32 ``[batch]``; 0 for examples that only fill the batch up.
    """

    x: Any
    y: jax.Array
    weight: jax.Array


class StepOutput(NamedTuple):
    """What a training step reports: the batch's weighted mean loss, and its metrics."""

    loss: jax.Array
    metrics: Collection


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]
EvalStep = Callable[[Any, Any, Batch], Collection]


@functools.lru_cache(maxsize=64)
def make_train_step(
    apply: ApplyFn,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    metrics: type[Collection],
) -> TrainStep:
    """Returns the pure ``train_step(state, batch) -> (state, StepOutput)``.

    The step descends along the gradient of ``sum(weight * loss) / sum(weight)``. Equal arguments
    return the same function, so that a program compiled for it is found again.

    Args:
        apply: the model's forward pass, from `functionalize`.
        loss_fn: ``(logits, labels) -> [batch]``, see `get_loss`.
        tx: an optax transformation, see `make_optimizer`.
        metrics: a CLU collection class, see `make_metrics`.

    Example:
        See ``examples/02_own_loop.py`` for a whole loop.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
        key = jax.random.fold_in(state.key, state.step)

        def weighted_loss(params):
            outputs, model_state = apply(params, state.model_state, batch.x, key=key, train=True)
            logits = _as_logits(outputs, batch.y)
            losses = loss_fn(logits, batch.y)
            return weighted_mean(losses, batch.weight), (logits, losses, model_state)

        loss_and_grad = fast_convolutions(jax.value_and_grad(weighted_loss, has_aux=True))
        (loss, (logits, losses, model_state)), grads = loss_and_grad(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return state, StepOutput(loss, _collect(metrics, logits, losses, batch))

    return train_step


@functools.lru_cache(maxsize=64)
def make_eval_step(apply: ApplyFn, loss_fn: LossFn, metrics: type[Collection]) -> EvalStep:
    """Returns the pure ``eval_step(params, model_state, batch) -> metrics``, in eval mode.

    Equal arguments return the same function.
    """

    def eval_step(params: Any, model_state: Any, batch: Batch) -> Collection:
        outputs, _ = apply(params, model_state, batch.x, key=None, train=False)
        logits = _as_logits(outputs, batch.y)
        return _collect(metrics, logits, loss_fn(logits, batch.y), batch)

    return eval_step


def _as_logits(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Outputs in float32; ``[batch, 1]`` beside labels ``[batch]`` loses the axis.

    Without that, a loss written as ``(logits - labels) ** 2`` would broadcast to
    ``[batch, batch]`` without a word.
    """
    if labels.ndim == 1 and outputs.shape == (len(labels), 1):
        outputs = outputs[:, 0]
    return outputs.astype(jnp.float32)


def _collect(metrics: type[Collection], logits, losses, batch: Batch) -> Collection:
    return metrics.single_from_model_output(
        logits=logits, labels=batch.y, losses=losses, weight=batch.weight
    )
