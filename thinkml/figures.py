"""Matplotlib figures that need no display: made, saved, shown by notebooks and by pyplot."""

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
"""Colours that the colour-blind tell apart (Okabe and Ito, 2008)."""

# Figures that wait for plt.show(). Below the 20 from which pyplot warns, so that a script may open
# some of its own.
_MAX_WAITING = 15
_INLINE = ('inline', 'module://matplotlib_inline.backend_inline')


def in_notebook() -> bool:
    """Returns True in a notebook: pictures can be shown there, and replaced."""
    ipython = sys.modules.get('IPython')  # a notebook has imported it
    return ipython is not None and hasattr(ipython.get_ipython(), 'kernel')


def new_figure(width: float, height: float) -> 'Figure':
    """Makes an empty figure, sizes in inches, without touching pyplot's global state.

    A notebook shows it when it is a cell's value. `give_to_pyplot` has it shown in any case.
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
    """Makes a drawn figure one of pyplot's, which shows it as it shows those of `plt.figure`.

    A notebook shows it once: at the end of the cell, also if it is the cell's value. A script shows
    it with ``plt.show()``, which may be imported later; until then no window is made, and only the
    newest figures are kept. A figure that a user made without pyplot is left alone.

    Returns:
        the figure.

    Warns:
        ThinkMLWarning: if matplotlib lacks one of the names that are used here and not public. The
            figure can still be saved, or be a cell's value.
    """
    try:
        _give_to_pyplot(figure)
    except (ImportError, AttributeError) as error:
        import matplotlib

        warn_user(
            f'plot: plt.show() does not know this figure, since matplotlib {matplotlib.__version__}'
            f' has changed ({error}). Save it by path=..., or make it the value of a cell.'
        )
    return figure


def _give_to_pyplot(figure: 'Figure') -> None:
    if _manager_of(figure) is None and hasattr(figure, '_repr_png_'):  # made here
        _add_to_pyplot(figure)
    if in_notebook() and _manager_of(figure) is not None:
        once = functools.partial(_display_once, figure)
        figure._ipython_display_ = once  # pyright: ignore[reportAttributeAccessIssue]


def _add_to_pyplot(figure: 'Figure') -> None:
    import matplotlib
    from matplotlib._pylab_helpers import Gcf

    if in_notebook():
        importlib.import_module('matplotlib.pyplot')  # by which notebooks show figures
    has_pyplot = 'matplotlib.pyplot' in sys.modules
    if not has_pyplot and matplotlib.__version_info__ < (3, 11):
        return  # pyplot closes all figures there when it chooses its backend
    number = max(map(int, Gcf.figs), default=0) + 1
    if has_pyplot and _can_show() and matplotlib.is_interactive() and _in_main_thread():
        _open(number, figure)
        return
    kind = _waiting()
    Gcf._set_new_active_manager(kind(figure.canvas, number))
    waiting = [manager for manager in Gcf.get_all_fig_managers() if isinstance(manager, kind)]
    for manager in waiting[:-_MAX_WAITING]:
        Gcf.destroy(manager)


def _open(number: int | str, figure: 'Figure') -> 'FigureManagerBase':
    """Opens a figure in pyplot's backend: a window, or a place at the end of a notebook's cell."""
    from matplotlib import pyplot
    from matplotlib._pylab_helpers import Gcf

    backend: Any = pyplot._get_backend_mod()
    manager = backend.new_figure_manager_given_figure(number, figure)
    Gcf._set_new_active_manager(manager)
    pyplot.draw_if_interactive()
    return manager


@functools.cache
def _waiting() -> type['FigureManagerBase']:
    """The class of managers that wait for `plt.show()`: matplotlib is imported when used."""
    from matplotlib.backend_bases import FigureManagerBase

    class Waiting(FigureManagerBase):
        """A figure's place in pyplot before it is shown; has no window yet."""

        def show(self) -> None:
            if _can_show():
                _open(self.num, self.canvas.figure).show()
            else:
                super().show()

    return Waiting


def _manager_of(figure: 'Figure') -> 'FigureManagerBase | None':
    from matplotlib._pylab_helpers import Gcf

    managers = Gcf.get_all_fig_managers()
    return next((manager for manager in managers if manager.canvas.figure is figure), None)


def _can_show() -> bool:
    """Returns True if pyplot's backend, which is loaded here, shows figures and not just writes."""
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
    """Displays a figure in a notebook, in place of what pyplot would show at the cell's end."""
    import matplotlib

    is_inline = matplotlib.get_backend() in _INLINE
    manager = _manager_of(figure)
    is_open = manager is not None and not isinstance(manager, _waiting())
    if is_open and not is_inline and _can_show():
        return  # in its window or widget
    once = vars(figure).pop('_ipython_display_')
    try:
        importlib.import_module('IPython.display').display(figure)
    finally:
        figure._ipython_display_ = once  # pyright: ignore[reportAttributeAccessIssue]
    if is_inline:
        _forget_inline(figure)


def _forget_inline(figure: 'Figure') -> None:
    """Takes a figure from those that are shown when the notebook's cell ends."""
    from matplotlib import pyplot

    inline = importlib.import_module('matplotlib_inline.backend_inline')
    if inline.InlineBackend.instance().close_figures:
        pyplot.close(figure)
    elif figure in (waiting := getattr(inline.show, '_to_draw', [])):  # the name is not public
        waiting.remove(figure)


def save_figure(figure: 'Figure', path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file, whose ending picks the format; missing folders are made."""
    from thinkml.core.parallel.multiprocess import is_first_process

    check_ending(path)
    path = local_file(path)
    if not is_first_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def check_ending(path: str | os.PathLike[str]) -> None:
    """Raises a `ConfigError` for a file whose ending is not a format that can be written."""
    from matplotlib.figure import Figure

    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            f'path: got {type(path).__name__}, expected the name of a file. Axes to draw into are '
            'ax=...'
        )
    formats = Figure().canvas.get_supported_filetypes()
    if local_path(path).suffix[1:].lower() not in formats:
        raise ConfigError(
            f'path: got {os.fspath(path)!r}, expected a file that ends in .png, .svg or .pdf'
            f' (or {", ".join(sorted(formats.keys() - {"png", "svg", "pdf"}))}).'
        )
