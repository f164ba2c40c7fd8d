import json
import math
import sys
import threading
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from thinkml.errors import ConfigError
from thinkml.history import History


def recorded() -> History:
    history = History()
    history.add_steps(np.array([0.9, 0.7, 0.5]))
    history.add_epoch({'loss': 0.7, 'accuracy': 0.5})
    history.add_steps(np.array([0.4, 0.2]))
    history.add_epoch({'loss': 0.3, 'accuracy': 0.75, 'val_loss': 0.35})
    return history


def test_it_is_a_mapping_but_no_dict():
    history = recorded()
    assert isinstance(history, Mapping) and not isinstance(history, dict)
    assert list(history) == ['loss', 'accuracy', 'val_loss']
    assert dict(history)['accuracy'] == [0.5, 0.75]
    assert 'f1' not in history
    with pytest.raises(KeyError, match='f1'):
        history['f1']


def test_all_lists_are_as_long_as_there_are_epochs():
    history = recorded()
    history.add_epoch({'f1': 1.0})
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(history, 3)
    np.testing.assert_array_equal(history['val_loss'], [math.nan, 0.35, math.nan])
    np.testing.assert_array_equal(history['f1'], [math.nan, math.nan, 1.0])


def test_steps_are_joined_in_order():
    history = History()
    losses = np.random.default_rng(0).random(1000).astype(np.float32)
    for chunk in np.split(losses, [1, 5, 5, 300, 999]):
        history.add_steps(chunk)
    assert history.steps == 1000
    assert history.step_loss.dtype == np.float32
    np.testing.assert_array_equal(history.step_loss, losses)


def test_epochs_know_their_last_step():
    assert recorded().epoch_ends == [3, 5]
    assert recorded().epochs == 2


def test_what_is_read_is_a_copy():
    history = recorded()
    history['loss'].append(1.0)
    history.last()['loss'] = 1.0
    history.step_loss[:] = 1.0
    assert history == recorded()


def test_values_are_plain_floats_whatever_came():
    history = History()
    history.add_epoch({'loss': np.float32(0.5), 'accuracy': np.array(1)})
    assert [type(value) for value in history.last().values()] == [float, float]


def test_last_is_the_last_epoch():
    assert History().last() == {}
    assert recorded().last() == {'loss': 0.3, 'accuracy': 0.75, 'val_loss': 0.35}


def test_round_trip_through_strict_json():
    history = recorded()
    history.add_steps(np.array([np.nan, np.inf, -np.inf, 0.1, 1e-30], np.float32))
    history.add_epoch({'loss': math.inf, 'accuracy': 0.1 + 0.2})
    history.best_epoch, history.interrupted, history.seconds = 2, True, 1.5
    history.events.append((3, 'interrupted'))
    loaded = History.from_dict(json.loads(json.dumps(history.to_dict(), allow_nan=False)))
    assert loaded == history
    assert loaded.to_dict() == history.to_dict()
    np.testing.assert_array_equal(loaded.step_loss, history.step_loss)
    np.testing.assert_array_equal(loaded['val_loss'], history['val_loss'])
    assert loaded.events == [(3, 'interrupted')]
    assert (loaded.best_epoch, loaded.interrupted, loaded.seconds) == (2, True, 1.5)
    loaded.add_steps(np.array([0.5]))  # a resumed run continues it
    loaded.add_epoch({'loss': 0.5})
    assert loaded.steps == history.steps + 1 and loaded.epochs == history.epochs + 1


def change_epoch(history):
    history.add_epoch({'loss': 0.1})


def change_step(history):
    history.add_steps(np.array([0.1]))


def change_best(history):
    history.best_epoch = 1


def change_events(history):
    history.events.append((1, 'early stopping'))


@pytest.mark.parametrize('change', [change_epoch, change_step, change_best, change_events])
def test_equal_means_the_same_numbers_and_events(change):
    one, other = recorded(), recorded()
    other.seconds = 100.0
    assert one == other
    change(other)
    assert one != other


def test_repr_shows_where_it_stands():
    history = recorded()
    history.seconds, history.best_epoch, history.interrupted = 12.34, 1, True
    assert repr(history) == (
        'History(2 epochs, 5 steps, 12.3 s, interrupted; '
        'last epoch: loss=0.3, accuracy=0.75, val_loss=0.35; '
        'best epoch 1: loss=0.7, accuracy=0.5, val_loss=nan)'
    )
    assert repr(History()) == 'History(0 epochs, 0 steps)'


def test_a_copy_is_equal_and_its_own():
    history = recorded()
    history.best_epoch, history.interrupted, history.seconds = 2, True, 1.5
    history.events.append((2, 'early stopping'))
    history.resumed_at.append(3)
    copy = history.copy()
    assert copy.to_dict() == history.to_dict()
    history.add_steps([0.1])
    history.add_epoch({'loss': 0.1, 'f1': 1.0})
    history.events.clear()
    assert (copy.epochs, copy.steps, list(copy), len(copy.events)) == (2, 5, list(recorded()), 1)


def test_an_epoch_costs_the_same_however_many_there_were():
    history = recorded()
    series = dict(history._metrics)
    history.add_epoch({'loss': 0.1})
    assert all(history._metrics[name] is values for name, values in series.items())


def test_an_interrupt_within_an_epochs_end_leaves_the_lists_in_step():
    history = recorded()
    history._metrics['loss'].append(9.0)  # as if interrupted before the other lists and epoch_ends
    assert history['loss'] == [0.7, 0.3] and history.last()['loss'] == 0.3
    assert history == recorded()
    history.add_epoch({'loss': 0.1, 'accuracy': 1.0, 'val_loss': 0.2})
    assert history['loss'] == [0.7, 0.3, 0.1] and history['accuracy'] == [0.5, 0.75, 1.0]


def test_a_reader_in_another_thread_sees_whole_epochs():
    history, found = History(), []

    def read():
        while history.epochs < 3000:
            now = history.copy()
            lengths = {len(values) for values in now.values()}
            found.append((now.best_epoch or 0) <= now.epochs)
            found.append(lengths <= {now.epochs} and now.steps >= now.epochs)
            last = history.last()
            found.append(len(set(last.values())) <= 1 or 'late' in last)
            found.append(len(now.to_dict()['metrics'].get('a', [])) == now.epochs)

    reader = threading.Thread(target=read)
    reader.start()
    for epoch in range(1, 3001):
        history.add_steps([epoch])
        late = {'late': -1.0} if epoch > 1500 else {}
        history.add_epoch({'a': epoch, 'b': epoch, 'c': epoch} | late)
        history.best_epoch = epoch
    reader.join()
    assert found and all(found)


def test_the_best_epoch_is_a_plain_int():
    history = recorded()
    history.best_epoch = np.int64(2)
    assert json.loads(json.dumps(history.to_dict()))['best_epoch'] == 2


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('metrics', []), ('metrics', {'loss': [0.1]}), ('metrics', {'loss': [0.1, 'x']}),
        ('metrics', {'loss': [0.1, None]}), ('metrics', {'loss': 'inf'}), ('metrics', {1: [1, 2]}),
        ('step_loss', [True]), ('step_loss', 5), ('epoch_ends', [3, 2]), ('epoch_ends', [3, 9]),
        ('epoch_ends', [-1, 2]), ('epoch_ends', [3, 4.5]), ('epoch_ends', [3]), ('best_epoch', 0),
        ('best_epoch', 3), ('best_epoch', 1.0), ('best_epoch', True), ('events', [[1, 2]]),
        ('events', [['a', 'b']]), ('interrupted', 1), ('seconds', '5'), ('more', 1),
        ('resumed_at', ['3']), ('resumed_at', None),
    ],
)  # fmt: skip
def test_what_is_no_history_is_a_value_error(name, value):
    values = recorded().to_dict()
    assert History.from_dict(values) == recorded()
    with pytest.raises(ValueError, match='impossible'):
        History.from_dict({**values, name: value})


# --- as a table -------------------------------------------------------------------------------


def test_slices_are_those_of_a_table():
    history = recorded()
    history.add_epoch({'loss': 0.25, 'accuracy': 1.0, 'val_loss': 0.3})
    table = pd.DataFrame(dict(history))
    for row in (0, 1, -1, np.int64(2)):
        np.testing.assert_equal(history[row], table.iloc[row].to_dict())
        np.testing.assert_equal(history[row, 'val_loss'], table.val_loss.iloc[row])
        pair = tuple(table[['val_loss', 'loss']].iloc[row])
        np.testing.assert_equal(history[row, ('val_loss', 'loss')], pair)
    for rows in (slice(None), slice(1, None), slice(-2, None), slice(None, None, -1), slice(9)):
        np.testing.assert_equal(history[rows], table.iloc[rows].to_dict('records'))
        np.testing.assert_equal(history[rows, 'val_loss'], table.val_loss.iloc[rows].tolist())
        pairs = list(table[['loss', 'accuracy']].iloc[rows].itertuples(index=False, name=None))
        assert history[rows, ('loss', 'accuracy')] == pairs
    assert 0 not in history and 'loss' in history


@pytest.mark.parametrize(
    ('key', 'error', 'says'),
    [
        (2, IndexError, 'got the row 2, expected one of 2 epochs'),
        ((-3, 'loss'), IndexError, 'got the row -3'),
        ((slice(None), 'los'), KeyError, "'los', expected one of .*Did you mean 'loss'"),
        ((slice(None), ('loss', 'f1')), KeyError, "got 'f1'"),
        (('loss', 'val_loss'), KeyError, r"rows 'loss'.*history\[:, \('loss', 'val_loss'\)\]"),
        (1.5, KeyError, 'got 1.5'),
        ((0, 1), KeyError, 'got 1'),
        (True, KeyError, 'got True'),
    ],
)
def test_what_is_not_in_the_table(key, error, says):
    with pytest.raises(error, match=says):
        recorded()[key]


def test_no_epoch_has_no_rows():
    assert History()[:] == [] and History().get('loss') is None
    with pytest.raises(IndexError, match='expected one of 0 epochs'):
        History()[-1]


def test_a_row_that_is_half_written_is_none():
    history = recorded()
    history._metrics['loss'].append(9.0)  # another thread is ending an epoch
    assert history[-1, 'loss'] == 0.3 and history[:, 'loss'] == [0.7, 0.3]
    assert history[-1]['loss'] == 0.3 and len(history[:]) == 2


def test_pandas_has_the_epochs_as_rows():
    frame = recorded().to_pandas()
    assert frame.index.tolist() == [1, 2] and frame.index.name == 'epoch'
    assert set(frame.dtypes) == {np.dtype(float)}
    np.testing.assert_equal(frame.to_dict('list'), dict(recorded()))
    assert History().to_pandas().shape == (0, 0)


def test_without_pandas_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pandas', None)  # importing it raises
    with pytest.raises(ConfigError, match='pip install pandas'):
        recorded().to_pandas()


def test_json_and_back():
    history = recorded()
    history.resumed_at.append(4)
    loaded = History.from_json(history.to_json())
    assert loaded == history and loaded.resumed_at == [4]
    assert loaded[:, ('loss', 'accuracy')] == history[:, ('loss', 'accuracy')]
    assert loaded.to_json() == history.to_json()
    for text in ('', '[]', '{"metrics": {}}'):
        with pytest.raises(ValueError):
            History.from_json(text)


def test_what_was_written_before_runs_knew_where_they_were_resumed_is_read():
    older = {name: value for name, value in recorded().to_dict().items() if name != 'resumed_at'}
    assert History.from_dict(older) == recorded()


def test_times_and_bytes_are_not_compared():
    one, other = recorded(), recorded()
    one.add_epoch({'loss': 0.1, 'step_seconds': 0.5, 'bytes_in_use': 100.0})
    other.add_epoch({'loss': 0.1, 'step_seconds': 0.7, 'peak_bytes_in_use': 9.0})
    other.resumed_at.append(3)
    assert one == other
    other.add_to_epoch({'grad_norm': 1.0})
    assert one != other


def test_a_run_that_goes_on_is_known_by_its_steps():
    first, second = recorded(), recorded()
    assert first.continues(second) and not first.continues(History())
    second.add_steps([0.5])
    assert first.continues(second) and second.continues(first)
    first.add_steps([0.6])
    assert not first.continues(second)


def test_columns_by_a_list_of_names():
    history = recorded()
    assert history[:, ['loss', 'accuracy']] == history[:, ('loss', 'accuracy')]
    with pytest.raises(KeyError, match='got None'):
        history[None]
