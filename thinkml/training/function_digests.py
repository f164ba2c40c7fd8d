"""Function digests: hashes of the user's functions, by which a resumed run recognises them."""

import dis
import functools
import hashlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from thinkml.core import ObjectiveLoss, functionalize, make_optimizer, metric_name
from thinkml.core.objectives.probe_sizes import PROBE_ROWS
from thinkml.core.train.custom_step import has_init
from thinkml.core.train.optimizers import update_with_loss
from thinkml.core.train.scoring import objective_apply
from thinkml.data.head_targets import by_head
from thinkml.data.inputs import probe_of
from thinkml.tasks import Task
from thinkml.training.config import TrainingConfig
from thinkml.training.custom_step import step_function
from thinkml.training.objective import TrainingObjective, probe_logits
from thinkml.training.objective_tracing import probe_batch
from thinkml.training.optimizer_setup import functional_of
from thinkml.training.parameter_groups import without_numbers
from thinkml.training.training_data import TrainRequest
from thinkml.training.training_setup import TrainingSetup
from thinkml.typing import Model, PyTree
from thinkml.versions import library_versions

# The key of the library versions. Digests of other versions are not compared.
VERSIONS = 'versions'


def function_digests(
    model: Model, setup: TrainingSetup, request: TrainRequest, config: TrainingConfig
) -> dict[str, str]:
    """Returns a digest of each function or object that the user wrote, by argument.

    The digest is that of the computation as JAX traces it, including all numbers in it. So it is
    the same in every process and does not depend on the function's name. A metric that is computed
    on the host can't be traced: its digest is that of its code and of the values that it uses.

    Args:
        model: the user's object.
        setup: the data, task and objective.
        request: the arguments of ``train``.
        config: the settings.
    """
    objective = setup.objective
    labels = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((PROBE_ROWS, *leaf.shape[1:]), leaf.dtype), setup.labels
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    x = probe_of(setup.inputs, PROBE_ROWS)

    digests = {VERSIONS: _versions()}
    if objective.step is not None:
        function = step_function(objective.step.function, model, config)
        batch = probe_batch(x, labels, has_labels=objective.step.has_labels)
        digests['step'] = _traced(function, key, batch)
    if isinstance(objective.loss_fn, ObjectiveLoss):
        digests['loss_fn'] = _of_model_objective(objective.loss_fn, model, x, labels)
    elif objective.loss_fn is not None:
        for name, head, of_head in by_head(setup.task, labels):
            one, where = (objective, '') if name is None else (objective.heads[name], f'[{name!r}]')
            digests |= _of_objective(one, head, of_head, where)
    if objective.augment is not None and any(map(_is_custom, _items(request.augmentation))):
        digests['augmentation'] = _traced(objective.augment, key, x, labels)
    if callable(config.learning_rate):
        step = jax.ShapeDtypeStruct((), jnp.int32)
        digests['learning_rate'] = _traced(config.learning_rate, step)
    if not isinstance(config.optimizer, str) and not has_init(request.step):
        tx = make_optimizer(without_numbers(config.optimizer))
        params = jax.eval_shape(lambda key: functional_of(model, x, key, config).params, key)

        def update(params: PyTree) -> PyTree:
            return update_with_loss(tx, params, tx.init(params), params, jnp.zeros(()))

        digests['optimizer'] = _traced(update, params)
    return digests


def _of_objective(
    objective: TrainingObjective, task: Task, labels: jax.ShapeDtypeStruct, head: str
) -> dict[str, str]:
    """Returns the digests of a loss and of metrics, by argument and head."""
    digests, logits = {}, probe_logits(task, labels)
    if objective.is_custom_loss:
        loss_fn: Any = objective.loss_fn
        gradient = jax.value_and_grad(lambda logits, labels: loss_fn(logits, labels).sum())
        digests[f'loss_fn{head}'] = _traced(gradient, logits, labels)
    for metric in filter(_is_custom, objective.metrics):
        digests[f'metrics{head}.{metric_name(metric)}'] = _metric_digest(metric, logits, labels)
    return digests


def _of_model_objective(loss: ObjectiveLoss, model: Model, x: PyTree, labels: Any) -> str:
    """Returns the digest of an objective together with the model that it calls."""
    key = jax.eval_shape(lambda: jax.random.key(0))

    def run(key: jax.Array, batch: Any) -> PyTree:
        functional = functionalize(model, batch.x, key)
        apply = objective_apply(functional.apply, loss)
        return apply(functional.params, functional.model_state, batch, key=key, train=True)[0]

    return _traced(run, key, probe_batch(x, labels, has_labels=loss.has_labels))


def _versions() -> str:
    versions = library_versions()
    names = ('thinkml', 'jax', 'optax')
    python = f'Python {sys.version_info.major}.{sys.version_info.minor}'
    return ', '.join([python, *(f'{name} {versions[name]}' for name in names if name in versions)])


def changed_functions(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    """Returns a sentence for each function that computes something else than in the checkpoint."""
    if saved.get(VERSIONS) != now[VERSIONS]:
        return []
    return [
        f'{name}: it has the name of the one in the checkpoint, but computes something else.'
        for name in saved.keys() & now.keys()
        if saved[name] != now[name]
    ]


def _items(augmentation: Any) -> Iterator[Any]:
    if isinstance(augmentation, list | tuple):
        for item in augmentation:
            yield from _items(item)
    else:
        yield augmentation


def _is_custom(function: object) -> bool:
    """Returns True for a function or callable object that ThinkML does not define itself."""
    definition = function if hasattr(function, '__qualname__') else type(function)
    return callable(function) and not str(definition.__module__).startswith('thinkml.')


def _metric_digest(metric: Any, logits: jax.ShapeDtypeStruct, labels: jax.ShapeDtypeStruct) -> str:
    weight = jax.ShapeDtypeStruct(logits.shape[:1], np.float32)
    mask = jax.ShapeDtypeStruct(logits.shape[:1], np.bool_)
    if not isinstance(metric, type):
        return _traced(metric, logits, labels, otherwise=metric)
    return _traced(
        lambda logits, labels, losses, weight, mask: _compute_metric(
            metric, logits=logits, labels=labels, losses=losses, weight=weight, mask=mask
        ),
        logits, labels, weight, weight, mask,
        otherwise=metric,
    )  # fmt: skip


def _compute_metric(metric: Any, **step: jax.Array) -> PyTree:
    part = metric.from_model_output(**step)
    return part.merge(part).compute()


def _traced(function: Callable[..., Any], *shapes: PyTree, otherwise: Any = None) -> str:
    """Returns the digest of a function's program, or of code if it can't be traced."""
    try:
        program = jax.make_jaxpr(function)(*shapes)
    except Exception:
        # Training raises the error if the function has to be traced.
        return _digest(_code(otherwise))
    return _digest(
        [re.sub(r'0x\w+', '', str(program.jaxpr)), *map(_describe_array, _constants(program))]
    )


def _digest(parts: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()


def _constants(program: ClosedJaxpr) -> Iterator[jax.Array | np.ndarray]:
    """Yields the arrays in a program, and in the programs that it calls."""
    yield from program.consts
    for equation in program.jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _constants(value)


def _is_program(value: object) -> bool:
    return isinstance(value, ClosedJaxpr)


def _describe_array(value: jax.Array | np.ndarray | np.generic) -> tuple[Any, ...]:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return value.shape, str(value.dtype)
    array = np.ascontiguousarray(value)
    return array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()


def _code(value: Any, seen: dict[int, Any] | None = None) -> list[Any]:
    """Returns the parts of a function or a plain value; the type's name for anything else.

    Args:
        value: any object.
        seen: the objects that were described already, by id. A function may refer to itself, a
            method to its class.
    """
    if isinstance(value, _PLAIN):
        return [repr(value)]
    seen = {} if seen is None else seen
    if not isinstance(value, tuple | frozenset | types.CodeType):  # equal ones may be one object
        if id(value) in seen:
            return ['seen']
        seen[id(value)] = value
    described = functools.partial(_code, seen=seen)
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, *map(described, value.co_consts)]
    if isinstance(value, types.FunctionType):
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, _used_values(value))
        return [*map(described, parts)]
    if isinstance(value, types.MethodType):
        return [described(value.__func__), described(value.__self__)]
    if isinstance(value, functools.partial):
        return [*map(described, (value.func, value.args, value.keywords))]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return [*_describe_array(value)]
    if isinstance(value, list | tuple):
        return [*map(described, value)]
    if isinstance(value, set | frozenset):
        return sorted(map(described, value), key=repr)
    if isinstance(value, dict):
        return [[str(name), described(item)] for name, item in value.items()]
    if isinstance(value, type):
        return [value.__qualname__, described(_class_members(value))]
    if hasattr(value, '__wrapped__'):
        return described(value.__wrapped__)
    if not callable(value):
        return [type(value).__qualname__, described(_unchanged_attributes(value))]
    return [described(type(value)), described(_unchanged_attributes(value))]


def _used_values(function: types.FunctionType) -> dict[str, Any]:
    """Returns values that a function uses and does not change, and functions of its module."""
    code, module = function.__code__, function.__globals__
    used = {name: module[name] for name in sorted(_names_used(code)) if name in module}
    used = {
        n: v
        for n, v in used.items()
        if isinstance(v, _DATA) or _is_defined_in(v, function.__module__)
    }
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    used |= {name: cell.cell_contents for name, cell in cells if cell != types.CellType()}
    return _unchanged(used, [code])


def _class_members(cls: type) -> dict[str, Any]:
    """Returns the functions and values of a class, and of its bases in the same module."""
    members = {}
    for base in (base for base in cls.__mro__ if base.__module__ == cls.__module__):
        for name, value in vars(base).items():
            value = getattr(value, '__func__', getattr(value, 'fget', value))
            is_generated = (
                getattr(getattr(value, '__code__', None), 'co_filename', '') == '<string>'
            )
            is_setting = isinstance(value, _DATA) and not name.startswith('__')
            if is_setting or (_is_defined_in(value, cls.__module__) and not is_generated):
                members[f'{base.__qualname__}.{name}'] = value
    return members


def _unchanged_attributes(value: Any) -> dict[str, Any]:
    """Returns the attributes of an object that its methods do not change."""
    settings = {n: v for n, v in getattr(value, '__dict__', {}).items() if isinstance(v, _DATA)}
    methods = {n: v for n, v in vars(type(value)).items() if isinstance(v, types.FunctionType)}
    methods.pop('__init__', None)
    return _unchanged(settings, [method.__code__ for method in methods.values()])


def _is_defined_in(value: object, module: str) -> bool:
    """Returns True for a function or a class that a module defines."""
    return callable(value) and getattr(value, '__module__', None) == module


def _unchanged(values: dict[str, Any], codes: Iterable[types.CodeType]) -> dict[str, Any]:
    """Returns the values that code does not change.

    The others, such as a counter or a list that is appended to, are state.
    """
    operations = [
        op for code in codes for part in _nested_code(code) for op in dis.get_instructions(part)
    ]
    stored = {op.argval for op in operations if op.opname.startswith('STORE_')}
    mutates = any(
        op.opname == 'STORE_SUBSCR' or op.argval in _MUTATING_METHODS for op in operations
    )
    return {
        name: value
        for name, value in values.items()
        if name not in stored and not (mutates and isinstance(value, list | dict | set))
    }


def _names_used(code: types.CodeType) -> set[str]:
    return {name for part in _nested_code(code) for name in part.co_names}


def _nested_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields the code of a function, and of the functions within it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from _nested_code(value)


_PLAIN = bool | int | float | complex | str | bytes | None
_DATA = _PLAIN | np.ndarray | np.generic | jax.Array | list | tuple | dict | set | frozenset
_MUTATING_METHODS = {'append', 'add', 'extend', 'insert', 'setdefault', 'update', 'pop', 'clear'}
