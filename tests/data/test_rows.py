import datasets
import h5py
import jax
import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse

from tests.data.sources import (
    COLUMNS,
    IN_MEMORY,
    LABELLED,
    ROWS,
    STORED,
    Pairs,
    X,
    Y,
    kinds,
    needs_torch,
    torch_tensor,
)
from thinkml.data import check_inputs, fingerprint, open_data, open_dataset, open_rows
from thinkml.errors import DataError
from thinkml.model_record import ArraySpec, InputSpec

SELECTIONS = [
    np.arange(23),
    np.arange(4, 9),
    np.array([22]),
    np.array([7, 0, 7, 22, 3]),
    np.array([], int),
    np.repeat([20, 1], 5),
    np.random.default_rng(1).permutation(23)[:10],
]


@pytest.mark.parametrize('kind', kinds(ROWS))
def test_every_kind_gives_the_rows_that_numpy_gives(kind, tmp_path):
    rows = open_rows(ROWS[kind](tmp_path))
    assert rows.in_memory == (kind in IN_MEMORY)
    assert (len(rows), rows.num_bytes) == (23, X.nbytes)
    assert rows.spec == jax.ShapeDtypeStruct((23, 3), np.float32)
    np.testing.assert_array_equal(rows.all(), X)
    for selection in SELECTIONS:
        taken = rows.take(selection)
        assert taken.dtype == np.float32
        np.testing.assert_array_equal(taken, X[selection])
    for wrong in ([23], [-1]):
        with pytest.raises(IndexError, match='of 23'):
            rows.take(np.array(wrong))


@pytest.mark.parametrize('kind', kinds(ROWS))
def test_the_same_values_have_the_same_fingerprint(kind, tmp_path):
    rows = open_rows(ROWS[kind](tmp_path))
    assert fingerprint(rows, Y)['sha256'] == fingerprint(X, Y)['sha256']
    assert fingerprint(rows, Y)['sha256'] != fingerprint(X, Y, np.ones(23))['sha256']


def test_several_inputs_keep_their_structure(tmp_path):
    parts = {'array': X, 'stored': STORED['hdf5'](tmp_path), 'number': np.arange(23)}
    rows = open_rows(parts)
    assert not rows.in_memory and rows.num_bytes == 2 * X.nbytes + 4 * 23
    taken = rows.take(np.array([5, 2]))
    assert list(taken) == list(parts)
    jax.tree.map(np.testing.assert_array_equal, taken, jax.tree.map(
        lambda part: part[[5, 2]], parts | {'stored': X}
    ))  # fmt: skip
    assert str(rows.inputs) == 'array: 3 float32, stored: 3 float32, number: int32'
    pair = check_inputs((X, pd.DataFrame(X[:, :2], columns=['a', 'b'])))
    assert isinstance(pair, tuple) and [part.shape for part in pair] == [(23, 3), (23, 2)]
    nested = check_inputs({'both': (X, X), 'one': X})
    assert nested['both'][1].shape == (23, 3)


def test_a_list_or_a_tuple_of_no_arrays_is_rows():
    assert check_inputs([X[0], X[1]]).shape == (2, 3)
    assert check_inputs(((1, 2), (3, 4), (5, 6))).shape == (3, 2)


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        ({'image': X, 'age': np.full(23, np.nan)}, r"X_train\['age'\]: got 23 NaN"),
        ({'image': X, 'age': X[:5, 0]}, r"\['image'\] with 23 rows, X_train\['age'\] with 5"),
        ((X, np.array(['a'] * 23)), r'X_train\[1\]: .*Encode text'),
        ({1: X}, r'X_train: got a dict with the keys \[1\], expected text'),
        ({}, 'X_train: got a dict, which can not be read as rows'),
        (pl.LazyFrame({'a': [1.0]}), r'X_train: got a LazyFrame, .* its collect\(\)'),
        ({'train': Pairs()}, r"X_train: got a dict of the data sets train, .*: X_train\['train'\]"),
        (scipy.sparse.csr_matrix((0, 3)), r'X_train: got a sparse array of shape \(0, 3\)'),
        (scipy.sparse.csr_matrix(X.astype(complex)), 'X_train: got dtype complex'),
        (pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']}), r'X_train: got columns .* numeric: b \('),
        (pl.DataFrame({'a': [1, 2], 'b': ['x', 'y']}), r'X_train: got columns .* numeric: b \(S'),
        (
            pd.DataFrame({'a': [1, 2], 'b': [7, '?']}),
            r"numeric: b \(object: int \(7 at row 0\), str \('\?' at row 1\)\)",
        ),
        (pd.DataFrame({'t': pd.date_range('2026', periods=2)}), r't \(datetime64.*days since a'),
        (pd.DataFrame({'a': pd.array([1, None], 'Int64')}), r'X_train: got 1 NaN .* \(1, 0\)'),
        (pl.DataFrame({'a': [1.0, None], 'b': [True, False]}), r'X_train: got 1 NaN .* \(1, 0\)'),
        (pa.table({'a': [1, None], 'b': [True, False]}), r'X_train: got 1 NaN .* \(1, 0\)'),
        (pa.table({'a': [1, 2], 'b': ['x', 'y']}), r'X_train: got columns .* numeric: b \(string'),
    ],
)  # fmt: skip
def test_what_can_not_be_inputs_is_named(given, says):
    with pytest.raises(DataError, match=says):
        check_inputs(given)


@needs_torch
def test_a_tensor_that_can_not_be_an_array_is_named():
    tensor = torch_tensor().requires_grad_()
    with pytest.raises(DataError, match=r'X_train: got a Tensor that is not an array .*detach'):
        check_inputs(tensor.clone())


def test_columns_of_mixed_kinds():
    mixed = {'a': [1, 2], 'b': [0.5, 1.5], 'c': [True, False]}
    expected = [[1, 0.5, 1], [2, 1.5, 0]]
    for frame in (
        pd.DataFrame(mixed),
        pl.DataFrame(mixed),
        pd.DataFrame(mixed).convert_dtypes(),
        pa.table(mixed),
        nw.from_native(pl.DataFrame(mixed)),
    ):
        checked = check_inputs(frame)
        assert checked.dtype == np.float32
        np.testing.assert_array_equal(checked, expected)
    assert check_inputs(pd.DataFrame({'a': np.uint8([1]), 'b': np.uint8([2])})).dtype == np.uint8


@pytest.mark.parametrize('kind', ['memmap', 'hdf5', 'csr', 'pairs'])
def test_what_is_stored_is_checked_when_it_is_read_and_its_row_is_named(kind, tmp_path):
    broken = X.copy()
    broken[17, 1] = np.nan
    np.save(tmp_path / 'x.npy', broken)
    sources = {
        'memmap': lambda: np.load(tmp_path / 'x.npy', mmap_mode='r'),
        'hdf5': lambda: h5py.File(tmp_path / 'x.h5', 'w').create_dataset('x', data=broken),
        'csr': lambda: scipy.sparse.csr_matrix(broken),
        'pairs': lambda: Pairs(broken),
    }
    source = sources[kind]()
    rows = open_dataset(source)[0] if kind == 'pairs' else open_rows(source)
    np.testing.assert_array_equal(rows.take(np.arange(17)), X[:17])
    for selection in (np.array([3, 17, 2]), np.arange(15, 20)):
        with pytest.raises(DataError, match=r'X_train: got 1 NaN .* at index \(17, 1\)'):
            rows.take(selection)


FRAME = InputSpec(ArraySpec((3,), 'float32', tuple(COLUMNS)))


@pytest.mark.parametrize('library', [pd, pl])
def test_columns_are_put_into_the_order_of_the_training(library):
    frame = library.DataFrame({name: X[:, i] for i, name in enumerate(COLUMNS)})
    assert open_rows(frame).inputs == FRAME
    np.testing.assert_array_equal(check_inputs(frame[['c', 'a', 'b']], 'X_test', FRAME), X)
    np.testing.assert_array_equal(check_inputs(X, 'X_test', FRAME), X)
    renamed = frame.rename(columns={'b': 'bb'}) if library is pd else frame.rename({'b': 'bb'})
    with pytest.raises(DataError, match=r"no column 'b' and the unknown 'bb'.* mean 'b'\?"):
        check_inputs(renamed, 'X_test', FRAME)
    with pytest.raises(DataError, match=r"X_test: got no column 'c', expected .*: a, b, c"):
        check_inputs(frame[['a', 'b']], 'X_test', FRAME)


def test_columns_that_pandas_numbers_are_those_of_an_array():
    unnamed = pd.DataFrame(X)
    np.testing.assert_array_equal(check_inputs(unnamed, 'X_test', FRAME), X)
    numbered = open_rows(unnamed).inputs
    assert numbered == InputSpec(ArraySpec((3,), 'float32', ('0', '1', '2')))
    named = pd.DataFrame(X, columns=COLUMNS)
    np.testing.assert_array_equal(check_inputs(named, 'X_test', numbered), X)
    np.testing.assert_array_equal(check_inputs(unnamed[[2, 0, 1]], 'X_test', numbered), X)
    for frame in (unnamed[[2, 0, 1]], unnamed.rename(columns={2: 3})):
        with pytest.raises(DataError, match="X_test: got no column 'a', 'b', 'c' and the unknown"):
            check_inputs(frame, 'X_test', FRAME)
    with pytest.raises(DataError, match="X_test: got no column '2' and the unknown '3'"):
        check_inputs(unnamed.rename(columns={2: 3}), 'X_test', numbered)


def test_columns_of_one_name_are_taken_in_their_order_alone():
    doubled = pd.DataFrame(X, columns=['a', 'a', 'b'])
    like = open_rows(doubled).inputs
    np.testing.assert_array_equal(check_inputs(doubled, 'X_test', like), X)
    with pytest.raises(DataError, match='X_test: got the columns b, a, a, some with the same'):
        check_inputs(doubled.iloc[:, [2, 0, 1]], 'X_test', like)
    with pytest.raises(DataError, match="X_test: got no column 'c' and the repeated column"):
        check_inputs(doubled, 'X_test', FRAME)


BOTH = InputSpec({'image': ArraySpec((8, 8), 'uint8'), 'age': ArraySpec((), 'float32')})


@pytest.mark.parametrize(
    ('given', 'like', 'says'),
    [
        (
            {'image': X, 'ages': X},
            BOTH,
            'X_test: .* of image, ages, .* image, age, .* mean .age',
        ),
        (X, BOTH, 'X_test: got one array, expected .* image: 8 x 8 uint8, age: float32'),
        ((X, X), BOTH, 'X_test: got a tuple of 2 arrays'),
        ({'a': X}, FRAME, r'X_test: got a dict of a, expected .*: 3 float32 \(a, b, c\)'),
        ({'image': X, 'age': X[:, 0]}, BOTH, r"X_test\['image'\]: got rows of shape \(3,\)"),
    ],
)
def test_inputs_of_another_structure_are_named(given, like, says):
    with pytest.raises(DataError, match=says):
        open_rows(given, 'X_test', like)


@pytest.mark.parametrize('kind', kinds(ROWS))
def test_floats_are_refused_where_integers_were_trained_on(kind, tmp_path):
    source = ROWS[kind](tmp_path)
    with pytest.raises(DataError, match='X_test: got float32, expected int32'):
        open_rows(source, 'X_test', InputSpec(ArraySpec((3,), 'int32')))


def test_integers_become_floats_where_floats_were_trained_on(tmp_path):
    np.save(tmp_path / 'x.npy', np.arange(6, dtype=np.uint8).reshape(2, 3))
    stored = np.load(tmp_path / 'x.npy', mmap_mode='r')
    assert open_rows(stored).all().dtype == np.uint8
    assert open_rows(stored, 'X_test', FRAME).all().dtype == np.float32


@pytest.mark.parametrize('kind', kinds(LABELLED))
def test_labels_come_out_of_the_data_set(kind):
    rows, labels = open_dataset(LABELLED[kind]())
    np.testing.assert_array_equal(labels, Y)
    np.testing.assert_array_equal(rows.take(np.array([4, 2, 4])), X[[4, 2, 4]])
    np.testing.assert_array_equal(rows.all(), X)
    # From a data set that still holds labels, a model gets only the inputs it was trained on.
    if kind not in ('dict', 'pandas', 'polars', 'arrow'):
        again = open_rows(LABELLED[kind](), 'X_test', rows.inputs)
        np.testing.assert_array_equal(again.all(), X)


def test_labels_by_name():
    frame = pd.DataFrame({'age': [1.0, 2.0], 'species': ['cat', 'dog']})
    rows, labels = open_data(frame, 'species')
    assert labels.tolist() == ['cat', 'dog'] and rows.all().tolist() == [[1.0], [2.0]]
    with pytest.raises(DataError, match=r"y_train: got 'specie', .* Did you mean 'species'"):
        open_data(frame, 'specie')
    with pytest.raises(DataError, match='y_train: got None, and nothing among the columns age, s'):
        open_data(frame, None)
    with pytest.raises(DataError, match='y_train: got None, and label and y among'):
        open_data({'x': X, 'label': Y, 'y': Y}, None)
    several = {'a': X, 'b': X, 'label': Y}
    assert sorted(open_data(several, 'label')[0].all()) == ['a', 'b']


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        ((X, None), 'y_train: got None, and X_train is a ndarray'),
        ((X, Y[:5]), 'X_train with 23 rows and y_train with 5 rows'),
        ((Pairs(X, [None] * 23), None), 'y_train: got 23 missing values of 23'),
        (
            (Pairs([X, X[:2]], [0, 1]), None),
            r'X_train\[0\]: got examples that are not arrays of one',
        ),
        ((Pairs([], []), None), 'X_train: got a data set of 0 examples'),
    ],
)
def test_data_sets_that_can_not_be_used_are_named(given, says):
    with pytest.raises(DataError, match=says):
        rows, _ = open_data(*given)
        rows.all()


def test_columns_of_different_lengths_are_named():
    ragged = datasets.Dataset.from_dict({'tokens': [[1, 2], [3]], 'label': [0, 1]})
    with pytest.raises(DataError, match=r"X_train\['tokens'\]: got examples that .* pad or cut"):
        open_dataset(ragged)[0].all()
    with pytest.raises(DataError, match='X_train: got a DatasetDict of the data sets train'):
        open_dataset(datasets.DatasetDict(train=ragged))


def test_a_transform_of_the_user_is_kept():
    data = datasets.Dataset.from_dict({'x': X, 'label': Y})
    data.set_transform(
        lambda columns: {'x2': 2 * np.asarray(columns['x']), 'label': columns['label']}
    )
    rows, labels = open_dataset(data)
    np.testing.assert_array_equal(labels, Y)
    np.testing.assert_allclose(rows.take(np.array([3, 1])), 2 * X[[3, 1]])


def test_an_endless_data_set_is_refused():
    class Endless(Pairs):
        def __len__(self):
            return 2**62

    with pytest.raises(DataError, match=r'leave \.repeat\(\) out'):
        open_dataset(Endless())


@pytest.mark.parametrize('stored', [False, True])
def test_a_part_is_the_rows_between(stored, tmp_path):
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    if stored:
        np.save(tmp_path / 'x.npy', x)
    rows = open_rows(np.load(tmp_path / 'x.npy', mmap_mode='r') if stored else x)
    part = rows.part(5, 12)
    assert len(part) == 7 and part.spec.shape == (7, 2)
    np.testing.assert_array_equal(part.all(), x[5:12])
    np.testing.assert_array_equal(part.take(np.array([6, 0, 0])), x[[11, 5, 5]])
    np.testing.assert_array_equal(part.part(2, 4).take(np.array([1])), x[[8]])
    with pytest.raises(IndexError):
        part.take(np.array([7]))


def test_reading_a_few_rows_takes_the_memory_of_these():
    class Large:
        shape, dtype = (10**12, 2), np.dtype(np.float32)

        def __len__(self):
            return self.shape[0]

        def __getitem__(self, rows):
            first, last, _ = rows.indices(len(self)) if isinstance(rows, slice) else (0, 2, 1)
            return np.ones((last - first, 2), np.float32)

    rows = open_rows(Large()).part(5, 10**12)
    assert rows.take(np.arange(7, 10)).shape == (3, 2)
    assert rows.take(np.array([3, 1])).shape == (2, 2)
