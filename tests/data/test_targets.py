import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.model_selection import StratifiedShuffleSplit

from thinkml.data import decode, encode_targets, infer_task, probabilities, split_rows
from thinkml.errors import DataError
from thinkml.record import Task

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
    # Outputs that are sure of the right answer.
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
        ([1.0, np.nan], 1, '1 NaN'),
        ([], 1, 'empty'),
        (np.array([1, None], object), 1, 'got 1 missing values of 2, the first at row 1'),
        (np.array(['a', float('nan'), 'b'], object), 1, '1 missing values of 3'),
        (np.array([['a', 1]], object), 2, 'holds int, str'),
    ],
)
def test_targets_a_model_cannot_output(y, outputs, says):
    with pytest.raises(DataError, match=says) as error:
        infer_task(y, outputs, argument='y_val')
    assert str(error.value).startswith('y_val: ')


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
        (Task('multiclass', ('a', 'b'), 2), ['a', 'z', 'y'], r"does not know: \['y', 'z'\]"),
        (Task('binary', (0, 1), 1), [0, 2], r'does not know: \[2\]'),
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
    positive, negative = expit(logits[:, :1]), expit(-logits[:, :1])
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
