"""Live plots, in a fake notebook and in files."""

import sys
import threading
import types

import numpy as np
import pytest

from tests.monitoring.test_monitor import Model, train
from thinkml.errors import ConfigError, ThinkMLError, ThinkMLWarning
from thinkml.history import History
from thinkml.model_record import record_of
from thinkml.monitoring import TrainingMonitor


class Display:
    """The output below a notebook cell: each figure, and those that replaced another."""

    def __init__(self):
        self.shown, self.updated = [], []
        self.drawn = threading.Condition()

    def display(self, figure, display_id):
        assert display_id is True
        self.shown.append(figure)
        return self

    def update(self, figure):
        with self.drawn:
            self.updated.append(figure)
            self.drawn.notify_all()

    def wait_for(self, pictures):
        with self.drawn:
            assert self.drawn.wait_for(lambda: len(self.updated) >= pictures, timeout=60)


@pytest.fixture
def notebook(monkeypatch):
    display = Display()
    ipython = types.ModuleType('IPython')
    ipython.version_info = (9, 0)  # matplotlib reads it
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    shown = types.ModuleType('IPython.display')
    shown.display = display.display
    monkeypatch.setitem(sys.modules, 'IPython', ipython)
    monkeypatch.setitem(sys.modules, 'IPython.display', shown)
    return display


def tracking(model, **options):
    monitor = TrainingMonitor()
    monitor.track_progress(model, **options)
    return monitor


def points(figure):
    return [len(line.get_xdata()) for line in figure.axes[0].lines if line.get_label() == 'loss']


def test_a_notebook_shows_one_picture_that_changes(notebook):
    model, history = Model(), History()
    record_of(model).runs.append(history)
    with tracking(model).watch(every_seconds=0.01):
        (figure,) = notebook.shown
        assert figure.axes[0].texts[0].get_text() == 'no data yet'
        for epoch in (1, 2, 3):
            history.add_epoch({'loss': 1 / epoch})
            notebook.wait_for(epoch)
            assert points(notebook.updated[-1]) == [epoch]
    assert len(notebook.shown) == 1 and len(notebook.updated) == 3


def test_nothing_new_is_not_drawn_again(notebook):
    model = Model()
    train(model)
    for interval in (None, 2):
        with tracking(model, interval=interval).watch(every_seconds=0.001) as watch:
            looked = threading.Event()
            look = watch._look
            watch._look = lambda look=look, looked=looked: (look(), looked.set())[0]
            assert looked.wait(60)
    assert len(notebook.shown) == 2 and not notebook.updated


def test_the_last_look_is_at_the_end(notebook):
    model = Model()
    history = train(model)
    watch = tracking(model).watch(every_seconds=1000)
    history.add_epoch({'loss': 0.5})
    history.events.append((3, 'early stopping: enough'))
    watch.stop()
    watch.stop()
    assert len(notebook.updated) == 1 and points(notebook.updated[0]) == [3]
    assert not watch._thread.is_alive() and repr(watch) == 'Watch(stopped)'


def test_watching_again_begins_anew_and_shows_the_choice_of_now(notebook):
    model, monitor = Model(), TrainingMonitor()
    train(model)
    monitor.track_progress(model)
    first = monitor.watch(every_seconds=1000)
    with monitor.watch(every_seconds=0.01):
        assert repr(first) == 'Watch(stopped)'
        monitor.track_progress(model, metrics=['loss'])
        notebook.wait_for(1)
    assert [len(figure.axes) for figure in notebook.shown] == [2, 2]
    assert len(notebook.updated[0].axes) == 1


def test_the_ending_of_the_file_is_checked(tmp_path):
    with pytest.raises(ConfigError, match=r'expected a file that ends in \.png'):
        tracking(Model(), interval=2).watch(tmp_path / 'progress')


@pytest.mark.parametrize('name', ['watched.png', 'deep/er/watched.svg'])
def test_a_file_is_drawn_anywhere(tmp_path, name):
    model, path = Model(), tmp_path / name
    history = train(model)
    with tracking(model, interval=2).watch(path, every_seconds=1000):
        before = path.read_bytes()
        history.add_steps(np.ones(2))
    assert path.read_bytes() != before
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no partial file


@pytest.mark.parametrize('shell', [None, types.SimpleNamespace()])
def test_outside_a_notebook_it_says_what_there_is(notebook, shell):
    sys.modules['IPython'].get_ipython = lambda: shell  # no shell, or that of a terminal
    model = Model()
    with pytest.warns(ThinkMLWarning, match=r"not a notebook.*watch\('progress.png'\)") as caught:
        watch = tracking(model).watch()
    assert caught[0].filename == __file__
    train(model)
    watch.stop()
    assert not notebook.shown and not notebook.updated


@pytest.mark.parametrize('seconds', [0, -1, 'often', None, float('nan')])
def test_impossible_times_are_refused(seconds):
    with pytest.raises(ConfigError, match='every_seconds: got'):
        tracking(Model()).watch('x.png', every_seconds=seconds)


def test_watching_needs_a_model():
    with pytest.raises(ThinkMLError, match=r'track_progress\(model\) first'):
        TrainingMonitor().watch()
