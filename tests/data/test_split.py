import numpy as np
import pytest
from sklearn.model_selection import GroupShuffleSplit

from thinkml.data import split_rows
from thinkml.errors import ConfigError, DataError
from thinkml.tasks import Task

REGRESSION = Task('regression', None, 1)
CLASSES = Task('multiclass', (0, 1, 2), 3)


def test_the_last_rows_are_the_last():
    train, val = split_rows(np.zeros(10), REGRESSION, 0.3, seed=0, order='last')
    assert train.tolist() == list(range(7)) and val.tolist() == [7, 8, 9]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('fraction', [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize('largest', [1, 5, 40])
def test_no_group_is_on_both_sides_and_the_share_is_met(seed, fraction, largest):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, largest + 1, size=40)
    groups = rng.permutation(np.repeat([f'patient {i}' for i in range(40)], sizes))
    num_rows = len(groups)
    train, val = split_rows(np.zeros(num_rows), REGRESSION, fraction, seed, groups=groups)
    assert sorted([*train, *val]) == list(range(num_rows))
    assert not set(groups[train]) & set(groups[val])
    assert abs(len(val) - fraction * num_rows) <= sizes.max() / 2
    again = split_rows(np.zeros(num_rows), REGRESSION, fraction, seed, groups=groups)[1]
    np.testing.assert_array_equal(val, again)


def test_other_seeds_draw_other_groups():
    groups = np.repeat(np.arange(30), 4)
    drawn = {
        tuple(split_rows(np.zeros(120), REGRESSION, 0.2, seed, groups=groups)[1])
        for seed in range(10)
    }
    assert len(drawn) == 10


def test_classes_keep_their_shares_better_than_in_scikit_learns_group_split():
    rng = np.random.default_rng(0)
    groups = rng.integers(60, size=2000)
    # Each group has mostly one class.
    y = np.where(rng.random(2000) < 0.8, groups % 3, rng.integers(3, size=2000))

    def imbalance(val):
        return np.abs(np.bincount(y[val], minlength=3) - 0.2 * np.bincount(y)).sum()

    ours = [imbalance(split_rows(y, CLASSES, 0.2, s, groups=groups)[1]) for s in range(10)]
    splitter = GroupShuffleSplit(n_splits=10, test_size=0.2, random_state=0)
    theirs = [imbalance(val) for _, val in splitter.split(y, groups=groups)]
    assert np.mean(ours) < np.mean(theirs) / 2


@pytest.mark.parametrize('fraction', [0.1, 0.9])
def test_neither_side_is_empty_when_groups_are_large(fraction):
    groups = np.repeat([0, 1], [60, 40])
    train, val = split_rows(np.zeros(100), REGRESSION, fraction, seed=0, groups=groups)
    assert (len(train), len(val)) == ((60, 40) if fraction == 0.1 else (40, 60))


@pytest.mark.parametrize(
    ('groups', 'says'),
    [
        (np.arange(5), r'groups: got shape \(5,\), expected \(10,\)'),
        (np.zeros(10), 'groups: got all 10 rows in one group'),
        (np.full(10, np.nan), 'groups: got 10 missing values of 10, the first at row 0'),
        (np.array(['a', None] * 5, object), 'groups: got 5 missing values of 10, .* row 1'),
        (
            np.array(['a', 1] * 5, object),
            r'groups: got text .* int \(1 at row 1\)',
        ),
        (['a', float('nan')] * 5, 'groups: got 5 missing values of 10, the first at row 1'),
        ([1, '1'] * 5, 'groups: got text mixed with other values'),
        (np.array(['2026', 'NaT'] * 5, 'M8[Y]'), 'groups: got 5 missing values of 10'),
        ([1j, 'a'] * 5, 'groups: got text mixed with other values'),
        (np.array([{}, {1: 2}] * 5), 'groups: got values that can not be compared'),
    ],
)
def test_groups_that_can_not_be_are_named(groups, says):
    with pytest.raises(DataError, match=says):
        split_rows(np.zeros(10), REGRESSION, 0.5, seed=0, groups=groups)


def test_orders_that_can_not_be_are_named():
    with pytest.raises(ConfigError, match="order: got 'first', expected one of last, random"):
        split_rows(np.zeros(10), REGRESSION, 0.5, seed=0, order='first')
    with pytest.raises(ConfigError, match="groups: got them with the order 'last'"):
        split_rows(np.zeros(10), REGRESSION, 0.5, seed=0, order='last', groups=np.arange(10))
