"""Tensor names and layouts of other libraries, and their conversion to those of our models.

A rule maps the path of a module or array in our model to its name in another library's file. In a
path, ``#`` stands for any number; the rule is called with these numbers. A rule for a module
holds for all its arrays, since their last names are the same in every layout. If a rule returns
several names, our array is the concatenation of theirs.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

Rules = Mapping[str, Callable[..., str | tuple[str, ...]]]
Resize = Callable[[np.ndarray, np.ndarray | jax.Array], np.ndarray]
OURS = 'thinkml'

_LAST_NAMES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}

_WRAPPERS = r'^(module|model)\.'

# Counters, which files contain in addition to the weights.
_COUNTERS = r'(.*\.)?(num_batches_tracked|rngs\.count)'


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """The tensor names that other libraries use for one architecture.

    Attributes:
        rules: the rules of each layout, by the name of the library.
        prefix: the name that a library puts before all names of a model with a head; it is removed.
        renamed: regular expressions for parts of names in old versions, and their replacements.
        unused: a regular expression for tensors that may be left out: layers for other tasks.
        resize: functions that convert a tensor of another size, by the path of our array. A
            function gets the tensor and our array; it returns the tensor if it cannot convert it.
    """

    rules: Mapping[str, Rules] = dataclasses.field(default_factory=dict)
    prefix: str | None = None
    renamed: Sequence[tuple[str, str]] = ()
    unused: str | None = None
    resize: Mapping[str, Resize] = dataclasses.field(default_factory=dict)

    @property
    def layouts(self) -> Mapping[str, Rules]:
        """Returns the rules of all layouts, by name. ThinkML's layout needs none and is first."""
        return {OURS: {}, **self.rules}

    def normalize(self, name: str) -> str:
        """Returns the name of a tensor in a file as the rules spell it."""
        name = re.sub(_WRAPPERS, '', name)
        if self.prefix is not None:
            name = name.removeprefix(f'{self.prefix}.')
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def is_unused(self, name: str) -> bool:
        """Returns True if a tensor with this name, normalized, may be left out."""
        patterns = [_COUNTERS] if self.unused is None else [_COUNTERS, self.unused]
        return any(re.fullmatch(pattern, name) for pattern in patterns)


def names_in(layout: str, rules: Rules, path: str) -> tuple[str, ...]:
    """Returns the name of one of our arrays in a layout, or the names of its parts."""
    if layout == OURS:
        return (path,)
    module, _, last = path.rpartition('.')
    for key, ending in ((path, ''), (module, f'.{_LAST_NAMES.get(last)}')):
        for pattern, rule in rules.items():
            match = re.fullmatch(re.escape(pattern).replace(r'\#', r'(\d+)'), key)
            if match:
                found = rule(*map(int, match.groups()))
                names = (found,) if isinstance(found, str) else found
                return tuple(name + ending for name in names)
    raise KeyError(f'{layout} has no rule for {path}')


def shape_in(layout: str, path: str, shape: tuple[int, ...], num_parts: int) -> tuple[int, ...]:
    """Returns the shape that each part of one of our arrays has in a layout."""
    if layout == OURS:
        return shape
    if _is_kernel(path):
        shape = (*reversed(shape[-2:]), *shape[:-2])
    return (shape[0] // num_parts, *shape[1:])


def convert(layout: str, path: str, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Joins the parts of an array and transposes it to our layout.

    Convolutions change from OIHW to HWIO, dense layers to ``[in, out]``.
    """
    array = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if layout == OURS or not _is_kernel(path):
        return array
    order = (*range(2, array.ndim), 1, 0)
    return array.transpose(order)


def _is_kernel(path: str) -> bool:
    return path.rpartition('.')[2] == 'kernel'


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a shape without the ones at its end: torch's channel scale is ``[C, 1, 1]``."""
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
