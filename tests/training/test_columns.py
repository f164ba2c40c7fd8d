"""Columns go by name at every door that opens data beside what a model knows."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from flax import nnx

from thinkml.errors import DataError
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import ArraySpec, InputSpec, record_of
from thinkml.models import ModelManager, predict
from thinkml.training import ActiveLearner, ModelTrainer, TrainingConfig, TransferLearner

X = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
STILL = TrainingConfig(optimizer='sgd', learning_rate=1e-30, epochs=1, batch_size=20)

FRAMES = {
    'pandas': lambda columns: pd.DataFrame(columns),
    'polars': lambda columns: pl.DataFrame(columns),
    'arrow table': lambda columns: pa.table(columns),
    'arrow batch': lambda columns: pa.RecordBatch.from_pydict(columns),
    'numbers': lambda columns: pd.DataFrame(columns).rename(columns={'a': 0, 'b': 1}),
    'other numbers': lambda columns: pd.DataFrame(columns).rename(columns={'a': 20, 'b': 10}),
    'pairs': lambda columns: pd.DataFrame(columns).rename(columns=lambda name: (name, 1)),
}


def frame(order='ab', kind='pandas', rows=slice(None)):
    """A frame whose columns are ``a`` and ``b`` of `X`, whatever their order and names."""
    return FRAMES[kind]({name: X[rows, 'ab'.index(name)] for name in order})


def reads_a(outputs=1):
    """A model that is right as long as its first column is ``a``."""
    model = nnx.Linear(2, outputs, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel.set_value(model.kernel.get_value().at[:].set([[1.0] * outputs, [0.0] * outputs]))
    return model


def train(model, *data, **settings):
    return ModelTrainer(STILL).train(model, *data, progress=False, **settings).last()


@pytest.fixture
def known():
    model = reads_a()
    assert train(model, frame(), Y)['accuracy'] == 1
    return model


def check_still_right(model, order='ba', kind='pandas'):
    assert record_of(model).input_spec.arrays.columns == ('a', 'b')
    np.testing.assert_array_equal(predict(model, frame(order, kind)), Y)
    np.testing.assert_array_equal(predict(model, X), Y)


@pytest.mark.parametrize('kind', FRAMES)
def test_a_model_that_is_trained_again_reads_columns_by_name(kind):
    model = reads_a()
    assert train(model, frame('ab', kind), Y)['accuracy'] == 1
    names = record_of(model).input_spec.arrays.columns
    assert len(names) == 2
    found = train(model, frame('ba', kind), Y, frame('ba', kind), Y)
    assert (found['accuracy'], found['val_accuracy']) == (1, 1)
    assert record_of(model).input_spec.arrays.columns == names
    for order in ('ab', 'ba'):
        np.testing.assert_array_equal(predict(model, frame(order, kind)), Y)
        assert ModelEvaluator().evaluate(model, frame(order, kind), Y)['accuracy'] == 1


@pytest.mark.parametrize('kind', ['pandas', 'polars', 'arrow table', 'arrow batch'])
def test_frames_of_all_libraries_are_the_same_to_a_model(known, kind):
    assert train(known, frame('ba', kind), Y)['accuracy'] == 1
    check_still_right(known, 'ba', kind)


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        (
            frame().rename(columns={'b': 'bb'}),
            r"got no column 'b' and the unknown 'bb'.* mean 'b'\?",
        ),
        (frame()[['a']], "got no column 'b', expected .*: a, b"),
        (frame()[['a', 'a']], "got no column 'b' and the repeated column 'a'"),
        (frame()[['a', 'b', 'b']], "got the repeated column 'b', expected"),
        (frame().assign(c=1.0), "got the unknown 'c', expected"),
        (frame('ba', 'numbers'), "got no column 'a', 'b' and the unknown '1', '0'"),
        (frame('ab', 'other numbers'), "got no column 'a', 'b' and the unknown '20', '10'"),
        (
            frame('ba', 'arrow table').rename_columns(['a', 'c']),
            "got no column 'b' and the unknown 'c'",
        ),
    ],
)
def test_other_columns_are_refused_at_every_door(known, wrong, says):
    for argument, call in (
        ('X_train', lambda: train(known, wrong, Y)),
        ('X_val', lambda: train(known, X, Y, wrong, Y)),
        ('X', lambda: predict(known, wrong)),
        ('X_test', lambda: ModelEvaluator().evaluate(known, wrong, Y)),
        ('X_train', lambda: TransferLearner(known).fine_tune(None, wrong, Y, progress=False)),
        ('X_unlabeled', lambda: ActiveLearner(known).start(wrong)),
        ('X_labeled', lambda: ActiveLearner(known).start(X, wrong, Y)),
        ('X, batch 1', lambda: predict(known, lambda: iter([wrong]))),
    ):
        with pytest.raises(DataError, match=f'^{argument}: {says}'):
            call()
    check_still_right(known)


def test_a_training_on_an_array_keeps_the_names(known):
    assert train(known, X, Y)['accuracy'] == 1
    check_still_right(known)
    # A frame that pandas had to name itself is an array.
    assert train(known, pd.DataFrame(X), Y)['accuracy'] == 1
    check_still_right(known)


def test_a_training_on_a_frame_names_what_an_array_did_not():
    for first in (X, pd.DataFrame(X)):
        model = reads_a()
        train(model, first, Y)
        train(model, frame(), Y)
        check_still_right(model)


def test_a_loaded_model_knows_its_columns(known, tmp_path):
    loaded = ModelManager().load_model(ModelManager().save_model(known, tmp_path / 'model'))
    assert train(loaded, frame('ba'), Y)['accuracy'] == 1
    check_still_right(loaded)


def test_names_that_come_twice_are_kept_as_they_are(tmp_path):
    doubled = frame().rename(columns={'b': 'a'})
    model = reads_a()
    train(model, doubled, Y)
    model = ModelManager().load_model(ModelManager().save_model(model, tmp_path / 'model'))
    np.testing.assert_array_equal(predict(model, doubled), Y)
    with pytest.raises(DataError, match=r"^X: got no column 'a' and the unknown 'b', expected"):
        predict(model, frame())


def test_frames_within_dicts_and_tuples_go_by_name():
    class Both(nnx.Module):
        def __init__(self, pick):
            self.pick, self.read = pick, reads_a()

        def __call__(self, x):
            return self.read(self.pick(x))

    for inputs, pick in (
        (lambda order: {'x': frame(order), 'z': X[:, 0]}, lambda x: x['x']),
        (lambda order: (X, frame(order, 'arrow table')), lambda x: x[1]),
    ):
        model = Both(pick)
        assert train(model, inputs('ab'), Y)['accuracy'] == 1
        assert train(model, inputs('ba'), Y)['accuracy'] == 1
        np.testing.assert_array_equal(predict(model, inputs('ba')), Y)


# --- batches ------------------------------------------------------------------------------------


def batches(*orders, kind='pandas', with_labels=True):
    """A source of frames whose columns come in different orders."""

    def source():
        for first, order in zip((0, 20), orders, strict=True):
            rows = slice(first, first + 20)
            part = frame(order, kind, rows)
            yield (part, Y[rows]) if with_labels else part

    return source


@pytest.mark.parametrize('kind', ['pandas', 'polars', 'arrow table', 'arrow batch'])
def test_batches_that_are_frames_go_by_name(kind):
    model = reads_a()
    source = batches('ab', 'ba', kind=kind)
    found = train(model, source, None, batches('ba', 'ab', kind=kind))
    assert (found['accuracy'], found['val_accuracy']) == (1, 1)
    check_still_right(model)
    assert train(model, batches('ba', 'ab', kind=kind))['accuracy'] == 1
    check_still_right(model)
    unlabelled = batches('ba', 'ab', kind=kind, with_labels=False)
    np.testing.assert_array_equal(predict(model, unlabelled), Y)
    assert ModelEvaluator().evaluate(model, batches('ba', 'ba', kind=kind))['accuracy'] == 1


def test_a_batch_of_other_columns_is_named():
    def source():
        for (part, labels), names in zip(batches('ab', 'ba')(), ({}, {'a': 'c'}), strict=True):
            yield part.rename(columns=names), labels

    with pytest.raises(
        DataError, match=r"^X_train, batch 2: got no column 'a' and the unknown 'c'"
    ):
        train(reads_a(), source)


def test_validation_batches_go_by_the_names_of_a_frame_and_the_other_way_round():
    model = reads_a()
    assert train(model, frame(), Y, batches('ba', 'ba'))['val_accuracy'] == 1
    assert train(reads_a(), batches('ab', 'ab'), None, frame('ba'), Y)['val_accuracy'] == 1
    # The names are known from before, where these batches have none.
    plain = lambda: iter([(X, Y)])  # noqa: E731
    assert train(model, plain, None, batches('ba', 'ab'))['val_accuracy'] == 1
    check_still_right(model)


class SeriesOfPandas:
    """A data set whose examples are rows of a frame."""

    def __init__(self, *orders):
        self.orders = orders

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return frame(self.orders[index % len(self.orders)]).iloc[index], Y[index]


def test_examples_that_are_rows_of_a_frame_go_by_name():
    model = reads_a()
    assert train(model, SeriesOfPandas('ab', 'ba'))['accuracy'] == 1
    assert train(model, SeriesOfPandas('ba'))['accuracy'] == 1
    check_still_right(model)
    examples = SeriesOfPandas('ba', 'ab')
    np.testing.assert_array_equal(predict(model, examples), Y)
    np.testing.assert_array_equal(predict(model, [examples[i][0] for i in range(4)]), Y[:4])
    with pytest.raises(DataError, match=r"^X: got no column 'b' and the unknown 'c'"):
        predict(model, [frame().rename(columns={'b': 'c'}).iloc[0]])
    with pytest.raises(DataError, match=r'^X: got examples that are not arrays of one shape'):
        predict(model, [frame().iloc[0], frame().assign(c=1.0).iloc[0]])


class FirstOfWindow(nnx.Module):
    """Reads the first column of the first row."""

    def __call__(self, x):
        return x[:, 0, :1]


class Windows:
    """A data set whose examples are frames."""

    def __init__(self, *orders):
        self.windows = windows(*orders)

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return self.windows[index], Y[index]


def windows(*orders, kind='pandas'):
    return [frame(orders[first % len(orders)], kind, [first, 0, 1]) for first in range(len(X))]


@pytest.mark.parametrize('kind', ['pandas', 'polars', 'arrow table'])
def test_examples_that_are_frames_go_by_name(kind):
    model = FirstOfWindow()
    assert train(model, windows('ab', 'ba', kind=kind), Y)['accuracy'] == 1
    mixed = windows('ba', 'ab', kind=kind)
    found = train(model, mixed, Y, mixed, Y)
    assert (found['accuracy'], found['val_accuracy']) == (1, 1)
    np.testing.assert_array_equal(predict(model, mixed), Y)
    assert ModelEvaluator().evaluate(model, mixed, Y)['accuracy'] == 1
    spec = record_of(model).input_spec
    assert str(spec) == '3 x 2 float32 (a, b)' and InputSpec.from_dict(spec.to_dict()) == spec


def test_frames_of_a_data_set_go_by_name_and_wrong_ones_are_refused():
    model = FirstOfWindow()
    assert train(model, Windows('ab', 'ba'))['accuracy'] == 1
    assert train(model, Windows('ba'))['accuracy'] == 1
    np.testing.assert_array_equal(predict(model, Windows('ba')), Y)
    np.testing.assert_array_equal(predict(model, lambda: iter([windows('ba')])), Y)
    with pytest.raises(DataError, match=r"^X: got no column 'a' and the unknown 'c'"):
        predict(model, [part.rename(columns={'a': 'c'}) for part in windows('ab')])
    with pytest.raises(DataError, match=r'^X: got frames of 2 to 3 rows as examples, expected'):
        predict(model, [frame().iloc[:3], frame().iloc[:2]])
    times = [part.assign(b=1.7e9 + part['b'].astype(float)) for part in windows('ab')]
    with pytest.raises(DataError, match=r"^X_train: got the column 'b' with values from 1"):
        train(FirstOfWindow(), times, Y)


def test_windows_of_a_series_go_by_place():
    for index in (pd.RangeIndex(43), pd.date_range('2020', periods=43), np.arange(43) * 3.0):
        series = pd.Series(np.arange(43.0) / 43, index)
        windows = [series.iloc[first : first + 2] for first in range(40)]
        model = reads_a()
        train(model, windows, Y)
        assert record_of(model).input_spec.arrays.columns is None
        expected = predict(model, np.stack(windows))
        np.testing.assert_array_equal(predict(model, windows), expected)
        np.testing.assert_array_equal(predict(model, windows[7:8]), expected[7:8])


def test_a_training_may_change_the_structure_of_inputs_without_names():
    class First(nnx.Module):
        def __call__(self, x):
            if isinstance(x, dict | tuple):
                x = x['x'] if isinstance(x, dict) else x[0]
            return x[:, :1]

    model, inputs = First(), (X, {'x': X, 'z': X}, (X, X), X)
    for data in inputs:
        assert train(model, data, Y)['accuracy'] == 1
        np.testing.assert_array_equal(predict(model, data), Y)
    # Names could not be compared, and the columns would go by place.
    train(model, frame(), Y)
    with pytest.raises(DataError, match=r'^X_train: got a dict of x, .*: columns a, b\.$'):
        train(model, {'x': frame('ba')}, Y)
    train(model := First(), {'x': X, 'z': X}, Y)
    with pytest.raises(DataError, match=r'^X_train: got a dict of y, z, expected x, z, which'):
        train(model, {'y': X, 'z': X}, Y)


# --- transfer and active learning ---------------------------------------------------------------


class Base(nnx.Module):
    """Features that are the columns, and a dense layer on them."""

    def __init__(self):
        self.features = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
        self.features.kernel.set_value(np.eye(2, dtype=np.float32))
        self.out = reads_a()

    def __call__(self, x):
        return self.out(self.features(x))


@pytest.mark.parametrize('source', ['frame', 'batches', 'saved'])
def test_what_is_put_onto_a_base_reads_the_columns_of_the_base(source, tmp_path):
    base = Base()
    train(base, frame(), Y)
    if source == 'saved':
        base = ModelManager().save_model(base, tmp_path / 'base')
    learner = TransferLearner(base, config=STILL)
    data = (batches('ba', 'ba'), None) if source == 'batches' else (frame('ba'), Y)
    model = learner.fine_tune(reads_a(), *data, frame('ba'), Y, role='head', progress=False)
    assert learner.get_metrics()['accuracy'] == learner.get_metrics()['val_accuracy'] == 1
    check_still_right(model)


def test_a_whole_model_that_is_fine_tuned_reads_its_own_columns():
    model, base = Base(), Base()
    train(model, frame(), Y)
    learner = TransferLearner(base, 'all', config=STILL)
    learner.fine_tune(model, frame('ba'), Y, role='model', progress=False)
    assert learner.get_metrics()['accuracy'] == 1
    check_still_right(model)


@pytest.mark.parametrize('pool', [frame('ba'), batches('ba', 'ab', with_labels=False), X])
def test_active_learning_reads_the_columns_of_the_model(known, pool):
    learner = ActiveLearner(known, config=STILL, query_size=5)
    history = learner.train(
        frame('ba', rows=slice(10)), Y[:10], pool, 1, oracle=lambda _, indices: Y[indices],
        X_val=frame('ba'), y_val=Y, progress=False,
    )  # fmt: skip
    assert history[-1].metrics['accuracy'] == history[-1].metrics['val_accuracy'] == 1
    check_still_right(known)


def test_an_active_learning_keeps_the_names_that_one_of_its_parts_has():
    config = TrainingConfig(optimizer='sgd', learning_rate=1e-30, epochs=1, early_stopping=True)
    for labeled, pool in ((X[:10], frame()), (frame(rows=slice(10)), X)):
        model = reads_a()
        learner = ActiveLearner(model, config=config, query_size=5)
        history = learner.train(
            labeled, Y[:10], pool, 1, y_unlabeled=Y, X_val=frame('ba'), y_val=Y, progress=False
        )
        assert history[-1].metrics['val_accuracy'] == 1
        check_still_right(model)


def test_an_ensemble_whose_models_read_other_columns_is_refused(known):
    other = reads_a()
    train(other, frame('ba'), Y)
    learner = ActiveLearner([known, other], config=STILL)
    with pytest.raises(
        DataError, match=r'^model: got models that were trained on 2 .*\(a, b\) and'
    ):
        learner.start(frame())


def test_the_description_of_numbered_columns_stays_short():
    assert str(InputSpec(ArraySpec((2,), 'float32', ('0', '1')))) == '2 float32'
    assert str(InputSpec(ArraySpec((2,), 'float32', ('1', '0')))) == '2 float32 (1, 0)'
