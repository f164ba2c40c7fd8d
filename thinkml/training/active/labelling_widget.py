"""Labelling widget for notebooks: one row at a time, with a button for each label."""

import functools
import io
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from thinkml.errors import ConfigError

# ipywidgets is optional, so its types can't be imported.
Widget: TypeAlias = Any


def labelling_widget(
    rows: Sequence[int],
    classes: Sequence[Any],
    show: Callable[[int], str | ArrayLike],
    answer: Callable[[int, Any], None],
) -> Widget:
    """Returns a widget that shows rows one after another, with a button for each label.

    Args:
        rows: rows of the pool.
        classes: the labels.
        show: returns the content to show for a row: text, or the array of an image.
        answer: is called with a row and its label; with None if the user can't tell.

    Raises:
        ConfigError: if ipywidgets is not installed.
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ConfigError(
            'ask_in_notebook: needs the package ipywidgets, which is not installed. Install it: '
            'pip install ipywidgets.'
        ) from error
    waiting = list(rows)
    head, content = widgets.HTML(), widgets.VBox()

    def show_next() -> None:
        if not waiting:
            head.value, content.children, buttons.children = 'Done.', (), ()
            return
        head.value = f'Row {waiting[0]}, {len(waiting)} to go'
        content.children = (_render(widgets, show(waiting[0])),)

    def on_click(label: Any, _button: Widget) -> None:
        answer(waiting[0], label)
        waiting.pop(0)  # only once the answer was accepted
        show_next()

    label_buttons = []
    for label in (*classes, None):
        text = "can't tell" if label is None else str(label)
        button = widgets.Button(description=text, button_style='' if label is None else 'info')
        button.on_click(functools.partial(on_click, label))
        label_buttons.append(button)
    buttons = widgets.HBox(label_buttons, layout=widgets.Layout(flex_flow='row wrap'))
    show_next()
    return widgets.VBox([head, content, buttons])


def _render(widgets: ModuleType, content: str | ArrayLike) -> Widget:
    """Returns a widget that shows a text or an image."""
    if isinstance(content, str):
        return widgets.Textarea(content, disabled=True, layout=widgets.Layout(width='40em'))
    image = np.asarray(content)
    if not is_image(image):
        return widgets.Label(np.array2string(image, precision=4, threshold=50))
    from matplotlib.image import imsave

    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if image.dtype != np.uint8:
        low, high = image.min(), image.max()
        image = (image - low) / (high - low if high > low else 1)
    buffer = io.BytesIO()
    imsave(buffer, image, cmap='gray', format='png')
    return widgets.Image(value=buffer.getvalue(), format='png', width=240)


def is_image(array: np.ndarray) -> bool:
    """Returns True for a grey image, or one whose last axis is channels."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
