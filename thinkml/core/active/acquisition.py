"""Acquisition scores: an estimate of how much a label of each row would improve the model.

The scores are pure functions of predicted probabilities ``[rows, classes]`` or of several draws of
predictions ``[draws, rows, ...]``. Draws are forward passes with dropout on, or the members of an
ensemble. A higher score means a more useful label. Inputs may be NumPy or JAX arrays. Scores are
computed in float32 on the device and returned as NumPy arrays. `thinkml.core.active.selection`
selects rows by their scores.

The functions ``log_...`` take logarithms of probabilities and return logarithms of scores. They can
rank rows whose probabilities round to 0 and 1 because the model is confident.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr, logsumexp
from numpy.typing import ArrayLike

from thinkml.core.xla.jit import Jit
from thinkml.errors import DataError

# The sums of 16-bit models' probabilities differ from 1 by less than this.
_TOLERANCE = 0.02


def least_confident(probabilities: ArrayLike) -> np.ndarray:
    """Computes 1 minus the probability of the most probable class: ``1 - max_k p_k``.

    Args:
        probabilities: ``[rows, classes]``; each row adds up to 1.

    Returns:
        ``[rows]``, from 0 to ``1 - 1 / classes``.

    Raises:
        DataError: for values that are not such probabilities.

    Reference:
        Lewis and Gale, 1994, *A sequential algorithm for training text classifiers*.

    Example:
        >>> from thinkml.core import least_confident
        >>> least_confident([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).tolist()
        [0.5, 0.0]
    """
    return _scores(log_least_confident, as_probabilities(probabilities))


def margin(probabilities: ArrayLike) -> np.ndarray:
    """Computes the closeness of the two most probable classes: ``1 - (first - second)``.

    Args:
        probabilities: ``[rows, classes]``; each row adds up to 1.

    Returns:
        ``[rows]``, from 0 to 1.

    Raises:
        DataError: for values that are not such probabilities.

    Reference:
        Scheffer et al., 2001, *Active hidden Markov models for information extraction*.

    Example:
        >>> from thinkml.core import margin
        >>> margin([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]).tolist()
        [0.75, 1.0]
    """
    return _scores(log_margin, as_probabilities(probabilities))


def entropy(probabilities: ArrayLike) -> np.ndarray:
    """Computes the entropy of the predicted class: ``-sum_k p_k log p_k``, in nats.

    Args:
        probabilities: ``[rows, classes]``; each row adds up to 1.

    Returns:
        ``[rows]``, from 0 to ``log(classes)``.

    Raises:
        DataError: for values that are not such probabilities.

    Reference:
        Shannon, 1948, *A mathematical theory of communication*.

    Example:
        >>> from thinkml.core import entropy
        >>> [round(score, 4) for score in entropy([[0.5, 0.5], [1.0, 0.0]]).tolist()]
        [0.6931, 0.0]
    """
    return _scores(log_entropy, as_probabilities(probabilities))


def bald(draws: ArrayLike) -> np.ndarray:
    """Computes BALD, the mutual information of the label and the model's parameters, in nats.

    It is ``H(mean_t p_t) - mean_t H(p_t)``. It is high if the draws are confident of different
    classes, and 0 if they agree, even if they are uncertain. It is computed as the mean of
    ``KL(p_t || mean_t p_t)``, which is equal and never negative.

    Args:
        draws: probabilities ``[draws, rows, classes]``, two draws or more.

    Returns:
        ``[rows]``, from 0 to ``log(min(draws, classes))``.

    Raises:
        DataError: for values that are not such probabilities.

    Reference:
        Houlsby et al., 2011, *Bayesian active learning for classification and preference learning*;
        with dropout: Gal et al., 2017, *Deep Bayesian active learning with image data*.

    Example:
        >>> from thinkml.core import bald
        >>> agree, differ = [0.5, 0.5], [[1.0, 0.0], [0.0, 1.0]]
        >>> scores = bald([[agree, differ[0]], [agree, differ[1]]])
        >>> [round(score, 4) for score in scores.tolist()]
        [0.0, 0.6931]
    """
    return _scores(log_bald, as_probabilities(draws, 'draws', draws=True))


def variation_ratio(draws: ArrayLike) -> np.ndarray:
    """Computes the disagreement of the draws: 1 minus the fraction of votes for the top class.

    Each draw votes for its most probable class, and for the first of equally probable ones.

    Args:
        draws: probabilities ``[draws, rows, classes]``, two draws or more.

    Returns:
        ``[rows]``, from 0 to ``1 - 1 / classes``.

    Raises:
        DataError: for values that are not such probabilities.

    Reference:
        Freeman, 1965, *Elementary applied statistics*.

    Example:
        >>> from thinkml.core import variation_ratio
        >>> variation_ratio([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]], [[0.7, 0.3]]]).tolist()
        [0.25]
    """
    return np.asarray(_variation_ratio(as_probabilities(draws, 'draws', draws=True)))


def variance(draws: ArrayLike) -> np.ndarray:
    """Computes the variance of predicted numbers over the draws, summed over the outputs.

    Args:
        draws: predictions ``[draws, rows, outputs]`` or ``[draws, rows]``, two draws or more.

    Returns:
        ``[rows]``, in the square of the targets' units.

    Raises:
        DataError: for another shape, or for values that are not finite.

    Reference:
        Krogh and Vedelsby, 1995, *Neural network ensembles, cross validation, and active learning*.

    Example:
        >>> from thinkml.core import variance
        >>> variance([[[1.0], [0.0]], [[3.0], [0.0]]]).tolist()
        [1.0, 0.0]
    """
    draws = _as_float32(draws, 'draws')
    if draws.ndim not in (2, 3) or len(draws) < 2:
        raise DataError(
            f'draws: got shape {draws.shape}, expected [draws, rows, outputs] with two draws or '
            'more: predictions of several models, or of one with dropout on.'
        )
    _check_finite(draws, 'draws')
    return np.asarray(_variance(draws.reshape(*draws.shape[:2], -1)))


def expected_gradient_length(probabilities: ArrayLike, features: ArrayLike) -> np.ndarray:
    """Computes the expected length of the last layer's gradient for the label of each row.

    The expectation is over the predicted probabilities of the labels. The gradient of the
    cross-entropy with respect to the weights and the bias of the last layer is
    ``(p - e_k) x [h, 1]`` for class ``k``, so its expected length is
    ``sum_k p_k ||p - e_k|| * ||[h, 1]||``.

    Args:
        probabilities: ``[rows, classes]``; each row adds up to 1.
        features: the inputs of the last layer, ``[rows, features]``.

    Returns:
        ``[rows]``.

    Raises:
        DataError: for other arrays.

    Reference:
        Settles, Craven and Ray, 2008, *Multiple-instance active learning*.

    Example:
        >>> from thinkml.core import expected_gradient_length
        >>> scores = expected_gradient_length([[0.5, 0.5], [1.0, 0.0]], [[0.0], [5.0]])
        >>> [round(score, 4) for score in scores.tolist()]
        [0.7071, 0.0]
    """
    probabilities = as_probabilities(probabilities)
    features = as_features(features, num_rows=len(probabilities))
    return _scores(log_expected_gradient_length, probabilities, features)


# --- checks -----------------------------------------------------------------------------------


def as_probabilities(
    values: ArrayLike, argument: str = 'probabilities', *, draws: bool = False
) -> jax.Array:
    """Returns float32 ``[rows, classes]`` or ``[draws, rows, classes]``, on the device.

    Raises:
        DataError: for another shape, for fewer than two classes or draws, or for rows that are not
            from 0 to 1 or do not add up to 1.
    """
    probabilities = _as_float32(values, argument)
    expected = '[draws, rows, classes]' if draws else '[rows, classes]'
    if probabilities.ndim != 2 + draws or probabilities.shape[-1] < 2:
        raise DataError(
            f'{argument}: got shape {probabilities.shape}, expected {expected} with two classes or '
            'more. For one output p of a binary model pass [1 - p, p].'
        )
    if draws and len(probabilities) < 2:
        raise DataError(
            f'{argument}: got one draw, expected two or more: predictions of several models, or of '
            'one with dropout on.'
        )
    if not _are_distributions(probabilities):
        raise DataError(
            f'{argument}: got rows that are not from 0 to 1 or do not add up to 1, expected '
            'probabilities. Apply a softmax to logits first, and check that none is NaN.'
        )
    return probabilities


def as_features(
    values: ArrayLike, argument: str = 'features', *, num_rows: int | None = None
) -> jax.Array:
    """Returns float32 ``[rows, features]``, on the device.

    Raises:
        DataError: for another shape, another number of rows, or values that are not finite.
    """
    features = _as_float32(values, argument)
    if features.ndim != 2:
        raise DataError(f'{argument}: got shape {features.shape}, expected [rows, features].')
    if num_rows is not None and len(features) != num_rows:
        raise DataError(
            f'{argument}: got {len(features)} rows for {num_rows} rows of the other arrays.'
        )
    _check_finite(features, argument)
    return features


def _as_float32(values: ArrayLike, argument: str) -> jax.Array:
    try:
        return jnp.asarray(values, jnp.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f'{argument}: expected an array of numbers; {error}') from error


def _check_finite(values: jax.Array, argument: str) -> None:
    if not _are_finite(values):
        raise DataError(f'{argument}: got NaN or infinite values, expected finite ones.')


@Jit
def _are_finite(values: jax.Array) -> jax.Array:
    # The minimum and the maximum reveal any NaN or infinity. A mask of all values would take a
    # quarter of their memory.
    return jnp.isfinite(values.min(initial=0)) & jnp.isfinite(values.max(initial=0))


@Jit
def _are_distributions(values: jax.Array) -> jax.Array:
    total = jnp.matmul(values, jnp.ones(values.shape[-1]), precision='highest')
    # The minimum is NaN if any value is.
    return (values.min(initial=jnp.inf) >= 0) & jnp.all(jnp.abs(total - 1) <= _TOLERANCE)


# --- compiled ---------------------------------------------------------------------------------


def _scores(
    log_score: Callable[..., jax.Array], probabilities: jax.Array, *more: jax.Array
) -> np.ndarray:
    logarithms = np.asarray(log_score(jnp.log(probabilities), *more), np.float64)
    return np.exp(logarithms).astype(np.float32)


@Jit
def log_least_confident(log_p: jax.Array) -> jax.Array:
    """Returns the logarithm of `least_confident` from logarithms of the probabilities."""
    return _others(log_p)[0]


@Jit
def log_margin(log_p: jax.Array) -> jax.Array:
    """Returns the logarithm of `margin` from logarithms of the probabilities."""
    log_rest, fractions = _others(log_p)
    return log_rest + jnp.log1p(fractions.max(1))


@Jit
def log_entropy(log_p: jax.Array) -> jax.Array:
    """Returns the logarithm of `entropy` from logarithms of the probabilities."""
    # With the sum s of all probabilities but the largest, and their fractions c_k of it:
    # H = s (-log s + H(c)) - (1 - s) log(1 - s).
    log_rest, fractions = _others(log_p)
    rest = jnp.exp(log_rest)
    first_term = jnp.where(rest > 0, -(1 - rest) * jnp.log1p(-rest) / rest, 1)
    entropy = log_rest + jnp.log(entr(fractions).sum(1) - log_rest + first_term)
    return jnp.where(jnp.isneginf(log_rest), -jnp.inf, entropy)


@Jit
def log_bald(log_p: jax.Array) -> jax.Array:
    """Returns the logarithm of `bald` from logarithms of the probabilities of several draws."""
    # KL(p || q) is the sum of q (r e^r - e^r + 1) with r = log(p / q). No term is negative.
    top = jnp.maximum(log_p.max(0), jnp.finfo(log_p.dtype).min)
    log_q = top + jnp.log1p(jnp.expm1(log_p - top).mean(0))
    r = jnp.where(jnp.isneginf(log_q), 0, log_p - log_q)
    gain = jnp.where(jnp.isneginf(r), 1, r * jnp.exp(r) - jnp.expm1(r))
    divergence = logsumexp(log_q + jnp.log(jnp.maximum(gain, 0)), axis=-1)
    return logsumexp(divergence, axis=0) - np.log(len(log_p))


@Jit
def _variation_ratio(draws: jax.Array) -> jax.Array:
    votes = jax.nn.one_hot(draws.argmax(-1), draws.shape[-1]).sum(0)
    return (len(draws) - votes.max(-1)) / len(draws)


@Jit
def _variance(draws: jax.Array) -> jax.Array:
    return draws.var(0).sum(-1)


@Jit
def log_expected_gradient_length(log_p: jax.Array, features: jax.Array) -> jax.Array:
    """Returns the logarithm of `expected_gradient_length`, also from logarithms."""
    # ||p - e_k||^2 = (1 - p_k)^2 + sum_{j != k} p_j^2. For the most probable class, 1 - p_k is the
    # sum s of the other probabilities. These are p_k = s c_k, so each length has a factor s.
    log_rest, fractions = _others(log_p)
    rest = jnp.exp(log_rest)[:, None]
    first, others = 1 - rest[:, 0], rest * fractions
    first_term = first * jnp.sqrt(1 + jnp.square(fractions).sum(1))
    total = jnp.square(others).sum(1) + jnp.square(first)
    other_terms = fractions * jnp.sqrt(jnp.square(1 - others) + total[:, None] - jnp.square(others))
    length = jnp.sqrt(jnp.square(features).sum(1) + 1)
    return log_rest + jnp.log((first_term + other_terms.sum(1)) * length)


def _others(log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the log of the sum of all but each row's largest probability, and their fractions.

    The sum is 1 minus the largest probability. Computed that way, it would round to 0 for a
    confident model.
    """
    is_first = jax.nn.one_hot(log_p.argmax(1), log_p.shape[1], dtype=bool)
    others = jnp.where(is_first, -jnp.inf, log_p)
    log_rest = logsumexp(others, axis=1)
    is_positive = jnp.isfinite(log_rest)
    return log_rest, jnp.exp(others - jnp.where(is_positive, log_rest, 0)[:, None])
