"""Figures in a real notebook kernel, and in scripts that call plt.show()."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

PREPARE = """
from tests.evaluation.plot_reading import analyze
from thinkml.history import History
from thinkml.monitoring import TrainingMonitor
from thinkml.model_record import record_of

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
    'for _ in range(17): monitor.plot_progress()': 17,
    'assert not plt.get_fignums()': 0,
    '%config InlineBackend.close_figures = False\nfigure = monitor.plot_progress()\nfigure': 1,
    'figure ': 1,
    "plt.close('all')\nplt.switch_backend('agg')\nfigure = monitor.plot_progress()\nfigure": 1,
    'for _ in range(17): monitor.plot_progress()\nassert len(plt.get_fignums()) < 17': 0,
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


@pytest.mark.parametrize('cell', CELLS)
def test_a_notebook_shows_each_figure_once(executed, cell):
    assert sum(map(has_picture, executed[cell])) == CELLS[cell]


def run(script, environment, input=None, **variables):
    return subprocess.run(
        [sys.executable, '-W', 'error', '-c', script], input=input,
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


# Scripts, run one after another in one process; the first before pyplot is imported.
WITH_WINDOWS = {
    'pyplot last': """
figures = [monitor.plot_progress(), monitor.plot_progress()]
assert 'matplotlib.pyplot' not in sys.modules
import matplotlib.pyplot as plt, windows
assert plt.gcf() is figures[1] and not windows.shown
plt.show()
assert windows.shown == figures
""",
    'pyplot first': """
figures = [monitor.plot_progress(), monitor.plot_progress()]
assert plt.gcf() is figures[1] and not windows.shown
plt.show()
assert windows.shown == figures
""",
    'interactive mode opens a window at once': """
plt.ion()
figure = monitor.plot_progress()
assert type(figure.canvas).__module__ == 'windows'
plt.ioff()
""",
    'axes of others are drawn into where they are': """
from matplotlib.figure import Figure
from tests.evaluation.plot_reading import analyze

analysis = analyze('binary')
mine, axes = plt.subplots()
assert analysis.plot_roc_curve(ax=axes) is mine
alone = Figure()
assert analysis.plot_roc_curve(ax=alone.add_subplot()) is alone
plt.show()
assert windows.shown == [mine]
""",
    'many figures are let go': """
import gc, weakref

alive = weakref.WeakSet()
for number in range(1, 21):
    alive.add(monitor.plot_progress())
    assert len(plt.get_fignums()) == min(number, 15)
plt.close(plt.figure())
gc.collect()
assert len(alive) == 15
plt.close('all')
gc.collect()
assert not alive
""",
    'a matplotlib without the private name still plots': r"""
from matplotlib._pylab_helpers import Gcf

with pytest.MonkeyPatch.context() as patched:
    patched.delattr(Gcf, '_set_new_active_manager')
    with pytest.warns(UserWarning, match=r'plot: plt\.show\(\) can not show') as caught:
        figure = monitor.plot_progress()
assert len(caught) == 1
figure._repr_png_()
""",
    'a matplotlib without the private module still plots': r"""
with pytest.MonkeyPatch.context() as patched:
    patched.setitem(sys.modules, 'matplotlib._pylab_helpers', None)
    with pytest.warns(UserWarning, match=r'plot: plt\.show\(\) can not show') as caught:
        figure = monitor.plot_progress()
assert len(caught) == 1
figure._repr_png_()
""",
    'a pyplot that does not tell its backend keeps the figures': """
with pytest.MonkeyPatch.context() as patched:
    patched.delattr(plt, '_get_backend_mod')
    figure = monitor.plot_progress()
    assert plt.gcf() is figure
""",
    'the other plots are shown too': """
import numpy as np
from thinkml.training import ActiveHistory, ActiveQuery
from thinkml.training.tuning import LearningRateRange

query = ActiveQuery(np.arange(5), np.ones(5), 'trained', 15, {'val_accuracy': 0.7})
history = ActiveHistory(start=(10, {'val_accuracy': 0.5}), queries=[query])
rates = LearningRateRange(np.geomspace(1e-3, 1, 9), np.linspace(1, 0, 9), 0.1)
figures = [history.plot_learning_curve(), rates.plot()]
plt.show()
assert windows.shown == figures
""",
    'a report and a watched file are not shown': """
import pathlib, tempfile
from tests.evaluation.plot_reading import analyze
from thinkml.evaluation import ModelEvaluator

with tempfile.TemporaryDirectory() as folder:
    with monitor.watch(f'{folder}/watched.png'):
        report = ModelEvaluator().generate_report(analyze('binary').evaluation)
        report.save(f'{folder}/report.html')
    assert len(list(pathlib.Path(folder).iterdir())) == 2
assert not plt.get_fignums()
""",
}
RUN_EACH = f"""
import json, traceback
import pytest
{MONITOR}
SCRIPTS = json.loads(sys.stdin.read())
failures = {{}}
names = {{'sys': sys, 'pytest': pytest, 'monitor': monitor}}
for name, script in SCRIPTS.items():
    try:
        exec(script, dict(names))
    except BaseException:
        failures[name] = traceback.format_exc()
    import matplotlib.pyplot as plt, windows
    names |= {{'plt': plt, 'windows': windows}}
    plt.close('all')
    windows.shown.clear()
print(json.dumps(failures))
"""


@pytest.fixture(scope='module')
def failures(windows):
    done = run(RUN_EACH, windows, input=json.dumps(WITH_WINDOWS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize('what', WITH_WINDOWS)
def test_a_script_shows_figures_by_pyplot(failures, what):
    assert what not in failures, failures[what]


def test_plots_need_neither_a_display_nor_pyplot_and_are_let_go(environment):
    script = f"""
{MONITOR}
monitor.plot_progress()
assert 'matplotlib.pyplot' not in sys.modules
import matplotlib.pyplot as plt
plt.close('all')
monitor.plot_progress()._repr_png_()
plt.close('all')
{WITH_WINDOWS['many figures are let go']}
"""
    headless = {k: v for k, v in environment.items() if 'DISPLAY' not in k}
    for variables in ({}, {'MPLBACKEND': 'tkagg'}):
        done = run(script, headless, **variables)
        assert done.returncode == 0, done.stderr
