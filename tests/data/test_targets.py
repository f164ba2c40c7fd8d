import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import expit, softmax
from sklearn.model_selection import StratifiedShuffleSplit

from thinkml.data import (
    decode,
    encode_targets,
    infer_task,
    open_dataset,
    probabilities,
    split_rows,
)
from thinkml.errors import DataError
from thinkml.tasks import Task

ONE_HOT = np.eye(3, dtype=int)[[0, 1, 2, 1]]
MULTILABEL = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ('y', 'outputs', 'kind', 'classes'),
    [
        ([0, 1, 2], 3, 'multiclass', (0, 1, 2)),
        ([0, 2], 3, 'multiclass', (0, 1, 2)),  # a class missing from the data
        ([1, 2, 3], 3, 'multiclass', (1, 2, 3)),
        ([10.0, 20.0, 30.0], 3, 'multiclass', (10.0, 20.0, 30.0)),
        (['b', 'a', 'c'], 3, 'multiclass', ('a', 'b', 'c')),
        (np.array(['b', 'a', 'c'], object), 3, 'multiclass', ('a', 'b', 'c')),
        ([0, 1, 1], 1, 'binary', (0, 1)),
        ([0, 1, 1], 2, 'binary', (0, 1)),
        ([0, 0, 0], 1, 'binary', (0, 1)),
        ([-1, 1], 1, 'binary', (-1, 1)),
        ([0.0, 1.0], 1, 'binary', (0.0, 1.0)),
        ([True, False], 1, 'binary', (False, True)),
        ([True, True], 2, 'binary', (False, True)),
        (['no', 'yes'], 1, 'binary', ('no', 'yes')),
        ([[0], [1]], 1, 'binary', (0, 1)),
        (ONE_HOT, 3, 'multiclass', (0, 1, 2)),
        (ONE_HOT[:, :2][:2], 2, 'binary', (0, 1)),
        (MULTILABEL, 3, 'multilabel', (0, 1, 2)),
        ([0.5, 1.5, 2.0], 1, 'regression', None),
        ([0, 5, 7], 1, 'regression', None),
        ([[0.5], [1.0]], 1, 'regression', None),
        ([[0.5, 1.0], [2.0, 3.0]], 2, 'regression', None),
    ],
)
def test_the_task_is_inferred_and_labels_go_there_and_back(y, outputs, kind, classes):
    task = infer_task(y, outputs)
    assert (task.kind, task.classes, task.num_outputs) == (kind, classes, outputs)
    encoded = encode_targets(y, task)
    # Outputs that are confident in the correct class.
    if kind == 'regression':
        logits = encoded.reshape(len(encoded), -1)
    elif kind == 'multilabel':
        logits = encoded * 20 - 10
    elif outputs == 1:
        logits = encoded[:, None] * 20.0 - 10
    else:
        logits = np.eye(outputs)[encoded] * 20
    decoded = decode(logits, task)
    np.testing.assert_array_equal(decoded, y)
    assert decoded.shape == np.shape(y)
    if kind in ('binary', 'multiclass') and not task.is_one_hot:
        assert decoded.dtype.kind == np.asarray(list(classes)).dtype.kind


@pytest.mark.parametrize(
    ('y', 'outputs', 'says'),
    [
        (list(range(11)), 10, 'got 11 different labels'),
        (['a', 'b'], 3, 'got 2 different labels'),
        (['a', 'a'], 1, 'got only one label'),
        (np.array(3), 1, r'got shape \(\)'),
        (None, 1, 'got None'),
        (['a', 'b', 'c'], 1, 'enough for 2 classes'),
        ([0, 5], 3, 'or use integer labels from 0 on'),
        ([0.5, 1.5], 3, 'got 1 number per example'),
        (ONE_HOT, 4, 'rows of 3 labels'),
        (np.array([['a', 'b']]), 2, 'one label per example'),
        (np.zeros((2, 2, 2)), 2, r'got shape \(2, 2, 2\)'),
        ([1.0, np.nan], 1, r'got 1 missing values of 2, the first at row 1.* sample_weight 0'),
        ([1.0, np.inf], 1, '1 infinite'),
        ([], 1, 'empty'),
        (np.array([1, None], object), 1, 'got 1 missing values of 2, the first at row 1'),
        (np.array(['a', float('nan'), 'b'], object), 1, '1 missing values of 3'),
        (
            np.array([['a', 1]], object),
            2,
            r'got text mixed with other values, .* int \(1 at row 0\)',
        ),
    ],
)
def test_targets_a_model_cannot_output(y, outputs, says):
    with pytest.raises(DataError, match=says) as error:
        infer_task(y, outputs, argument='y_val')
    assert str(error.value).startswith('y_val: ')


NAN = float('nan')


@pytest.mark.parametrize(
    ('y', 'says'),
    [
        (['ill', 'well', NAN], '1 missing values of 3, the first at row 2'),
        (['ill', None, 'well'], '1 missing values of 3, the first at row 1'),
        ([['ill'], [NAN], ['well']], '1 missing values of 3, the first at row 1'),
        (['ill', 'well', 7], r"text mixed with other values, .*'ill' at row 0\), int \(7 at row 2"),
        ([1, '1'], r"int \(1 at row 0\), str \('1' at row 1\)"),
        ([True, 'yes'], r'bool \(True at row 0\)'),
        ([b'yes', 'no'], r'bytes \(.* at row 0\)'),
        (('ill', 'well', 7.5), r'float \(7\.5 at row 2\)'),
        (np.array(['ill', 7, 'well'], object), r'int \(7 at row 1\)'),
        (np.array([0, 1, 2], object), r'holds int: convert with \.astype\("int64"\)'),
        (np.array([True, False], object), r'holds bool: convert with \.astype\(bool\)'),
        (np.array([1 + 1j, 2], object), 'encode them as numbers'),
        (np.array([0, 0.5], object), r'convert with \.astype\("float64"\)'),
        (pd.Series([0, 1, None], dtype='Int64'), '1 missing .* row 2.* sample_weight 0'),
        (pd.Series([0.0, 1.0, None], dtype='Float64'), '1 missing .* row 2.* sample_weight 0'),
        (pd.Series([True, None], dtype='boolean'), '1 missing .* row 1'),
        (pd.Series(['a', None], dtype='category'), '1 missing .* row 1'),
        (pd.DataFrame({'y': pd.Series([0, 1, None], dtype='Int64')}), '1 missing .* row 2'),
        (pl.Series([0, None, 1]), '1 missing .* row 1'),
        (pl.LazyFrame({'y': [0, 1]}), r'LazyFrame, .* Pass the result of its collect\(\)'),
        (np.array(['2026-01-01', 'NaT'], 'M8[D]'), '1 missing .* row 1'),
        (np.ma.masked_equal([0, 1, 2], 1), 'Drop these rows'),
    ],
)
def test_labels_that_are_missing_or_of_several_kinds_are_named(y, says):
    with pytest.raises(DataError, match=says) as error:
        infer_task(y, 3)
    assert str(error.value).startswith('y_train: ') and 'nan_to_num' not in str(error.value)


def test_labels_of_examples_stay_what_they_are():
    class Pairs:
        labels = ('ill', NAN, 'well')

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return np.zeros(2), self.labels[index]

    with pytest.raises(DataError, match='1 missing values of 3, the first at row 1'):
        open_dataset(Pairs())
    Pairs.labels = ('ill', 7, 'well')
    with pytest.raises(DataError, match='text mixed with other values'):
        open_dataset(Pairs())


def test_text_of_any_kind_is_a_label():
    for y in (np.array(['a', 'b'], np.dtypes.StringDType()), pl.Series(['a', 'b']), ('a', 'b')):
        assert infer_task(y, 2).classes == ('a', 'b')
        assert encode_targets(y, infer_task(y, 2)).tolist() == [0, 1]


@pytest.mark.parametrize('marker', [-1, 255])
def test_numbers_that_mark_rows_without_a_label_are_hinted_at(marker):
    hint = f'If {marker} marks rows without a label, pass ignore_label={marker} to train'
    with pytest.raises(DataError, match=f'Build the model with 3 outputs.*{hint}'):
        infer_task([0, 1, marker], 2)
    with pytest.raises(DataError, match=hint):
        infer_task([0.0, 1.0, float(marker)], 1, decided='sigmoid')
    of_rows = f'If {marker} marks rows without a label, .* sample_weight 0'
    with pytest.raises(DataError, match=of_rows):
        infer_task([[0, 1], [1, marker]], 2, decided='sigmoid')
    with pytest.raises(DataError, match=hint):
        encode_targets([0, 1, marker], Task('binary', (0, 1), 2))
    with pytest.raises(DataError) as error:
        infer_task([0, 1, 2, 7], 3)
    assert 'marks' not in str(error.value)


@pytest.mark.parametrize(
    ('y', 'outputs', 'decided', 'classes'),
    [
        ([0, 1, -100], 1, None, (0, 1)),
        ([-1, 1, -100], 1, None, (-1, 1)),
        ([0, 1, -100], 3, None, (0, 1, 2)),
        ([5, 7, -100], 2, None, (5, 7)),
        ([0.0, 2.0, -100.0], 3, None, (0.0, 1.0, 2.0)),
        ([0.0, 1.0, -100.0], 1, 'sigmoid', (0.0, 1.0)),
        ([0.0, 1.0, -100.0], 1, None, None),  # a float may be a number to predict
        ([3, 4, 5, -100], 1, None, None),
        ([0, 1, -100], 1, 'regression', None),
        (['0', '1', '-100'], 3, None, ('-100', '0', '1')),
    ],
)
def test_the_ignored_label_is_not_a_class(y, outputs, decided, classes):
    task = infer_task(y, outputs, decided=decided)
    assert task.classes == classes and task.ignore_label is None
    ignored = classes is not None and classes[0] != '-100'
    assert encode_targets(y, task).tolist()[-1] == (-1 if ignored else {3: 0}.get(outputs, -100))


def test_another_label_of_rows_is_ignored_only_if_it_is_named():
    task = infer_task([0, 1, 255], 2, ignore_label=255)
    assert task.classes == (0, 1) and task.ignored == 255
    assert encode_targets([255, 1], task).tolist() == [-1, 1]
    again = infer_task([0, 0, 1], 2, known=task)
    assert again.ignored == -100 and again.classes == (0, 1)
    before = Task('binary', (-100, 100), 1)
    assert infer_task([-100, 100], 1, known=before) == before and before.ignored is None
    assert Task.from_dict(task.to_dict()) == task and 'ignore_label' not in before.to_dict()
    with pytest.raises(DataError, match=r'got only one label, 100, .* -100 is ignored\.'):
        infer_task([-100, 100], 1)
    with pytest.raises(DataError, match='each label is 3, which marks those that are ignored'):
        infer_task([3, 3], 2, ignore_label=3)


@pytest.mark.parametrize('y', [[1e300, 1.0], [-1e39, 0.0]])
def test_targets_beyond_float32_are_not_infinite(y):
    with pytest.raises(DataError, match=r'y_train: got a value of magnitude 1e\+\d+, more than'):
        encode_targets(y, Task('regression', None, 1))


@pytest.mark.parametrize('task', [
    Task('binary', (0, 1), 1), Task('binary', ('no', 'yes'), 2), Task('multiclass', (0, 1, 2), 3),
    Task('multilabel', (0, 1), 2, (2,)),
])  # fmt: skip
def test_no_class_is_chosen_by_nan(task):
    outputs = np.zeros((4, task.num_outputs), np.float32)
    outputs[2, -1] = np.nan
    for turned in (decode, probabilities):
        with pytest.raises(DataError, match=r'model: it returns NaN for 1 of 4 rows, .* row 2'):
            turned(outputs, task)
    outputs[2, -1] = -np.inf  # a masked class
    assert decode(outputs, task).shape[0] == 4


def test_the_loss_decides_where_it_does():
    assert infer_task(ONE_HOT, 3, decided='sigmoid').kind == 'multilabel'
    assert infer_task([0, 1, 1], 1, decided='regression').kind == 'regression'
    assert infer_task([3.0, 4.5], 2, decided='softmax').classes == (3.0, 4.5)


def test_a_known_task_is_kept_where_the_data_fit_it():
    known = Task('multiclass', ('a', 'b', 'c'), 3)
    assert infer_task(['a', 'c'], 3, known=known) is known
    assert infer_task(['x', 'y', 'z'], 3, known=known).classes == ('x', 'y', 'z')
    assert infer_task([0, 1, 2], 3, known=known).classes == (0, 1, 2)
    once_regression = Task('regression', None, 1)
    assert infer_task([0, 1], 1, known=once_regression).kind == 'binary'


@pytest.mark.parametrize(
    ('task', 'y', 'says'),
    [
        (Task('multiclass', ('a', 'b'), 2), ['a', 'z', 'y'], r"was not trained on: \['y', 'z'\]"),
        (Task('binary', (0, 1), 1), [0, 2], r'was not trained on: \[2\]'),
        (Task('binary', (0, 1), 1), ['a'], 'got dtype <U1'),
        (Task('multilabel', (0, 1), 2, (2,)), [[0, 3]], 'other values than 0 and 1'),
        (Task('multiclass', (0, 1, 2), 3, (3,)), [[1, 1, 0]], 'not one-hot'),
        (Task('regression', None, 2, (2,)), [1.0, 2.0], r'expected \(rows, 2\)'),
        (Task('regression', None, 1), ['a'], 'got text'),
    ],
)
def test_targets_of_another_task(task, y, says):
    with pytest.raises(DataError, match=says) as error:
        encode_targets(y, task, 'y_test')
    assert str(error.value).startswith('y_test: ')


def test_probabilities():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 50
    multiclass = Task('multiclass', (0, 1, 2), 3)
    np.testing.assert_allclose(
        probabilities(logits, multiclass), softmax(logits, axis=1), atol=1e-6
    )
    exact = logits[:, :1].astype(np.float64)
    positive, negative = expit(exact), expit(-exact)
    np.testing.assert_allclose(
        probabilities(logits[:, :1], Task('binary', (0, 1), 1)),
        np.concatenate([negative, positive], axis=1), rtol=1e-5,
    )  # fmt: skip
    multilabel = Task('multilabel', (0, 1, 2), 3, (3,))
    np.testing.assert_allclose(probabilities(logits, multilabel), expit(logits), atol=1e-6)
    with pytest.raises(DataError, match='no probabilities'):
        probabilities(logits, Task('regression', None, 3, (3,)))


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.5])
def test_the_split_is_stratified_like_scikit_learns_and_seeded(fraction):
    y = np.repeat([0, 1, 2], [100, 40, 10])
    task = Task('multiclass', (0, 1, 2), 3)
    train, val = split_rows(y, task, fraction, seed=0)
    assert sorted([*train, *val]) == list(range(150))
    _, reference = next(StratifiedShuffleSplit(test_size=fraction, random_state=0).split(y, y))
    assert np.abs(np.bincount(y[val]) - np.bincount(y[reference])).max() <= 1
    np.testing.assert_array_equal(val, split_rows(y, task, fraction, seed=0)[1])
    assert (val != split_rows(y, task, fraction, seed=1)[1]).any()


def test_a_split_must_leave_something_on_both_sides():
    with pytest.raises(DataError, match=r'validation_split: got 0\.1 of 3 rows'):
        split_rows(np.zeros(3), Task('regression', None, 1), 0.1, seed=0)
