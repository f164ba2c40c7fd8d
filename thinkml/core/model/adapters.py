"""Adapters that split each of the three kinds of models into a pure function and its arrays."""

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.core.model.mixed_precision import DType, cast_floats, linen_dtype, set_nnx_dtype
from thinkml.core.model.sown_values import (
    LINEN_COLLECTION,
    Collected,
    sowing_allowed,
    sown_by_name,
)
from thinkml.core.model.train_eval_modes import switch, to_training
from thinkml.core.model.tree_paths import set_at
from thinkml.errors import ConfigError, ModelTypeError
from thinkml.model_record import without_references
from thinkml.typing import Model, PyTree

VariablePath = tuple[Any, ...]  # the names that lead to a variable of a module


class ApplyFn(Protocol):
    """The pure forward pass of a model. Hashable; equal for models of equal structure."""

    def __call__(
        self, params: PyTree, model_state: PyTree, x: PyTree, *, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, PyTree]:
        """Returns the outputs for a batch and the updated model state.

        ``key`` seeds the randomness of the forward pass (dropout). It may be None with
        ``train=False``. ``train`` is a Python bool, fixed at trace time.
        """
        ...


class RunFn(Protocol):
    """An `ApplyFn` that can also call a function of the model."""

    def run(
        self,
        params: PyTree,
        model_state: PyTree,
        function: Callable[[Any], PyTree],
        *,
        key: jax.Array,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        """Returns the result of ``function(model)`` and the updated model state."""
        ...


def no_arrays() -> None:
    """Returns None: the `FunctionalModel.read` of a model whose arrays are never read again."""


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A model as a pure function and its arrays, with functions to write and read its arrays.

    Attributes:
        apply: the forward pass, see `ApplyFn`.
        params: the trainable arrays, as nested dicts.
        model_state: the arrays that training updates without gradients.
        write: ``write(params, model_state)`` writes arrays into the user's object and leaves it in
            eval mode.
        learning_rates: a learning rate factor for each array in ``params``; None for 1.
        read: returns the current arrays of the user's object as ``(params, model_state)``, or None
            if it has no arrays yet. Raises a `ConfigError` if the model's structure has changed.
    """

    apply: ApplyFn
    params: PyTree
    model_state: PyTree
    write: Callable[[PyTree, PyTree], None]
    learning_rates: PyTree = None
    read: Callable[[], tuple[PyTree, PyTree] | None] = no_arrays


# While one thread writes a model's arrays, no other thread can read its structure.
arrays_lock = threading.RLock()

_CHANGED = (
    'model: its layers or settings changed during training, but the program was compiled for the '
    'earlier ones. Only arrays may change, through run.model. For other changes, train again.'
)


# The names of the train/eval argument of __call__ in modules of both APIs.
_TRAIN_FLAGS = {
    'train': True,
    'training': True,
    'is_training': True,
    'deterministic': False,
    'use_running_average': False,
}


def _mode_flags(function: Callable) -> tuple[str, ...]:
    """Returns the parameters of ``function`` that switch between training and evaluation."""
    parameters = inspect.signature(function).parameters
    return tuple(name for name in _TRAIN_FLAGS if name in parameters)


def _set_flags(flags: tuple[str, ...], train: bool) -> dict[str, Any]:
    return {name: train == _TRAIN_FLAGS[name] for name in flags}


@dataclasses.dataclass(frozen=True)
class InputNames:
    """The parameters of a function by which it may take its inputs.

    Attributes:
        names: the names, in their order.
        required: those without a default.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]

    @classmethod
    def of(cls, function: Callable, reserved: tuple[str, ...] = ()) -> Self:
        """Returns the parameters of a function, without the first one and those that ThinkML sets.

        Args:
            function: the function; its first parameter is ``self`` or the parameters.
            reserved: the names of further parameters that ThinkML sets.
        """
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = [
            parameter
            for parameter in list(inspect.signature(function).parameters.values())[1:]
            if parameter.kind in kinds and parameter.name not in (*_TRAIN_FLAGS, *reserved)
        ]
        required = [each.name for each in parameters if each.default is inspect.Parameter.empty]
        return cls(tuple(each.name for each in parameters), tuple(required))

    def arguments(self, x: PyTree) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns inputs as positional arguments and keywords.

        A dict is passed by keyword if its names are parameters, and include all that are required.
        """
        if isinstance(x, Mapping) and set(self.required) <= x.keys() <= set(self.names):
            return (), dict(x)
        return (x,), {}


def _to_float32(outputs: PyTree, compute_dtype: DType | None) -> PyTree:
    return outputs if compute_dtype is None else cast_floats(outputs, jnp.float32)


# --- flax.nnx ---------------------------------------------------------------------------------


def _is_float_param(variable: Any) -> bool:
    value = variable.get_value() if isinstance(variable, nnx.Variable) else variable
    return isinstance(variable, nnx.Param) and jnp.issubdtype(jnp.result_type(value), jnp.inexact)


@dataclasses.dataclass(frozen=True)
class _NNXApply:
    # Compared but not hashed: a user's attribute may be a list.
    train_graph: Any = dataclasses.field(hash=False)
    eval_graph: Any = dataclasses.field(hash=False)
    # (path, 'key' | 'count', shape) of each random state variable. Every call derives these keys
    # from the key it gets, so that a step's random draws depend on (seed, step) alone.
    random_state: tuple[tuple[VariablePath, str, tuple[int, ...]], ...]
    flags: tuple[str, ...]
    inputs: InputNames
    takes_rngs: bool
    # The graphs refer to the user's lists, dicts and settings objects, which may change in place.
    # A compiled program depends on their contents, so these are part of the comparison.
    attributes: str
    compute_dtype: DType | None
    collects: bool = False

    def __call__(self, params, model_state, x, *, key, train):
        key = jax.random.key(0) if key is None else key
        inputs, by_name = self.inputs.arguments(x)
        arguments = by_name | _set_flags(self.flags, train)
        if self.takes_rngs:
            arguments['rngs'] = nnx.Rngs(jax.random.fold_in(key, len(self.random_state)))

        def call(model: nnx.Module) -> PyTree:
            return model(*inputs, **arguments)  # pyright: ignore[reportCallIssue]

        return self.run(params, model_state, call, key=key, train=train)

    def run(self, params, model_state, function, *, key, train):
        model = nnx.merge(
            self.train_graph if train else self.eval_graph,
            params, self._fresh_random_state(key), model_state,
        )  # fmt: skip
        with sowing_allowed():
            outputs = _to_float32(function(model), self.compute_dtype)
        if not train:
            return outputs, model_state
        new_state = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState)))
        new_state = _select_like(new_state, model_state)
        if not self.collects:
            return outputs, new_state
        sown = nnx.to_pure_dict(nnx.state(model, nnx.Intermediate))
        return outputs, Collected(new_state, sown_by_name(sown))

    def collecting(self):
        return dataclasses.replace(self, collects=True)

    def _fresh_random_state(self, key: jax.Array) -> dict:
        tree: dict = {}
        for index, (path, kind, shape) in enumerate(self.random_state):
            if kind == 'key':
                value = jax.random.fold_in(key, index)
                value = jax.random.split(value, shape) if shape else value
            else:
                value = jnp.zeros(shape, jnp.uint32)
            set_at(tree, path, value)
        return tree


def functionalize_nnx(
    model: nnx.Module,
    compute_dtype: DType | None = None,
    trainable: Collection[VariablePath] | None = None,
    train: Callable[[nnx.Module], None] = to_training,
) -> FunctionalModel:
    """Splits an NNX module into a pure function and its arrays, without changing it.

    Args:
        model: the module.
        compute_dtype: see `thinkml.core.functionalize`.
        trainable: the paths of the parameters to train; None for all. The other parameters are
            part of ``model_state``. Modules that have only such parameters stay in evaluation mode.
        train: puts a module into training mode.
    """
    write_to = model
    if nnx.to_flat_state(nnx.state(model, nnx.Intermediate)):
        # Values sown by earlier calls are not state of the model, and would grow in a loop.
        model = nnx.clone(model)
        nnx.pop(model, nnx.Intermediate)

    def is_trainable(path: VariablePath, variable: Any) -> bool:
        return _is_float_param(variable) and (trainable is None or path in trainable)

    with arrays_lock:
        graph, params, random_state, model_state = nnx.split(model, is_trainable, nnx.RngState, ...)
    graph = without_references(graph)  # so that a program neither depends on a record nor keeps it
    key = _GraphKey(
        graph=graph,
        num_attributes=len(graph.attributes),
        compute_dtype=compute_dtype,
        trainable=None if trainable is None else frozenset(trainable),
        train=train,
    )
    apply = _nnx_apply(type(model), key, params, random_state, model_state)

    def write(params: PyTree, model_state: PyTree) -> None:
        with arrays_lock:
            nnx.update(write_to, params, model_state)
            switch(write_to, 'eval')

    valid_graphs = [graph]  # the modes of the object differ in structure

    def read() -> tuple[PyTree, PyTree]:
        current, params, _, model_state = nnx.split(write_to, is_trainable, nnx.RngState, ...)
        if current in valid_graphs:
            return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)
        again = functionalize_nnx(write_to, compute_dtype, trainable, train)
        if again.apply != apply:
            raise ConfigError(_CHANGED)
        if not nnx.to_flat_state(nnx.state(write_to, nnx.Intermediate)):
            valid_graphs.append(current)
        return again.params, again.model_state

    return FunctionalModel(
        apply=apply,
        params=nnx.to_pure_dict(params),
        model_state=nnx.to_pure_dict(model_state),
        write=write,
        read=read,
    )


@dataclasses.dataclass(frozen=True)
class _GraphKey:
    """The key of the cached graphs of a model in training and evaluation mode."""

    graph: Any = dataclasses.field(hash=False)  # an attribute may have no hash
    num_attributes: int
    compute_dtype: DType | None
    trainable: frozenset[VariablePath] | None
    train: Callable[[nnx.Module], None]


def _nnx_apply(
    model_type: type, key: _GraphKey, params: PyTree, random_state: PyTree, model_state: PyTree
) -> _NNXApply:
    """Returns the forward pass of the module that these graph and states are parts of."""
    mutable_attributes = _mutable_attributes(key.graph)

    def graph_in_mode(set_mode: Callable[[nnx.Module], None]) -> Any:
        copy = nnx.merge(key.graph, params, random_state, model_state)
        set_mode(copy)
        if key.compute_dtype is not None:
            set_nnx_dtype(copy, key.compute_dtype)
        return nnx.graphdef(copy)

    def switch_to_training(module: nnx.Module) -> None:
        key.train(module)
        if key.trainable is not None:
            _eval_frozen(module, (), key.trainable)

    # Graphs refer to a model's lists and objects, so models that have any don't share graphs.
    graphs = {} if mutable_attributes else _cached_graphs(key)
    if not graphs:
        graphs |= {
            'train': graph_in_mode(switch_to_training),
            'eval': graph_in_mode(lambda module: switch(module, 'eval')),
        }
    call = model_type.__call__
    return _NNXApply(
        train_graph=graphs['train'],
        eval_graph=graphs['eval'],
        random_state=tuple(
            (path, 'key' if isinstance(variable, nnx.RngKey) else 'count', variable.shape)
            for path, variable in nnx.to_flat_state(random_state)
        ),
        flags=_mode_flags(call),
        inputs=InputNames.of(call, ('rngs',)),
        takes_rngs='rngs' in inspect.signature(call).parameters,
        attributes=repr(mutable_attributes),
        compute_dtype=key.compute_dtype,
    )


# Copying a model into both modes takes milliseconds, and a training needs the copies several times.
# A key holds no arrays, so the caller, who has them, fills in the graphs for a new key.
@functools.lru_cache(maxsize=64)
def _cached_graphs(key: _GraphKey) -> dict[str, Any]:
    return {}


def _eval_frozen(
    module: nnx.Module, prefix: VariablePath, trainable: Collection[VariablePath]
) -> None:
    """Puts modules that have parameters, but no trainable ones, into evaluation mode."""
    paths = [(*prefix, *path) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    if paths and not any(path in trainable for path in paths):
        module.eval()
        return
    for name, child in nnx.iter_children(module):
        if isinstance(child, nnx.Module):
            _eval_frozen(child, (*prefix, name), trainable)


# Variables that are not learned.
_TRANSIENT = (nnx.RngState, nnx.Intermediate)


def arrays_in(model: Model) -> list[Any]:
    """Returns a model's current arrays, without its random state and sown values."""
    if isinstance(model, nnx.Module):
        return [
            node.get_raw_value()
            for _, node in nnx.iter_graph(model)
            if isinstance(node, nnx.Variable) and not isinstance(node, _TRANSIENT)
        ]
    return jax.tree.leaves(getattr(model, 'variables', getattr(model, 'params', None)))


def _mutable_attributes(graph: Any) -> list[Any]:
    values = [
        attribute.value
        for name, attribute in graph.attributes
        if hasattr(attribute, 'value') and name != '_pytree__nodes'
    ]
    containers = [value for value in values if isinstance(value, list | dict | set)]
    objects = [
        vars(value) for value in values if hasattr(value, '__dict__') and not callable(value)
    ]
    return containers + objects


def _select_like(tree: Mapping, template: Mapping) -> dict:
    """Returns the leaves of ``tree`` that ``template`` has: a call may add sown values."""
    return {
        name: _select_like(tree[name], value) if isinstance(value, Mapping) else tree[name]
        for name, value in template.items()
    }


def input_names(model: Model) -> InputNames | None:
    """Returns the parameters by which a model may take its inputs; None for an exported program."""
    if isinstance(model, nnx.Module):
        return InputNames.of(type(model).__call__, ('rngs',))
    if isinstance(model, LinenModel):
        return InputNames.of(type(model.module).__call__)
    return InputNames.of(model.apply, ('key',)) if isinstance(model, FunctionModel) else None


# --- flax.linen -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _LinenApply:
    module: Any = dataclasses.field(hash=False)  # its fields may be lists: compared, not hashed
    collections: tuple[str, ...]
    flags: tuple[str, ...]
    inputs: InputNames
    compute_dtype: DType | None
    collects: bool = False

    def __call__(self, params, model_state, x, *, key, train):
        inputs, by_name = self.inputs.arguments(x)
        arguments = by_name | _set_flags(self.flags, train)

        def call(module: Any) -> PyTree:
            return module(*inputs, **arguments)

        return self.run(params, model_state, call, key=key, train=train)

    def run(self, params, model_state, function, *, key, train):
        with linen_dtype(self.compute_dtype):
            outputs, model_state = self._run(params, model_state, function, key=key, train=train)
        return _to_float32(outputs, self.compute_dtype), model_state

    def _run(self, params, model_state, function, *, key, train):
        variables = {'params': params, **model_state}
        if not train:
            return self.module.apply(variables, method=function), model_state
        outputs, updated = self.module.apply(
            variables, method=function,
            rngs={name: jax.random.fold_in(key, i) for i, name in enumerate(_LINEN_STREAMS)},
            mutable=[*self.collections, *([LINEN_COLLECTION] if self.collects else [])],
        )  # fmt: skip
        new_state = {name: updated[name] for name in self.collections}
        if not self.collects:
            return outputs, new_state
        return outputs, Collected(new_state, sown_by_name(updated.get(LINEN_COLLECTION, {})))

    def collecting(self):
        return dataclasses.replace(self, collects=True)


# Linen uses 'params' for a stream without a key.
_LINEN_STREAMS = ('params', 'dropout')


class LinenModel:
    """A Linen module together with its variables. Made by `from_linen`.

    Attributes:
        module: the Linen module.
        variables: its variables, ``{'params': ..., 'batch_stats': ...}``. They are None until the
            first training, which makes them from the data's shape and the run's seed.
    """

    def __init__(self, module: Any, variables: Mapping | None = None):
        self.module = module
        self.variables = variables

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        flags = _mode_flags(type(self.module).__call__)
        variables = self.variables
        if variables is None:
            variables = _init_linen(self.module, flags, x, key)
        model_state = _linen_state(variables)
        inputs = InputNames.of(type(self.module).__call__)
        apply = _LinenApply(self.module, tuple(sorted(model_state)), flags, inputs, compute_dtype)

        def write(params: PyTree, model_state: PyTree) -> None:
            self.variables = {'params': params, **model_state}

        def read() -> tuple[PyTree, PyTree] | None:
            if self.module != apply.module:
                raise ConfigError(_CHANGED)
            if self.variables is None:
                return None
            return self.variables.get('params', {}), _linen_state(self.variables)

        return FunctionalModel(apply, variables.get('params', {}), model_state, write, read=read)

    def __repr__(self) -> str:
        return f'from_linen({self.module})'


# Values sown by `init` are not state of the model, and would grow with each call.
_NOT_STATE = ('params', 'intermediates', LINEN_COLLECTION)


def _linen_state(variables: Mapping) -> dict[str, Any]:
    return {name: tree for name, tree in variables.items() if name not in _NOT_STATE}


def _init_linen(module: Any, flags: tuple[str, ...], x: PyTree, key: jax.Array) -> Mapping:
    def init(key: jax.Array) -> Mapping:
        zeros = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), x)
        inputs, by_name = InputNames.of(type(module).__call__).arguments(zeros)
        return module.init({'params': key}, *inputs, **by_name, **_set_flags(flags, train=False))

    return jax.jit(init)(key)


def from_linen(module: Any, variables: Mapping | None = None) -> LinenModel:
    """Wraps a `flax.linen.Module` for training.

    A Linen module holds no arrays; the returned model does, and is trained in place. Collections
    other than ``params`` (``batch_stats``) are updated in training and frozen in evaluation. A
    ``train``, ``training``, ``is_training`` or ``deterministic`` argument of ``__call__`` is set
    to match the mode. All random streams are supplied in training.

    Args:
        module: the module, called as ``module(x)``.
        variables: the result of ``module.init``, or pretrained variables. None makes them at the
            first training from the data's shape and the run's seed.

    Raises:
        ModelTypeError: if ``module`` is not a Linen module.

    Example:
        >>> import flax.linen as nn
        >>> from thinkml.models import from_linen
        >>> model = from_linen(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)]))
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise ModelTypeError(
            f'module: got {module!r}, expected an instance of a flax.linen.Module, such as '
            'nn.Dense(10).'
        )
    return LinenModel(module, variables)


# --- (init, apply) ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _FunctionApply:
    function: Callable
    flags: tuple[str, ...]
    inputs: InputNames
    takes_key: bool
    compute_dtype: DType | None

    def __call__(self, params, model_state, x, *, key, train):
        arguments = _set_flags(self.flags, train)
        if self.takes_key:
            arguments['key'] = key if train else None
        if self.compute_dtype is not None:
            params, x = cast_floats((params, x), self.compute_dtype)
        inputs, by_name = self.inputs.arguments(x)
        outputs = self.function(params, *inputs, **by_name, **arguments)
        return _to_float32(outputs, self.compute_dtype), model_state

    def run(self, params, model_state, function, *, key, train):
        if self.compute_dtype is not None:
            params = cast_floats(params, self.compute_dtype)
        arguments = _set_flags(self.flags, train)
        if self.takes_key:
            arguments['key'] = key if train else None
        outputs = function(functools.partial(self.function, params, **arguments))
        return _to_float32(outputs, self.compute_dtype), model_state


class FunctionModel:
    """A pair of plain functions together with their parameters. Made by `from_functions`.

    Attributes:
        init: ``init(key, x) -> params``.
        apply: ``apply(params, x) -> outputs``.
        params: the parameters; None until the first training.
    """

    def __init__(self, init: Callable, apply: Callable, params: PyTree = None):
        self.init = init
        self.apply = apply
        self.params = params

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        params = self.params
        if params is None:
            zeros = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), x)
            inputs, by_name = InputNames.of(self.init).arguments(zeros)
            params = jax.jit(self.init)(key, *inputs, **by_name)
        takes_key = 'key' in inspect.signature(self.apply).parameters
        apply = _FunctionApply(
            self.apply, _mode_flags(self.apply), InputNames.of(self.apply, ('key',)), takes_key,
            compute_dtype,
        )  # fmt: skip

        def write(params: PyTree, model_state: PyTree) -> None:
            self.params = params

        def read() -> tuple[PyTree, PyTree] | None:
            if self.apply is not apply.function:
                raise ConfigError(_CHANGED)
            return None if self.params is None else (self.params, {})

        return FunctionalModel(apply, params, {}, write, read=read)

    def __repr__(self) -> str:
        return f'from_functions({self.init!r}, {self.apply!r})'


def from_functions(init: Callable, apply: Callable, params: PyTree = None) -> FunctionModel:
    """Wraps two plain functions for training, for models written without a library.

    Args:
        init: ``init(key, x) -> params``, where ``x`` is a batch of one example.
        apply: ``apply(params, x) -> outputs``. It may also take ``key`` (a PRNG key in training,
            None in evaluation) and one of ``train``, ``training``, ``is_training`` or
            ``deterministic``, as keywords.
        params: existing parameters. None makes them at the first training with ``init`` and the
            run's seed.

    Raises:
        ModelTypeError: if ``init`` or ``apply`` is not callable.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.models import from_functions
        >>> def init(key, x):
        ...     return {'w': jax.random.normal(key, (x.shape[-1], 3)) * 0.01, 'b': jnp.zeros(3)}
        >>> def apply(params, x):
        ...     return x @ params['w'] + params['b']
        >>> model = from_functions(init, apply)
    """
    for name, function in (('init', init), ('apply', apply)):
        if not callable(function):
            raise ModelTypeError(f'{name}: got {type(function).__name__}, expected a function.')
    return FunctionModel(init, apply, params)
