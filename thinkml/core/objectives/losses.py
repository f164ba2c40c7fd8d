"""Losses per example, and the weighted mean that reduces them.

A loss is a function ``loss_fn(logits, labels) -> [batch]``. The reduction is always
``sum(weight * loss) / sum(weight)``, so padding (weight 0) and uneven batches do not change it.

Losses with settings are frozen dataclasses. They are equal if their settings are, so a program
compiled for one ``CrossEntropy(label_smoothing=0.1)`` is used again for another.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from thinkml.core.objectives.ctc import CTC
from thinkml.core.objectives.hashable import hashable, is_hashable
from thinkml.core.objectives.probe_sizes import with_rows
from thinkml.errors import ConfigError, is_number, is_whole, unknown_name
from thinkml.task_types import Decision

LossFn = Callable[[jax.Array, jax.Array], jax.Array]
# --- classification ---------------------------------------------------------------------------


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes softmax cross-entropy: ``-sum_c y_c log softmax(logits)_c``.

    Args:
        logits: ``[batch, classes]``.
        labels: class indices ``[batch]``, or class probabilities ``[batch, classes]``.

    Returns:
        ``[batch]``, in nats.
    """
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, labels.astype(logits.dtype))


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes sigmoid cross-entropy, averaged over the labels of an example.

    Args:
        logits: ``[batch]`` or ``[batch, 1]`` for binary, ``[batch, labels]`` for multilabel.
        labels: numbers from 0 to 1, ``[batch]`` or ``[batch, labels]``.

    Returns:
        ``[batch]``, in nats.
    """
    labels = labels.astype(logits.dtype)
    return _per_example(optax.sigmoid_binary_cross_entropy(logits.reshape(labels.shape), labels))


def hinge(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the hinge loss, which is 0 from a margin of 1 on.

    It is ``max(0, 1 + max_{c != y} logits_c - logits_y)`` for ``[batch, classes]`` logits with
    class indices ``[batch]``. Otherwise it is ``max(0, 1 - t logits)``, with ``t`` -1 or 1 for
    labels 0 or 1, averaged over the labels of an example. The probabilities of such a model have
    little meaning.

    Args:
        logits: ``[batch]``, ``[batch, 1]``, ``[batch, classes]`` or ``[batch, labels]``.
        labels: class indices ``[batch]``, or 0 and 1, ``[batch]`` or ``[batch, labels]``.

    Returns:
        ``[batch]``.

    Reference:
        Crammer and Singer, 2001, *On the algorithmic implementation of multiclass kernel-based
        vector machines*.
    """
    if is_softmax(logits, labels):
        return optax.losses.multiclass_hinge_loss(logits, labels)
    signs = 2 * labels.astype(logits.dtype) - 1
    return _per_example(optax.hinge_loss(logits.reshape(labels.shape), signs))


def is_softmax(logits: jax.Array, labels: jax.Array) -> bool:
    """Returns True for the shapes of class indices ``[batch]`` and one output per class."""
    return labels.ndim == 1 and logits.ndim == 2 and logits.shape[1] > 1


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy with label smoothing, and in chunks for many classes.

    The labels are mixed with the uniform distribution: ``(1 - s) y + s / classes``.

    Attributes:
        label_smoothing: ``s``, at least 0 and below 1.
        chunk: the number of elements (tokens, or rows) whose logits a training step holds at a
            time, on each device; None for all. The gradient computes them again: a third
            more operations in the model's last product. The model must end in a dense layer or in
            `flax.nnx.Embed.attend`. The values do not depend on it.

    Raises:
        ConfigError: for another ``label_smoothing`` or ``chunk``.

    Reference:
        Szegedy et al., 2016, *Rethinking the inception architecture for computer vision*.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.objectives.losses import CrossEntropy
        >>> loss_fn = CrossEntropy(label_smoothing=0.1)
        >>> [round(loss, 3) for loss in loss_fn(jnp.array([[4.0, 0.0]]), jnp.array([0])).tolist()]
        [0.218]
    """

    label_smoothing: float = 0.0
    chunk: int | None = dataclasses.field(default=None, repr=False)  # changes no value

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)
        if self.chunk is not None and not (is_whole(self.chunk) and self.chunk >= 1):
            raise ConfigError(
                f'chunk: got {self.chunk!r}, expected a whole number of at least 1, or None.'
            )

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of each example, ``[batch]``; arguments as for `cross_entropy`."""
        if self.label_smoothing and labels.ndim == 1:
            labels = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
        if self.label_smoothing:
            labels = optax.smooth_labels(labels.astype(logits.dtype), self.label_smoothing)
        return cross_entropy(logits, labels)


@dataclasses.dataclass(frozen=True)
class BinaryCrossEntropy:
    """Sigmoid cross-entropy with label smoothing: ``(1 - s) y + s / 2`` in place of ``y``.

    Attributes:
        label_smoothing: ``s``, at least 0 and below 1.

    Raises:
        ConfigError: for another ``label_smoothing``.
    """

    label_smoothing: float = 0.0

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of each example; arguments as for `binary_cross_entropy`."""
        labels = labels.astype(logits.dtype)
        smoothed = (1 - self.label_smoothing) * labels + self.label_smoothing / 2
        return binary_cross_entropy(logits, smoothed)


def _check_smoothing(value: float) -> None:
    if not (is_number(value) and 0 <= value < 1):
        raise ConfigError(
            f'label_smoothing: got {value!r}, expected a number of at least 0 and below 1.'
        )


@dataclasses.dataclass(frozen=True)
class Focal:
    """Focal loss, which down-weights well-predicted examples: ``-(1 - p)^gamma log p``.

    ``p`` is the predicted probability of the true label. It is the softmax for ``[batch, classes]``
    logits with class indices ``[batch]``, else the sigmoid. The loss is averaged over the labels of
    an example.

    Attributes:
        gamma: the strength of the down-weighting; 0 is cross-entropy.
        alpha: a number from 0 to 1: the weight of positive labels, with ``1 - alpha`` for negative
            ones. None gives all labels weight 1. For the sigmoid only: classes are weighted outside
            the loss.

    Raises:
        ConfigError: for another ``gamma`` or ``alpha``, or ``alpha`` with a softmax.

    Reference:
        Lin et al., 2017, *Focal loss for dense object detection*.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.objectives.losses import Focal
        >>> [round(v, 4) for v in Focal()(jnp.array([4.0, -4.0]), jnp.array([1, 1])).tolist()]
        [0.0, 3.8749]
    """

    gamma: float = 2.0
    alpha: float | None = None

    def __post_init__(self):
        if not (is_number(self.gamma) and self.gamma >= 0):
            raise ConfigError(f'gamma: got {self.gamma!r}, expected a number of at least 0.')
        if self.alpha is not None and not (is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise ConfigError(f'alpha: got {self.alpha!r}, expected a number from 0 to 1, or None.')

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of each example, ``[batch]``; arguments as for `hinge`."""
        if not is_softmax(logits, labels):
            labels = labels.astype(logits.dtype)
            logits = logits.reshape(labels.shape)
            return _per_example(
                optax.sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma)
            )
        if self.alpha is not None:
            raise ConfigError(
                f'alpha: got {self.alpha!r} for {logits.shape[1]} classes, expected None: alpha '
                'weights positive against negative labels. Use class_weights instead.'
            )
        # log(1 - p) is computed from the other logits. From p it is -inf if p rounds to 1.
        is_true = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
        others = jax.nn.logsumexp(jnp.where(is_true, -jnp.inf, logits), axis=1)
        log_rest = others - jax.nn.logsumexp(logits, axis=1)
        return jnp.exp(self.gamma * log_rest) * cross_entropy(logits, labels)


@dataclasses.dataclass(frozen=True)
class Dice:
    """Soft Dice loss of each row: one minus the overlap of predicted and true classes.

    For each class it is ``1 - (2 sum(p y) + s) / (sum(p) + sum(y) + s)`` with the sums over the
    elements of a row that count, such as its pixels, averaged over the classes. ``p`` is the
    softmax, or the sigmoid of one output for each label. It does not depend on how rare a class is,
    and a row has the largest weight of its elements.

    Attributes:
        smooth: ``s``, above 0: the loss of a class that is neither there nor predicted is 0.

    Raises:
        ConfigError: for another ``smooth``.

    Reference:
        Milletari et al., 2016, *V-Net: fully convolutional neural networks for volumetric medical
        image segmentation*.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core.objectives.losses import Dice
        >>> mask = jnp.array([[1, 1, 0, 0]])
        >>> [round(v, 3) for v in Dice()(jnp.array([[9.0, 9.0, -9.0, -9.0]]), mask).tolist()]
        [0.0]
    """

    smooth: float = 1.0

    def __post_init__(self):
        if not (is_number(self.smooth) and self.smooth > 0):
            raise ConfigError(f'smooth: got {self.smooth!r}, expected a number above 0.')

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of each row, ``[batch]``.

        Args:
            logits: ``[batch, *elements, classes]``, or ``[batch, *elements]`` for two classes.
            labels: class indices ``[batch, *elements]``, where -1 does not count; or 0 and 1,
                ``[batch, *elements, labels]``.
        """
        if jnp.issubdtype(labels.dtype, jnp.integer):
            counts = (labels >= 0)[..., None]
            if logits.ndim == labels.ndim:
                p, y = jax.nn.sigmoid(logits)[..., None], labels[..., None].astype(logits.dtype)
            else:
                p = jax.nn.softmax(logits)
                y = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            p, y = jnp.where(counts, p, 0), jnp.where(counts, y, 0)
        else:
            p, y = jax.nn.sigmoid(logits.reshape(labels.shape)), labels.astype(logits.dtype)
        p, y = (values.reshape(len(values), -1, values.shape[-1]) for values in (p, y))
        overlap = (2 * (p * y).sum(1) + self.smooth) / (p.sum(1) + y.sum(1) + self.smooth)
        return 1 - overlap.mean(1)


# --- regression -------------------------------------------------------------------------------


def mse(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the squared error, averaged over the targets of an example; ``[batch]``."""
    return _per_example(jnp.square(predictions.reshape(targets.shape) - targets))


def mae(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the absolute error, averaged over the targets of an example; ``[batch]``."""
    return _per_example(jnp.abs(predictions.reshape(targets.shape) - targets))


def huber(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes Huber's loss with ``delta=1``, averaged over the targets of an example; ``[batch]``.

    Reference:
        Huber, 1964, *Robust estimation of a location parameter*.
    """
    return Huber()(predictions, targets)


@dataclasses.dataclass(frozen=True)
class Huber:
    """The Huber loss: ``e^2 / 2`` up to an error of ``delta``, ``delta (|e| - delta / 2)`` beyond.

    Attributes:
        delta: a number above 0, in the target's units.

    Raises:
        ConfigError: for another ``delta``.

    Reference:
        Huber, 1964, *Robust estimation of a location parameter*.
    """

    delta: float = 1.0

    def __post_init__(self):
        if not (is_number(self.delta) and self.delta > 0):
            raise ConfigError(f'delta: got {self.delta!r}, expected a number above 0.')

    def __call__(self, predictions: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss averaged over the targets of an example, ``[batch]``."""
        predictions = predictions.reshape(targets.shape)
        return _per_example(optax.huber_loss(predictions, targets, delta=self.delta))


@dataclasses.dataclass(frozen=True)
class Quantile:
    """The pinball loss of several quantiles: ``max(q e, (q - 1) e)`` with ``e = target - output``.

    The model returns a column for each quantile, and the targets have the same number in each.

    Attributes:
        quantiles: numbers between 0 and 1, one for each column.

    Raises:
        ConfigError: for other quantiles, or another number of columns.

    Reference:
        Koenker and Bassett, 1978, *Regression quantiles*.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import Quantile
        >>> loss_fn = Quantile((0.1, 0.9))
        >>> losses = loss_fn(jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 1.0]]))
        >>> [round(loss, 3) for loss in losses.tolist()]
        [0.1]
    """

    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self):
        given = self.quantiles
        values = tuple(given) if isinstance(given, Iterable) else (given,)
        are_valid = values and all(is_number(value) and 0 < value < 1 for value in values)
        if not are_valid or list(values) != sorted(set(values)):
            raise ConfigError(
                f'quantiles: got {given!r}, expected increasing numbers between 0 and 1, such as '
                '(0.1, 0.5, 0.9).'
            )
        object.__setattr__(self, 'quantiles', tuple(map(float, values)))

    def __call__(self, predictions: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss averaged over the quantiles, ``[batch]``."""
        columns = targets.reshape(len(targets), -1)
        if columns.shape[1] != len(self.quantiles):
            raise ConfigError(
                f'loss_fn: got {len(self.quantiles)} quantiles for targets of {columns.shape[1]} '
                f'column{"s" if columns.shape[1] > 1 else ""}, expected a column and an output for '
                f'each: y = np.stack([y] * {len(self.quantiles)}, axis=1).'
            )
        error = columns - predictions.reshape(columns.shape)
        quantiles = jnp.asarray(self.quantiles, error.dtype)
        return jnp.maximum(quantiles * error, (quantiles - 1) * error).mean(axis=1)


def log_cosh(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes ``log(cosh(error))``, averaged over the targets of an example; ``[batch]``.

    It is about ``e^2 / 2`` for small errors and ``|e| - log 2`` for large ones.

    Reference:
        Chen et al., 2019, *Log hyperbolic cosine loss improves variational auto-encoder*.
    """
    return _per_example(optax.log_cosh(predictions.reshape(targets.shape), targets))


def poisson(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the Poisson loss of counts, averaged over the targets of an example; ``[batch]``.

    It is ``prediction - target log(prediction + 1e-7)``: the negative log-likelihood of a Poisson
    distribution whose mean is the prediction, without the terms that depend on the target alone.

    Args:
        predictions: expected counts, which must be above 0. A negative one makes the loss NaN if
            its target is not 0. A model that ends with `jax.nn.softplus` or an exponential returns
            no others.
        targets: counts, 0 or more, of the same shape.
    """
    predictions = predictions.reshape(targets.shape)
    return _per_example(predictions - targets * jnp.log(predictions + 1e-7))


def _per_example(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


# --- by name ----------------------------------------------------------------------------------

CLASSIFICATION_LOSSES: dict[str, LossFn] = {
    'cross_entropy': cross_entropy,
    'binary_cross_entropy': binary_cross_entropy,
    'focal': Focal(),
    'hinge': hinge,
    'dice': Dice(),
    'ctc': CTC(),
}
REGRESSION_LOSSES: dict[str, LossFn] = {
    'mse': mse,
    'mae': mae,
    'huber': huber,
    'log_cosh': log_cosh,
    'quantile': Quantile(),
    'poisson': poisson,
}
# The decision of each ThinkML loss, by function, or by class for losses with settings.
_DECISIONS: dict[Hashable, Decision] = {
    cross_entropy: 'softmax',
    CrossEntropy: 'softmax',
    binary_cross_entropy: 'sigmoid',
    BinaryCrossEntropy: 'sigmoid',
    Focal: 'classification',
    hinge: 'classification',
    Dice: 'classification',
    CTC: 'sequence',
    Huber: 'regression',
    Quantile: 'regression',
    **dict.fromkeys(REGRESSION_LOSSES.values(), 'regression'),
}


def decides(loss_fn: object) -> Decision | None:
    """Returns the kind of task that a loss implies.

    Args:
        loss_fn: a name, one of this module's functions, or an object such as ``Huber(2.0)``.

    Returns:
        ``'regression'``; ``'softmax'`` (one class per example); ``'sigmoid'`` (a binary decision
        per output); ``'classification'`` (softmax or sigmoid, by the shapes); ``'sequence'``;
        None for a custom loss, which implies nothing.

    Example:
        >>> from thinkml.core.objectives.losses import CrossEntropy, decides
        >>> decides('mse'), decides(CrossEntropy(label_smoothing=0.1)), decides(lambda p, y: p - y)
        ('regression', 'softmax', None)
    """
    if isinstance(loss_fn, str):
        loss_fn = (CLASSIFICATION_LOSSES | REGRESSION_LOSSES).get(loss_fn)
    by_type = _DECISIONS.get(type(loss_fn))
    return by_type or (_DECISIONS.get(loss_fn) if is_hashable(loss_fn) else None)


def blank_of(loss_fn: object) -> int:
    """Returns the blank of a `CTC` loss; 0, its default, for other losses."""
    return loss_fn.blank_id if isinstance(loss_fn, CTC) else CTC().blank_id


def chunk_of(loss_fn: object) -> int | None:
    """Returns the chunk of a `CrossEntropy`; None for a loss that needs all logits at once."""
    return loss_fn.chunk if isinstance(loss_fn, CrossEntropy) else None


def with_chunks(loss_fn: Any, chunk: int) -> Any:
    """Returns a softmax cross-entropy that is computed in chunks; None for another loss."""
    if loss_fn is cross_entropy:
        return CrossEntropy(chunk=chunk)
    return dataclasses.replace(loss_fn, chunk=chunk) if type(loss_fn) is CrossEntropy else None


def without_chunks(loss_fn: Any) -> Any:
    """Returns the loss that needs all logits at once, for one that is computed in chunks."""
    return loss_fn if chunk_of(loss_fn) is None else dataclasses.replace(loss_fn, chunk=None)


def get_loss(loss_fn: str | LossFn, element_shape: tuple[int, ...] = ()) -> LossFn:
    """Returns the per-example loss for a name or a callable.

    A callable ``(logits, labels)`` may return a value per example (or several, which are averaged)
    or a scalar. A scalar loss is evaluated for each example (`jax.vmap` over batches of one), so
    that weights and padding are exact. A loss that depends on several examples of a batch must
    return a value per example.

    Programs are compiled for the function object, so define it once and not for each training run.
    Losses with settings (`CrossEntropy`, `BinaryCrossEntropy`, `Focal`, `Huber`) are equal if their
    settings are, so you can create them again.

    Args:
        loss_fn: ``'cross_entropy'``, ``'binary_cross_entropy'``, ``'focal'``, ``'hinge'`` or
            ``'dice'`` (classification); ``'mse'``, ``'mae'``, ``'huber'``, ``'log_cosh'``,
            ``'poisson'`` or ``'quantile'`` (regression); ``'ctc'`` (sequences); or a callable.
        element_shape: the axes of a row that have a label each, such as ``(tokens,)``. A callable
            may then also return a value for each of these. It gets the label -1 for elements that
            are ignored.

    Raises:
        ConfigError: for an unknown name, or a class like `Focal` in place of ``Focal()``.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import get_loss
        >>> get_loss('mse')(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).tolist()
        [0.0, 4.0]
        >>> mean_squared = get_loss(lambda p, t: jnp.mean((p - t) ** 2))
        >>> mean_squared(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).tolist()
        [0.0, 4.0]
    """
    if isinstance(loss_fn, type) and loss_fn in _DECISIONS:
        name = loss_fn.__name__
        raise ConfigError(f'loss_fn: got the class {name}, expected an object of it: {name}().')
    if not isinstance(loss_fn, str):
        return _as_per_example(hashable(loss_fn), len(element_shape))
    losses = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
    if loss_fn not in losses:
        raise ConfigError(unknown_name('loss_fn', loss_fn, losses))
    return losses[loss_fn]


@functools.lru_cache(maxsize=256)
def _as_per_example(loss_fn: LossFn, element_axes: int) -> LossFn:
    if decides(loss_fn) is not None:
        return loss_fn

    def per_example(logits: jax.Array, labels: jax.Array) -> jax.Array:
        shape = getattr(jax.eval_shape(loss_fn, logits, labels), 'shape', None)
        if shape == ():
            return jax.vmap(lambda row, label: loss_fn(row[None], label[None]))(logits, labels)
        of_elements = labels.shape[: 1 + element_axes]
        if shape not in (labels.shape, of_elements, labels.shape[:1]):
            others = {*logits.shape[1:], *labels.shape[1:]}
            shown = functools.partial(with_rows, rows=labels.shape[0], others=others)
            raise ConfigError(
                f'loss_fn: it returned {"no array" if shape is None else f"shape {shown(shape)}"} '
                f'for logits {shown(logits.shape)} and labels {shown(labels.shape)}, expected a '
                'scalar or one value per example or label.'
            )
        losses = loss_fn(logits, labels)
        return losses.mean(axis=tuple(range(min(losses.ndim, len(of_elements)), losses.ndim)))

    return per_example


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns ``sum(weight * values) / sum(weight)`` of ``[batch]`` arrays, 0 if all weights are 0.

    Values of weight 0 are ignored, even if they are NaN or infinite.
    """
    total = jnp.sum(weight)
    weighted = jnp.sum(jnp.where(weight == 0, 0, weight * values))
    return weighted / jnp.where(total == 0, 1, total)
