"""Evaluation settings: checked without the data first, then together with it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from thinkml.data import number_groups
from thinkml.data.sample_weights import check_sample_weight
from thinkml.errors import ConfigError, DataError, is_number, is_whole, problems
from thinkml.evaluation.bootstrap import Resampling
from thinkml.evaluation.evaluation_input import EvaluationInput


class EvaluationSettings(TypedDict, total=False):
    """The optional settings of `ModelEvaluator.evaluate`, which documents each of them."""

    sample_weight: Any
    confidence: float | None
    num_resamples: int
    groups: Any
    stratify: Any
    slices: Mapping[str, Any] | None
    min_support: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """Evaluation settings, checked as far as possible without the data."""

    metrics: Any = None
    sample_weight: Any = None
    confidence: float | None = 0.95
    num_resamples: int = 1000
    groups: Any = None
    stratify: Any = False
    slices: Mapping[str, Any] | None = None
    min_support: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        errors = [
            f'{name}: got {value!r}, expected a whole number of at least {least}.'
            for name, least in (('num_resamples', 2), ('min_support', 1), ('seed', 0))
            if not (is_whole(value := getattr(self, name)) and least <= value < 2**63)
        ]
        level = self.confidence
        if level is not None and not (is_number(level) and 0 < level < 1):
            errors.append(f'confidence: got {level!r}, expected a fraction such as 0.95, or None.')
        if not isinstance(self.slices, Mapping | None):
            errors.append(
                f'slices: got {type(self.slices).__name__}, expected a dict of a mask or values '
                'for each name.'
            )
        if errors:
            raise ConfigError(errors[0] if len(errors) == 1 else problems('evaluate:', errors))

    def for_data_set(self, name: str, data_sets: Mapping[str, Any]) -> 'Settings':
        """Returns the settings of one of several data sets."""
        values: dict[str, Any] = {}
        for field in ('sample_weight', 'groups', 'stratify', 'slices'):
            value = getattr(self, field)
            if value is None or isinstance(value, bool):
                continue
            if not isinstance(value, Mapping) or not value.keys() <= data_sets.keys():
                raise ConfigError(
                    f'{field}: got {_keys_or_type(value)} beside several data sets, expected a '
                    f'dict by their names: {", ".join(map(repr, data_sets))}.'
                )
            values[field] = value.get(name, False if field == 'stratify' else None)
        return dataclasses.replace(self, **values)

    def for_head(self, head: str, heads: Mapping[str, Any]) -> 'Settings':
        """Returns the settings of one of several heads; groups and slices are those of all."""
        values: dict[str, Any] = {}
        for field in ('metrics', 'sample_weight', 'stratify'):
            value = getattr(self, field)
            if not isinstance(value, Mapping):
                continue
            if not value.keys() <= heads.keys():
                raise ConfigError(
                    f'{field}: got {_keys_or_type(value)}, expected a dict by the names of the '
                    f'heads: {", ".join(map(repr, heads))}.'
                )
            values[field] = value.get(head, False if field == 'stratify' else None)
        return dataclasses.replace(self, **values)


def _keys_or_type(value: Any) -> str:
    if isinstance(value, Mapping):
        return f'a dict of {", ".join(map(repr, value))}'
    return type(value).__name__


def open_weight(sample_weight: Any, inputs: EvaluationInput) -> np.ndarray | None:
    """Returns the weight of each row, float64 ``(rows,)``; None if all weights are 1.

    Raises:
        DataError: unless there is one finite number of at least 0 for each row, and some are above
            0; if the batches hold weights themselves.
    """
    if inputs.weight is not None and sample_weight is not None:
        raise DataError(
            'sample_weight: got one beside batches (inputs, labels, weights), expected the weights '
            'in one place. Leave one of the two out.'
        )
    argument, weight = 'X_test', inputs.weight
    if sample_weight is not None:
        argument = 'sample_weight'
        shape = (len(inputs.labels), *inputs.task.element_shape)
        weight = check_sample_weight(sample_weight, shape, argument)
    if weight is None:
        return None
    if not weight.any():
        raise DataError(f'{argument}: got weight 0 for every row, expected some above 0.')
    return _rescale(weight)


def _rescale(weight: np.ndarray) -> np.ndarray:
    """Returns weights whose products neither underflow to 0 nor overflow.

    All are multiplied by the same power of 2, which changes no weighted mean.
    """
    exponent = int(np.frexp(weight.max())[1])
    return weight if abs(exponent) <= 256 else np.ldexp(weight, -exponent)


def open_resampling(settings: Settings, inputs: EvaluationInput) -> Resampling:
    """Returns how the bootstrap draws rows.

    Raises:
        ConfigError: if there are no classes to stratify by.
        DataError: if groups or strata do not fit the rows or each other.
    """
    num_rows, stratify = len(inputs.labels), settings.stratify
    groups = None
    if settings.groups is not None:
        groups = number_groups(settings.groups, num_rows, 'groups')
        if not groups.any():
            raise DataError('groups: got one group of all rows, expected several to draw from.')
    strata = None
    if isinstance(stratify, bool | np.bool_) and stratify:
        if not inputs.task.type.has_one_class or inputs.task.element_shape:
            raise ConfigError(
                f'stratify: got True for {inputs.task.in_words}, expected an array that names '
                'the stratum of each row.'
            )
        strata = inputs.encoded
    elif not (stratify is None or isinstance(stratify, bool | np.bool_)):
        strata = number_groups(stratify, num_rows, 'stratify')
    if groups is not None and strata is not None:
        _check_nested(groups, strata)
    return Resampling(
        confidence=settings.confidence,
        num_resamples=settings.num_resamples,
        groups=groups,
        strata=strata,
        seed=settings.seed,
    )


def _check_nested(groups: np.ndarray, strata: np.ndarray) -> None:
    pairs = np.unique(np.stack([groups, strata]), axis=1)
    if pairs.shape[1] > groups.max() + 1:
        raise DataError(
            'stratify: got groups with rows in several strata, expected one stratum for each '
            'group. Stratify by a value that all rows of a group share, or leave it out.'
        )
