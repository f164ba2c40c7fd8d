"""Settings: the parameters that both estimators have, those of TrainingConfig among them."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from thinkml.errors import ConfigError, did_you_mean, problems
from thinkml.training import TrainingConfig
from thinkml.training.config_validation import NAMES_ELSEWHERE

Class = TypeVar('Class', bound=type)

PREFIX = 'model__'
"""The start of the names of parameters that are arguments of the model."""

# The estimators call the seed random_state.
CONFIG_FIELDS = tuple(field for field in dataclasses.fields(TrainingConfig) if field.name != 'seed')
DEFAULTS: Mapping[str, Any] = {
    **{field.name: field.default for field in CONFIG_FIELDS},
    'loss_fn': None,
    'random_state': None,
    'warm_start': False,
    'progress': False,
}
# Names of our parameters in TrainingConfig, ModelTrainer.train and scikit-learn.
_NAMES_ELSEWHERE = NAMES_ELSEWHERE | {
    'class_weights': 'class_weight',
    'hidden_layer_sizes': 'model__hidden',
    'learning_rate_init': 'learning_rate',
    'loss': 'loss_fn',
    'max_iter': 'epochs',
    'sample_weight': 'an argument of fit',
    'seed': 'random_state',
    'verbose': 'progress',
}


def with_settings(estimator: Class) -> Class:
    """Adds the shared settings to the signature of an estimator's ``__init__``.

    scikit-learn reads the names of parameters there, and notebooks show them. The arguments of the
    model, ``model__...``, are not part of it: scikit-learn takes each name for a parameter.
    """
    init: Any = vars(estimator)['__init__']
    *own, _ = inspect.signature(init).parameters.values()
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in DEFAULTS.items()
    ]
    init.__signature__ = inspect.Signature([*own, *shared])
    return estimator


def check_names(names: Iterable[str], known: list[str], estimator: str) -> None:
    """Raises a `ConfigError` for parameters that are neither settings nor those of the model."""
    found = [
        f'{name}: unknown parameter.{_suggestion(name, known)}'
        for name in names
        if name not in known and not name.startswith(PREFIX)
    ]
    if found:
        raise ConfigError(
            problems(
                f'{estimator} can not be used; arguments of the model begin with {PREFIX}:', found
            )
        )


def _suggestion(name: str, known: list[str]) -> str:
    if name in _NAMES_ELSEWHERE:
        return f' Here it is {_NAMES_ELSEWHERE[name]}.'
    return did_you_mean(name, known)


def make_config(settings: Mapping[str, Any], seed: int, **changes: Any) -> TrainingConfig:
    """Returns the config of a fit.

    Args:
        settings: the parameters of the estimator.
        seed: the seed.
        **changes: settings that replace those of the estimator.

    Raises:
        ConfigError: for settings that are impossible. Names all of them.
    """
    chosen = {field.name: settings[field.name] for field in CONFIG_FIELDS}
    return TrainingConfig(**{**chosen, 'seed': seed, **changes})
