"""Loading of a file's tensors into a model of the zoo, by name: all of them, or none."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from thinkml.errors import WeightsError, problems
from thinkml.models.serialization.weights import fill, named_arrays
from thinkml.models.zoo.catalog import tensor_names_of
from thinkml.models.zoo.tensor_names import (
    OURS,
    Rules,
    TensorNames,
    convert,
    names_in,
    shape_in,
    squeezed,
)

_HEAD = ('head.kernel', 'head.bias')

Array = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The result of `load_tensors`.

    Attributes:
        layout: the library whose names the tensors have: ``'torchvision'``, ``'timm'``,
            ``'huggingface'``, or ``'thinkml'``.
        num_loaded: the number of the file's tensors that are in the model now.
        skipped: the names of the other tensors: counters, layers for other tasks, the head.
        head_kept: the reason why the model's head keeps its initial weights; empty if the head was
            loaded or the model has none.
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
    """Loads a file's tensors into a model: all of them, or none if one does not fit.

    The layout is recognised by the names. For ResNet, ConvNeXt and ViT, these are the names of
    torchvision, timm and Hugging Face; for every model, those that `save_safetensors` writes. The
    file's head is left out if it has another number of classes or the model has no head. The
    positions of a `ViT` for another image size are interpolated.

    Args:
        model: a model of the zoo. It is in eval mode afterwards.
        tensors: arrays of floats by name.
        what: the name of the file, for messages.

    Raises:
        WeightsError: names every tensor that is missing, unknown or of another shape.

    Example:
        >>> import numpy as np
        >>> from thinkml.models.zoo import create, load_tensors
        >>> model = create('mlp', num_classes=2, in_features=4, hidden=())
        >>> tensors = {'head.kernel': np.ones((4, 2)), 'head.bias': np.zeros(2)}
        >>> print(load_tensors(model, tensors, what='mine.safetensors'))
        2 tensors of the layout of thinkml loaded.
    """
    current, library_names = _float_arrays(model), tensor_names_of(model)
    names = {library_names.normalize(name): name for name in tensors}
    layout = _recognised_layout(model, library_names, current, names, what)
    rules = library_names.layouts[layout]
    head = [names_in(layout, rules, path)[0] for path in _HEAD]
    head_tensors = [tensors.get(names.get(name, '')) for name in head]
    head_kept = _why_head_is_kept(current, layout, head_tensors)
    wanted = {
        path: names_in(layout, rules, path) for path in current if not (head_kept and path in _HEAD)
    }

    arrays, found = {}, []
    for path, parts in wanted.items():
        pieces = {names.get(part, part): tensors.get(names.get(part, '')) for part in parts}
        array, wrong = _converted(library_names, layout, path, pieces, current[path])
        arrays[path.replace('.', '/')] = array
        found += wrong
    used = {names.get(part) for parts in wanted.values() for part in parts}
    left = [name for name in tensors if name not in used]
    skipped = [
        name
        for name in left
        if library_names.is_unused(library_names.normalize(name))
        or library_names.normalize(name) in head
    ]
    found += [
        f'{name}: {_described(tensors[name])} in the file, the model has no such tensor'
        for name in left
        if name not in skipped
    ]
    if found:
        headline = f"weights: {what}, in {layout}'s layout, does not fit the model:"
        raise WeightsError(problems(headline, sorted(found)))
    fill(model, named_arrays(model) | arrays, what)
    return LoadReport(
        layout=layout,
        num_loaded=len(tensors) - len(left),
        skipped=tuple(skipped),
        head_kept=head_kept,
    )


def _float_arrays(model: nnx.Module) -> dict[str, Array]:
    """Returns parameters and statistics by path. Random streams hold no floats."""
    return {
        name.replace('/', '.'): array
        for name, array in named_arrays(model).items()
        if jnp.issubdtype(array.dtype, jnp.floating)
    }


def _recognised_layout(
    model: nnx.Module,
    library_names: TensorNames,
    arrays: Mapping[str, Array],
    names: Mapping[str, str],
    what: str,
) -> str:
    """Returns the layout that most names belong to, not counting those of the head.

    The head's names are counted only if the model consists of a head: layouts share them.
    """
    paths = [path for path in arrays if path not in _HEAD or len(arrays) == len(_HEAD)]
    matches = {
        layout: _num_matches(layout, rules, paths, names)
        for layout, rules in library_names.layouts.items()
    }
    layout = max(matches, key=lambda layout: matches[layout])
    if not matches[layout]:
        some = ', '.join(list(names.values())[:4]) or 'nothing'
        raise WeightsError(
            f'weights: {what} holds none of the tensors of a {type(model).__name__} as '
            f'{", ".join(matches)} call them, but {some}. Is it of another architecture?'
        )
    return layout


def _num_matches(layout: str, rules: Rules, paths: Sequence[str], names: Mapping[str, str]) -> int:
    return sum(name in names for path in paths for name in names_in(layout, rules, path))


def _why_head_is_kept(
    arrays: Mapping[str, Array], layout: str, head: Sequence[np.ndarray | None]
) -> str:
    """Returns the reason for not loading the file's kernel and bias; empty if there is none."""
    kernel, bias = head
    if 'head.kernel' not in arrays or (kernel is None and bias is not None):
        return ''
    if kernel is None:
        return 'the file has none'
    theirs = squeezed(kernel.shape) if layout == OURS else squeezed(kernel.shape)[::-1]
    features, classes = arrays['head.kernel'].shape
    if len(theirs) != 2 or theirs[0] != features or theirs[1] == classes:
        return ''
    return f"the file's is for {theirs[1]} classes, the model's for {classes}"


def _converted(
    library_names: TensorNames,
    layout: str,
    path: str,
    pieces: Mapping[str, np.ndarray | None],
    ours: Array,
) -> tuple[np.ndarray | None, list[str]]:
    """Returns the model's array made of its pieces in the file, or the problems with them."""
    shape = shape_in(layout, path, ours.shape, len(pieces))
    if path in library_names.resize:
        resize = library_names.resize[path]
        pieces = {n: None if piece is None else resize(piece, ours) for n, piece in pieces.items()}
    checked = [_problem_with(name, piece, shape) for name, piece in pieces.items()]
    wrong = [problem for problem in checked if problem]
    if wrong:
        return None, wrong
    floats = [np.asarray(piece).astype(np.float32).reshape(shape) for piece in pieces.values()]
    return convert(layout, path, floats), []


def _problem_with(name: str, piece: np.ndarray | None, shape: tuple[int, ...]) -> str | None:
    expected = f'float[{",".join(map(str, shape))}]'
    if piece is None:
        return f'{name}: not in the file, expected {expected}'
    is_fitting = squeezed(piece.shape) == squeezed(shape)
    if is_fitting and jnp.issubdtype(piece.dtype, jnp.floating):
        return None
    return f'{name}: {_described(piece)} in the file, expected {expected}'


def _described(array: np.ndarray) -> str:
    return f'{array.dtype}[{",".join(map(str, array.shape))}]'
