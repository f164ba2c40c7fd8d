"""Frozen parameters: models of any kind with some of their parameters not trained."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from thinkml.core.model.adapters import ApplyFn, FunctionalModel
from thinkml.core.model.sown_values import Collected, collecting_sown
from thinkml.typing import PyTree

# The names in the model state, and so in checkpoints. No attribute of a module has such a name.
FROZEN, STATE = 'frozen-parameters', 'model-state'


def with_frozen(functional: FunctionalModel, is_frozen: PyTree) -> FunctionalModel:
    """Returns a model whose frozen parameters are part of its state.

    They have no gradients, no optimizer state and no moving average. Layers stay in training mode.

    Args:
        functional: the model.
        is_frozen: True for each parameter that is not trained.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core import functionalize
        >>> from thinkml.core.model.frozen_parameters import with_frozen
        >>> from thinkml.models import from_functions
        >>> model = from_functions(
        ...     lambda key, x: {'w': jnp.ones((4, 2)), 'b': jnp.zeros(2)},
        ...     lambda params, x: x @ params['w'] + params['b'],
        ... )
        >>> functional = functionalize(model, jnp.ones((1, 4)), jax.random.key(0))
        >>> with_frozen(functional, {'w': True, 'b': False}).params
        {'b': Array([0., 0.], dtype=float32), 'w': None}
    """

    def split(params: PyTree, model_state: PyTree) -> tuple[PyTree, PyTree]:
        trained = jax.tree.map(lambda frozen, leaf: None if frozen else leaf, is_frozen, params)
        frozen = jax.tree.map(lambda frozen, leaf: leaf if frozen else None, is_frozen, params)
        return trained, {FROZEN: frozen, STATE: model_state}

    def write(params: PyTree, model_state: PyTree) -> None:
        functional.write(all_params(params, model_state), model_state[STATE])

    def read() -> tuple[PyTree, PyTree] | None:
        found = functional.read()
        return None if found is None else split(*found)

    params, model_state = split(functional.params, functional.model_state)
    return FunctionalModel(
        _FrozenApply(functional.apply), params, model_state, write=write, read=read
    )


def all_params(params: PyTree, model_state: PyTree) -> PyTree:
    """Returns the parameters of a model, frozen ones included."""
    if FROZEN not in model_state:
        return params
    return jax.tree.map(
        lambda trained, frozen: frozen if trained is None else trained,
        params, model_state[FROZEN],
        is_leaf=lambda value: value is None,
    )  # fmt: skip


def without_frozen(model_state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's other arrays by name, with frozen parameters by their own names."""
    if not any(name.startswith(f'{FROZEN}/') for name in model_state):
        return dict(model_state)
    return {name.partition('/')[2]: array for name, array in model_state.items()}


@dataclasses.dataclass(frozen=True)
class _FrozenApply:
    apply: ApplyFn

    def __call__(self, params, model_state, x, *, key, train):
        return self._with_all(self.apply, params, model_state, x, key=key, train=train)

    def run(self, params, model_state, function, *, key, train):
        run = self.apply.run  # pyright: ignore[reportAttributeAccessIssue]
        return self._with_all(run, params, model_state, function, key=key, train=train)

    def collecting(self):
        return dataclasses.replace(self, apply=collecting_sown(self.apply))

    def _with_all(self, call, params, model_state, argument, *, key, train):
        params = all_params(params, model_state)
        outputs, new_state = call(params, model_state[STATE], argument, key=key, train=train)
        if isinstance(new_state, Collected):
            whole = {**model_state, STATE: new_state.model_state}
            return outputs, new_state._replace(model_state=whole)
        return outputs, {**model_state, STATE: new_state}
