"""Several validation sets: columns by name, one that is monitored, and names that are refused."""

import functools

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.models_with_heads import DictModel
from tests.training.test_sequences import TAGS, TOKENS, Reader
from tests.training.test_sequences import train as train_sequences
from thinkml.errors import ConfigError, DataError
from thinkml.evaluation.plots.learning_curves import learning_curve
from thinkml.history import split_name
from thinkml.monitoring import History, training_figure
from thinkml.training import (
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    ModelTrainer,
    Objective,
    ReduceLROnPlateau,
    TensorBoard,
    TrainingConfig,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(int)
SHIFTED = X + 1
SETS = {'in': (X[:30], Y[:30]), 'shifted': (SHIFTED[:30], Y[:30])}
SETTINGS = {'epochs': 3, 'batch_size': 16, 'learning_rate': 0.1}


def train(X_val, y_val=None, settings=None, model=None, X=X, y=Y, **more):
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0)) if model is None else model
    trainer = ModelTrainer(TrainingConfig(**SETTINGS | (settings or {})))
    return trainer.train(model, X, y, X_val, y_val, progress=False, **more)


@functools.cache
def alone(name):
    return train(*SETS[name])


def assert_columns(history, name, other):
    for metric in ('loss', 'accuracy'):
        np.testing.assert_array_equal(history[f'val_{name}_{metric}'], other[f'val_{metric}'])


def batches_of(name, size=8):
    def read():
        for first in range(0, 30, size):
            yield tuple(part[first : first + size] for part in SETS[name])

    return read


def as_frame(X, y):
    return pd.DataFrame(dict(zip('abcd', X.T, strict=True)) | {'label': y})


# --- values ---------------------------------------------------------------------------------------


def test_each_set_has_the_values_that_it_has_alone():
    history = train(SETS)
    assert list(history) == [
        'loss', 'accuracy', 'val_in_loss', 'val_in_accuracy', 'val_shifted_loss',
        'val_shifted_accuracy',
    ]  # fmt: skip
    for name in SETS:
        assert_columns(history, name, alone(name))
    np.testing.assert_array_equal(history.step_loss, alone('in').step_loss)


def test_sets_of_one_shape_share_one_program(count_compiles):
    train(SETS)
    one = {'only': SETS['in']}
    model = functools.partial(nnx.Linear, 4, 3, rngs=nnx.Rngs(0))  # three outputs: a new program
    labels = Y + (X[:, 0] > 1)
    counts = []
    for sets in (one, one | {'second': SETS['shifted'], 'third': SETS['in']}):
        counts.append(count_compiles(train, sets, model=model(), y=labels))
    assert counts[0] > 0 == counts[1]


@pytest.mark.parametrize('form', ['streamed', 'batches', 'frames', 'without labels of their own'])
def test_a_set_may_be_all_that_validation_data_may_be(form):
    if form == 'streamed':
        history = train(SETS, settings={'device_data_bytes': 100})
    elif form == 'batches':
        history = train(SETS | {'shifted': batches_of('shifted')})
    elif form == 'frames':
        frames = {name: as_frame(*data) for name, data in SETS.items()}
        history = train(frames, 'label', X=as_frame(X, Y), y='label')
    else:
        pairs = {name: (as_frame(*data), None) for name, data in SETS.items()}
        history = train(pairs, X=as_frame(X, Y), y=None)
    for name in SETS:
        for metric in ('loss', 'accuracy'):
            np.testing.assert_allclose(
                history[f'val_{name}_{metric}'], alone(name)[f'val_{metric}'], rtol=1e-5
            )


def test_weights_of_batches_count_as_in_one_set():
    weight = np.arange(10.0)

    def weighted():
        yield X[:10], Y[:10], weight

    assert_columns(train({'some': weighted}), 'some', train(weighted))


def test_heads_have_columns_for_each_set():
    targets = {'kind': np.arange(40) % 3, 'price': X[:, 0]}
    history = train(
        {'in': (X, targets), 'shifted': (SHIFTED, targets)},
        model=DictModel(), y=targets, settings={'epochs': 1},
    )  # fmt: skip
    expected = train(SHIFTED, targets, model=DictModel(), y=targets, settings={'epochs': 1})
    for name in ('loss', 'kind_loss', 'price_loss', 'kind_accuracy'):
        assert history[f'val_shifted_{name}'] == expected[f'val_{name}']
    with pytest.raises(ConfigError, match="named 'kind', expected another name: val_kind_loss"):
        train({'kind': (X, targets)}, model=DictModel(), y=targets)


def test_sets_of_inputs_by_name():
    class Sum(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

        def __call__(self, inputs):
            return self.layer(inputs['a'] + inputs['b'])

    def inputs(X):
        return {'a': X, 'b': np.zeros_like(X)}

    sets = {name: (inputs(X), y) for name, (X, y) in SETS.items()}
    history = train(sets, model=Sum(), X=inputs(X))
    assert_columns(history, 'shifted', train(*sets['shifted'], model=Sum(), X=inputs(X)))


def test_sets_without_labels():
    def reconstruction(model, batch, key):
        return jnp.mean((model(batch.x) - batch.x) ** 2, axis=1)

    def run(X_val):
        model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        return train(X_val, model=model, y=None, loss_fn=Objective(reconstruction))

    for sets in ({'in': X, 'shifted': SHIFTED}, {'in': (X, None), 'shifted': (SHIFTED, None)}):
        assert run(sets)['val_shifted_loss'] == run(SHIFTED)['val_loss']


def test_sets_of_sequences_have_the_length_of_the_training():
    _, history = train_sequences(
        Reader(), TOKENS, TAGS, X_val={'all': (TOKENS, TAGS), 'few': (TOKENS[:9], TAGS[:9])}
    )
    _, alone = train_sequences(Reader(), TOKENS, TAGS, X_val=TOKENS[:9], y_val=TAGS[:9])
    assert history['val_few_loss'] == alone['val_loss']


# --- the monitored set ----------------------------------------------------------------------------


def rising(*_):
    """Labels that a model unlearns."""
    return {'in': SETS['in'], 'wrong': (X[:30], 1 - Y[:30])}


def test_the_first_set_is_monitored_by_default_and_others_by_name():
    assert train(rising()).best_epoch == 3
    assert train(dict(reversed(rising().items()))).best_epoch == 1
    stopping = {'early_stopping': EarlyStopping(monitor='val_wrong_loss', patience=1)}
    history = train(rising(), settings=stopping)
    assert history.best_epoch == 1 and history.epochs == 2
    stopping = {'early_stopping': EarlyStopping(monitor='val_wrong_accuracy', patience=1)}
    assert train(rising(), settings=stopping | {'epochs': 9}).epochs < 9  # larger is better
    rate = ReduceLROnPlateau(monitor='val_wrong_loss', patience=1)
    events = train(rising(), settings={'callbacks': [rate]}).events
    assert 'learning rate lowered' in events[0][1]


def test_the_best_checkpoint_is_that_of_the_monitored_set(tmp_path):
    for monitor, best in [(None, 3), ('val_wrong_loss', 1)]:
        folder = tmp_path / str(monitor)
        train(rising(), settings={'callbacks': [Checkpoint(folder, keep=1, monitor=monitor)]})
        steps = sorted(int(path.name) for path in folder.glob('run-1/[0-9]*'))
        assert steps == sorted({3 * best, 9})


def test_a_monitor_without_the_name_of_a_set_is_refused_with_the_names():
    stopping = {'early_stopping': EarlyStopping(monitor='val_accuracy')}
    with pytest.raises(ConfigError, match="'val_in_accuracy' or 'val_shifted_accuracy'"):
        train(SETS, settings=stopping)


def test_the_description_says_which_set_is_monitored(capsys):
    trainer = ModelTrainer(TrainingConfig(**SETTINGS))
    trainer.train(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), X, Y, SETS)
    shown = capsys.readouterr().err
    assert 'for validation in (30), shifted (30); val_in_loss is monitored by default' in shown
    assert 'val_in_loss=' in shown and 'val_shifted_loss=' in shown  # in the progress bar


def test_a_resumed_run_is_the_same_run(tmp_path):
    stopping = EarlyStopping(monitor='val_shifted_loss', patience=9)
    settings = {'callbacks': ['checkpoint', stopping], 'epochs': 4}
    whole = train(SETS, settings=settings | {'checkpoint_dir': str(tmp_path / 'a')})
    part = settings | {'checkpoint_dir': str(tmp_path / 'b')}
    train(SETS, settings=part | {'max_steps': 5})
    assert train(SETS, settings=part, resume=True) == whole
    other = SETS | {'shifted': SETS['in']}
    with pytest.raises(ConfigError, match=r'validation\.shifted\.sha256: .*other values'):
        train(other, settings=part, resume=True)


def test_a_loss_that_is_not_finite_is_reported_by_its_set():
    broken = SHIFTED.copy()
    broken[:4] = 3.4e38 * np.sign(RNG.normal(size=(4, 4)))
    with pytest.warns(UserWarning, match=r"very large values in X_val\['shifted'\]"):
        train({'in': (X, Y), 'shifted': (broken, Y)}, settings={'epochs': 1})


# --- names and structures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('X_val', 'y_val', 'message'),
    [
        (SETS | {'b': X}, None, r"X_val: got a dict in which 'in' is .* and 'b' is a ndarray"),
        ({'my set': SETS['in']}, None, "X_val: got a validation set named 'my set'"),
        ({1: SETS['in']}, None, 'X_val: got a validation set named 1'),
        (SETS, Y, "y_val: got labels beside the validation sets 'in', 'shifted'"),
        ({'in': (X, Y, Y)}, None, r"X_val\['in'\]: got a tuple of 3, expected \(X, y\)"),
        (SETS | {'bad': (X, Y[:5])}, None, r"X_val\['bad'\] with 40.*X_val\['bad'\]\[1\] with 5"),
        (SETS | {'bad': (X[:, :3], Y)}, None, r"X_val\['bad'\]: got .*expected"),
        (SETS | {'bad': (X, Y + 5)}, None, r"X_val\['bad'\]\[1\]: got"),
        ({'in': X, 'shifted': X}, None, r'y_val: got None .* sets hold their labels: X_val='),
    ],
)
def test_what_is_not_validation_sets_is_refused_by_name(X_val, y_val, message, count_compiles):
    def refused():
        with pytest.raises(DataError, match=message):
            train(X_val, y_val)

    assert count_compiles(refused) == 0


def test_a_dict_like_the_training_inputs_is_one_set():
    X_train = {'a': X, 'label': Y}
    history = train({'a': SHIFTED, 'label': Y}, X=X_train, y=None)
    np.testing.assert_array_equal(history['val_loss'], train(SHIFTED, Y)['val_loss'])


def test_names_are_split_by_the_columns_that_there_are():
    single = ['loss', 'val_loss', 'kind_loss', 'val_kind_loss', 'accuracy']
    assert split_name('val_kind_loss', single) == ('', 'kind_loss')
    assert split_name('val_balanced_accuracy', single) == ('', 'balanced_accuracy')
    several = ['loss', 'log_loss', 'val_a_loss', 'val_a_log_loss', 'val_a_b_loss']
    assert split_name('val_a_log_loss', several) == ('a', 'log_loss')
    assert split_name('val_a_b_loss', several) == ('a_b', 'loss')
    beside_a_step = ['loss', 'hits', 'val_a_loss', 'val_a_f1', 'val_a_b_loss', 'val_a_b_f1']
    assert split_name('val_a_f1', beside_a_step) == ('a', 'f1')
    assert split_name('val_a_b_f1', beside_a_step) == ('a_b', 'f1')
    heads_beside_a_step = ['loss', 'val_loss', 'val_kind_loss', 'val_kind_accuracy']
    assert split_name('val_kind_loss', heads_beside_a_step) == ('', 'kind_loss')
    assert split_name('val_kind_accuracy', heads_beside_a_step) == ('', 'kind_accuracy')


# --- pictures and files ---------------------------------------------------------------------------


def history_of_sets():
    history = History()
    for loss in (0.7, 0.5):
        history.add_steps([loss])
        values = {'loss': loss, 'accuracy': 0.5, 'val_in_loss': loss + 0.1}
        history.add_epoch(values | {'val_shifted_loss': loss + 0.2, 'val_in_accuracy': loss})
    history.best_epoch = 2
    return history


def test_curves_of_one_metric_share_a_colour_and_differ_in_dashes():
    axes, _ = training_figure([history_of_sets()], metrics=['loss', 'accuracy']).axes
    lines = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == 2}
    lines.pop('best epoch')
    assert {name: line.get_linestyle() for name, line in lines.items()} == {
        'loss': '-', 'val_in_loss': '--', 'val_shifted_loss': ':'
    }  # fmt: skip
    assert len({line.get_color() for line in lines.values()}) == 1
    assert len(axes.collections) == 2  # a star on each curve of validation


def test_learning_curves_draw_each_set():
    history = train(SETS)
    figure = learning_curve([history])
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines['validation shifted'] == history['val_shifted_loss']
    assert lines['validation in'] == history['val_in_loss']


def test_files_have_a_curve_for_each_set(tmp_path):
    table = tmp_path / 'history.csv'
    loggers = [TensorBoard(tmp_path / 'logs'), CSVLogger(table)]
    history = train(SETS, settings={'callbacks': loggers})
    directory = tmp_path / 'logs' / 'run-1'
    names = {'train', 'validation_in', 'validation_shifted'}
    assert {path.name for path in directory.iterdir()} == names
    events = EventAccumulator(str(directory / 'validation_shifted'))
    events.Reload()
    values = [point.value for point in events.Scalars('loss')]
    np.testing.assert_allclose(values, history['val_shifted_loss'], rtol=1e-6)
    assert pd.read_csv(table)['val_in_accuracy'].tolist() == history['val_in_accuracy']


def test_a_plan_has_a_part_for_each_set():
    plan = ModelTrainer(TrainingConfig(**SETTINGS)).plan(
        nnx.Linear(4, 2, rngs=nnx.Rngs(0)), X, Y, SETS
    )
    names = [part.name for part in plan.parts]
    assert "X_val['in']" in names and "X_val['shifted']" in names
