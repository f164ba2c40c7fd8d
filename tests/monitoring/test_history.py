import json
import math
import threading
from collections.abc import Mapping

import numpy as np
import pytest

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
    loaded.add_steps(np.array([0.5]))  # a resumed run goes on with it
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
    history._metrics['loss'].append(9.0)  # as if stopped before the other lists and epoch_ends
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
    ],
)  # fmt: skip
def test_what_is_no_history_is_a_value_error(name, value):
    values = recorded().to_dict()
    assert History.from_dict(values) == recorded()
    with pytest.raises(ValueError, match='impossible'):
        History.from_dict({**values, name: value})
