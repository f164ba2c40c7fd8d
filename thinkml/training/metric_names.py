"""Metric names: the checks that the names of values in the history differ."""

from collections.abc import Collection
from typing import Any

from thinkml.core import metric_name
from thinkml.errors import ConfigError
from thinkml.history import MACHINE_VALUES

# Names of other values that histories and tables contain.
_RESERVED = ('step', 'learning_rate', *sorted(MACHINE_VALUES))


def is_taken(name: str) -> bool:
    """Returns True for a name that histories and tables use for something else."""
    return name.startswith('val_') or name in _RESERVED


def name_problem(metric: Any) -> str | None:
    """Returns a sentence if the name of a metric is that of another value; else None."""
    name = metric_name(metric)
    if not is_taken(name):
        return None
    if name.startswith('val_'):
        reason = 'names that begin with val_ belong to validation'
    else:
        reason = 'histories and tables use this name for something else'
    return f'metrics: got one called {name!r}; {reason}. Give it another name.'


def check_value_name(
    name: str,
    got: str,
    fix: str = 'Give it another name.',
    others: Collection[str] = (),
) -> None:
    """Raises a `ConfigError` if the name of a recorded value is that of something else.

    Args:
        name: the name.
        got: the beginning of the message: the argument, and where the value comes from.
        fix: the end of the message.
        others: the names of the other values of this training; ``'loss'`` is always one.
    """
    if name == 'loss' or name in others or is_taken(name):
        raise ConfigError(
            f'{got} {name!r}, which is the name of something else in the history. {fix}'
        )
