"""Monte Carlo dropout: the outputs of several passes with dropout on."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.core.model.adapters import ApplyFn, FunctionalModel, LinenModel, functionalize_nnx
from thinkml.core.model.functional import functionalize, probe
from thinkml.core.model.mixed_precision import DType
from thinkml.errors import ModelTypeError
from thinkml.typing import Model, PyTree


class WithDropout:
    """A model that returns the outputs of several passes in which dropout stays on.

    All other layers are in evaluation mode: BatchNorm uses its stored statistics. One call returns
    ``[rows, draws * outputs]``.

    Args:
        model: see `functionalize`.
        num_draws: the number of passes.
        key: PRNG key of the dropout. Another key does not need another compiled program.

    Raises:
        ModelTypeError: in ``functionalize``, if the model has no dropout. Also raised for a Linen
            module with BatchNorm, because one flag switches both.

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

    def __init__(self, model: Model, num_draws: int, key: jax.Array):
        self.model = model
        self.num_draws = num_draws
        self.key = key

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """Returns the model as a `FunctionalModel`, see `thinkml.core.functionalize`."""
        functional = _with_only_dropout(self.model, x, key, compute_dtype)
        _check_random(functional, x)
        return dataclasses.replace(
            functional,
            apply=_WithDropout(functional.apply, self.num_draws),
            model_state={'model': functional.model_state, 'key': jax.random.key_data(self.key)},
        )


@dataclasses.dataclass(frozen=True)
class _WithDropout:
    apply: ApplyFn
    num_draws: int

    def __call__(self, params, model_state, x, *, key, train):
        def draw(key: jax.Array) -> jax.Array:
            outputs, _ = self.apply(params, model_state['model'], x, key=key, train=True)
            return outputs.reshape(len(outputs), -1)

        keys = jax.random.split(jax.random.wrap_key_data(model_state['key']), self.num_draws)
        draws = jax.lax.map(draw, keys)
        return jnp.moveaxis(draws, 0, 1).reshape(draws.shape[1], -1), model_state


def _with_only_dropout(
    model: Model, x: PyTree, key: jax.Array, compute_dtype: DType | None
) -> FunctionalModel:
    """Returns a model whose training mode is evaluation mode with dropout."""
    if isinstance(model, nnx.Module):
        return functionalize_nnx(model, compute_dtype, train=_switch_on_dropout)
    functional = functionalize(model, x, key, compute_dtype)
    if isinstance(model, LinenModel) and functional.model_state:
        raise ModelTypeError(
            'model: got a Linen module with the collections '
            f'{", ".join(map(str, functional.model_state))}. Its flag would switch BatchNorm '
            'together with dropout. Pass an ensemble instead, as a list of models.'
        )
    return functional


def _switch_on_dropout(model: nnx.Module) -> None:
    model.eval()
    model.set_attributes(deterministic=False, raise_if_not_found=False)


def _check_random(functional: FunctionalModel, x: PyTree) -> None:
    def forward(params: PyTree, model_state: PyTree, key: jax.Array, x: PyTree) -> PyTree:
        return functional.apply(params, model_state, x, key=key, train=True)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(forward)(functional.params, functional.model_state, key, probe(x))
    if 'random_bits' not in str(jaxpr):
        raise ModelTypeError(
            'model: it has no dropout, so all its passes are the same. Add nnx.Dropout to it, or '
            'pass an ensemble as a list of models.'
        )
