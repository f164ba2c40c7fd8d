"""Augmentations by name: the registry, the defaults, and checks before anything is compiled."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.objectives.hashable import hashable
from thinkml.core.objectives.probe_sizes import with_rows
from thinkml.core.train.augmentations import (
    Augment,
    ColorJitter,
    CutMix,
    Cutout,
    GaussianNoise,
    MixUp,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    WithTargets,
)
from thinkml.errors import ConfigError, problems, unknown_name, warn_user
from thinkml.task_types import TASK_TYPES, TaskKind
from thinkml.typing import PyTree

AUGMENTATIONS: dict[str, Augment] = {
    'flip': RandomFlip(),
    'vertical_flip': RandomFlip(horizontal=False, vertical=True),
    'crop': RandomCrop(),
    'rotate': RandomRotation(),
    'color': ColorJitter(),
    'cutout': Cutout(),
    'mixup': MixUp(),
    'cutmix': CutMix(),
    'noise': GaussianNoise(),
}

_FOR_IMAGES = (RandomFlip, RandomCrop, RandomRotation, ColorJitter, Cutout, CutMix)
_USING_VALUES = (RandomRotation, ColorJitter, MixUp, GaussianNoise)  # they compute with x
_MIXING = (MixUp, CutMix)
_MOVING = (RandomFlip, RandomCrop, RandomRotation)


def make_augmentation(
    spec: object,
    x: PyTree,
    task_kind: TaskKind,
    num_outputs: int,
    element_shape: tuple[int, ...] = (),
) -> Augment | None:
    """Returns the requested ``augment(key, x, y) -> (x, y)``, or None for no augmentation.

    Equal arguments return equal functions with equal hashes. Before examples are mixed, class
    indices are converted to floats: one-hot ``[batch, num_outputs]``, or ``[batch]`` for a model
    with one output.

    Args:
        spec: the augmentation, one of these, or a sequence of them, applied in its order:

            - None or False: nothing.
            - A key of ``AUGMENTATIONS``.
            - An augmentation object, such as ``MixUp(0.2)``.
            - A function ``(key, x, y) -> (x, y)`` on batches. Check it with `check_augmentation`.
            - True: a default for images ``[rows, height, width, channels]`` with 1, 3 or 4
              channels and at least 8x8 pixels: `RandomCrop` and, for colour images, `RandomFlip`.
              For all other inputs it warns and does nothing.
        x: the training inputs, or `jax.ShapeDtypeStruct` of them. For inputs, `ColorJitter` also
            checks the range of values.
        task_kind: ``'binary'``, ``'multiclass'``, ``'multilabel'`` or ``'regression'``.
        num_outputs: the number of values the model returns per example.
        element_shape: the axes of a row that have a target each. Flips, crops and rotations move
            the targets of pixels along.

    Raises:
        ConfigError: for an unknown name, and for an augmentation that does not fit the inputs or
            the task.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from thinkml.core import MixUp, make_augmentation
        >>> x = jnp.ones((4, 8, 8, 3))
        >>> augment = make_augmentation(['flip', MixUp(0.4)], x, 'multiclass', 10)
        >>> augment == make_augmentation(['flip', MixUp(0.4)], x, 'multiclass', 10)
        True
        >>> _, y = augment(jax.random.key(0), x, jnp.array([1, 2, 3, 4]))
        >>> y.shape
        (4, 10)
    """
    steps = _steps(spec, x)
    found = [
        f'{type(step).__name__}: {problem}'
        for step in steps
        if (problem := _step_problem(step, x, task_kind, element_shape)) is not None
    ]
    mixing = [index for index, step in enumerate(steps) if isinstance(step, _MIXING)]
    if len(mixing) > 1:
        found.append(
            f'got {" and ".join(type(steps[index]).__name__ for index in mixing)}, expected one of '
            'them: mixed twice, an example would be less than half itself.'
        )
    if found:
        raise ConfigError(
            f'augmentation: {found[0]}' if len(found) == 1 else problems('augmentation:', found)
        )
    if mixing and TASK_TYPES[task_kind].has_one_class:
        steps.insert(mixing[0], _SoftLabels(num_outputs))
    if element_shape:
        are_numbers = not TASK_TYPES[task_kind].is_classification
        steps = [
            WithTargets(step, are_numbers) if isinstance(step, _MOVING) else step for step in steps
        ]
    return _Sequence(tuple(steps)) if steps else None


def make_head_augmentation(
    spec: object, x: PyTree, heads: Mapping[str, tuple[TaskKind, tuple[int, ...]]]
) -> Augment | None:
    """Returns an augmentation ``(key, x, y) -> (x, y)`` whose ``y`` is a dict of heads' labels.

    Flips, crops and rotations move the targets of pixels along, with one draw for all heads.

    Args:
        spec: see `make_augmentation`.
        x: see `make_augmentation`.
        heads: the kind of the task and the element shape of each head.

    Raises:
        ConfigError: see `make_augmentation`; also for a mix of examples.
    """
    steps = _steps(spec, x)
    found = [
        f'{type(step).__name__}: {problem} (head {name!r})'
        for step in steps
        for name, (kind, element_shape) in heads.items()
        if (problem := _step_problem(step, x, kind, element_shape)) is not None
    ]
    found += [
        f'{type(step).__name__}: got several heads, expected one output to mix. Write a function '
        '(key, x, y) -> (x, y), whose y is a dict.'
        for step in steps
        if isinstance(step, _MIXING)
    ]
    if found:
        raise ConfigError(
            f'augmentation: {found[0]}' if len(found) == 1 else problems('augmentation:', found)
        )
    of_pixels = tuple(
        (name, not TASK_TYPES[kind].is_classification)
        for name, (kind, shape) in heads.items()
        if shape
    )
    steps = [
        _WithHeads(step, of_pixels) if of_pixels and isinstance(step, _MOVING) else step
        for step in steps
    ]
    return _Sequence(tuple(steps)) if steps else None


def moves_targets(augment: Augment | None) -> bool:
    """Returns True if an augmentation of ThinkML moves the targets of pixels along."""
    steps = augment.steps if isinstance(augment, _Sequence) else (augment,)
    return any(isinstance(step, WithTargets | _WithHeads) for step in steps)


def mixes_examples(augment: Augment | None) -> bool:
    """Returns True if an augmentation of ThinkML mixes the targets of examples."""
    steps = augment.steps if isinstance(augment, _Sequence) else (augment,)
    return any(isinstance(step, _MIXING) for step in steps)


def check_augmentation(augment: Augment, x: PyTree, y: PyTree) -> None:
    """Traces an augmentation on shapes alone, to find errors before a program is compiled.

    Args:
        augment: a function from `make_augmentation`, or a custom one.
        x: a batch of inputs, or `jax.ShapeDtypeStruct` of it.
        y: the batch's encoded labels, or `jax.ShapeDtypeStruct` of them.

    Raises:
        ConfigError: if it fails, or does not return a pair ``(x, y)``. The returned ``x`` must have
            the structure, shapes and dtypes of the input; ``y`` too, or be floats ``[batch]`` or
            ``[batch, k]``.

    Example:
        >>> import jax.numpy as jnp
        >>> from thinkml.core import check_augmentation
        >>> check_augmentation(lambda key, x, y: x, jnp.ones((4, 2)), jnp.zeros(4))
        Traceback (most recent call last):
            ...
        thinkml.errors.ConfigError: augmentation: <lambda> returned ..., expected a pair (x, y).
    """
    x, y = jax.eval_shape(lambda: (x, y))
    for step in augment.steps if isinstance(augment, _Sequence) else (augment,):
        x, y = _trace_step(step, x, y)


# --- checks -----------------------------------------------------------------------------------


def _steps(spec: object, x: PyTree) -> list[Augment]:
    if spec is None or spec is False:
        return []
    if spec is True:
        return _default_steps(x)
    if isinstance(spec, str):
        if spec not in AUGMENTATIONS:
            raise ConfigError(unknown_name('augmentation', spec, AUGMENTATIONS))
        return [AUGMENTATIONS[spec]]
    if inspect.isclass(spec):
        raise ConfigError(
            f'augmentation: got the class {spec.__name__}, expected an object of it: '
            f'{spec.__name__}(...).'
        )
    if callable(spec):
        return [hashable(cast(Augment, spec))]
    if isinstance(spec, Sequence):
        return [step for item in spec for step in _steps(item, x)]
    raise ConfigError(
        f'augmentation: got {spec!r}, expected True, a name ({", ".join(AUGMENTATIONS)}), an '
        'object such as MixUp(0.2), a function (key, x, y) -> (x, y), or a list of these.'
    )


def _default_steps(x: PyTree) -> list[Augment]:
    """Returns steps that suit nearly all data of this kind; warns and returns none if none do."""
    reason = _why_not_images(x)
    if reason is None and not (x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) >= 8):
        reason = f'images of {_by(x.shape[1:])}, which are too small or not grey or colour'
    if reason is None:
        return [RandomCrop()] if x.shape[3] == 1 else [RandomCrop(), RandomFlip()]
    other = (
        "'noise' or 'mixup' (on standardised columns), or a function (key, x, y) -> (x, y)"
        if len(getattr(x, 'shape', ())) == 2
        else 'a function (key, x, y) -> (x, y)'
    )
    warn_user(
        f'augmentation: got True for {reason}. There is no default for that, so nothing is '
        f'augmented. Pass what suits your data: {other}.'
    )
    return []


def _step_problem(
    step: Augment, x: PyTree, task_kind: TaskKind, element_shape: tuple[int, ...]
) -> str | None:
    """Returns why a ThinkML step does not fit the inputs or the task; None if it does."""
    if not isinstance(step, (*_FOR_IMAGES, *_USING_VALUES)):
        return None
    if not _is_array(x):
        return 'it takes inputs of one array. For several write a function (key, x, y) -> (x, y).'
    if isinstance(step, _FOR_IMAGES) and (reason := _why_not_images(x)) is not None:
        return f'got {reason}, expected images (rows, height, width, channels).'
    if isinstance(step, _USING_VALUES) and (
        x.dtype == bool or (jnp.issubdtype(x.dtype, jnp.integer) and len(x.shape) != 4)
    ):
        return (
            f'got inputs of {x.dtype}, expected floats or images from 0 to 255: it computes with '
            'the values. Pass X.astype(np.float32) if they are quantities.'
        )
    if element_shape and isinstance(step, _MIXING):
        return 'got a target for each element of a row, expected one a row, which can be mixed.'
    if element_shape and isinstance(step, _MOVING) and element_shape != x.shape[1:3]:
        return (
            f'got targets for {_by(element_shape)} elements beside images of {_by(x.shape[1:3])}, '
            'expected a target for each pixel, which moves along.'
        )
    if isinstance(step, CutMix) and not TASK_TYPES[task_kind].is_classification:
        return 'got a regression, expected classes to mix. Use MixUp.'
    if isinstance(step, RandomCrop | Cutout):
        return _size_problem(step, x.shape)
    return _color_problem(x) if isinstance(step, ColorJitter) else None


def _size_problem(step: RandomCrop | Cutout, shape: tuple[int, ...]) -> str | None:
    name = 'padding' if isinstance(step, RandomCrop) else 'size'
    pixels, side = getattr(step, name), min(shape[1:3])
    if max(pixels or 1, 1) < side:
        return None
    return f'{name}: got {pixels or 1} for images of {_by(shape[1:3])}, expected less than {side}.'


def _color_problem(x: PyTree) -> str | None:
    if x.shape[3] not in (1, 3, 4):
        return f'got {x.shape[3]} channels, expected 1 (grey), 3 (RGB) or 4 (RGB and alpha).'
    if isinstance(x, jax.ShapeDtypeStruct):
        return None
    sample = np.asarray(x[:1000]).astype(np.float32)
    low, high = float(sample.min()), float(sample.max())
    white = 255 if jnp.issubdtype(x.dtype, jnp.integer) else 1
    if low >= 0 and high <= white:
        return None
    return (
        f'got values from {low:.4g} to {high:.4g} in {x.dtype}, expected 0 to {white}. Pass pixels '
        'as uint8, or as floats from 0 to 1, and standardise them inside the model.'
    )


def _why_not_images(x: PyTree) -> str | None:
    """Describes inputs that are not an array of images with channels last; None for those."""
    if not _is_array(x):
        return 'inputs of several arrays'
    shape = x.shape
    if len(shape) == 2:
        return f'a table of {shape[1]} columns'
    if len(shape) == 3:
        return f'inputs of shape {shape} (grey images need an axis of channels: X[..., None])'
    if len(shape) != 4:
        return f'inputs of shape {shape}'
    if shape[1] in (1, 3, 4) and shape[3] not in (1, 3, 4) and min(shape[2:]) >= 8:
        return f'images of {_by(shape[1:])}, channels first (use X.transpose(0, 2, 3, 1))'
    return None


def _trace_step(step: Augment, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the shapes of a step's result; raises a `ConfigError` if they are wrong."""
    name = getattr(step, '__name__', type(step).__name__)
    other_sizes = {size for leaf in jax.tree.leaves(x) for size in leaf.shape[1:]}
    readable = functools.partial(with_rows, others=other_sizes)

    def shown(tree: PyTree) -> str:
        return readable(_describe(tree))

    try:
        result = jax.eval_shape(step, jax.random.key(0), x, y)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f'augmentation: {name}(key, x, y) failed for a batch x of {shown(x)} and y of '
            f'{shown(y)}: {type(error).__name__}: {readable(error)}'
        ) from error
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ConfigError(f'augmentation: {name} returned {shown(result)}, expected a pair (x, y).')
    new_x, new_y = result
    if _describe(new_x) != _describe(x):
        raise ConfigError(
            f'augmentation: {name} returned x as {shown(new_x)}, expected {shown(x)}: the '
            'structure, shapes and dtypes of its input.'
        )
    soft = (
        _is_array(new_y)
        and _is_array(y)
        and jnp.issubdtype(new_y.dtype, jnp.floating)
        and (new_y.shape == y.shape or (y.ndim == 1 and new_y.shape[:-1] == y.shape))
    )
    if not (soft or _describe(new_y) == _describe(y)):
        raise ConfigError(
            f'augmentation: {name} returned y as {shown(new_y)}, expected {shown(y)} like its '
            'input, or floats [batch] or [batch, classes].'
        )
    return result


def _is_array(x: object) -> bool:
    return hasattr(x, 'shape') and hasattr(x, 'dtype')


def _describe(tree: PyTree) -> str:
    """Returns the shapes and dtypes of a pytree in one line: ``float32(32, 8)``."""
    if _is_array(tree):
        return f'{tree.dtype}{tree.shape}'
    return str(jax.tree.map(lambda leaf: f'{leaf.dtype}{leaf.shape}', tree))


def _by(shape: Sequence[int]) -> str:
    return 'x'.join(map(str, shape))


# --- functions composed of others -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """A sequence of augmentations, each with a separate key."""

    steps: tuple[Augment, ...]

    def __call__(self, key: jax.Array, x: PyTree, y: jax.Array) -> tuple[PyTree, jax.Array]:
        for index, step in enumerate(self.steps):
            x, y = step(jax.random.fold_in(key, index), x, y)
        return x, y


@dataclasses.dataclass(frozen=True)
class _WithHeads:
    """A step that moves pixels, for the images and the targets of several heads.

    Attributes:
        step: the step.
        heads: the name of each head with targets of pixels, and True if these are numbers.
    """

    step: RandomFlip | RandomCrop | RandomRotation
    heads: tuple[tuple[str, bool], ...]

    def __call__(self, key: jax.Array, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
        moved, images = dict(y), x
        for name, are_numbers in self.heads:
            # The same key moves the images in the same way each time.
            images, moved[name] = WithTargets(self.step, are_numbers)(key, x, y[name])
        return images, moved


@dataclasses.dataclass(frozen=True)
class _SoftLabels:
    """A conversion of class indices to floats, which `MixUp` and `CutMix` require."""

    num_outputs: int

    def __call__(self, key: jax.Array, x: PyTree, y: jax.Array) -> tuple[PyTree, jax.Array]:
        if not jnp.issubdtype(y.dtype, jnp.integer):
            return x, y
        if self.num_outputs == 1:
            return x, y.astype(jnp.float32)
        return x, jax.nn.one_hot(y, self.num_outputs)
