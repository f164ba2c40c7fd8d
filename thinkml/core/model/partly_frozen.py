"""Partly frozen models: training of some parameters, and low-rank updates of others."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from thinkml.core.model.adapters import (
    ApplyFn,
    FunctionalModel,
    VariablePath,
    functionalize_nnx,
)
from thinkml.core.model.mixed_precision import DType
from thinkml.core.model.sown_values import Collected, collecting_sown
from thinkml.core.model.tree_paths import get_at, replaced_at
from thinkml.typing import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class PartlyFrozen:
    """An NNX module with only some of its parameters trained, in place.

    Frozen parameters have no gradients and no optimizer state. Modules whose parameters are all
    frozen stay in evaluation mode, where BatchNorm uses its stored statistics.

    Attributes:
        model: the module.
        rates: a learning rate factor for each trained parameter, by path.
        low_rank: the frozen kernels that get a low-rank update, by path, with the number of their
            axes that are inputs.
        rank: the rank of these updates.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from thinkml.core.model.partly_frozen import PartlyFrozen
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs))
        >>> frozen = PartlyFrozen(model, {('layers', 1, 'kernel'): 1.0})
        >>> functional = frozen.functionalize(jnp.ones((1, 4)), jax.random.key(0))
        >>> jax.tree.map(jnp.shape, functional.params)
        {'layers': {1: {'kernel': (8, 2)}}}

    Reference:
        Hu et al., 2021, *LoRA: low-rank adaptation of large language models*.
    """

    model: nnx.Module
    rates: Mapping[VariablePath, float]
    low_rank: Mapping[VariablePath, int] = dataclasses.field(default_factory=dict)
    rank: int = 0

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """Returns the model as a `FunctionalModel`, see `thinkml.core.functionalize`."""
        functional = functionalize_nnx(self.model, compute_dtype, trainable=self.rates.keys())
        rates = _rate_tree(functional.params, self.rates)
        if not self.low_rank:
            return dataclasses.replace(functional, learning_rates=rates)
        targets = tuple(sorted(self.low_rank.items(), key=str))
        factors = {
            _name(path): _factors(
                get_at(functional.model_state, path),
                num_inputs,
                self.rank,
                jax.random.fold_in(key, index),
            )
            for index, (path, num_inputs) in enumerate(targets)
        }
        paths = tuple(path for path, _ in targets)

        def write(params: PyTree, model_state: PyTree) -> None:
            functional.write(params['own'], _add_updates(model_state, params['low_rank'], paths))

        return FunctionalModel(
            apply=_LowRankApply(functional.apply, paths),
            params={'own': functional.params, 'low_rank': factors},  # checkpoints have these keys
            model_state=functional.model_state,
            write=write,
            learning_rates={'own': rates, 'low_rank': jax.tree.map(lambda _: 1.0, factors)},
            read=functional.read,
        )

    def __repr__(self) -> str:
        return f'{type(self.model).__name__} with {len(self.rates)} trained arrays'


@dataclasses.dataclass(frozen=True)
class _LowRankApply:
    apply: ApplyFn
    paths: tuple[VariablePath, ...]

    def __call__(self, params, model_state, x, *, key, train):
        return self._with_updates(self.apply, params, model_state, x, key=key, train=train)

    def run(self, params, model_state, function, *, key, train):
        run = self.apply.run  # pyright: ignore[reportAttributeAccessIssue]
        return self._with_updates(run, params, model_state, function, key=key, train=train)

    def collecting(self):
        return dataclasses.replace(self, apply=collecting_sown(self.apply))

    def _with_updates(self, call, params, model_state, argument, *, key, train):
        updated = _add_updates(model_state, params['low_rank'], self.paths)
        outputs, new_state = call(params['own'], updated, argument, key=key, train=train)
        if isinstance(new_state, Collected):
            return outputs, new_state._replace(
                model_state=self._without_updates(new_state.model_state, model_state)
            )
        return outputs, self._without_updates(new_state, model_state)

    def _without_updates(self, new_state: PyTree, model_state: PyTree) -> PyTree:
        for path in self.paths:
            new_state = replaced_at(new_state, path, get_at(model_state, path))
        return new_state


def _factors(kernel: jax.Array, num_inputs: int, rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """Returns the two factors of a low-rank update; their product is 0 at the start."""
    inputs, outputs = math.prod(kernel.shape[:num_inputs]), math.prod(kernel.shape[num_inputs:])
    down = jax.random.normal(key, (inputs, rank), kernel.dtype) / math.sqrt(inputs)
    return {'down': down, 'up': jnp.zeros((rank, outputs), kernel.dtype)}


def _add_updates(model_state: PyTree, factors: PyTree, paths: tuple[VariablePath, ...]) -> PyTree:
    for path in paths:
        kernel, parts = get_at(model_state, path), factors[_name(path)]
        update = (parts['down'] @ parts['up']).reshape(kernel.shape)
        model_state = replaced_at(model_state, path, kernel + update)
    return model_state


def merged_low_rank(params: Mapping[str, Any], model_state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's arrays by name, with low-rank updates added to their kernels.

    Args:
        params: the trained arrays by name, low-rank factors included.
        model_state: the other arrays by name.
    """
    updates = {name: array for name, array in params.items() if name.startswith('low_rank/')}
    if not updates:
        return {**params, **model_state}
    arrays = {name.removeprefix('own/'): a for name, a in params.items() if name not in updates}
    arrays |= model_state
    for name, down in updates.items():
        if name.endswith('/down'):
            kernel = name.removeprefix('low_rank/').removesuffix('/down')
            update = down @ updates[name.removesuffix('down') + 'up']
            arrays[kernel] = arrays[kernel] + update.reshape(arrays[kernel].shape)
    return arrays


def _name(path: VariablePath) -> str:
    return '/'.join(map(str, path))


def _rate_tree(params: PyTree, rates: Mapping[VariablePath, float]) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: float(rates[tuple(key.key for key in keys)]), params
    )


@functools.lru_cache(maxsize=64)
def scaled_updates(
    tx: optax.GradientTransformation, rates: tuple[float, ...]
) -> optax.GradientTransformation:
    """Returns an optimizer that multiplies each parameter's update by a factor.

    Its state is the state of ``tx``. Equal arguments return the same transformation.

    Args:
        tx: the optimizer.
        rates: a factor for each parameter, in the order of the leaves.
    """

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(updates, state, params, **extra)
        leaves, structure = jax.tree.flatten(updates)
        scaled = [leaf * rate for leaf, rate in zip(leaves, rates, strict=True)]
        return jax.tree.unflatten(structure, scaled), state

    return optax.GradientTransformationExtraArgs(tx.init, update)  # pyright: ignore


def learning_rates_of(functional: FunctionalModel) -> tuple[float, ...] | None:
    """Returns the factor for each parameter, in the order of the leaves; None if all are 1."""
    if functional.learning_rates is None:
        return None
    rates = tuple(jax.tree.leaves(functional.learning_rates))
    return None if all(rate == 1 for rate in rates) else rates
