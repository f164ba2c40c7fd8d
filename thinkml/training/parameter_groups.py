"""Parameter groups: the optimizers of a config by the paths of parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

from thinkml.core import make_optimizer
from thinkml.core.model.parameter_paths import check_patterns
from thinkml.errors import ConfigError, did_you_mean, is_number

FROZEN = 'frozen'


class ParameterGroup(NamedTuple):
    """The parameters whose paths match one pattern.

    Attributes:
        optimizer: a name, an optax transformation or a function of the learning rate; ``'frozen'``
            for parameters that are not trained.
        learning_rate: the rate; None for that of the config.
        weight_decay: the weight decay; None for that of the config.
    """

    optimizer: Any
    learning_rate: float | None = None
    weight_decay: float | None = None

    @property
    def is_frozen(self) -> bool:
        """Returns True for parameters that are not trained."""
        return isinstance(self.optimizer, str) and self.optimizer == FROZEN

    @property
    def takes_rate(self) -> bool:
        """Returns True for an optimizer without a built-in learning rate."""
        return not self.is_frozen and not has_built_in_rate(self.optimizer)


def has_built_in_rate(optimizer: Any) -> bool:
    """Returns True for an optax transformation, or for patterns without another optimizer."""
    if isinstance(optimizer, Mapping):
        return not any(group.takes_rate for group in parameter_groups(optimizer).values())
    return hasattr(optimizer, 'update')


def follows_rate(optimizer: Any) -> bool:
    """Returns True if some parameters are trained at the learning rate of the config."""
    if not isinstance(optimizer, Mapping):
        return not has_built_in_rate(optimizer)
    groups = parameter_groups(optimizer).values()
    return any(group.takes_rate and group.learning_rate is None for group in groups)


def parameter_groups(optimizer: Mapping[str, Any]) -> dict[str, ParameterGroup]:
    """Returns the parameter groups of a valid config, by pattern."""
    return {
        pattern: _parameter_group(value) if isinstance(value, Mapping) else ParameterGroup(value)
        for pattern, value in optimizer.items()
    }


def _parameter_group(value: Mapping[str, Any]) -> ParameterGroup:
    # Plain numbers: NumPy's would be described by their dtype.
    return ParameterGroup(**{n: float(v) if is_number(v) else v for n, v in value.items()})


def trained_groups(optimizer: Mapping[str, Any]) -> dict[str, ParameterGroup]:
    """Returns the parameter groups that are not frozen, by pattern."""
    groups = parameter_groups(optimizer)
    return {pattern: group for pattern, group in groups.items() if not group.is_frozen}


def without_numbers(optimizer: Any) -> Any:
    """Returns an optimizer for `make_optimizer`: of each pattern that is trained, the optimizer."""
    if not isinstance(optimizer, Mapping):
        return optimizer
    return {pattern: group.optimizer for pattern, group in trained_groups(optimizer).items()}


def group_problems(optimizer: Mapping[Any, Any]) -> list[str]:
    """Returns a sentence for each problem with optimizers by pattern."""
    try:
        check_patterns(optimizer)
    except ConfigError as error:
        return [str(error)]
    found = [
        f'optimizer[{pattern!r}]{problem}'
        for pattern, value in optimizer.items()
        for problem in _value_problems(value)
    ]
    if not found and not trained_groups(optimizer):
        found.append("optimizer: got 'frozen' for every pattern, expected one that is trained.")
    return found


def _value_problems(value: Any) -> list[str]:
    """Returns the end of a sentence for each problem with the value of a pattern."""
    if not isinstance(value, Mapping):
        value = {'optimizer': value}
    fields = ParameterGroup._fields
    found = [
        f': got the key {key!r}, expected {", ".join(fields)}.{did_you_mean(key, fields)}'
        for key in value
        if key not in fields
    ]
    if 'optimizer' not in value:
        return [*found, ": got no 'optimizer', expected a name such as 'adam'."]
    numbers = {name: value[name] for name in fields[1:] if value.get(name) is not None}
    for name, number in numbers.items():
        least = 'above 0' if name == 'learning_rate' else 'of at least 0'
        if not is_number(number) or number < 0 or (name == 'learning_rate' and number == 0):
            found.append(f'[{name!r}]: got {number!r}, expected a number {least}.')
    optimizer = value['optimizer']
    if isinstance(optimizer, str) and optimizer == FROZEN:
        return found + [f'[{name!r}]: got a number for frozen parameters.' for name in numbers]
    try:
        make_optimizer(optimizer)
    except ConfigError as error:
        frozen = " To leave parameters as they are, pass 'frozen'." if optimizer is None else ''
        return [*found, f'{str(error).removeprefix("optimizer")}{frozen}']
    if isinstance(optimizer, optax.GradientTransformation):
        found += [
            f'[{name!r}]: got a number for an optax transformation, which has its own. Leave it '
            'out, or pass a function learning_rate -> transformation.'
            for name in numbers
        ]
    return found
