"""CLU metric collections: accumulated on the device, merged exactly over an epoch.

A metric here is a `clu.metrics.Metric` made from the keywords ``logits``, ``labels``, ``losses``
(per example) and ``weight``; any collection of such metrics works in a train step.
"""

# clu's collections read the annotations at run time, so no `from __future__ import annotations`.
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax import struct

from thinkml.core.losses import mae, mse
from thinkml.errors import ConfigError, unknown_name

PerExampleFn = Callable[[jax.Array, jax.Array], jax.Array]


@struct.dataclass
class WeightedMean(clu_metrics.Metric):
    """``sum(weight * values) / sum(weight)`` over everything merged into it.

    Unlike `clu.metrics.Average`, whose mask is boolean, the weights are real numbers. Both sums
    are compensated: each is a float32 and what rounding has taken from it, so that millions of
    merges lose nothing.

    Reference:
        Kahan, 1965, *Further remarks on reducing truncation errors*.
    """

    total: jax.Array
    total_error: jax.Array
    weight: jax.Array
    weight_error: jax.Array

    @classmethod
    def empty(cls):
        # Four arrays, not one four times: all are donated to the compiled chunk.
        return cls(*(jnp.zeros((), jnp.float32) for _ in range(4)))

    @classmethod
    def from_model_output(cls, values: jax.Array, weight: jax.Array, **_):
        zero = jnp.zeros((), jnp.float32)
        return cls(jnp.sum(weight * values), zero, jnp.sum(weight), zero)

    def merge(self, other):
        total = _add(self.total, self.total_error + other.total_error, other.total)
        weight = _add(self.weight, self.weight_error + other.weight_error, other.weight)
        return type(self)(*total, *weight)

    def compute(self):
        return (self.total - self.total_error) / (self.weight - self.weight_error)


def _add(total: jax.Array, error: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum of ``total`` and ``value``, and by how much it is too large."""
    value = value - error
    result = total + value
    return result, (result - total) - value


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the prediction is right, ``[batch]``.

    The prediction is the larger logit's index for ``[batch, classes]`` logits with class-index
    labels, ``logit > 0`` for one logit; with several labels per example all must be right (subset
    accuracy, as scikit-learn's).
    """
    if labels.ndim == 1 and logits.ndim == 2 and logits.shape[1] > 1:
        return (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
    right = (logits.reshape(labels.shape) > 0) == (labels > 0)
    return right.reshape(len(labels), -1).all(axis=1).astype(jnp.float32)


CLASSIFICATION_METRICS: dict[str, PerExampleFn] = {'accuracy': accuracy}
REGRESSION_METRICS: dict[str, PerExampleFn] = {'mse': mse, 'mae': mae}


def _mean_of(per_example: PerExampleFn) -> type[clu_metrics.Metric]:
    return WeightedMean.from_fun(
        lambda logits, labels, weight, **_: {
            'values': per_example(logits, labels),
            'weight': weight,
        }
    )


_LOSS = WeightedMean.from_fun(lambda losses, weight, **_: {'values': losses, 'weight': weight})


@functools.lru_cache(maxsize=256)
def make_metrics(names: tuple[str, ...] = ()) -> type[clu_metrics.Collection]:
    """Returns the CLU collection class of the loss and the named metrics.

    The same names return the same class, so that compiled programs are shared.

    Args:
        names: among ``'accuracy'`` (classification), ``'mse'`` and ``'mae'`` (regression).

    Raises:
        ConfigError: for an unknown name.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import make_metrics
        >>> metrics = make_metrics(('accuracy',)).single_from_model_output(
        ...     logits=jnp.array([[2.0, 0.0], [0.0, 1.0]]), labels=jnp.array([0, 0]),
        ...     losses=jnp.array([0.1, 1.3]), weight=jnp.array([1.0, 1.0]))
        >>> {name: round(float(value), 2) for name, value in metrics.compute().items()}
        {'loss': 0.7, 'accuracy': 0.5}
    """
    known = CLASSIFICATION_METRICS | REGRESSION_METRICS
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name('metrics', name, known))
    metrics = {name: _mean_of(known[name]) for name in names}
    return clu_metrics.Collection.create(loss=_LOSS, **metrics)
