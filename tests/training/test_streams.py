"""Training on every kind of data: the same numbers, on the device or streamed to it."""

import contextlib
import functools
import re
import threading
from pathlib import Path

import grain
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import zarr
from flax import nnx

from tests.data.sources import BATCHES, COLUMNS, LABELLED, ROWS, Pairs, X, Y, generate, kinds
from tests.models_for_tests import DropoutBatchNorm, mlp
from thinkml.errors import ConfigError, DataError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.models import predict, predict_proba
from thinkml.training import Checkpoint, ModelTrainer, TrainingConfig

pytestmark = pytest.mark.compiled

TINY = 1  # bytes of the device: everything is streamed
LABELS = np.array(['ant', 'bee', 'cat'])[Y]


def train(model, *data, resume=False, loss_fn=None, metrics=None, **options):
    settings = {'epochs': 3, 'batch_size': 5, 'learning_rate': 0.01} | options
    arguments = {
        name: settings.pop(name)
        for name in ('sample_weight', 'class_weights', 'groups', 'augmentation')
        if name in settings
    }
    return ModelTrainer(TrainingConfig(**settings)).train(
        model, *data, resume=resume, loss_fn=loss_fn, metrics=metrics, progress=False, **arguments
    )


def arrays_of(model):
    return jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))


def outcome(*data, model=None, **options):
    """All that a training gives: parameters, losses and the history."""
    model = model or mlp(3, 3)
    history = train(model, *data, **options)
    return arrays_of(model), history.step_loss, dict(history)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, expected)


@pytest.fixture(scope='module')
def on_arrays():
    return outcome(X, Y)


@pytest.mark.parametrize('kind', kinds(ROWS))
@pytest.mark.parametrize('budget', [None, TINY], ids=['resident', 'streamed'])
def test_every_kind_of_rows_trains_to_the_same_bits(kind, budget, on_arrays, tmp_path):
    got = outcome(ROWS[kind](tmp_path), Y, device_data_bytes=budget)
    assert_same(got, on_arrays)


@pytest.mark.parametrize('kind', kinds(LABELLED))
def test_every_kind_that_holds_its_labels_does_so_too(kind, on_arrays):
    assert_same(outcome(LABELLED[kind]()), on_arrays)


@pytest.mark.parametrize('kind', kinds(BATCHES))
def test_every_kind_of_batches_trains_to_the_numbers_of_the_others(kind):
    expected = outcome(lambda: iter([(X[n : n + 5], Y[n : n + 5]) for n in range(0, 23, 5)]))
    epochs = 1 if kind == 'generator' else 3
    assert_same(
        outcome(BATCHES[kind](), epochs=epochs),
        outcome(generate(), epochs=1) if kind == 'generator' else expected,
    )


X_LONG = np.random.default_rng(1).normal(size=(131, 3)).astype(np.float32)
Y_LONG = (X_LONG[:, 0] > 0).astype(int) + (X_LONG[:, 1] > 0)
X_VAL, Y_VAL = X_LONG[::3] + 1, Y_LONG[::3]
OPTIONS = {
    'plain': {},
    'roc_auc': {'metrics': ['roc_auc', 'f1']},
    'accumulated': {'accumulate_steps': 3},
    'weights': {'sample_weight': np.linspace(0, 2, 131), 'class_weights': 'balanced'},
    'split': {'validation_split': 0.3, 'metrics': ['roc_auc']},
    'split by time': {'validation_split': ('last', 0.2), 'sample_weight': np.linspace(1, 2, 131)},
    'groups': {'validation_split': 0.3, 'groups': np.arange(131) // 4},
    'limited': {'limit_train_batches': 2},
    'a share': {'limit_train_batches': 0.5, 'metrics': ['roc_auc']},
    'one batch': {'batch_size': 1000},
    'one row': {'batch_size': 1, 'limit_train_batches': 40},
    'augmented': {'augmentation': 'mixup'},
    'ema': {'ema_decay': 0.9, 'lr_schedule': 'warmup_cosine', 'gradient_clip_norm': 1.0},
    'max_steps': {'max_steps': 7, 'epochs': 9},
}


# Data of another shape is another program, which XLA may round another way.
ROUNDS_ANOTHER_WAY = ('augmented',) if jax.__version_info__ >= (0, 11) else ()


@pytest.mark.parametrize('name', OPTIONS)
def test_streaming_changes_no_bit(name):
    options = OPTIONS[name]

    def run(budget):
        model = DropoutBatchNorm(3, 3, nnx.Rngs(0))
        settings = {'batch_size': 16, 'device_data_bytes': budget}
        return outcome(X_LONG, Y_LONG, model=model, **(settings | options))

    expected = run(None)
    for budget in (TINY, 20 * 16 * 24):
        if name in ROUNDS_ANOTHER_WAY:
            # The losses alone: Adam makes as much of a rounding error as of any gradient.
            np.testing.assert_allclose(run(budget)[1], expected[1], rtol=1e-5)
        else:
            assert_same(run(budget), expected)


def test_validation_data_may_be_streamed_as_well():
    runs = [
        outcome(X_LONG, Y_LONG, X_VAL, Y_VAL, metrics=['roc_auc'], device_data_bytes=budget)
        # all, training data alone, nothing
        for budget in (None, 144 * 24, TINY)
    ]
    for other in runs[1:]:
        assert_same(other[:2], runs[0][:2])
        for name, values in runs[0][2].items():
            np.testing.assert_allclose(other[2][name], values, rtol=1e-6)


def chunks(x, y, size=8, weight=None):
    def batches():
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            yield (x[rows], y[rows]) if weight is None else (x[rows], y[rows], weight[rows])

    return batches


class Loader:
    """A loader as people write them: a length, an order of its own for each epoch."""

    def __init__(self, size=8):
        self.size, self.epoch, self.epochs = size, 0, []

    def __len__(self):
        return -(-len(X_LONG) // self.size)

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.epochs.append(epoch)

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(len(X_LONG))
        for first in range(0, len(order), self.size):
            rows = order[first : first + self.size]
            yield X_LONG[rows], Y_LONG[rows]


def test_weights_of_batches_and_of_classes_multiply():
    weight, table = np.linspace(0.1, 2, 131), {0: 1.0, 1: 3.0}
    times = weight * np.where(Y_LONG == 1, 3.0, 1.0)
    assert_close(
        outcome(chunks(X_LONG, Y_LONG, weight=weight), class_weights=table),
        outcome(chunks(X_LONG, Y_LONG, weight=times)),
    )


def test_accumulated_batches_are_larger_batches():
    assert_close(
        outcome(chunks(X_LONG, Y_LONG), accumulate_steps=2, metrics=['f1']),
        outcome(chunks(X_LONG, Y_LONG, 16), metrics=['f1']),
    )


def test_validation_by_batches_is_validation_by_rows():
    rows = outcome(X_LONG, Y_LONG, X_VAL, Y_VAL, metrics=['f1'])
    for val in (chunks(X_VAL, Y_VAL, 7), chunks(X_VAL, Y_VAL, 100)):
        got = outcome(X_LONG, Y_LONG, val, metrics=['f1'])
        assert_same(got[:2], rows[:2])
        for name, values in rows[2].items():
            np.testing.assert_allclose(got[2][name], values, rtol=1e-6)
    growing = [(X_VAL[:3], Y_VAL[:3]), (X_VAL[3:], Y_VAL[3:])]
    got = outcome(X_LONG, Y_LONG, growing.__iter__, metrics=['f1'])
    np.testing.assert_allclose(got[2]['val_f1'], rows[2]['val_f1'], rtol=1e-6)


def test_fast_dev_run_evaluates_one_batch_of_batches():
    read = []

    def val():
        for first in range(0, 40, 8):
            read.append(first)
            yield X_VAL[first : first + 8], Y_VAL[first : first + 8]

    train(mlp(3, 3), X_LONG, Y_LONG, val, fast_dev_run=True)
    assert read[0] == 0 and len(read) <= 2


def test_text_labels_dicts_and_tuples_in_batches():
    text = outcome(chunks(X, LABELS))
    assert_same(text, outcome(chunks(X, Y)))
    dicts = [{'x': X[n : n + 8], 'label': LABELS[n : n + 8]} for n in range(0, 23, 8)]
    assert_same(outcome(dicts.__iter__), text)
    named = [{'x': X[n : n + 8], 'kind': LABELS[n : n + 8]} for n in range(0, 23, 8)]
    assert_same(outcome(named.__iter__, 'kind'), text)


class TwoTowers(nnx.Module):
    def __init__(self, rngs, names=('user', 'item')):
        self.user, self.item = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(2, 4, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)
        self.names = names

    def __call__(self, x):
        user, item = (x[name] for name in self.names)
        return self.out(jnp.concatenate([self.user(user), self.item(item)], axis=-1))


def test_several_inputs_as_dict_tuple_and_batches(tmp_path):
    item = X[:, :2] * 2
    inputs = {'user': X, 'item': item}
    model = TwoTowers(nnx.Rngs(0))
    expected = outcome(inputs, Y, model=model)
    stored = np.lib.format.open_memmap(tmp_path / 'item.npy', 'w+', np.float32, item.shape)
    stored[:] = item
    for given in (
        ({'item': item, 'user': X}, Y),
        ({'user': pd.DataFrame(X, columns=COLUMNS), 'item': stored}, Y),
        (inputs | {'label': Y},),
    ):
        for budget in (None, TINY):
            got = outcome(*given, model=TwoTowers(nnx.Rngs(0)), device_data_bytes=budget)
            assert_same(got, expected)
    pair = outcome((X, item), Y, model=TwoTowers(nnx.Rngs(0), names=(0, 1)), device_data_bytes=TINY)
    assert_same(pair[:2], expected[:2])
    batches = [({k: v[n : n + 5] for k, v in inputs.items()}, Y[n : n + 5]) for n in (0, 5, 10)]
    other = TwoTowers(nnx.Rngs(0))
    train(other, batches.__iter__, None, {k: v[15:] for k, v in inputs.items()}, Y[15:])
    assert predict(other, {'item': item, 'user': X}).shape == (23,)
    with pytest.raises(DataError, match='X: got a dict of usr, item, expected user, item'):
        predict(model, {'usr': X, 'item': item})


@pytest.mark.parametrize('library', [pd, pl])
def test_a_frame_is_used_as_people_use_it(library):
    frame = library.DataFrame({name: X[:, i] for i, name in enumerate(COLUMNS)} | {'kind': LABELS})
    model = mlp(3, 3)
    expected = outcome(X, LABELS, X, LABELS)
    assert_same(outcome(frame, 'kind', frame, model=model), expected)
    assert_same(outcome(frame[COLUMNS], frame['kind'], frame[COLUMNS], frame['kind']), expected)
    reordered = frame[['c', 'a', 'b']]
    np.testing.assert_array_equal(predict(model, reordered), predict(model, X))
    evaluation = ModelEvaluator().evaluate(model, reordered, frame['kind'])
    assert evaluation['accuracy'] == pytest.approx((predict(model, X) == LABELS).mean())
    with pytest.raises(DataError, match=r'X: got .*kind'):
        predict(model, frame)
    numbers = library.DataFrame({'a': X[:, 0], 'b': X[:, 1], 'kind': Y})
    with pytest.warns(ThinkMLWarning, match="X_train: got the column 'kind', which is also y_tr"):
        train(mlp(3, 3), numbers, numbers['kind'])


@pytest.mark.parametrize('kind', kinds(ROWS))
def test_predictions_of_every_kind_are_those_of_the_array(kind, tmp_path):
    model = mlp(3, 3)
    train(model, X, LABELS)
    given = ROWS[kind](tmp_path)
    np.testing.assert_allclose(predict_proba(model, given), predict_proba(model, X), rtol=1e-6)
    assert ModelEvaluator().evaluate(model, given, LABELS)['accuracy'] == pytest.approx(
        (predict(model, X) == LABELS).mean()
    )


# --- going on -----------------------------------------------------------------------------------


def grain_pipeline(read=None):
    source = grain.MapDataset.source(Pairs(X_LONG, Y_LONG)).seed(3).shuffle()
    if read is not None:
        source = source.map(lambda pair: read.append(1) or pair)
    return source.to_iter_dataset(grain.ReadOptions(num_threads=0)).batch(8)


def memmap_of(path):
    np.save(path / 'x.npy', X_LONG)
    return np.load(path / 'x.npy', mmap_mode='r')


def hdf5_of(path):
    with h5py.File(path / 'x.h5', 'w') as file:
        file['x'] = X_LONG
    return h5py.File(path / 'x.h5')['x']


class WithState:
    """A loader whose iterator says where it is."""

    def __iter__(self):
        return Rest()


class Rest:
    def __init__(self):
        self.first = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.first >= len(X_LONG):
            raise StopIteration
        rows = slice(self.first, self.first + 8)
        self.first += 8
        return X_LONG[rows], Y_LONG[rows]

    def get_state(self):
        return {'first': self.first}

    def set_state(self, state):
        self.first = state['first']


SOURCES = {
    'grain': lambda path: (grain_pipeline(),),
    'loader': lambda path: (Loader(),),
    'with state': lambda path: (WithState(),),
    'memmap': lambda path: (memmap_of(path), Y_LONG),
    'hdf5': lambda path: (hdf5_of(path), Y_LONG),
}


@pytest.mark.parametrize('kind', SOURCES)
@pytest.mark.parametrize('stop', [pytest.param(2, marks=pytest.mark.slow), 20])
def test_a_run_goes_on_in_the_middle_of_an_epoch(kind, stop, tmp_path):
    def run(directory, **options):
        model = DropoutBatchNorm(3, 3, nnx.Rngs(0))
        callbacks = [Checkpoint(tmp_path / directory, every_epochs=9)]  # at the end, wherever it is
        settings = {'device_data_bytes': TINY, 'batch_size': 8, 'epochs': 2}
        options = settings | {'callbacks': callbacks, 'metrics': ['f1']} | options
        return outcome(*SOURCES[kind](tmp_path), model=model, **options)

    expected = run('whole')
    run('halves', max_steps=stop)
    assert_same(run('halves', resume=True), expected)


def test_grain_goes_on_without_reading_what_was_done(tmp_path):
    callbacks = [Checkpoint(tmp_path, every_steps=2)]
    train(mlp(3, 3), grain_pipeline(), epochs=1, max_steps=14, callbacks=callbacks)
    read = []
    train(mlp(3, 3), grain_pipeline(read), epochs=1, callbacks=callbacks, resume=True)
    # The first batch tells what a batch is like; then come the rows that are left.
    assert len(read) <= 2 * 8 + 131 - 14 * 8


def test_each_epoch_is_told_to_the_loader():
    loader = Loader()
    train(mlp(3, 3), loader, epochs=3)
    assert loader.epochs == [0, 1, 2]


def test_a_loader_that_shuffles_as_it_likes_goes_on_too(tmp_path):
    class Shuffled(Loader):
        def set_epoch(self, epoch):
            self.epoch = np.random.default_rng().integers(2**32)

    callbacks = [Checkpoint(tmp_path)]
    train(mlp(3, 3), Shuffled(), epochs=1, callbacks=callbacks)
    history = train(mlp(3, 3), Shuffled(), epochs=2, callbacks=callbacks, resume=True)
    assert history.epochs == 2


# --- what goes wrong ----------------------------------------------------------------------------


def untouched(model, before):
    assert_same(arrays_of(model), before)


WITHOUT_A_STEP = {
    'an iterator for epochs': ((generate(),), {}, r"X_train: got an iterator, .* epochs=3\. Pass"),
    'an iterator for auto': (
        (generate(),),
        {'epochs': 1, 'learning_rate': 'auto'},
        "X_train: got an iterator, .* learning_rate='auto', which reads",
    ),
    'an iterator to validate': ((X, Y, generate()), {}, 'X_val: got an iterator, .* epochs=3'),
    'labels beside batches': ((generate, Y), {}, 'y_train: got a ndarray beside batches'),
    'a loader in the place of labels': ((generate, generate), {}, r'y_train: .* X_val=\.\.\.'),
    'labels beside X_val': ((X, Y, generate, Y), {}, 'y_val: got a ndarray beside batches'),
    'weights': ((generate,), {'sample_weight': np.ones(23)}, 'sample_weight: got one beside'),
    'balanced': ((generate,), {'class_weights': 'balanced'}, "class_weights: got 'balanced'"),
    'unknown labels in X_val': (
        (X, Y, chunks(X, Y + 7)), {}, r'X_val, batch 1: got labels the model was not trained on',
    ),
    'shapes': ((X, Y, chunks(X[:, :2], Y)), {}, r'X_val, batch 1: got rows of shape \(2,\)'),
    'a frame without a column': (
        (pd.DataFrame(X, columns=COLUMNS), Y, pd.DataFrame(X[:, :2], columns=COLUMNS[:2]), Y),
        {}, "X_val: got no column 'c'",
    ),
    'X_val alone': ((X, Y, X), {}, 'y_val: got None together with X_val'),
    'a model of other inputs': ((X[:, :2], Y), {}, r'X_train: '),
    'floats for integers': (
        (np.arange(69).reshape(23, 3), Y, X, Y), {}, 'X_val: got float32, expected int32'
    ),
}  # fmt: skip


@pytest.mark.parametrize(('data', 'options', 'says'), WITHOUT_A_STEP.values(), ids=WITHOUT_A_STEP)
def test_what_can_be_known_before_is_said_before(data, options, says, count_compiles):
    model = mlp(3, 3)
    before = arrays_of(model)

    def run():
        with pytest.raises(DataError, match=says):
            train(model, *data, **options)

    assert count_compiles(run) == 0
    untouched(model, before)


@pytest.mark.parametrize(
    ('options', 'says'),
    [
        (
            {'lr_schedule': 'cosine'},
            "lr_schedule: got 'cosine' for batches whose number is unknown",
        ),
        ({'limit_train_batches': 0.5}, r'limit_train_batches: got the fraction 0.5 of batches'),
        ({'validation_split': 0.2}, 'validation_split: got 0.2 for batches'),
        ({'metrics': ['roc_auc']}, "'roc_auc'"),
    ],
)
def test_what_needs_a_length_says_so(options, says):
    with pytest.raises(ConfigError, match=says):
        train(mlp(3, 3), generate, **options)


def test_a_length_is_all_that_is_missing():
    options = {'lr_schedule': 'cosine', 'limit_train_batches': 0.5, 'metrics': ['roc_auc']}
    history = train(mlp(3, 3), Loader(), **options)
    assert len(history.step_loss) == 3 * 8 and np.isfinite(history['roc_auc']).all()
    history = train(mlp(3, 3), Loader(), accumulate_steps=2, **options)
    assert len(history.step_loss) == 3 * 4


def endless():
    rng = np.random.default_rng(0)
    while True:
        rows = rng.integers(0, 131, 8)
        yield X_LONG[rows], Y_LONG[rows]


def test_a_source_without_an_end():
    history = train(mlp(3, 3), endless, limit_train_batches=5)
    assert len(history.step_loss) == 15 and history.epochs == 3
    for source in (endless, endless()):
        history = train(mlp(3, 3), source, max_steps=11, lr_schedule='cosine')
        assert len(history.step_loss) == 11


def arrays_after(parts):
    return outcome(parts.__iter__, epochs=1)[0]


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        (
            (X_LONG[:8], Y_LONG[:8] + 5),
            'X_train, batch 10: got labels the model was not trained on',
        ),
        ((X_LONG[:8] * np.nan, Y_LONG[:8]), 'X_train, batch 10: got 24 NaN'),
        ((X_LONG[:9], Y_LONG[:9]), 'X_train: got 9 examples in batch 10 after 8 in the first'),
        ((X_LONG[:8, :2], Y_LONG[:8]), r'X_train, batch 10: got rows of shape \(2,\)'),
        ((X_LONG[:8], Y_LONG[:7]), r'X_train, batch 10: got inputs of 8 rows with labels of'),
        (KeyError('lost'), 'lost'),
    ],
)
def test_a_wrong_batch_ends_the_training_and_what_was_learned_stays(wrong, says):
    parts = [(X_LONG[n : n + 8], Y_LONG[n : n + 8]) for n in range(0, 72, 8)]

    def source():
        yield from parts
        if isinstance(wrong, Exception):
            raise wrong
        yield wrong

    # Blocks are of one step, and one is read ahead to know which is the last.
    expected = arrays_after(parts[:8])
    model = mlp(3, 3)
    kind = type(wrong) if isinstance(wrong, Exception) else DataError
    with pytest.raises(kind, match=says):
        train(model, source, epochs=1, device_data_bytes=TINY)
    untouched(model, expected)
    assert not [t for t in threading.enumerate() if 'prefetch' in t.name]


@pytest.mark.parametrize('how', ['stop', ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('data', [(endless,), (X_LONG, Y_LONG)], ids=['batches', 'rows'])
def test_a_training_that_ends_early_leaves_no_thread(how, data):
    class Ends:
        def on_chunk_end(self, run):
            if run.step >= 3:
                if how == 'stop':
                    run.stop('enough')
                else:
                    raise how

    with pytest.raises(ValueError) if how is ValueError else contextlib.nullcontext():
        train(mlp(3, 3), *data, device_data_bytes=TINY, callbacks=[Ends()], epochs=99)
    assert not [t for t in threading.enumerate() if 'prefetch' in t.name]


DATA_GUIDES = Path(__file__).parents[2] / 'docs/guides/data'


@pytest.mark.parametrize(
    'page', ['data-sources', 'multiple-inputs', 'dataframes', 'streaming', 'batch-sources']
)
def test_the_guides_to_data_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    text = (DATA_GUIDES / f'{page}.md').read_text()
    for code in re.findall(r'```python\n(.*?)```', text, re.DOTALL):
        exec(code, names)
    if page == 'dataframes':
        reordered = names['frame'][['weight', 'width', 'height']]
        assert set(predict(names['model'], reordered)) == {'tall', 'wide'}


# --- what it takes ------------------------------------------------------------------------------


class BytesHeld:
    """The most bytes that inputs of 999 columns take on the device."""

    def __init__(self):
        self.most = 0

    def on_chunk_end(self, run):
        held = sum(a.nbytes for a in jax.live_arrays() if a.shape[1:] == (999,))
        self.most = max(self.most, held)


@pytest.mark.parametrize('split', [0.0, 0.5])
def test_resident_data_is_on_the_device_once(split):
    wide, y = np.zeros((260, 999), np.float64), np.arange(260) % 3
    held = BytesHeld()
    train(mlp(999, 3), wide, y, validation_split=split, callbacks=[held], epochs=2)
    assert held.most == wide.nbytes / 2  # in float32


def test_streamed_data_stays_within_its_budget():
    wide, y = np.zeros((400, 999), np.float32), np.arange(400) % 3
    held = BytesHeld()
    budget = wide.nbytes // 4
    train(mlp(999, 3), wide, y, callbacks=[held], device_data_bytes=budget, epochs=2)
    assert budget / 4 < held.most <= budget


def test_sparse_and_zarr_rows_are_streamed_alike(tmp_path):
    sparse = scipy.sparse.random_array((200, 40), density=0.1, rng=0, format='csr', dtype='f4')
    y = np.asarray(sparse.sum(axis=1)).ravel() > 1.5
    stored = zarr.create_array(tmp_path / 'x.zarr', shape=(200, 40), chunks=(7, 40), dtype='f4')
    stored[:] = sparse.toarray()
    runs = [
        outcome(x, y, model=mlp(40, 2), device_data_bytes=budget, validation_split=0.2)
        for x in (sparse, stored)
        for budget in (None, TINY)
    ]
    for other in runs[1:]:
        assert_same(other, runs[0])


def test_a_source_may_fill_the_same_arrays_again():
    def again(copy):
        inputs, labels = np.empty((5, 3), np.float32), np.empty(5, int)
        for first in range(0, 20, 5):
            inputs[:], labels[:] = X[first : first + 5], Y[first : first + 5]
            yield (inputs.copy(), labels.copy()) if copy else (inputs, labels)

    def everything(copy):
        model = mlp(3, 3)
        source = functools.partial(again, copy)
        found = outcome(source, None, source, model=model)
        evaluation = ModelEvaluator().evaluate(model, source, metrics=['accuracy'])
        return *found, predict_proba(model, source), evaluation.labels, evaluation.metrics

    assert_same(everything(copy=False), everything(copy=True))
