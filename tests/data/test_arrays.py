import numpy as np
import pytest

from tests.models_for_tests import mlp
from thinkml.data import capacity, check_inputs, check_inputs_of, check_lengths, fingerprint, place
from thinkml.errors import DataError
from thinkml.model_record import ArraySpec, InputSpec, record_of


@pytest.mark.parametrize(
    ('given', 'dtype'),
    [
        ([[1, 2], [3, 4]], 'int32'),
        (np.ones((2, 2)), 'float32'),
        (np.ones((2, 2), np.float16), 'float16'),
        (np.ones((2, 2), np.uint8), 'uint8'),
        (np.ones((2, 2), bool), 'bool'),
    ],
)
def test_inputs_come_in_the_dtype_the_device_computes_in(given, dtype):
    checked = check_inputs(given)
    assert checked.dtype == dtype
    np.testing.assert_array_equal(checked, given)


def with_value(value, index=(1, 2)):
    array = np.zeros((3, 4))
    array[index] = value
    return array


class Sparse:
    def tocsr(self):
        return self

    def __len__(self):
        return 3


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        (None, 'got None'),
        (3.0, 'a single number'),
        ([], r'empty array of shape \(0,\)'),
        (np.zeros((0, 4)), r'empty array of shape \(0, 4\)'),
        ([[1, 2], [3]], 'rows of equal length'),
        (np.array([['a', 'b']]), 'Encode text as numbers'),
        (np.array([[1, 2], [3, 'b']], object), r"int \(1 at row 0\), str \('b' at row 1\)"),
        (np.array([[1, 2]], object), r'holds int: convert with .astype\("int64"\)'),
        (np.array([[1, 0.5]], object), r'convert with .astype\("float64"\)'),
        (np.array(['2024-01-01'], 'datetime64[D]'), 'expected numbers'),
        (Sparse(), 'sparse matrix'),
        (iter([1, 2]), 'can not be read as rows'),
        (np.ma.masked_greater([[1.0, 2.0]], 1), '1 masked values'),
        (with_value(np.nan), r'1 NaN and 0 infinite values of 12, the first at index \(1, 2\)'),
        (with_value(-np.inf), '0 NaN and 1 infinite'),
        (with_value(1e300), r'magnitude 1e\+300, more than float32 holds'),
        (np.array([[2**40]]), 'within int32'),
    ],
)
def test_bad_inputs_are_named_with_the_fix(given, says):
    with pytest.raises(DataError, match=says) as error:
        check_inputs(given, 'X_test')
    assert str(error.value).startswith('X_test: ')


def test_large_finite_values_pass():
    assert check_inputs(np.full((1000, 2), 3e38, np.float32)).dtype == np.float32


def test_lengths():
    check_lengths({'X': [1, 2], 'y': [3, 4]})
    with pytest.raises(DataError, match='X with 2 rows and y with 1 rows'):
        check_lengths({'X': [1, 2], 'y': [3]})


def test_inputs_of_a_trained_model_must_have_its_shape():
    model = mlp(4, 3)
    assert check_inputs_of(model, np.ones((2, 4))).shape == (2, 4)
    with pytest.raises(DataError, match='X_test: got rows of'):
        check_inputs_of(model, np.ones((2, 5)))
    record_of(model).input_spec = InputSpec(ArraySpec((4,), 'float32'))
    with pytest.raises(DataError, match=r'got one row .* Pass it as X_test\[None\]'):
        check_inputs_of(model, np.ones(4))
    with pytest.raises(DataError, match=r'got rows of shape \(5,\), expected \(4,\)'):
        check_inputs_of(model, np.ones((2, 5)))


def test_inputs_of_a_trained_model_must_have_its_kind_of_numbers():
    model = mlp(4, 3)
    record_of(model).input_spec = InputSpec(ArraySpec((4,), 'float32'))
    assert check_inputs_of(model, np.ones((2, 4), int)).dtype == np.float32
    record_of(model).input_spec = InputSpec(ArraySpec((4,), 'uint8'))
    assert check_inputs_of(model, np.ones((2, 4), np.uint8)).dtype == np.uint8
    with pytest.raises(DataError, match='X_test: got float32, expected uint8'):
        check_inputs_of(model, np.ones((2, 4)))
    with pytest.raises(DataError, match='got values from 1 to 300, expected values within uint8'):
        check_inputs_of(model, [[1, 300, 1, 1]])


def test_capacity_wastes_little_and_is_shared_by_folds():
    for num_rows in (1, 5, 100, 1437, 60_000, 10**7):
        assert num_rows <= capacity(num_rows) <= num_rows * (1 + 1 / 64)
    assert capacity(1437) == capacity(1438)


def test_placed_arrays_hold_the_rows():
    x = np.arange(1437, dtype=np.float32)[:, None]
    data = place(x, x[:, 0], np.arange(0, 1437, 2))
    assert int(data.num_rows) == 719 and len(data.rows) == len(data.x) == capacity(1437)
    np.testing.assert_array_equal(data.x[:1437], x)
    np.testing.assert_array_equal(data.rows[:719], np.arange(0, 1437, 2))


def test_data_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr('thinkml.data.device_placement._free_bytes', lambda device: 1000)
    with pytest.raises(DataError, match='MiB free'):
        place(np.ones((1000, 4), np.float32), np.ones(1000, np.float32))


def test_fingerprint_tells_data_apart():
    x, y = np.ones((10, 2), np.float32), np.zeros(10, np.int32)
    same, other = fingerprint(x.copy(), y), x.copy()
    other[9, 1] = 2
    assert fingerprint(x, y) == same != fingerprint(other, y)
    assert same['rows'] == 10 and same['inputs'] == '2 float32'
