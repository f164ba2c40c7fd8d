"""Outputs that dropout makes uncertain."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.core.model.adapters import ApplyFn, FunctionalModel, LinenModel, functionalize_nnx
from thinkml.core.model.functional import functionalize, probe
from thinkml.core.model.mixed_precision import DType
from thinkml.errors import ModelTypeError


class WithDropout:
    """A model that returns the outputs of several passes in which dropout stays on.

    All else is as in evaluation: BatchNorm keeps to its stored statistics. One call returns
    ``[rows, draws * outputs]``.

    Args:
        model: see `functionalize`.
        num_draws: how many passes.
        key: PRNG key of the dropout; another one needs no new compiled program.

    Raises:
        ModelTypeError: when it is taken apart, if the model has no dropout, or is a Linen module
            with BatchNorm, whose flag switches both.

    Example:
        >>> import jax, numpy as np
        >>> from flax import nnx
        >>> from thinkml.core import WithDropout, predict_outputs
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
        >>> draws = WithDropout(model, 20, jax.random.key(0))
        >>> predict_outputs(draws, np.ones((5, 4), np.float32)).shape
        (5, 60)

    Reference:
        Gal and Ghahramani, 2016, *Dropout as a Bayesian approximation*.
    """

    def __init__(self, model: Any, num_draws: int, key: jax.Array):
        self.model = model
        self.num_draws = num_draws
        self.key = key

    def functionalize(
        self, x: Any, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """See `thinkml.core.functionalize`."""
        functional = _with_dropout_alone(self.model, x, key, compute_dtype)
        _check_random(functional, x)
        return dataclasses.replace(
            functional,
            apply=_WithDropout(functional.apply, self.num_draws),
            model_state={'own': functional.model_state, 'key': jax.random.key_data(self.key)},
        )


@dataclasses.dataclass(frozen=True)
class _WithDropout:
    apply: ApplyFn
    num_draws: int

    def __call__(self, params, model_state, x, *, key, train):
        def draw(key: jax.Array) -> jax.Array:
            outputs, _ = self.apply(params, model_state['own'], x, key=key, train=True)
            return outputs.reshape(len(outputs), -1)

        keys = jax.random.split(jax.random.wrap_key_data(model_state['key']), self.num_draws)
        draws = jax.lax.map(draw, keys)
        return jnp.moveaxis(draws, 0, 1).reshape(draws.shape[1], -1), model_state


def _with_dropout_alone(
    model: Any, x: Any, key: jax.Array, compute_dtype: DType | None
) -> FunctionalModel:
    """A model whose training mode is evaluation with dropout."""
    if isinstance(model, nnx.Module):
        return functionalize_nnx(model, compute_dtype, train=_dropout_alone)
    functional = functionalize(model, x, key, compute_dtype)
    if isinstance(model, LinenModel) and functional.model_state:
        raise ModelTypeError(
            'model: got a Linen module with the collections '
            f'{", ".join(map(str, functional.model_state))}, whose flag would switch BatchNorm '
            'together with dropout. Pass a list of models, which is an ensemble, instead.'
        )
    return functional


def _dropout_alone(model: nnx.Module) -> None:
    model.eval()
    model.set_attributes(deterministic=False, raise_if_not_found=False)


def _check_random(functional: FunctionalModel, x: Any) -> None:
    def forward(params: Any, model_state: Any, key: jax.Array, x: Any) -> Any:
        return functional.apply(params, model_state, x, key=key, train=True)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(forward)(functional.params, functional.model_state, key, probe(x))
    if 'random_bits' not in str(jaxpr):
        raise ModelTypeError(
            'model: it has no dropout, so that all its passes are the same. Put nnx.Dropout into '
            'it, or pass a list of models, which is an ensemble.'
        )
