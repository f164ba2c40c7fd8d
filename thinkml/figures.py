"""Matplotlib figures: created without a display, saved, shown by notebooks and by pyplot."""

import functools
import importlib
import io
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from thinkml.errors import ConfigError, warn_user
from thinkml.paths import local_file, local_path

if TYPE_CHECKING:
    from matplotlib.backend_bases import FigureManagerBase
    from matplotlib.figure import Figure

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
"""Colours that colour-blind people can distinguish (Okabe and Ito, 2008)."""

# The number of figures that wait for plt.show(). Pyplot warns from 20 figures on, so a script can
# open some more without a warning.
_MAX_PENDING = 15
_INLINE = ('inline', 'module://matplotlib_inline.backend_inline')


def in_notebook() -> bool:
    """Returns True in a notebook, where pictures can be shown and replaced."""
    ipython = sys.modules.get('IPython')  # notebooks import it at their start
    return ipython is not None and hasattr(ipython.get_ipython(), 'kernel')


def new_figure(width: float, height: float) -> 'Figure':
    """Creates an empty figure, sizes in inches, without changing pyplot's global state.

    A notebook shows it only if it is a cell's value, unless it is passed to `give_to_pyplot`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    # IPython shows figures by itself only once pyplot is imported.
    figure._repr_png_ = functools.partial(_png, figure)  # pyright: ignore[reportAttributeAccessIssue]
    return figure


def _png(figure: 'Figure') -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


def give_to_pyplot(figure: 'Figure') -> 'Figure':
    """Registers a drawn figure with pyplot, which then shows it like those of `plt.figure`.

    A notebook shows it once, at the end of the cell, even if it is the cell's value. A script shows
    it with ``plt.show()``, and may import pyplot later. Until then no window opens, and only the
    newest figures are kept. A figure that the user created without pyplot is not changed.

    Returns:
        The figure.

    Warns:
        ThinkMLWarning: if matplotlib lacks one of the private names that this function needs. The
            figure can still be saved, or be a cell's value.
    """
    try:
        _give_to_pyplot(figure)
    except (ImportError, AttributeError) as error:
        import matplotlib

        warn_user(
            f'plot: plt.show() can not show this figure, since matplotlib {matplotlib.__version__}'
            f' has changed ({error}). Save it with path=..., or make it the value of a cell.'
        )
    return figure


def _give_to_pyplot(figure: 'Figure') -> None:
    if _manager_of(figure) is None and hasattr(figure, '_repr_png_'):  # it is from `new_figure`
        _add_to_pyplot(figure)
    if in_notebook() and _manager_of(figure) is not None:
        display_once = functools.partial(_display_once, figure)
        figure._ipython_display_ = display_once  # pyright: ignore[reportAttributeAccessIssue]


def _add_to_pyplot(figure: 'Figure') -> None:
    import matplotlib
    from matplotlib._pylab_helpers import Gcf

    if in_notebook():
        importlib.import_module('matplotlib.pyplot')  # notebooks show figures through it
    has_pyplot = 'matplotlib.pyplot' in sys.modules
    if not has_pyplot and matplotlib.__version_info__ < (3, 11):
        return  # in these versions pyplot closes all figures when it chooses its backend
    number = max(map(int, Gcf.figs), default=0) + 1
    if has_pyplot and _can_show() and matplotlib.is_interactive() and _in_main_thread():
        _open(number, figure)
        return
    manager_class = _pending_manager_class()
    Gcf._set_new_active_manager(manager_class(figure.canvas, number))
    pending = [m for m in Gcf.get_all_fig_managers() if isinstance(m, manager_class)]
    for manager in pending[:-_MAX_PENDING]:
        Gcf.destroy(manager)


def _open(number: int | str, figure: 'Figure') -> 'FigureManagerBase':
    """Opens a figure in pyplot's backend: in a window, or at the end of a notebook's cell."""
    from matplotlib import pyplot
    from matplotlib._pylab_helpers import Gcf

    backend: Any = pyplot._get_backend_mod()
    manager = backend.new_figure_manager_given_figure(number, figure)
    Gcf._set_new_active_manager(manager)
    pyplot.draw_if_interactive()
    return manager


@functools.cache
def _pending_manager_class() -> type['FigureManagerBase']:
    """Returns the class of managers that wait for `plt.show()`; imports matplotlib when called."""
    from matplotlib.backend_bases import FigureManagerBase

    class PendingManager(FigureManagerBase):
        """A manager of a figure that is not shown yet and has no window."""

        def show(self) -> None:
            if _can_show():
                _open(self.num, self.canvas.figure).show()
            else:
                super().show()

    return PendingManager


def _manager_of(figure: 'Figure') -> 'FigureManagerBase | None':
    from matplotlib._pylab_helpers import Gcf

    managers = Gcf.get_all_fig_managers()
    return next((manager for manager in managers if manager.canvas.figure is figure), None)


def _can_show() -> bool:
    """Loads pyplot's backend; returns True if it can show figures and not only write them."""
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.backends.registry import BackendFilter, backend_registry

    try:
        pyplot._get_backend_mod()  # in a notebook this makes pyplot interactive
    except (ImportError, AttributeError):  # it needs a display; the name is not public
        return False
    writers = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    return matplotlib.get_backend().lower() not in writers


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _display_once(figure: 'Figure') -> None:
    """Displays a figure in a notebook and keeps pyplot from showing it at the end of the cell."""
    import matplotlib

    is_inline = matplotlib.get_backend() in _INLINE
    manager = _manager_of(figure)
    is_open = manager is not None and not isinstance(manager, _pending_manager_class())
    if is_open and not is_inline and _can_show():
        return  # its window or widget shows it
    display_once = vars(figure).pop('_ipython_display_')
    try:
        importlib.import_module('IPython.display').display(figure)
    finally:
        figure._ipython_display_ = display_once  # pyright: ignore[reportAttributeAccessIssue]
    if is_inline:
        _forget_inline(figure)


def _forget_inline(figure: 'Figure') -> None:
    """Removes a figure from those that are shown at the end of the notebook's cell."""
    from matplotlib import pyplot

    inline = importlib.import_module('matplotlib_inline.backend_inline')
    if inline.InlineBackend.instance().close_figures:
        pyplot.close(figure)
    elif figure in (pending := getattr(inline.show, '_to_draw', [])):  # the name is not public
        pending.remove(figure)


def save_figure(figure: 'Figure', path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file whose suffix sets the format; creates missing folders."""
    from thinkml.core.parallel.multiprocess import is_first_process

    check_ending(path)
    path = local_file(path)
    if not is_first_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def check_ending(path: str | os.PathLike[str]) -> None:
    """Raises a `ConfigError` if the file's suffix is not a format that matplotlib can write."""
    from matplotlib.figure import Figure

    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            f'path: got {type(path).__name__}, expected the name of a file. Pass axes to draw into '
            'as ax=...'
        )
    formats = Figure().canvas.get_supported_filetypes()
    if local_path(path).suffix[1:].lower() not in formats:
        raise ConfigError(
            f'path: got {os.fspath(path)!r}, expected a file that ends in .png, .svg or .pdf'
            f' (or {", ".join(sorted(formats.keys() - {"png", "svg", "pdf"}))}).'
        )
