"""Auxiliary losses: values that a model sows, added to its loss with a weight each."""

# clu's collections read the annotations at run time, so no `from __future__ import annotations`.
import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from thinkml.core.model.adapters import ApplyFn
from thinkml.core.model.sown_values import Collected, SownValues, collecting_sown
from thinkml.core.objectives.accumulators import WeightedMean
from thinkml.core.objectives.metric_entries import Entry
from thinkml.core.objectives.streaming_metrics import register_pytree
from thinkml.errors import ConfigError
from thinkml.typing import PyTree


@dataclasses.dataclass(frozen=True)
class AuxLosses:
    """The weights of the sown values that are added to a loss.

    A sown value is one number for the batch, or a number for each row, whose weighted mean counts.
    The values of all layers that sow a name are summed.

    Attributes:
        weights: pairs of a name and the factor of its values; empty for none.

    Example:
        >>> import jax, optax
        >>> from flax import nnx
        >>> from thinkml import core
        >>> class Small(nnx.Linear):
        ...     def __call__(self, x):
        ...         self.sow(nnx.Intermediate, 'size', (x**2).mean())
        ...         return super().__call__(x)
        >>> functional = core.functionalize(
        ...     Small(2, 1, rngs=nnx.Rngs(0)), None, jax.random.key(0))
        >>> aux, tx = core.AuxLosses((('size', 0.1),)), core.make_optimizer('sgd')
        >>> step = core.make_train_step(
        ...     functional.apply, core.get_loss('mse'), tx, core.make_metrics(), aux_losses=aux)
        >>> state = core.init_state(
        ...     functional.params, functional.model_state, tx, jax.random.key(0), learning_rate=0.1)
        >>> ones = jax.numpy.ones((4, 2))
        >>> _, output = step(state, core.Batch(ones, ones[:, 0], ones[:, 0]))
        >>> float(output.metrics.compute()['size'])
        1.0
    """

    weights: tuple[tuple[str, float], ...] = ()

    def collecting(self, apply: ApplyFn) -> ApplyFn:
        """Returns the forward pass that collects sown values, if any are needed."""
        return collecting_sown(apply) if self.weights else apply

    def collected(self, state: PyTree) -> Collected:
        """Returns the state of a model after a call, and the sown values that are needed."""
        found = state if isinstance(state, Collected) else Collected(state, {})
        return found._replace(sown={name: found.sown.get(name, ()) for name, _ in self.weights})

    def total_weight(self, weight: PyTree) -> Any:
        """Returns the sum of the weights of a batch's rows; 0 if it is not needed."""
        return jnp.sum(_weights_of_rows(weight)) if self.weights else 0

    def means(self, sown: SownValues, weight: PyTree, total: Any) -> dict[str, jax.Array]:
        """Returns the weighted sum of each value over rows, divided by the total weight.

        Args:
            sown: the sown values of a part of a batch.
            weight: the weights of its rows or elements, or a dict of them by head.
            total: the `total_weight` of the batch.

        Raises:
            ConfigError: for a value that the model does not sow, or of another shape or dtype.
        """
        if not self.weights:
            return {}
        of_rows = _weights_of_rows(weight)
        total = jnp.where(total > 0, total, 1)
        means = {}
        for name, _ in self.weights:
            arrays = sown[name]
            if problem := sown_problem(name, arrays, len(of_rows)):
                raise ConfigError(problem)
            value = sum(array.astype(jnp.float32) for array in arrays)
            # A part of a batch may consist of padding alone.
            means[name] = jnp.sum(jnp.where(of_rows == 0, 0, of_rows * value)) / total
        return means

    def add(self, loss: jax.Array, means: Mapping[str, jax.Array]) -> jax.Array:
        """Returns a loss with each mean added, times its factor."""
        for name, factor in self.weights:
            loss = loss + factor * means[name]
        return loss

    def metrics_class(self, metrics: type[clu_metrics.Collection]) -> type[clu_metrics.Collection]:
        """Returns a collection class with the means as well, whose ``loss`` includes them.

        Args:
            metrics: a class from `make_metrics` or another function beside it.
        """
        return _with_means(metrics, self.weights) if self.weights else metrics

    def with_means(
        self, metrics: clu_metrics.Collection, means: Mapping[str, jax.Array], total: Any
    ) -> clu_metrics.Collection:
        """Returns the metrics of a batch as an object of `metrics_class`.

        Args:
            metrics: the other metrics.
            means: see `means`; the sums of those of all parts.
            total: the `total_weight` of the batch.
        """
        if not self.weights:
            return metrics
        fields = {name: getattr(metrics, name) for name in type(metrics).__annotations__}
        for index, (name, _) in enumerate(self.weights):
            fields[_field(index)] = WeightedMean.from_model_output(means[name][None], total[None])
        fields['_reduction_counter'] = metrics._reduction_counter
        return self.metrics_class(type(metrics))(**fields)


NO_AUX_LOSSES = AuxLosses()


def sown_problem(name: str, arrays: tuple[Any, ...], num_rows: int) -> str | None:
    """Returns a sentence if sown values can not be added to a loss; else None.

    Args:
        name: their name.
        arrays: the values of each layer that sows the name; shapes and dtypes suffice.
        num_rows: the number of rows in the batch.
    """
    if not arrays:
        return f'aux_losses: got {name!r}, which the model does not sow in training mode.'
    for array in arrays:
        if array.shape not in ((), (num_rows,)):
            return (
                f'aux_losses: the model sows {name!r} of shape {array.shape}, expected one number '
                f'for the batch, or one for each row, ({num_rows},). Sow its mean or its sum.'
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return (
                f'aux_losses: the model sows {name!r} as {array.dtype}, expected floats, which '
                'have gradients.'
            )
    return None


def _weights_of_rows(weight: PyTree) -> jax.Array:
    """Returns the weight of each row: the largest of its elements and heads."""
    rows = [leaf.max(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(weight)]
    return functools.reduce(jnp.maximum, rows)


class _WithMeans:
    """A collection whose loss is computed from several fields."""

    @property
    def all_fields(self) -> '_WithMeans':
        """Returns the collection itself, as the accumulator of its loss."""
        return self


def _field(index: int) -> str:
    return f'_aux_{index}'


@functools.lru_cache(maxsize=64)
def _with_means(
    metrics: type[clu_metrics.Collection], weights: tuple[tuple[str, float], ...]
) -> type[clu_metrics.Collection]:
    base: Any = metrics
    loss = base.entries['loss']

    def total_loss(collection: Any) -> jax.Array:
        total = loss.read(getattr(collection, loss.field))
        for index, (_, factor) in enumerate(weights):
            total = total + factor * getattr(collection, _field(index)).compute()
        return total

    entries = {**base.entries, 'loss': Entry('all_fields', clu_metrics.Metric, total_loss)}
    for index, (name, _) in enumerate(weights):
        entries[name] = Entry(_field(index), WeightedMean, WeightedMean.compute)
    fields = {_field(index): WeightedMean for index in range(len(weights))}
    members = {
        '__annotations__': base.__annotations__ | fields,
        '__doc__': f"The epoch's {', '.join(entries)}.",
        'entries': MappingProxyType(entries),
    }
    return register_pytree(type('AuxMetrics', (_WithMeans, base), members))
