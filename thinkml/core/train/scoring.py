"""Scoring: the losses and metrics of a model's outputs, for all rows at once or in chunks."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from clu.metrics import Collection

from thinkml.core.model.adapters import ApplyFn
from thinkml.core.model.dense_output import DenseOutput, with_dense_output
from thinkml.core.model.sown_values import collecting_sown
from thinkml.core.objectives.elements import ElementShape, as_elements
from thinkml.core.objectives.heads import Head, HeadLosses, OneOutput
from thinkml.core.objectives.losses import LossFn, chunk_of
from thinkml.core.objectives.model_objective import ObjectiveLoss
from thinkml.core.objectives.streaming_metrics import (
    metrics_of_all_scores,
    metrics_of_whole_rows,
    row_metrics,
    with_step_metrics,
)
from thinkml.core.parallel.sharding import Layout, replicate, split_rows
from thinkml.errors import ConfigError, ModelTypeError
from thinkml.typing import PyTree

Scored = Any
"""The values that the metrics of a batch, or of a part of it, are computed from."""


class Scoring(Protocol):
    """The losses and metrics of a step."""

    def forward(self, apply: ApplyFn) -> Callable[..., tuple[PyTree, PyTree]]:
        """Returns the forward pass whose outputs are scored."""
        ...

    def inputs(self, x: PyTree, y: PyTree, weight: PyTree) -> PyTree:
        """Returns the inputs of the forward pass."""
        ...

    def losses(
        self, outputs: PyTree, targets: PyTree, labels: PyTree, weight: PyTree, mask: PyTree
    ) -> tuple[PyTree, Scored]:
        """Returns the losses of rows or elements, and the values that `metrics` needs.

        Args:
            outputs: the outputs of the forward pass.
            targets: the labels of the losses.
            labels: the labels of the metrics.
            weight: the weights of the losses.
            mask: the weights of rows or elements in the metrics.
        """
        ...

    def joined(self, parts: Scored) -> Scored:
        """Returns the values of a batch, from those of its parts along a new first axis."""
        ...

    def metrics(
        self, scored: Scored, labels: PyTree, weight: PyTree, mask: PyTree, **step: PyTree
    ) -> Collection:
        """Returns the metrics of a batch.

        Args:
            scored: the values from `losses`.
            labels: the labels of the metrics.
            weight: the weights of the losses.
            mask: the weights of rows or elements in the metrics.
            step: values of a training step, such as ``grads``.
        """
        ...


def make_scoring(
    heads: OneOutput | HeadLosses, metrics: type[Collection], layout: Layout
) -> Scoring:
    """Returns how outputs are scored: in chunks if the loss has them.

    Raises:
        ConfigError: for chunks beside several heads, or metrics that need all scores of an epoch
            or all elements of a row.
    """
    if isinstance(heads, HeadLosses):
        if any(chunk_of(head.loss_fn) for _, head in heads.heads):
            raise ConfigError(
                'loss_fn: got CrossEntropy with a chunk for a model with several heads, expected '
                'one output. Leave chunk out.'
            )
        return _AllRows(heads, metrics)
    loss_fn: Any = heads.head.loss_fn
    if isinstance(loss_fn, ObjectiveLoss):
        return _OfObjective(loss_fn, metrics)
    chunk = chunk_of(heads.head.loss_fn)
    if chunk is None:
        return _AllRows(heads, metrics)
    if collected := metrics_of_all_scores(metrics):
        raise ConfigError(
            f'metrics: got {", ".join(map(repr, collected))} beside CrossEntropy with a chunk. '
            'They keep the scores of an epoch, which chunks avoid. Use metrics such as '
            "'perplexity' or 'top_5_accuracy', or leave chunk out."
        )
    of_rows = metrics_of_whole_rows(metrics)
    if of_rows and heads.head.element_shape:
        raise ConfigError(
            f'metrics: got {", ".join(map(repr, of_rows))} beside CrossEntropy with a chunk, which '
            'has some elements of a row at a time. Leave one of them out.'
        )
    return _InChunks(heads.head, metrics, chunk, layout)


class _KeptRows:
    """Values of each row, so that those of the parts of a batch follow each other."""

    def joined(self, parts: Scored) -> Scored:
        return jax.tree.map(lambda leaf: jnp.concatenate(leaf), parts)


@dataclasses.dataclass(frozen=True)
class _AllRows(_KeptRows):
    """The losses and metrics of all rows at once."""

    heads: OneOutput | HeadLosses
    metrics_class: type[Collection]

    def forward(self, apply: ApplyFn) -> Callable[..., tuple[PyTree, PyTree]]:
        return apply

    def inputs(self, x: PyTree, y: PyTree, weight: PyTree) -> PyTree:
        return x

    def losses(
        self, outputs: PyTree, targets: PyTree, labels: PyTree, weight: PyTree, mask: PyTree
    ) -> tuple[PyTree, Scored]:
        del weight, mask
        logits = self.heads.map(Head.logits, outputs, labels)
        losses = self.heads.map(Head.losses, logits, targets)
        return losses, (logits, losses)

    def metrics(
        self, scored: Scored, labels: PyTree, weight: PyTree, mask: PyTree, **step: PyTree
    ) -> Collection:
        logits, losses = scored
        mask = self.heads.masks(mask, weight)
        inputs = self.heads.map(Head.metric_inputs, logits, labels, losses, weight, mask)
        inputs = {'heads': inputs} if isinstance(self.heads, HeadLosses) else inputs
        return self.metrics_class.single_from_model_output(**inputs, **_ONLY_IN_TRAINING | step)


@dataclasses.dataclass(frozen=True)
class _OfObjective(_KeptRows):
    """The losses and values that an objective returns."""

    loss: ObjectiveLoss
    metrics_class: type[Collection]

    def forward(self, apply: ApplyFn) -> Callable[..., tuple[PyTree, PyTree]]:
        return objective_apply(apply, self.loss)

    def inputs(self, x: PyTree, y: PyTree, weight: PyTree) -> PyTree:
        return self.loss.batch(x, y, weight)

    def losses(
        self, outputs: PyTree, targets: PyTree, labels: PyTree, weight: PyTree, mask: PyTree
    ) -> tuple[PyTree, Scored]:
        del targets, labels, mask
        losses, values = self.loss.losses(outputs, len(weight))
        return losses, (losses, values)

    def metrics(
        self, scored: Scored, labels: PyTree, weight: PyTree, mask: PyTree, **step: PyTree
    ) -> Collection:
        losses, values = scored
        return self.metrics_class.single_from_model_output(
            losses=losses, values=values, labels=labels, weight=weight, mask=mask,
            **_ONLY_IN_TRAINING | step,
        )  # fmt: skip


# Differs from the numbers that models and augmentations fold into the same key.
_OBJECTIVE = 2**31 + 1


def objective_apply(apply: ApplyFn, loss: ObjectiveLoss) -> ApplyFn:
    """Returns the forward pass that calls an objective; its inputs are an `ObjectiveBatch`.

    Raises:
        ModelTypeError: for a model that can't be trained.
    """
    if not hasattr(apply, 'run'):
        raise ModelTypeError('model: it can not be trained, which an objective needs.')
    return _ObjectiveApply(apply, loss)


@dataclasses.dataclass(frozen=True)
class _ObjectiveApply:
    apply: Any
    loss: ObjectiveLoss

    def __call__(self, params, model_state, x, *, key, train):
        key = jax.random.key(0) if key is None else key

        def call(model: Any) -> PyTree:
            return self.loss.objective.fn(model, x, jax.random.fold_in(key, _OBJECTIVE))

        return self.apply.run(params, model_state, call, key=key, train=train)

    def collecting(self):
        return dataclasses.replace(self, apply=collecting_sown(self.apply))


_ONLY_IN_TRAINING = dict.fromkeys(('grads', 'params', 'updates'))


@dataclasses.dataclass(frozen=True)
class _InChunks:
    """The losses and metrics of some rows or elements at a time.

    The logits of a chunk are computed from the inputs of the model's last layer, and again for the
    gradient. So those of all rows are never in memory.
    """

    head: Head
    metrics_class: type[Collection]
    chunk: int
    layout: Layout

    def forward(self, apply: ApplyFn) -> Callable[..., tuple[PyTree, PyTree]]:
        return with_dense_output(apply)

    def inputs(self, x: PyTree, y: PyTree, weight: PyTree) -> PyTree:
        return x

    def losses(
        self,
        outputs: DenseOutput,
        targets: jax.Array,
        labels: jax.Array,
        weight: jax.Array,
        mask: jax.Array,
    ) -> tuple[jax.Array, Scored]:
        loss_fn, metrics = self.head.loss_fn, self._row_metrics
        rows = _Chunks(self.chunk, self.head.element_shape, self.layout, len(targets))

        @functools.partial(jax.checkpoint, prevent_cse=False)  # a loop has no common expressions
        def losses_of(weights: PyTree, features: jax.Array, targets: jax.Array):
            kernel, bias = weights
            chunk = dataclasses.replace(outputs, features=features, kernel=kernel, bias=bias)
            logits = chunk.outputs().astype(jnp.float32)
            return _loss(loss_fn, logits, targets), logits

        weights = rows.for_each_device((outputs.kernel, outputs.bias))
        losses_on_devices = rows.on_devices(losses_of)

        def add_chunk(collected: Collection, chunk: tuple[jax.Array, ...]):
            features, targets, *others = chunk
            losses, logits = losses_on_devices(weights, features, targets)
            names = ('logits', 'losses', 'labels', 'weight', 'mask')
            inputs = map(rows.flat, (logits, losses, *others))
            scored = metrics.single_from_model_output(
                **jax.lax.stop_gradient(dict(zip(names, inputs, strict=True))), **_ONLY_IN_TRAINING
            )
            return collected.merge(scored), losses

        arrays = (outputs.features, targets, labels, weight, mask)
        chunks = tuple(map(rows.split, arrays))
        collected, losses = jax.lax.scan(add_chunk, metrics.empty(), chunks)
        return rows.join(losses, weight.shape), collected

    @property
    def _row_metrics(self) -> type[Collection]:
        return row_metrics(self.metrics_class)

    def joined(self, parts: Scored) -> Scored:
        def add_part(collected: Collection, part: Collection):
            return collected.merge(part), None

        return jax.lax.scan(add_part, self._row_metrics.empty(), parts)[0]

    def metrics(
        self, scored: Scored, labels: PyTree, weight: PyTree, mask: PyTree, **step: PyTree
    ) -> Collection:
        del labels, weight, mask
        return with_step_metrics(self.metrics_class, scored, **step)


def _loss(loss_fn: LossFn, logits: jax.Array, targets: jax.Array) -> jax.Array:
    if jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jnp.maximum(targets, 0)  # ignored elements have weight 0
    return loss_fn(logits, targets)


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """The cutting of rows or elements into chunks, each with elements of all devices.

    Attributes:
        size: the number of elements of a chunk on each device.
        element_shape: the axes of the elements of a row.
        layout: the devices.
        num_rows: the number of rows of the batch.
    """

    size: int
    element_shape: ElementShape
    layout: Layout
    num_rows: int

    @property
    def num_devices(self) -> int:
        """Returns the number of devices that compute chunks; 1 if the rows can't be divided."""
        return self.layout.num_devices if self.num_rows % self.layout.num_devices == 0 else 1

    def split(self, array: jax.Array) -> jax.Array:
        """Returns an array ``[rows, *element_shape, ...]`` in chunks, padded by 0.

        It is ``[chunks, size, ...]``, with an axis of devices after the chunks for several devices.
        """
        elements = as_elements(array, self.element_shape)
        elements = elements.reshape(self.num_devices, -1, *elements.shape[1:])
        size = min(self.size, elements.shape[1])
        if missing := -elements.shape[1] % size:
            widths = [(0, missing if axis == 1 else 0) for axis in range(elements.ndim)]
            elements = jnp.pad(elements, widths)
        chunks = elements.reshape(self.num_devices, -1, size, *elements.shape[2:])
        if self.num_devices == 1:
            return chunks[0]
        return split_rows(self.layout, chunks.swapaxes(0, 1), axis=1)

    def join(self, chunks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns a value of each element, in chunks, as an array of a shape."""
        by_device = chunks if self.num_devices == 1 else chunks.swapaxes(0, 1)
        by_device = by_device.reshape(self.num_devices, -1)
        return by_device[:, : math.prod(shape) // self.num_devices].reshape(shape)

    def flat(self, chunk: jax.Array) -> jax.Array:
        """Returns a chunk with one axis of elements."""
        return chunk if self.num_devices == 1 else chunk.reshape(-1, *chunk.shape[2:])

    def for_each_device(self, weights: PyTree) -> PyTree:
        """Returns a copy of weights for each device, along a new first axis.

        A device sums the gradients of its copy over all chunks before they are exchanged.
        """
        weights, devices = replicate(self.layout, weights), self.num_devices
        if devices == 1:
            return weights
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (devices, *leaf.shape)), weights)
        return split_rows(self.layout, copies)

    def on_devices(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of weights and a chunk for the axis of devices."""
        return function if self.num_devices == 1 else jax.vmap(function)
