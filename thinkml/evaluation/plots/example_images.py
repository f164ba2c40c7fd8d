"""Example images: the targets and predictions of some rows of pixels, beside their inputs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from thinkml.evaluation.plots.axes import PALE, shorten
from thinkml.evaluation.result import Evaluation, number
from thinkml.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 1.55  # inches
_MAX_NAMED = 12  # classes in the legend
_IGNORED = -1


class Images(NamedTuple):
    """The target and the prediction of a row, ``(height, width)`` or with channels.

    Labels are class indices, or 0 and 1 for each label in the channels. A pixel that does not count
    has the label -1 or the number NaN.
    """

    target: np.ndarray
    prediction: np.ndarray


def example_images(
    evaluation: Evaluation, examples: Mapping[str, Any], inputs: Any = None
) -> 'Figure':
    """Draws some rows as columns of images: the input, the target and the prediction.

    Pixels that do not count are grey. A pixel with several labels has the mean of their colours.

    Args:
        evaluation: an evaluation of images.
        examples: the rows and their scores, as `example_rows` returns them.
        inputs: the inputs, ``(rows, height, width)`` or ``(rows, height, width, channels)``; None
            to leave them out.
    """
    rows, score = examples['rows'], examples['score']
    images = [_images_of(evaluation, example['row']) for example in rows]
    height, width = images[0].target.shape[:2]
    tall = _SIDE * float(np.clip(height / width, 0.4, 2.5))
    titles = ['target', 'prediction'] if inputs is None else ['input', 'target', 'prediction']
    beside, below = (1.2, 0) if evaluation.task.classes is None else (0.3, 0.4)
    figure = new_figure(
        max(_SIDE * len(rows) + beside, 3.5), (tall + 0.1) * len(titles) + 0.4 + below
    )
    grid = figure.subplots(len(titles), len(rows), squeeze=False)
    for axes, example in zip(grid.T, rows, strict=True):
        title = f'{example["rank"]}: row {example["row"]}\n{score} {number(example["score"])}'
        axes[0].set_title(title, fontsize=8)
        if inputs is not None:
            _draw_input(axes[0], np.asarray(inputs[example['row']]))
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[])
    for axes, title in zip(grid, titles, strict=True):
        axes[0].set_ylabel(title, fontsize=9)
    classes = evaluation.task.classes
    if classes is None:
        _draw_numbers(grid[-2:], images)
    elif evaluation.task.type.has_many_labels:
        _draw_labels(grid[-2:], images, classes)
    else:
        _draw_classes(grid[-2:], images, classes)
    return figure


def _images_of(evaluation: Evaluation, row: int) -> Images:
    task, data = evaluation.task, evaluation.scored
    assert data.positions is not None
    size = task.num_elements
    first, end = np.searchsorted(data.positions, [row * size, (row + 1) * size])
    counted = np.arange(first, end)[data.weights[first:end] > 0]
    pixels = data.positions[counted] - row * size
    if task.classes is None:
        # A row of numbers has either two axes of elements, or one of them with several targets.
        channels = 1 if len(task.element_shape) == 1 else task.num_outputs
        maps = np.full((2, size, task.num_outputs), np.nan)
        for array, values in zip(maps, (data.labels, data.predictions), strict=True):
            array[pixels] = values[counted].reshape(-1, task.num_outputs)
        return Images(*maps.reshape(2, task.element_shape[0], -1, channels))
    channels = data.labels.shape[1:]  # of several labels
    maps = np.full((2, size, *channels), _IGNORED)
    maps[:, pixels] = data.labels[counted], data.predictions[counted]
    return Images(*maps.reshape(2, *task.element_shape, *channels))


def _draw_input(ax: 'Axes', image: np.ndarray) -> None:
    image = image[..., None] if image.ndim == 2 else image
    low, high = (0, 255) if image.dtype == np.uint8 else _limits(image)
    _show(ax, image, low, high)


def _draw_numbers(grid: np.ndarray, images: Sequence[Images]) -> None:
    channels = images[0].target.shape[-1]
    if channels not in (1, 3):  # neither grey nor red, green and blue
        images = [Images(*(each[..., :1] for each in pair)) for pair in images]
    low, high = _limits(np.stack([pair.target for pair in images]))
    for axes, pair in zip(grid.T, images, strict=True):
        for ax, image in zip(axes, pair, strict=True):
            _show(ax, image, low, high)
    if channels == 3:
        return
    predictions = np.stack([pair.prediction for pair in images])
    is_below, is_above = np.nanmin(predictions) < low, np.nanmax(predictions) > high
    extend = ('both' if is_above else 'min') if is_below else 'max' if is_above else 'neither'
    label = '' if channels == 1 else f'the first of {channels} targets'
    bar = grid[0, 0].figure.colorbar(
        grid[0, 0].images[0], ax=list(grid.flat), extend=extend, label=label
    )
    bar.ax.tick_params(labelsize=8)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Returns the values that are drawn black and white: 0 and 1 if the values lie between them."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _show(ax: 'Axes', image: np.ndarray, low: float, high: float) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if image.shape[-1] == 1:
        colours = colormaps['gray'].with_extremes(bad=PALE)
        return ax.imshow(image[..., 0], cmap=colours, vmin=low, vmax=high, interpolation='nearest')
    scaled = np.clip((image.astype(np.float64) - low) / ((high - low) or 1), 0, 1)
    shown = np.where(np.isnan(scaled), to_rgb(PALE), scaled)
    return ax.imshow(shown, interpolation='nearest')


def _draw_classes(grid: np.ndarray, images: Sequence[Images], classes: Sequence[Any]) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = _colours(len(classes))
    limits = {'vmin': _IGNORED - 0.5, 'vmax': len(classes) - 0.5}
    for axes, pair in zip(grid.T, images, strict=True):
        for ax, labels in zip(axes, pair, strict=True):
            ax.imshow(labels, cmap=ListedColormap(colours), interpolation='nearest', **limits)
    found, counts = np.unique(np.stack(images), return_counts=True)
    counts = dict(zip(found.tolist(), counts.tolist(), strict=True))
    is_ignored = counts.pop(_IGNORED, 0) > 0
    named = sorted(sorted(counts, key=lambda label: -counts[label])[:_MAX_NAMED])
    patches = [Patch(color=colours[label + 1], label=shorten(classes[label])) for label in named]
    _draw_legend(grid, patches, is_ignored)


def _draw_labels(grid: np.ndarray, images: Sequence[Images], classes: Sequence[Any]) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    colours = np.array([to_rgb(colour) for colour in _colours(len(classes))[1:]])
    for axes, pair in zip(grid.T, images, strict=True):
        for ax, labels in zip(axes, pair, strict=True):
            ax.imshow(_mixed(labels, colours), interpolation='nearest')
    pixels = np.stack(images).reshape(-1, len(classes))
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    is_counted = found[:, 0] != _IGNORED
    named = found[is_counted][np.argsort(-counts[is_counted], kind='stable')[:_MAX_NAMED]]
    patches = []
    for labels in sorted(named, key=lambda labels: (labels.sum(), *-labels)):
        names = [shorten(name) for name, is_set in zip(classes, labels, strict=True) if is_set]
        colour = tuple(_mixed(labels, colours).tolist())
        patches.append(Patch(facecolor=colour, edgecolor=PALE, label=' + '.join(names) or 'none'))
    _draw_legend(grid, patches, not is_counted.all())


def _mixed(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Returns the mean colour of the labels of each pixel, white without any."""
    from matplotlib.colors import to_rgb

    count = labels.sum(axis=-1, keepdims=True)
    mean = np.where(count > 0, labels @ colours / np.maximum(count, 1), 1.0)
    return np.where(count < 0, to_rgb(PALE), mean)


def _draw_legend(grid: np.ndarray, patches: list[Any], is_ignored: bool) -> None:
    from matplotlib.patches import Patch

    if is_ignored:
        patches = [*patches, Patch(color=PALE, label='does not count')]
    figure = grid[0, 0].figure
    figure.legend(handles=patches, loc='outside lower center', ncols=6, fontsize=8, frameon=False)


def _colours(count: int) -> list[Any]:
    """Returns the colour of pixels that do not count, and then those of the classes."""
    from matplotlib import colormaps

    if count <= len(COLOURS):
        return [PALE, *COLOURS[:count]]
    return [PALE, *colormaps['turbo'](np.linspace(0, 1, count)).tolist()]
