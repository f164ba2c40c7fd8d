"""Custom steps: the checks of a step that the user passed to ``train``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from thinkml.core import StepOutput, init_state
from thinkml.core.objectives.model_objective import ObjectiveBatch
from thinkml.core.train.custom_step import (
    CheckedStep,
    CustomStep,
    StepState,
    has_init,
    step_name,
    step_state,
    values_of,
)
from thinkml.errors import ConfigError, ModelTypeError
from thinkml.training.config import TrainingConfig
from thinkml.training.metric_names import check_value_name
from thinkml.training.objective import TrainingObjective
from thinkml.training.objective_tracing import (
    make_row_augmentation,
    naming_failures,
    probe_batch,
)
from thinkml.training.optimizer_setup import functional_of, hyperparams_of, optimizer_of
from thinkml.training.training_data import TrainRequest, has_no_labels
from thinkml.typing import Model, PyTree


def settings_for_step(step: Any, config: TrainingConfig) -> TrainingConfig:
    """Returns the settings of a training with a custom step, or those given if that is None.

    A step with an ``init`` replaces the optimizer, since it makes the state of others itself.

    Raises:
        ConfigError: for an object that is no step, and for settings that a step replaces.
    """
    if step is None:
        return config
    if isinstance(step, type) or not callable(step):
        raise ConfigError(
            f'step: got {step!r}, expected a function (state, batch) -> (state, StepOutput), or an '
            'object with such a __call__ and with init(params).'
        )
    replaced = {
        'accumulate_steps': 'Split the batch in the step, if it must be.',
        'remat': 'Use jax.checkpoint in the step.',
        'aux_losses': 'Add them to the loss of the step.',
    }
    if has_init(step):
        replaced |= dict.fromkeys(
            (
                'optimizer', 'learning_rate', 'lr_schedule', 'warmup_steps', 'weight_decay',
                'gradient_clip_norm',
            ),
            'The step has an init and so its own optimizers: set it there.',
        )  # fmt: skip
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, advice in replaced.items():
        value = getattr(config, name)
        if value and value != defaults[name]:  # False, 0 and {} ask for nothing
            raise ConfigError(
                f'{name}: got {value!r} beside the step {step_name(step)}, '
                f'expected {defaults[name]!r}. {advice}'
            )
    if not has_init(step):
        return config
    init: Any = step.init  # pyright: ignore[reportFunctionMemberAccess]
    return dataclasses.replace(config, optimizer=optax.GradientTransformation(init, _no_update))


def _no_update(updates: PyTree, state: PyTree, params: PyTree = None) -> Any:
    raise ConfigError(
        'step: it called state.apply_gradients, which takes the optimizer of the settings, but has '
        'an init for others. Update with those, or leave init out.'
    )


def add_step(
    objective: TrainingObjective,
    model: Model,
    x: PyTree,
    y: PyTree,
    request: TrainRequest,
    config: TrainingConfig,
) -> TrainingObjective:
    """Returns an objective with the custom step of a request, which is traced.

    Args:
        objective: the loss and the metrics of the validation.
        model: the user's object.
        x: the shapes of a few rows of inputs.
        y: encoded targets, or the first of them.
        request: the arguments of ``train``.
        config: the settings, from `settings_for_step`.

    Raises:
        ConfigError: if the step fails, or returns something else than the state with arrays of the
            same shapes and a `StepOutput`.
    """
    if of_step := objective.training_metrics:
        raise ConfigError(
            f'metrics: got {of_step[0]!r} beside the step {step_name(request.step)}, which has the '
            f"gradients itself. Return the value: StepOutput(loss, {{'{of_step[0]}': ...}})."
        )
    has_labels = not has_no_labels(request)
    batch = probe_batch(x, y, has_labels=has_labels)
    values = _traced_values(request.step, model, batch, config)
    for name in values:
        check_value_name(name, f'step: {step_name(request.step)} returned a value called')
    step = CheckedStep(request.step, values, has_labels)
    # That of the loss may mix classes, which a step gets as indices in any case.
    augment = make_row_augmentation(request.augmentation, x, y)
    return dataclasses.replace(objective, step=step, augment=augment)


def _traced_values(
    step: CustomStep, model: Model, batch: ObjectiveBatch, config: TrainingConfig
) -> tuple[str, ...]:
    """Traces a step, checks what it returns, and returns the names of its values."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with naming_failures(f'step: {step_name(step)} failed'):
        *_, values = jax.eval_shape(step_function(step, model, config), key, batch)
    return tuple(values)


def step_function(
    step: CustomStep, model: Model, config: TrainingConfig
) -> Callable[[jax.Array, ObjectiveBatch], tuple[PyTree, ...]]:
    """Returns a function of a key and a batch that makes the first state and takes one step.

    It returns the parameters, the model state, the optimizer's state, the loss and the values.
    """

    def first_step(key: jax.Array, batch: ObjectiveBatch) -> tuple[PyTree, ...]:
        functional = functional_of(model, batch.x, key, config)
        if not hasattr(functional.apply, 'run'):
            raise ModelTypeError('model: it can not be trained, which a step needs.')
        tx = optimizer_of(config)
        numbers: dict[str, Any] = hyperparams_of(config, total_steps=1)
        state = init_state(functional.params, functional.model_state, tx, key, **numbers)
        before = step_state(state, key, functional.apply, tx)
        after, output = _checked_result(step(before, batch))
        _check_state(before, after)
        arrays = after.params, after.model_state, after.opt_state
        return *arrays, output.loss, values_of(output)

    return first_step


def _checked_result(result: Any) -> tuple[StepState, StepOutput]:
    expected = 'expected (state, StepOutput(loss, {...}))'
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], StepState)):
        got = (
            f'({", ".join(map(_kind_of, result))})'
            if isinstance(result, tuple)
            else _kind_of(result)
        )
        raise ConfigError(f'step: it returned {got}, {expected} with state.replace(...).')
    after, output = result
    if not isinstance(output, StepOutput):
        raise ConfigError(f'step: it returned (state, {_kind_of(output)}), {expected}.')
    loss: Any = output.loss
    shape = getattr(loss, 'shape', None)
    if shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        got = type(loss).__name__ if shape is None else f'{loss.dtype} of shape {shape}'
        raise ConfigError(
            f'step: it returned the loss as {got}, expected an array of one float, of shape (): '
            'the mean over the batch.'
        )
    return after, output


def _kind_of(value: Any) -> str:
    """Returns the kind of a value in words; that of an array is a tracer, which no user knows."""
    return 'array' if isinstance(value, jax.Array) else type(value).__name__


def _check_state(before: StepState, after: StepState) -> None:
    """Raises a `ConfigError` if a step changes the structure, shapes or dtypes of its state."""
    for name in ('params', 'model_state', 'opt_state'):
        parts = {}
        for which, state in (('got', after), ('expected', before)):
            leaves = jax.tree_util.tree_leaves_with_path(getattr(state, name))
            parts[which] = {
                jax.tree_util.keystr(path): f'{jnp.result_type(leaf)}{jnp.shape(leaf)}'
                for path, leaf in leaves
            }
        for path in parts['got'].keys() | parts['expected'].keys():
            got, expected = (parts[which].get(path, 'nothing') for which in ('got', 'expected'))
            if got != expected:
                raise ConfigError(
                    f'step: it returned {name}{path} as {got}, expected {expected} as before. Take '
                    'all entries along: {**state.params, ...}.'
                )


def make_step_objective(x: Any, y: Any, request: TrainRequest) -> TrainingObjective:
    """Returns the objective of a training whose step computes the loss, without a validation.

    Args:
        x: the inputs, or `jax.ShapeDtypeStruct` of them.
        y: encoded targets, or the first of them.
        request: the arguments of ``train``.

    Raises:
        ConfigError: for metrics, which need a loss function.
    """
    name = step_name(request.step)
    if request.metrics:
        raise ConfigError(
            f'metrics: got {list(request.metrics)!r} beside the step {name}, expected none: the '
            "values that it returns are recorded. Return StepOutput(loss, {'name': value}), or "
            'pass a loss_fn, whose metrics are those of the validation.'
        )
    return TrainingObjective(
        loss_fn=None,
        loss_name=name,
        is_custom_loss=True,
        is_default_loss=False,
        metrics=(),
        training_metrics=(),
        augment=make_row_augmentation(request.augmentation, x, y),
    )


def check_no_validation(
    sets: Mapping[str, Any], objective: TrainingObjective, *, is_split: bool
) -> None:
    """Raises a `ConfigError` for validation data beside a step without a loss function.

    Args:
        sets: the validation data by argument.
        objective: the objective of the training.
        is_split: True if it was held out from the training data.
    """
    if sets and objective.loss_fn is None:
        raise ConfigError(
            f'{"validation_split" if is_split else next(iter(sets))}: got rows to validate beside '
            f'the step {objective.loss_name} without a loss_fn, expected none: a step computes the '
            'loss of training alone. Pass loss_fn too, for instance Objective(fn), which is the '
            'loss of the validation.'
        )
