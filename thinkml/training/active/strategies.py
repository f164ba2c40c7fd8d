"""Strategies: which rows are worth a label."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from thinkml.core.active.acquisition import (
    log_bald,
    log_entropy,
    log_expected_gradient_length,
    log_least_confident,
    log_margin,
    variance,
    variation_ratio,
)
from thinkml.core.active.selection import (
    Selection,
    at_random,
    badge,
    diverse,
    highest,
    k_center_greedy,
    typiclust,
)
from thinkml.errors import ConfigError, DataError, is_whole, unknown_name
from thinkml.model_record import Task
from thinkml.training.active.pool_predictions import PoolPredictions

Score = Callable[[PoolPredictions], np.ndarray]
Select = Callable[[PoolPredictions, int, jax.Array, np.ndarray], Selection]

_CLASSES = frozenset({'binary', 'multiclass'})
_LABELS = _CLASSES | {'multilabel'}
_ALL = _LABELS | {'regression'}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to choose rows.

    Attributes:
        name: for messages and files.
        select: ``(view, count, key, available) -> Selection``.
        kinds: the tasks it is for.
        score: the logarithm of each row's score, where rows are chosen by it alone; None where they
            are chosen together. It ranks also rows whose scores round to 0.
        needs_features: whether it reads them.
        needs_draws: whether it reads how models, or passes with dropout, differ.
    """

    name: str
    select: Select
    kinds: frozenset[str] = _ALL
    score: Score | None = None
    needs_features: bool = False
    needs_draws: bool = False


class DiverseBatches:
    """A strategy whose batches are spread out: rows of high score that are not alike.

    Of ``oversample`` times as many rows as are asked for, those of the highest scores, clusters are
    made, and of each the row nearest to its centre is taken.

    Args:
        strategy: the name of one that scores each row: ``'uncertainty'``, ``'margin'``,
            ``'entropy'``, ``'bald'``, ``'variation_ratio'``, ``'variance'`` or
            ``'expected_gradient_length'``.
        oversample: how many candidates there are for each row.

    Raises:
        ConfigError: for a strategy that is unknown or scores no rows.

    Example:
        >>> from flax import nnx
        >>> from thinkml.training import ActiveLearner, DiverseBatches
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> learner = ActiveLearner(model, DiverseBatches('margin'))

    Reference:
        Zhdanov, 2019, *Diverse mini-batch active learning*.
    """

    def __init__(self, strategy: str = 'margin', oversample: int = 10):
        scoring = [name for name, known in STRATEGIES.items() if known.score is not None]
        if strategy not in scoring:
            raise ConfigError(unknown_name('strategy', strategy, scoring))
        if not is_whole(oversample) or oversample < 1:
            raise ConfigError(
                f'oversample: got {oversample!r}, expected a whole number of at least 1.'
            )
        self.strategy = strategy
        self.oversample = int(oversample)

    def __repr__(self) -> str:
        return f'DiverseBatches({self.strategy!r}, oversample={self.oversample})'


def make_strategy(strategy: Any) -> Strategy:
    """Makes a strategy of what the user named.

    Raises:
        ConfigError: for what is none.
    """
    if isinstance(strategy, DiverseBatches):
        return spread_out(STRATEGIES[strategy.strategy], strategy.oversample)
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]
    if callable(strategy) and not inspect.isclass(strategy):
        return _own(strategy)
    if isinstance(strategy, str):
        raise ConfigError(unknown_name('strategy', strategy, STRATEGIES))
    raise ConfigError(
        f'strategy: got {strategy!r}, expected a name, DiverseBatches(...), or a function '
        '(probabilities, key) or (features, key) that returns the rows in their order.'
    )


def check_strategy(strategy: Strategy, models: Any, rows: Any, task: Task | None) -> None:
    """Raises what would fail later: a task, a model without features, one without dropout."""
    if task is not None and task.kind not in strategy.kinds:
        fitting = [name for name, known in STRATEGIES.items() if task.kind in known.kinds]
        raise ConfigError(
            f'strategy: got {strategy.name!r} for {task.in_words}, expected one of '
            f'{", ".join(fitting)}.'
        )
    view = PoolPredictions(models, task, rows, None, 1, jax.random.key(0))
    if strategy.needs_features:
        view.check_features()
    if strategy.needs_draws:
        view.check_draws()


def spread_out(strategy: Strategy, oversample: int = 10) -> Strategy:
    """The same, with batches of rows that are not alike; itself where it sees to that.

    Rows are alike by their features, by their outputs where the model has no features.
    """
    score = strategy.score
    if score is None:
        return strategy

    def select(
        view: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
    ) -> Selection:
        by = view.features if view.has_features else view.outputs[0]
        scores = np.exp(score(view))
        return diverse(scores, by, count, key, available, oversample=oversample)

    return dataclasses.replace(
        strategy, name=f'diverse {strategy.name}', select=select, score=None, needs_features=True
    )


def _by_score(
    name: str, score: Score, kinds: frozenset[str], *, features: bool = False, draws: bool = False
) -> Strategy:
    def select(
        view: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
    ) -> Selection:
        logarithms = score(view)
        [rows, _] = highest(logarithms, count, available)
        return Selection(rows, np.exp(logarithms[rows]).astype(np.float32))

    return Strategy(name, select, kinds, score, needs_features=features, needs_draws=draws)


def _of_probabilities(log_score: Callable[..., Any]) -> Score:
    def of_view(view: PoolPredictions) -> np.ndarray:
        return _each_label(log_score, view.log_probabilities, task=view.task)

    return of_view


def _of_draws(log_score: Callable[..., Any]) -> Score:
    def of_view(view: PoolPredictions) -> np.ndarray:
        return view.by_draws(functools.partial(_each_label, log_score, task=view.task))

    return of_view


def _each_label(
    log_score: Callable[..., Any], values: np.ndarray, *, task: Task | None
) -> np.ndarray:
    """Scores ``[..., rows, classes]``; for ``[..., rows, labels, 2]`` the mean over the labels."""
    if task is None or task.kind != 'multilabel':
        return _computed(log_score, values)
    *draws, rows, labels, _ = values.shape
    of_each = _computed(log_score, values.reshape(*draws, rows * labels, 2))
    return np.logaddexp.reduce(of_each.reshape(rows, labels), axis=1) - np.log(labels)


def _computed(log_score: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """Computes logarithms in float32 on the device, and returns them in float64."""
    of_device = (np.asarray(array, np.float32) for array in arrays)
    return np.asarray(log_score(*of_device), np.float64)


def _log_variation_ratio(log_p: np.ndarray) -> np.ndarray:
    return _log(variation_ratio(np.exp(log_p)))


def _log_variance(outputs: np.ndarray) -> np.ndarray:
    return _log(variance(outputs))


def _log(scores: np.ndarray) -> np.ndarray:
    with np.errstate(divide='ignore'):
        return np.log(scores, dtype=np.float64)


def _log_gradient_lengths(view: PoolPredictions) -> np.ndarray:
    features = view.features  # first: the outputs then come from the same pass
    return _computed(log_expected_gradient_length, view.log_probabilities, features)


def _select_at_random(
    view: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    return at_random(len(view.rows), count, key, available)


def _select_core_set(
    view: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    return k_center_greedy(view.features, count, view.features_of_known(available), available)


def _select_badge(
    view: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    features = view.features
    return badge(view.probabilities, features, count, key, available)


def select_typical(
    view: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    """Rows that are typical of the data, each of another part of it; needs no labels."""
    return typiclust(view.features, count, key, view.features_of_known(available), available)


def _own(function: Callable[..., Any]) -> Strategy:
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(names) < 2:
        raise ConfigError(
            f'strategy: got a function of {len(names)} arguments, expected (probabilities, key) or '
            '(features, key).'
        )
    reads_features = names[0] == 'features'
    name = getattr(function, '__name__', type(function).__name__)

    def select(
        view: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
    ) -> Selection:
        [candidates] = np.nonzero(available)
        if reads_features:
            values = view.features
        else:
            is_regression = view.task is not None and view.task.kind == 'regression'
            values = view.outputs.mean(0) if is_regression else view.probabilities
        order = np.asarray(function(values[candidates], key))
        _check_order(order, len(candidates), name)
        chosen = candidates[order[:count]]
        return Selection(chosen.astype(np.int64), np.full(len(chosen), np.nan, np.float32))

    return Strategy(name, select, needs_features=reads_features)


def _check_order(order: np.ndarray, num_rows: int, name: str) -> None:
    is_whole_numbers = order.ndim == 1 and order.dtype.kind in 'iu'
    if (
        not is_whole_numbers
        or len(np.unique(order)) != len(order)
        or (len(order) and not 0 <= order.min() <= order.max() < num_rows)
    ):
        raise DataError(
            f'strategy: {name} returned {order.dtype} of shape {order.shape}, expected the numbers '
            f'of rows, each once and from 0 to {num_rows - 1}, those worth most first.'
        )


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        _by_score('uncertainty', _of_probabilities(log_least_confident), _LABELS),
        _by_score('margin', _of_probabilities(log_margin), _LABELS),
        _by_score('entropy', _of_probabilities(log_entropy), _LABELS),
        _by_score('bald', _of_draws(log_bald), _LABELS, draws=True),
        _by_score('variation_ratio', _of_draws(_log_variation_ratio), _LABELS, draws=True),
        _by_score('variance', _of_draws(_log_variance), frozenset({'regression'}), draws=True),
        _by_score('expected_gradient_length', _log_gradient_lengths, _CLASSES, features=True),
        Strategy('random', _select_at_random),
        Strategy('core_set', _select_core_set, needs_features=True),
        Strategy('badge', _select_badge, _CLASSES, needs_features=True),
        Strategy('typiclust', select_typical, needs_features=True),
    )
}
