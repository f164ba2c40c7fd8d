"""Strategies: functions that choose the rows to label next."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
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
from thinkml.data import Rows
from thinkml.errors import ConfigError, DataError, is_whole, unknown_name
from thinkml.tasks import Task
from thinkml.training.active.pool_predictions import PoolPredictions
from thinkml.typing import Model

LogScore = Callable[..., Any]
Score = Callable[[PoolPredictions], np.ndarray]
Select = Callable[[PoolPredictions, int, jax.Array, np.ndarray], Selection]

_CLASSES = frozenset({'binary', 'multiclass'})
_LABELS = _CLASSES | {'multilabel'}
_ALL = _LABELS | {'regression'}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to choose rows.

    Attributes:
        name: the name in messages and files.
        select: ``(predictions, count, key, available) -> Selection``.
        kinds: the kinds of task it supports.
        score: returns the logarithm of each row's score if rows are chosen by it alone; None if
            they are chosen together. Logarithms also rank rows whose scores round to 0.
        needs_features: True if it reads the features.
        needs_draws: True if it reads how models, or passes with dropout, differ.
        of_elements: True if it supports rows with a target for each token or pixel.
    """

    name: str
    select: Select
    kinds: frozenset[str] = _ALL
    score: Score | None = None
    needs_features: bool = False
    needs_draws: bool = False
    of_elements: bool = False


class DiverseBatches:
    """A strategy that chooses diverse batches: rows of high score that are unlike each other.

    The candidates are the rows with the highest scores, ``oversample`` times as many as are
    requested. They are clustered, and the row nearest to each cluster's centre is chosen.

    Args:
        strategy: the name of a strategy that scores each row: ``'uncertainty'``, ``'margin'``,
            ``'entropy'``, ``'bald'``, ``'variation_ratio'``, ``'variance'`` or
            ``'expected_gradient_length'``.
        oversample: the number of candidates for each row to choose.

    Raises:
        ConfigError: for a strategy that is unknown or does not score rows.

    Example:
        >>> from flax import nnx
        >>> from thinkml.training import ActiveLearner, DiverseBatches
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> learner = ActiveLearner(model, DiverseBatches('margin'))

    Reference:
        Zhdanov, 2019, *Diverse mini-batch active learning*.
    """

    def __init__(self, strategy: str = 'margin', oversample: int = 10):
        scoring = [name for name, entry in STRATEGIES.items() if entry.score is not None]
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
    """Returns the strategy that the user passed by name, as an object or as a function.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(strategy, DiverseBatches):
        return diversify(STRATEGIES[strategy.strategy], strategy.oversample)
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]
    if callable(strategy) and not inspect.isclass(strategy):
        return _custom_strategy(strategy)
    if isinstance(strategy, str):
        raise ConfigError(unknown_name('strategy', strategy, STRATEGIES))
    raise ConfigError(
        f'strategy: got {strategy!r}, expected a name, DiverseBatches(...), or a function '
        '(probabilities, key) or (features, key) that returns the order of the rows.'
    )


def check_strategy(
    strategy: Strategy,
    models: Sequence[Model],
    rows: Rows,
    task: Task | None,
    *,
    has_elements: bool,
) -> None:
    """Checks that a strategy supports the task, and the models have what it needs.

    Args:
        strategy: the strategy.
        models: the models.
        rows: the rows of the pool.
        task: the task; None if it is not known yet.
        has_elements: True if a row has a target for each of its elements.

    Raises:
        ConfigError: for a task that the strategy does not support.
        ModelTypeError: for a model without the features or the dropout that the strategy needs.
    """

    def supports(strategy: Strategy) -> bool:
        supports_kind = task is None or task.kind in strategy.kinds
        return supports_kind and (strategy.of_elements or not has_elements)

    if not supports(strategy):
        fitting = [name for name, entry in STRATEGIES.items() if supports(entry)]
        got = 'a model with outputs for each element of a row' if task is None else task.in_words
        raise ConfigError(
            f'strategy: got {strategy.name!r} for {got}, expected one of {", ".join(fitting)}.'
        )
    predictions = PoolPredictions(
        models=models,
        task=task,
        rows=rows,
        initial_rows=None,
        num_draws=1,
        key=jax.random.key(0),
    )
    if strategy.needs_features:
        predictions.check_features()
    if strategy.needs_draws:
        predictions.check_draws()


def diversify(strategy: Strategy, oversample: int = 10) -> Strategy:
    """Returns a strategy with diverse batches; the same one if it chooses rows together anyway.

    Rows are compared by their features, or by their outputs if the model has no features.
    """
    score = strategy.score
    if score is None:
        return strategy

    def select(
        predictions: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
    ) -> Selection:
        vectors = predictions.features if predictions.has_features else predictions.outputs[0]
        scores = np.exp(score(predictions))
        return diverse(scores, vectors, count, key, available, oversample=oversample)

    return dataclasses.replace(
        strategy, name=f'diverse {strategy.name}', select=select, score=None, needs_features=True,
        of_elements=False,
    )  # fmt: skip


def _by_score(
    name: str, score: Score, kinds: frozenset[str], *, features: bool = False, draws: bool = False
) -> Strategy:
    def select(
        predictions: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
    ) -> Selection:
        logarithms = score(predictions)
        [rows, _] = highest(logarithms, count, available)
        return Selection(rows, np.exp(logarithms[rows]).astype(np.float32))

    return Strategy(
        name, select, kinds, score,
        needs_features=features, needs_draws=draws, of_elements=not features,
    )  # fmt: skip


def _score_probabilities(log_score: LogScore) -> Score:
    def score(predictions: PoolPredictions) -> np.ndarray:
        score_block = functools.partial(_mean_over_labels, log_score, task=predictions.task)
        return predictions.score_probabilities(score_block)

    return score


def _score_draws(log_score: LogScore) -> Score:
    def score(predictions: PoolPredictions) -> np.ndarray:
        score_block = functools.partial(_mean_over_labels, log_score, task=predictions.task)
        return predictions.score_draws(score_block)

    return score


def _mean_over_labels(log_score: LogScore, values: np.ndarray, *, task: Task | None) -> np.ndarray:
    """Scores ``[..., rows, classes]``; for ``[..., rows, labels, 2]`` the mean over the labels."""
    if task is None or not task.type.has_many_labels:
        return _compute(log_score, values)
    *draws, rows, labels, _ = values.shape
    label_scores = _compute(log_score, values.reshape(*draws, rows * labels, 2))
    return np.logaddexp.reduce(label_scores.reshape(rows, labels), axis=1) - np.log(labels)


def _compute(log_score: LogScore, *arrays: np.ndarray) -> np.ndarray:
    """Computes logarithms in float32 on the device, and returns them in float64."""
    inputs = (np.asarray(array, np.float32) for array in arrays)
    return np.asarray(log_score(*inputs), np.float64)


def _log_variation_ratio(log_p: np.ndarray) -> np.ndarray:
    return _log_or_minus_inf(variation_ratio(np.exp(log_p)))


def _log_variance(outputs: np.ndarray) -> np.ndarray:
    return _log_or_minus_inf(variance(outputs))


def _log_or_minus_inf(scores: np.ndarray) -> np.ndarray:
    with np.errstate(divide='ignore'):
        return np.log(scores, dtype=np.float64)


def _log_gradient_lengths(predictions: PoolPredictions) -> np.ndarray:
    features = predictions.features  # read first, so that the outputs come from the same pass
    return _compute(log_expected_gradient_length, predictions.log_probabilities, features)


def _select_at_random(
    predictions: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    return at_random(len(predictions.rows), count, key, available)


def _select_core_set(
    predictions: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    return k_center_greedy(
        predictions.features, count, predictions.reference_features(available), available
    )


def _select_badge(
    predictions: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    features = predictions.features
    return badge(predictions.probabilities, features, count, key, available)


def select_typical(
    predictions: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
) -> Selection:
    """Selects rows that are typical of the data, each from a different part; needs no labels."""
    return typiclust(
        predictions.features, count, key, predictions.reference_features(available), available
    )


def _custom_strategy(function: Callable[..., Any]) -> Strategy:
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
        predictions: PoolPredictions, count: int, key: jax.Array, available: np.ndarray
    ) -> Selection:
        [candidates] = np.nonzero(available)
        if reads_features:
            values = predictions.features
        else:
            task = predictions.task
            are_numbers = task is not None and not task.is_classification
            values = predictions.outputs.mean(0) if are_numbers else predictions.probabilities
            if task is not None and task.element_shape:
                values = values.reshape(len(values), *task.element_shape, -1)
        order = np.asarray(function(values[candidates], key))
        _check_order(order, len(candidates), name)
        chosen = candidates[order[:count]]
        return Selection(chosen.astype(np.int64), np.full(len(chosen), np.nan, np.float32))

    return Strategy(name, select, needs_features=reads_features, of_elements=not reads_features)


def _check_order(order: np.ndarray, num_rows: int, name: str) -> None:
    is_whole_numbers = order.ndim == 1 and order.dtype.kind in 'iu'
    if (
        not is_whole_numbers
        or len(np.unique(order)) != len(order)
        or (len(order) and not 0 <= order.min() <= order.max() < num_rows)
    ):
        raise DataError(
            f'strategy: {name} returned {order.dtype} of shape {order.shape}, expected the indices '
            f'of rows, each once and from 0 to {num_rows - 1}, the best first.'
        )


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        _by_score('uncertainty', _score_probabilities(log_least_confident), _LABELS),
        _by_score('margin', _score_probabilities(log_margin), _LABELS),
        _by_score('entropy', _score_probabilities(log_entropy), _LABELS),
        _by_score('bald', _score_draws(log_bald), _LABELS, draws=True),
        _by_score('variation_ratio', _score_draws(_log_variation_ratio), _LABELS, draws=True),
        _by_score('variance', _score_draws(_log_variance), frozenset({'regression'}), draws=True),
        _by_score('expected_gradient_length', _log_gradient_lengths, _CLASSES, features=True),
        Strategy('random', _select_at_random, of_elements=True),
        Strategy('core_set', _select_core_set, needs_features=True),
        Strategy('badge', _select_badge, _CLASSES, needs_features=True),
        Strategy('typiclust', select_typical, needs_features=True),
    )
}
