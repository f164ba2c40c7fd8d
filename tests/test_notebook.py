"""Figures in a real notebook kernel, and in scripts that call plt.show()."""

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

PREPARE = """
from tests.evaluation.drawn import analyze
from thinkml.history import History
from thinkml.monitoring import TrainingMonitor
from thinkml.record import record_of

class Model:
    pass

model, history = Model(), History()
history.add_epoch({'loss': 0.8, 'accuracy': 0.5})
record_of(model).runs.append(history)
monitor = TrainingMonitor()
monitor.track_progress(model)
analysis = analyze('binary')
"""
# Cells, and how many pictures each of them is to show.
CELLS = {
    "print('before'); monitor.plot_progress(); print('after')": 1,
    'monitor.plot_progress()': 1,
    'figure = monitor.plot_progress()': 1,
    'figure': 1,
    'figure = monitor.plot_progress()\nfigure': 1,
    'from IPython.display import display\ndisplay(monitor.plot_progress())': 1,
    'analysis.plot_roc_curve()\nanalysis.plot_precision_recall_curve()\n'
    'analysis.plot_confusion_matrix()': 3,
    'analysis.plot_roc_curve()\nanalysis.plot_confusion_matrix()\nNone': 2,
    "monitor.plot_progress(FOLDER + '/a.png')\nlen('x')": 1,
    'import matplotlib.pyplot as plt\nmonitor.plot_progress()\nplt.show()': 1,
    "analysis.plot_gain()\nplt.title('mine')\nassert plt.gca().get_title() == 'mine'": 1,
    '_, (left, right) = plt.subplots(1, 2)\nanalysis.plot_roc_curve(ax=left)\n'
    'analysis.plot_gain(ax=right)': 1,
    'from matplotlib.figure import Figure\nax = Figure().add_subplot()\n'
    'analysis.plot_roc_curve(ax=ax)\nNone': 0,
    'with monitor.watch(every_seconds=100): pass': 1,
    'for _ in range(22): monitor.plot_progress()': 22,
    'assert not plt.get_fignums()': 0,
    '%config InlineBackend.close_figures = False\nfigure = monitor.plot_progress()\nfigure': 1,
    'figure ': 1,
    "plt.close('all')\nplt.switch_backend('agg')\nfigure = monitor.plot_progress()\nfigure": 1,
    'for _ in range(22): monitor.plot_progress()\nassert len(plt.get_fignums()) < 20': 0,
}

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def environment():
    """What processes need that import from here, and choose matplotlib's backend themselves."""
    return {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'} | {'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='module')
def executed(environment, tmp_path_factory):
    """The outputs of each cell, run one after another in one kernel."""
    folder = f'FOLDER = {str(tmp_path_factory.mktemp("plots"))!r}\n'
    cells = [nbformat.v4.new_code_cell(source) for source in (folder + PREPARE, *CELLS)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=300)
    client.execute(env=environment)
    return {cell.source: cell.outputs for cell in cells[1:]}


def has_picture(output):
    return 'image/png' in output.get('data', {})


@pytest.mark.slow
@pytest.mark.parametrize('cell', CELLS)
def test_a_notebook_shows_each_figure_once(executed, cell):
    assert sum(map(has_picture, executed[cell])) == CELLS[cell]


def run(script, environment, **variables):
    return subprocess.run(
        [sys.executable, '-W', 'error', '-c', script],
        env={**environment, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


MONITOR = """
import sys
from thinkml.monitoring import TrainingMonitor
monitor = TrainingMonitor()
monitor.track_progress(type('Model', (), {})())
"""
BACKEND = """
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

shown = []

class FigureManager(FigureManagerBase):
    def show(self):
        shown.append(self.canvas.figure)

class FigureCanvas(FigureCanvasAgg):
    manager_class = FigureManager
"""


@pytest.fixture(scope='module')
def windows(environment, tmp_path_factory):
    """An environment with a backend that notes what it is to show."""
    folder = tmp_path_factory.mktemp('backend')
    (folder / 'windows.py').write_text(BACKEND)
    path = os.pathsep.join([str(folder), environment['PYTHONPATH']])
    return environment | {'PYTHONPATH': path, 'MPLBACKEND': 'module://windows'}


@pytest.mark.parametrize('early', [True, False], ids=['pyplot first', 'pyplot last'])
def test_a_script_shows_figures_by_pyplot(windows, early):
    import_pyplot = 'import matplotlib.pyplot as plt, windows'
    script = f"""
{import_pyplot if early else ''}
{MONITOR}
figures = [monitor.plot_progress(), monitor.plot_progress()]
{import_pyplot}
assert plt.gcf() is figures[1] and not windows.shown
plt.show()
assert windows.shown == figures
"""
    done = run(script, windows)
    assert done.returncode == 0, done.stderr


def test_interactive_mode_opens_a_window_at_once(windows):
    script = f"""
import matplotlib.pyplot as plt
{MONITOR}
plt.ion()
figure = monitor.plot_progress()
assert type(figure.canvas).__module__ == 'windows'
"""
    done = run(script, windows)
    assert done.returncode == 0, done.stderr


def test_axes_of_others_are_drawn_into_where_they_are(windows):
    script = """
import matplotlib.pyplot as plt, windows
from matplotlib.figure import Figure
from tests.evaluation.drawn import analyze

analysis = analyze('binary')
mine, axes = plt.subplots()
assert analysis.plot_roc_curve(ax=axes) is mine
alone = Figure()
assert analysis.plot_roc_curve(ax=alone.add_subplot()) is alone
plt.show()
assert windows.shown == [mine]
"""
    done = run(script, windows)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('backend', ['agg', 'module://windows'])
def test_many_figures_are_let_go(windows, backend):
    script = f"""
import gc, weakref
import matplotlib.pyplot as plt
{MONITOR}
alive = weakref.WeakSet()
for number in range(1, 41):
    alive.add(monitor.plot_progress())
    assert len(plt.get_fignums()) == min(number, 15)
plt.close(plt.figure())
gc.collect()
assert len(alive) == 15
plt.close('all')
gc.collect()
assert not alive
"""
    done = run(script, windows, MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr


def test_plots_need_neither_a_display_nor_pyplot(environment):
    script = f"""
{MONITOR}
monitor.plot_progress()
assert 'matplotlib.pyplot' not in sys.modules
import matplotlib.pyplot
monitor.plot_progress()._repr_png_()
"""
    headless = {k: v for k, v in environment.items() if 'DISPLAY' not in k}
    for variables in ({}, {'MPLBACKEND': 'tkagg'}):
        done = run(script, headless, **variables)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    'lost',
    [
        'del Gcf._set_new_active_manager',
        "sys.modules['matplotlib._pylab_helpers'] = None",
    ],
)
def test_a_matplotlib_without_the_private_names_still_plots(windows, lost):
    script = f"""
import warnings
import matplotlib.pyplot as plt
from matplotlib._pylab_helpers import Gcf
{MONITOR}
{lost}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    figure = monitor.plot_progress()
assert ['plot: plt.show() does not know'] == [str(w.message)[:30] for w in caught], caught
figure._repr_png_()
"""
    done = run(script, windows)
    assert done.returncode == 0, done.stderr


def test_a_pyplot_that_does_not_tell_its_backend_keeps_the_figures(windows):
    script = f"""
import matplotlib.pyplot as plt
{MONITOR}
del plt._get_backend_mod
figure = monitor.plot_progress()
assert plt.gcf() is figure
"""
    done = run(script, windows)
    assert done.returncode == 0, done.stderr


def test_the_other_plots_are_shown_too(windows):
    script = """
import numpy as np, matplotlib.pyplot as plt, windows
from thinkml.training import ActiveHistory, ActiveQuery
from thinkml.training.tuning import LearningRateRange

query = ActiveQuery(np.arange(5), np.ones(5), 'trained', 15, {'val_accuracy': 0.7})
history = ActiveHistory(start=(10, {'val_accuracy': 0.5}), queries=[query])
rates = LearningRateRange(np.geomspace(1e-3, 1, 9), np.linspace(1, 0, 9), 0.1)
figures = [history.plot_learning_curve(), rates.plot()]
plt.show()
assert windows.shown == figures
"""
    done = run(script, windows)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_report_and_a_watched_file_are_not_shown(windows, tmp_path):
    script = f"""
import matplotlib.pyplot as plt
from tests.evaluation.drawn import analyze
from thinkml.evaluation import ModelEvaluator
{MONITOR}
with monitor.watch({str(tmp_path / 'watched.png')!r}):
    ModelEvaluator().generate_report(analyze('binary').evaluation).save(
        {str(tmp_path / 'report.html')!r}
    )
assert not plt.get_fignums()
"""
    done = run(script, windows)
    assert done.returncode == 0, done.stderr
