"""Folds: the training and test rows of a cross-validation, from scikit-learn's splitters."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from thinkml.errors import ConfigError, DataError, is_whole

Split = tuple[np.ndarray, np.ndarray]
"""The rows to train on and the rows to test on."""


def has_classes(targets: np.ndarray) -> bool:
    """Returns True for targets that are labels of classes, and not numbers."""
    return targets.ndim == 1 and targets.dtype.kind in 'iubU'


def make_folds(
    folds: Any,
    targets: np.ndarray,
    *,
    repeats: int = 1,
    groups: Any = None,
    stratify: bool = True,
    time: bool = False,
    seed: int = 0,
) -> list[Split]:
    """Returns the rows of each fold, for each repetition.

    Args:
        folds: the number of folds, an object with ``split(X, y, groups)`` as those of
            scikit-learn, or pairs of training and test rows.
        targets: the labels or numbers of each row.
        repeats: the number of repetitions, each shuffled in another way.
        groups: the group of each row; a group is never in both parts of a fold.
        stratify: True to give each fold the same share of each class; not used for numbers.
        time: True for rows in the order of time: each fold is tested on the rows after those that
            it is trained on.
        seed: the seed of the shuffling.

    Raises:
        ConfigError: for settings that exclude each other, or if scikit-learn is not installed.
        DataError: for folds that are empty or name rows that do not exist.
    """
    if not is_whole(repeats) or repeats < 1:
        raise ConfigError(f'repeats: got {repeats!r}, expected a whole number of at least 1.')
    y = targets if targets.ndim == 1 else np.zeros(len(targets))
    stratify = stratify and not time and has_classes(targets)
    groups = None if groups is None else _checked_groups(groups, len(y))
    if not is_whole(folds):
        if repeats > 1:
            raise ConfigError(
                f'repeats: got {repeats} beside folds that are given, expected 1. Pass a splitter '
                'that repeats, such as RepeatedKFold.'
            )
        return _checked(list(_given(folds, y, groups)), len(y))
    if folds < 2 or folds > len(y):
        raise ConfigError(
            f'folds: got {folds} for {len(y):,} rows, expected 2 to as many as there are rows.'
        )
    if time and (groups is not None or repeats > 1):
        other = 'groups' if groups is not None else 'repeats'
        raise ConfigError(f'time: got True beside {other}, expected one of both.')
    splitters = (
        _splitter(
            int(folds), seed + repeat, stratify=stratify, grouped=groups is not None, time=time
        )
        for repeat in range(repeats)
    )
    rows = np.zeros(len(y))
    found = [split for one in splitters for split in one.split(rows, y, groups)]
    return _checked(found, len(y))


def _splitter(folds: int, seed: int, *, stratify: bool, grouped: bool, time: bool) -> Any:
    try:
        from sklearn import model_selection
    except ImportError as error:
        raise ConfigError(
            'folds: needs the package scikit-learn, which is not installed. Install it: '
            "pip install 'scikit-learn>=1.6'. Or pass pairs of training and test rows."
        ) from error
    if time:
        return model_selection.TimeSeriesSplit(folds)
    if grouped:
        kind = model_selection.StratifiedGroupKFold if stratify else model_selection.GroupKFold
    else:
        kind = model_selection.StratifiedKFold if stratify else model_selection.KFold
    return kind(folds, shuffle=True, random_state=seed)


def _given(folds: Any, y: np.ndarray, groups: np.ndarray | None) -> Iterator[Any]:
    if callable(getattr(folds, 'split', None)) and not isinstance(folds, str):
        yield from folds.split(np.zeros(len(y)), y, groups)
    elif isinstance(folds, Iterable) and not isinstance(folds, str):
        yield from folds
    else:
        raise ConfigError(
            f'folds: got {folds!r}, expected a number, a splitter such as KFold(5), or pairs of '
            'training and test rows.'
        )


def _checked(splits: list[Any], num_rows: int) -> list[Split]:
    found = []
    for index, split in enumerate(splits, 1):
        if not isinstance(split, tuple | list) or len(split) != 2:
            raise DataError(
                f'folds: fold {index} is a {type(split).__name__}, expected a pair of training and '
                'test rows.'
            )
        train, test = (np.flatnonzero(part) if _is_mask(part) else _rows(part) for part in split)
        for name, part in (('training', train), ('test', test)):
            if not len(part) or part.min() < 0 or part.max() >= num_rows:
                got = 'no rows' if not len(part) else f'rows {part.min():,} to {part.max():,}'
                raise DataError(
                    f'folds: fold {index} has {got} for {name}, expected some of 0 to '
                    f'{num_rows - 1:,}.'
                )
        if len(shared := np.intersect1d(train, test)):
            raise DataError(
                f'folds: fold {index} tests row {shared[0]:,}, on which it is trained, expected '
                'different rows.'
            )
        found.append((train, test))
    if not found:
        raise DataError('folds: got no folds, expected at least one.')
    return found


def _is_mask(part: Any) -> bool:
    return np.asarray(part).dtype.kind == 'b'


def _rows(part: Any) -> np.ndarray:
    rows = np.asarray(part)
    if rows.ndim != 1 or rows.dtype.kind not in 'iu':
        raise DataError(
            f'folds: got rows as {rows.dtype} of shape {rows.shape}, expected whole numbers.'
        )
    return rows.astype(np.int64)


def _checked_groups(groups: Any, num_rows: int) -> np.ndarray:
    array = np.asarray(groups)
    if array.shape != (num_rows,):
        raise DataError(
            f'groups: got shape {array.shape} for {num_rows:,} rows, expected a group for each row.'
        )
    return array
