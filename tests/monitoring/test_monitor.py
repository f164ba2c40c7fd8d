import gc
import math
import subprocess
import sys
import weakref

import numpy as np
import pytest

from thinkml.errors import ConfigError, ModelTypeError, ThinkMLError, ThinkMLWarning
from thinkml.model_record import record_of
from thinkml.monitoring import History, TrainingMonitor


class Model:
    """The monitor reads the record of a model, never the model."""


def train(model: Model, epochs: int = 2, steps: int = 5) -> History:
    """Records the same values as a training loop."""
    history = History()
    record_of(model).runs.append(history)
    for epoch in range(1, epochs + 1):
        losses = 1 / (np.arange(steps) + epoch)
        history.add_steps(losses)
        history.add_epoch(
            {'loss': losses.mean(), 'accuracy': 1 - 0.5**epoch, 'val_loss': losses.mean() + 0.1}
        )
    return history


def test_either_order_of_calls_shows_the_same():
    model = Model()
    before, after = TrainingMonitor(), TrainingMonitor()
    before.track_progress(model, metrics=['loss', 'accuracy'], interval=100)
    history = train(model)
    after.track_progress(model, metrics=['loss', 'accuracy'], interval=100)
    expected = {'loss': history['loss'][-1], 'accuracy': history['accuracy'][-1]}
    assert before.get_current_metrics() == after.get_current_metrics() == expected
    assert all(type(value) is float for value in expected.values())


def test_without_names_everything_is_shown():
    model = Model()
    history = train(model)
    monitor = TrainingMonitor()
    monitor.track_progress(model)
    assert monitor.get_current_metrics() == history.last()


def test_a_training_is_seen_while_it_runs():
    model, monitor, history = Model(), TrainingMonitor(), History()
    monitor.track_progress(model, interval=2)
    record_of(model).runs.append(history)
    history.add_steps(np.array([3.0, 1.0, 0.5]))
    assert monitor.get_current_metrics() == {'loss': 0.75}
    history.add_epoch({'loss': 1.5, 'accuracy': 0.5})
    assert monitor.get_current_metrics() == {'loss': 1.5, 'accuracy': 0.5}
    history.add_steps(np.array([0.25]))
    assert monitor.get_current_metrics() == {'loss': 0.25, 'accuracy': 0.5}


def test_the_latest_run_with_data_counts():
    model, monitor = Model(), TrainingMonitor()
    train(model, epochs=1)
    second = train(model, epochs=3)
    record_of(model).runs.append(History())  # started, with nothing recorded yet
    monitor.track_progress(model)
    assert monitor.get_current_metrics() == second.last()


def test_a_run_in_its_first_epoch_does_not_hide_the_one_before():
    model, monitor, begun = Model(), TrainingMonitor(), History()
    first = train(model)
    begun.add_steps(np.array([2.0]))
    record_of(model).runs.append(begun)
    monitor.track_progress(model)
    assert monitor.get_current_metrics() == first.last()
    monitor.track_progress(model, interval=np.int64(5))
    assert monitor.get_current_metrics() == {'loss': 2.0}


@pytest.mark.parametrize('names', [None, ['accuracy', 'f1']])
def test_before_any_data_values_are_nan_and_a_warning_says_so(names):
    monitor = TrainingMonitor()
    model = Model()
    monitor.track_progress(model, metrics=names)
    with pytest.warns(ThinkMLWarning, match='nothing is recorded') as caught:
        current = monitor.get_current_metrics()
    assert caught[0].filename == __file__
    assert list(current) == (names or ['loss'])
    assert all(math.isnan(value) for value in current.values())


def test_unknown_names_warn_once_there_is_data():
    model, monitor = Model(), TrainingMonitor()
    monitor.track_progress(model, metrics=['acuracy'])
    train(model)
    with pytest.warns(ThinkMLWarning, match="'acuracy'.*Did you mean 'accuracy'") as caught:
        current = monitor.get_current_metrics()
    assert caught[0].filename == __file__
    assert math.isnan(current['acuracy'])
    with pytest.warns(ThinkMLWarning, match='accuracy, loss, val_loss'):
        monitor.plot_progress()
    with pytest.warns(ThinkMLWarning, match='acuracy'):
        monitor.track_progress(model, metrics=['acuracy'])


def test_tracking_twice_keeps_the_latest_choice():
    model, other, monitor = Model(), Model(), TrainingMonitor()
    train(model, epochs=1)
    expected = train(other, epochs=3).last()
    monitor.track_progress(model, metrics=['loss'])
    monitor.track_progress(model, metrics=['accuracy'])
    assert monitor.get_current_metrics() == {'accuracy': 0.5}
    monitor.track_progress(other)
    assert monitor.get_current_metrics() == expected


def test_a_class_a_linen_module_and_a_history_are_no_models():
    import flax.linen as nn

    for value, message in [
        (Model, 'got the class Model, expected an instance'),
        (nn.Dense(3), r'got the Linen module Dense.*from_linen\(module\)'),
        (History(), r'got thinkml\.history\.History, expected a flax\.nnx\.Module'),
        ((len, len), r'got a pair of functions.*from_functions'),
    ]:
        with pytest.raises(ModelTypeError, match=message):
            TrainingMonitor().track_progress(value)


def test_models_of_all_kinds_are_tracked():
    import flax.linen as nn
    from flax import nnx

    from thinkml.models import from_functions, from_linen

    models = [nnx.Linear(2, 1, rngs=nnx.Rngs(0)), from_linen(nn.Dense(1)), from_functions(len, len)]
    for model in models:
        monitor, history = TrainingMonitor(), train(model)
        monitor.track_progress(model)
        assert monitor.get_current_metrics() == history.last()


def test_a_monitor_does_not_keep_the_model_alive():
    model, monitor = Model(), TrainingMonitor()
    history = train(model)
    monitor.track_progress(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert monitor.get_current_metrics() == history.last()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'interval': 0}, 'interval: got 0, expected'),
        ({'interval': -5}, 'interval: got -5'),
        ({'interval': 1.5}, 'interval: got 1.5'),
        ({'interval': True}, 'interval: got True'),
        ({'metrics': 'loss'}, r"metrics: got the string 'loss', expected a list: \['loss'\]"),
        ({'metrics': 3}, 'metrics: got 3, expected a list of names'),
        ({'metrics': []}, r'metrics: got \[\]'),
        ({'metrics': ['loss', 3]}, r"metrics: got \['loss', 3\]"),
        ({'metrics': 'loss', 'interval': 0}, r'(?s)metrics: .*interval: '),
    ],
)
def test_impossible_settings_are_refused_all_at_once(arguments, message):
    model, monitor = Model(), TrainingMonitor()
    train(model)
    monitor.track_progress(model, metrics=['accuracy'])
    with pytest.raises(ConfigError, match=message):
        monitor.track_progress(model, **arguments)
    assert list(monitor.get_current_metrics()) == ['accuracy']  # the former choice stays


@pytest.mark.parametrize('value', [None, 3, 'model', [1]])
def test_what_is_no_model_is_refused(value):
    with pytest.raises(ModelTypeError, match=f'model: got {type(value).__name__}, expected'):
        TrainingMonitor().track_progress(value)


@pytest.mark.parametrize(
    'ask', [TrainingMonitor.get_current_metrics, TrainingMonitor.plot_progress]
)
def test_asking_before_tracking_says_what_to_call(ask):
    with pytest.raises(ThinkMLError, match=r'track_progress\(model\) first'):
        ask(TrainingMonitor())


@pytest.mark.parametrize(
    ('name', 'begins'), [('progress.png', b'\x89PNG'), ('deep/er/progress.svg', b'<?xml')]
)
def test_plots_are_saved_where_asked(tmp_path, name, begins):
    model, monitor = Model(), TrainingMonitor()
    train(model)
    monitor.track_progress(model)
    figure = monitor.plot_progress(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert len(figure.axes) == 2


def test_pyplot_and_jax_are_left_alone():
    code = (
        'import sys, thinkml.monitoring as m\n'
        'assert not {"matplotlib", "tqdm", "tensorboardX", "jax"} & set(sys.modules)\n'
        'monitor = m.TrainingMonitor()\n'
        'monitor.track_progress(type("Model", (), {})())\n'
        'monitor.plot_progress()\n'
        'assert "matplotlib.pyplot" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)
