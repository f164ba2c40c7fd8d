"""SearchSpace: the settings that a search may choose, and the values of each."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from thinkml.errors import ConfigError, is_number, is_whole, unknown_name
from thinkml.models.model_creation import parameters_of
from thinkml.training.config import TrainingConfig

Parameters = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two limits, both included.

    Attributes:
        low: the smallest number.
        high: the largest number.
        is_log: True to choose by the logarithm.
        is_whole: True for whole numbers.
    """

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    def points(self, count: int) -> list[Any]:
        """Returns evenly spaced numbers of the range, fewer if that has fewer whole numbers."""
        space = np.geomspace if self.is_log else np.linspace
        values = np.clip(space(self.low, self.high, count), self.low, self.high).tolist()
        return sorted({round(value) for value in values}) if self.is_whole else values

    def suggest(self, trial: Any, name: str) -> Any:
        """Returns the number that a trial of Optuna has chosen."""
        suggest = trial.suggest_int if self.is_whole else trial.suggest_float
        return suggest(name, self.low, self.high, log=self.is_log)


@dataclasses.dataclass(frozen=True)
class Choice:
    """Values of any kind, of which one is chosen.

    Attributes:
        values: the values.
    """

    values: tuple[Any, ...]

    def points(self, count: int) -> list[Any]:
        """Returns all values."""
        del count
        return list(self.values)

    def suggest(self, trial: Any, name: str) -> Any:
        """Returns the value that a trial of Optuna has chosen."""
        return self.values[trial.suggest_categorical(name, range(len(self.values)))]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The settings that a search may choose.

    A name is that of a field of `thinkml.training.TrainingConfig`, or of a parameter of the
    function that makes the model.

    Attributes:
        parameters: by name, a list of values, or a range ``(low, high)``. A third entry
            ``'log'`` chooses by the logarithm, ``'int'`` whole numbers, and ``'log int'`` both.
        constraints: functions of a dict of parameters, all of which must return True.

    Raises:
        ConfigError: for values that are no list and no range. Names them.

    Example:
        >>> from thinkml.optimization import SearchSpace
        >>> space = SearchSpace({
        ...     'learning_rate': (1e-4, 1e-1, 'log'), 'width': (32, 256, 'int'),
        ...     'optimizer': ['adam', 'lion']})
        >>> len(list(space.grid(points=3)))
        18
    """

    parameters: Mapping[str, Any]
    constraints: Sequence[Callable[[Parameters], bool]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.parameters, Mapping) or not self.parameters:
            raise ConfigError(
                f'parameters: got {self.parameters!r}, expected a dict of lists and ranges by name.'
            )
        values = {name: _domain(name, value) for name, value in self.parameters.items()}
        object.__setattr__(self, 'parameters', values)
        constraints = [self.constraints] if callable(self.constraints) else list(self.constraints)
        if not all(map(callable, constraints)):
            raise ConfigError(f'constraints: got {constraints!r}, expected functions of a dict.')
        object.__setattr__(self, 'constraints', tuple(constraints))

    def grid(self, points: int = 5) -> Iterator[Parameters]:
        """Yields each combination that the constraints allow.

        Args:
            points: the number of values of a range.
        """
        names = list(self.parameters)
        values = [self.parameters[name].points(points) for name in names]
        for combination in itertools.product(*values):
            parameters = dict(zip(names, combination, strict=True))
            if self.allows(parameters):
                yield parameters

    def suggest(self, trial: Any) -> Parameters:
        """Returns the parameters that a trial of Optuna has chosen."""
        return {name: domain.suggest(trial, name) for name, domain in self.parameters.items()}

    def values_of(self, chosen: Mapping[str, Any]) -> Parameters:
        """Returns the parameters of a trial from what Optuna has stored."""
        return {
            name: domain.values[chosen[name]] if isinstance(domain, Choice) else chosen[name]
            for name, domain in self.parameters.items()
            if name in chosen
        }

    def allows(self, parameters: Parameters) -> bool:
        """Returns True if all constraints hold."""
        return all(constraint(parameters) for constraint in self.constraints)

    def split(self, make_model: Any) -> tuple[set[str], set[str]]:
        """Returns the names that belong to the config and those that belong to the model.

        Raises:
            ConfigError: for a name that is neither, or both.
        """
        config = {field.name for field in dataclasses.fields(TrainingConfig)}
        model = set(parameters_of(make_model))
        for name in self.parameters:
            if name not in config | model:
                raise ConfigError(unknown_name('parameters', name, config | model))
            if name in config & model:
                raise ConfigError(
                    f'parameters: {name!r} is a setting of TrainingConfig and a parameter of the '
                    'model, expected one of both. Give the parameter of the model another name.'
                )
        names = set(self.parameters)
        return names & config, names & model


def _domain(name: str, value: Any) -> Range | Choice:
    if isinstance(value, list):
        if not value:
            raise ConfigError(f'parameters[{name!r}]: got an empty list, expected some values.')
        return Choice(tuple(value))
    kinds = {(): (False, False), ('log',): (True, False), ('int',): (False, True)}
    kinds |= {('log int',): (True, True), ('int log',): (True, True)}
    if (
        not isinstance(value, tuple)
        or not 2 <= len(value) <= 3
        or value[2:] not in kinds
        or not all(map(is_number, value[:2]))
    ):
        raise ConfigError(
            f'parameters[{name!r}]: got {value!r}, expected a list of values, or (low, high) with '
            "'log', 'int' or 'log int' as a third entry."
        )
    is_log, whole = kinds[value[2:]]
    low, high = value[:2]
    if (
        not low < high
        or (is_log and low <= 0)
        or (whole and not (is_whole(low) and is_whole(high)))
    ):
        raise ConfigError(
            f'parameters[{name!r}]: got {value!r}, expected low < high'
            + (', above 0 for log' if is_log else '')
            + (', whole numbers for int.' if whole else '.')
        )
    return Range(low, high, is_log, whole)
