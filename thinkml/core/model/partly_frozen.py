"""Models of which only some parameters are trained, and low-rank updates of the others."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from thinkml.core.model.adapters import ApplyFn, FunctionalModel, functionalize_nnx
from thinkml.core.model.mixed_precision import DType

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class PartlyFrozen:
    """An NNX module of which only some parameters are trained, in place.

    No gradients and no optimizer state are made of the frozen ones. Modules whose parameters are
    all frozen stay in evaluation mode: BatchNorm there keeps to its stored statistics.

    Attributes:
        model: the module.
        rates: a factor of the learning rate for each trained parameter, by path.
        low_rank: the kernels that are frozen but for an update of low rank, with how many of
            their axes are inputs.
        rank: of these updates.

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
    rates: Mapping[Path, float]
    low_rank: Mapping[Path, int] = dataclasses.field(default_factory=dict)
    rank: int = 0

    def functionalize(
        self, x: Any, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """See `thinkml.core.functionalize`."""
        whole = functionalize_nnx(self.model, compute_dtype, trained=self.rates.keys())
        rates = _at_paths(whole.params, self.rates)
        if not self.low_rank:
            return dataclasses.replace(whole, learning_rates=rates)
        targets = tuple(sorted(self.low_rank.items(), key=str))
        factors = {
            _name(path): _factors(
                _get(whole.model_state, path), num_inputs, self.rank, jax.random.fold_in(key, index)
            )
            for index, (path, num_inputs) in enumerate(targets)
        }
        paths = tuple(path for path, _ in targets)

        def write(params: Any, model_state: Any) -> None:
            whole.write(params['own'], _updated(model_state, params['low_rank'], paths))

        return FunctionalModel(
            _LowRankApply(whole.apply, paths),
            {'own': whole.params, 'low_rank': factors},
            whole.model_state,
            write,
            {'own': rates, 'low_rank': jax.tree.map(lambda _: 1.0, factors)},
            whole.read,
        )

    def __repr__(self) -> str:
        return f'{type(self.model).__name__} of which {len(self.rates)} arrays are trained'


@dataclasses.dataclass(frozen=True)
class _LowRankApply:
    apply: ApplyFn
    paths: tuple[Path, ...]

    def __call__(self, params, model_state, x, *, key, train):
        updated = _updated(model_state, params['low_rank'], self.paths)
        outputs, after = self.apply(params['own'], updated, x, key=key, train=train)
        for path in self.paths:
            after = _set(after, path, _get(model_state, path))
        return outputs, after


def _factors(kernel: jax.Array, num_inputs: int, rank: int, key: jax.Array) -> dict[str, jax.Array]:
    """Their product is 0 at the start."""
    inputs, outputs = math.prod(kernel.shape[:num_inputs]), math.prod(kernel.shape[num_inputs:])
    down = jax.random.normal(key, (inputs, rank), kernel.dtype) / math.sqrt(inputs)
    return {'down': down, 'up': jnp.zeros((rank, outputs), kernel.dtype)}


def _updated(model_state: Any, factors: Any, paths: tuple[Path, ...]) -> Any:
    for path in paths:
        kernel, parts = _get(model_state, path), factors[_name(path)]
        update = (parts['down'] @ parts['up']).reshape(kernel.shape)
        model_state = _set(model_state, path, kernel + update)
    return model_state


def merged_low_rank(params: Mapping[str, Any], model_state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of the whole model by name, from those of a state.

    Args:
        params: the trained ones; low-rank updates are added to their kernels.
        model_state: the others.
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


def _name(path: Path) -> str:
    return '/'.join(map(str, path))


def _get(tree: Any, path: Path) -> Any:
    return functools.reduce(lambda part, name: part[name], path, tree)


def _set(tree: Any, path: Path, value: Any) -> Any:
    """A copy of nested dicts with another value at a path."""
    if not path:
        return value
    return {**tree, path[0]: _set(tree[path[0]], path[1:], value)}


def _at_paths(tree: Any, values: Mapping[Path, float]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: float(values[tuple(key.key for key in keys)]), tree
    )


@functools.lru_cache(maxsize=64)
def scaled_updates(
    tx: optax.GradientTransformation, rates: tuple[float, ...]
) -> optax.GradientTransformation:
    """The same optimizer with a factor for the update of each parameter, in their leaves' order.

    Its state is that of ``tx``. Equal arguments return the same transformation.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = tx.update(updates, state, params)
        leaves, structure = jax.tree.flatten(updates)
        scaled = [leaf * rate for leaf, rate in zip(leaves, rates, strict=True)]
        return jax.tree.unflatten(structure, scaled), state

    return optax.GradientTransformation(tx.init, update)


def learning_rates_of(functional: FunctionalModel) -> tuple[float, ...] | None:
    """The factor for each parameter, in their leaves' order; None where all are 1."""
    if functional.learning_rates is None:
        return None
    rates = tuple(jax.tree.leaves(functional.learning_rates))
    return None if all(rate == 1 for rate in rates) else rates
