"""Tensors of a file into a model of the zoo, all of them or none."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from thinkml.errors import WeightsError, problems
from thinkml.models.serialization.weights import fill, named_arrays
from thinkml.models.zoo.tensor_names import (
    OURS,
    Rules,
    convert,
    is_harmless,
    layouts_of,
    names_in,
    shape_in,
    squeezed,
    tidy,
)
from thinkml.models.zoo.vit import resize_positions

_HEAD = ('head.kernel', 'head.bias')


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_tensors` did.

    Attributes:
        layout: whose names the tensors had: ``'torchvision'``, ``'timm'``, ``'huggingface'``, or
            ``'thinkml'``.
        num_loaded: tensors of the file that are in the model now.
        skipped: names of those that are not: counters, layers for other tasks, the head.
        head_kept: why the model's head has its initial weights still; empty if it was loaded, and
            where the model has none.
    """

    layout: str
    num_loaded: int
    skipped: tuple[str, ...]
    head_kept: str = ''

    def __str__(self) -> str:
        named = ', '.join(self.skipped[:3]) + (', ...' if len(self.skipped) > 3 else '')
        left = f', {len(self.skipped)} left out ({named})' if self.skipped else ''
        head = f'. The head keeps its initial weights: {self.head_kept}' if self.head_kept else ''
        return f'{self.num_loaded} tensors of the layout of {self.layout} loaded{left}{head}.'


def load_tensors(model: nnx.Module, tensors: Mapping[str, np.ndarray], *, what: str) -> LoadReport:
    """Puts the tensors of a file into a model, all of them or, if one does not fit, none.

    The layout is recognised by the names: torchvision's, timm's and Hugging Face's for the
    families ResNet, ConvNeXt and ViT, and for all models what `save_safetensors` writes. A head
    for another number of classes is left out, and so is one that the model has no place for.
    Positions of a `ViT` for another image size are interpolated.

    Args:
        model: of the zoo. It is in eval mode afterwards.
        tensors: arrays of floats by name.
        what: the file, for messages.

    Raises:
        WeightsError: names every tensor that is missing, not known, or of another shape.

    Example:
        >>> import numpy as np
        >>> from thinkml.models.zoo import create, load_tensors
        >>> model = create('mlp', num_classes=2, in_features=4, hidden=())
        >>> tensors = {'head.kernel': np.ones((4, 2)), 'head.bias': np.zeros(2)}
        >>> print(load_tensors(model, tensors, what='mine.safetensors'))
        2 tensors of the layout of thinkml loaded.
    """
    own = _floats_of(model)
    names = {tidy(name): name for name in tensors}
    layout, rules = _recognised(model, own, names, what)
    head = [names_in(layout, rules, path)[0] for path in _HEAD]
    head_kept = _why_head_is_kept(own, layout, [tensors.get(names.get(name, '')) for name in head])
    wanted = {
        path: names_in(layout, rules, path) for path in own if not (head_kept and path in _HEAD)
    }

    arrays, found = {}, []
    for path, parts in wanted.items():
        pieces = {names.get(part, part): tensors.get(names.get(part, '')) for part in parts}
        array, wrong = _converted(layout, path, pieces, own[path])
        arrays[path.replace('.', '/')] = array
        found += wrong
    used = {names.get(part) for parts in wanted.values() for part in parts}
    left = [name for name in tensors if name not in used]
    skipped = [name for name in left if is_harmless(tidy(name)) or tidy(name) in head]
    found += [
        f'{name}: {_described(tensors[name])} in the file, the model has no such tensor'
        for name in left
        if name not in skipped
    ]
    if found:
        headline = f"weights: {what}, in {layout}'s layout, does not fit the model:"
        raise WeightsError(problems(headline, sorted(found)))
    fill(model, named_arrays(model) | arrays, what)
    return LoadReport(layout, len(tensors) - len(left), tuple(skipped), head_kept)


def _floats_of(model: nnx.Module) -> dict[str, Any]:
    """Parameters and statistics by path; what random streams hold is not of floats."""
    return {
        name.replace('/', '.'): array
        for name, array in named_arrays(model).items()
        if jnp.issubdtype(array.dtype, jnp.floating)
    }


def _recognised(
    model: nnx.Module, own: Mapping[str, Any], names: Mapping[str, str], what: str
) -> tuple[str, Rules]:
    """The layout that most names are of; those of the head say little."""
    layouts = layouts_of(model)
    known = {
        layout: sum(
            name in names
            for path in own
            if path not in _HEAD or len(own) == len(_HEAD)
            for name in names_in(layout, rules, path)
        )
        for layout, rules in layouts.items()
    }
    layout = max(known, key=lambda layout: known[layout])
    if not known[layout]:
        some = ', '.join(list(names.values())[:4]) or 'nothing'
        raise WeightsError(
            f'weights: {what} holds none of the tensors of a {type(model).__name__} as '
            f'{", ".join(layouts)} call them, but {some}. Is it of another architecture?'
        )
    return layout, layouts[layout]


def _why_head_is_kept(own: Mapping[str, Any], layout: str, head: list[Any]) -> str:
    kernel = head[0]
    if 'head.kernel' not in own or (kernel is None and head[1] is not None):
        return ''
    if kernel is None:
        return 'the file has none'
    theirs = squeezed(kernel.shape) if layout == OURS else squeezed(kernel.shape)[::-1]
    features, classes = own['head.kernel'].shape
    if len(theirs) != 2 or theirs[0] != features or theirs[1] == classes:
        return ''
    return f"the file's is for {theirs[1]} classes, the model's for {classes}"


def _converted(
    layout: str, path: str, pieces: Mapping[str, Any], own: Any
) -> tuple[np.ndarray | None, list[str]]:
    """An array as the model has it, of its pieces in the file, or what is wrong with them."""
    shape = shape_in(layout, path, own.shape, len(pieces))
    if path == 'positions':
        pieces = {name: _positions_like(own, piece) for name, piece in pieces.items()}
    found = [_problem_with(name, piece, shape) for name, piece in pieces.items()]
    wrong = [problem for problem in found if problem]
    if wrong:
        return None, wrong
    floats = [np.asarray(piece).astype(np.float32).reshape(shape) for piece in pieces.values()]
    return convert(layout, path, floats), []


def _positions_like(own: Any, piece: Any) -> Any:
    """Positions of another square grid, interpolated; all else as it is."""
    grids = [math.isqrt(array.shape[1] - 1) for array in (piece, own) if np.ndim(array) == 3]
    if (
        len(grids) < 2
        or grids[0] == grids[1]
        or (piece.shape[0], piece.shape[2]) != (1, own.shape[2])
        or [1 + grid**2 for grid in grids] != [piece.shape[1], own.shape[1]]
    ):
        return piece
    return resize_positions(jnp.asarray(piece, jnp.float32), (grids[1], grids[1]))


def _problem_with(name: str, piece: Any, shape: tuple[int, ...]) -> str | None:
    expected = f'float[{",".join(map(str, shape))}]'
    if piece is None:
        return f'{name}: not in the file, expected {expected}'
    is_fitting = squeezed(piece.shape) == squeezed(shape)
    if is_fitting and jnp.issubdtype(piece.dtype, jnp.floating):
        return None
    return f'{name}: {_described(piece)} in the file, expected {expected}'


def _described(array: Any) -> str:
    return f'{array.dtype}[{",".join(map(str, array.shape))}]'
