"""Sessions on disk: no label is lost, whenever the process ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.models_for_tests import mlp
from tests.training.active.made import CONFIG, LABELED, POOL, X, Y, same
from thinkml.errors import DataError, ThinkMLWarning
from thinkml.training import ActiveLearner

DATA = (X[POOL], X[LABELED], Y[LABELED])
ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name('teach_to_kill.py')


def new_learner(seed=0):
    return ActiveLearner(mlp(6, 3, seed=seed), 'margin', config=CONFIG, query_size=5)


def taught(path=None, rounds=2):
    learner = new_learner()
    learner.start(*DATA)
    if path is not None:
        learner.save(path)
    for _ in range(rounds):
        rows = learner.query()
        learner.teach(rows, Y[POOL][rows])
    return learner


def loaded(path, *, seed=0, data=DATA):
    learner = new_learner(seed)
    learner.load(path, *data)
    return learner


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_session_goes_on_as_if_it_had_never_stopped(when, tmp_path):
    path = tmp_path / 'session'
    first = taught(path if when == 'before' else None)
    if when == 'after':
        first.save(path)
    first.skip([160])
    first.close()
    learner = loaded(path)
    expected = taught()
    expected.skip([160])
    assert learner.labels == expected.labels
    for one in (learner, expected):
        rows = one.query()
        one.teach(rows, Y[POOL][rows])
        one.fit()
    assert same(learner.history, expected.history)
    learner.close()
    assert loaded(path).labels == learner.labels


def test_labels_keep_their_kind(tmp_path):
    for number, labels in enumerate((['a', 'b'], [1, 0], [True, False])):
        learner = ActiveLearner(mlp(6, 2), config=CONFIG)
        learner.start(X[POOL])
        learner.save(tmp_path / str(number))
        learner.teach([3, 1], np.array(labels))
        learner.close()
        again = ActiveLearner(mlp(6, 2), config=CONFIG)
        again.load(tmp_path / str(number), X[POOL])
        assert again.labels == dict(zip([3, 1], labels, strict=True))
        assert [type(label) for label in again.labels.values()] == [type(labels[0])] * 2


def test_a_line_that_was_not_written_to_its_end_is_left_out(tmp_path):
    path = tmp_path / 'session'
    learner = taught(path)
    before = learner.labels
    learner.close()
    content = (path / 'events.jsonl').read_bytes()
    start_of_last = content[:-1].rfind(b'\n') + 1
    for cut in range(start_of_last + 1, len(content)):
        (path / 'events.jsonl').write_bytes(content[:cut])
        learner = loaded(path)
        assert len(learner.labels) == 5 and learner.labels.items() <= before.items()
        learner.teach([0], [1])
        learner.close()
        learner = loaded(path)
        assert learner.labels[0] == 1
        learner.close()


def test_damage_is_told(tmp_path):
    path = tmp_path / 'session'
    taught(path).close()
    events = path / 'events.jsonl'
    content = bytearray(events.read_bytes())
    for at in range(0, content.rfind(b'\n', 0, -1), 97):
        if content[at] == ord('\n'):
            continue
        flipped = bytearray(content)
        flipped[at] ^= 4
        events.write_bytes(flipped)
        with pytest.raises(DataError, match=r'line .* of .*events.jsonl is damaged'):
            loaded(path)
    events.write_bytes(content)
    (path / 'session.json').write_text('{}')
    with pytest.raises(DataError, match='holds no readable session'):
        loaded(path)


def test_other_data_and_other_weights_are_told(tmp_path):
    path = tmp_path / 'session'
    taught(path).close()
    with pytest.raises(DataError, match='X_unlabeled: got data with the fingerprint'):
        loaded(path, data=(X[POOL][::-1], *DATA[1:]))
    with pytest.raises(DataError, match='X_labeled: got data with the fingerprint'):
        loaded(path, data=(X[POOL],))
    with pytest.warns(ThinkMLWarning, match='its weights are not those'):
        loaded(path, seed=1)


def test_one_process_at_a_time_and_no_overwriting(tmp_path):
    path = tmp_path / 'session'
    learner = taught(path)
    with pytest.raises(DataError, match='another learner or process has the session'):
        loaded(path)
    with pytest.raises(DataError, match='exists already'):
        learner.save(path)
    learner.close()
    loaded(path).close()
    with pytest.raises(DataError, match='holds no session'):
        loaded(tmp_path / 'nothing')


# --- damaged and missing files ------------------------------------------------------------------


def saved(path, learner=None):
    learner = learner or new_learner()
    learner.start(X[POOL])
    learner.save(path)
    return learner


@pytest.fixture
def almost_full():
    """Limits the size of files like a full disk: the last write is incomplete."""
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_in_mid_line_is_told_and_the_label_not_taken(tmp_path, almost_full):
    learner = saved(tmp_path / 'session')
    learner.teach([0], [1])
    events = tmp_path / 'session' / 'events.jsonl'
    before = events.read_bytes()
    almost_full(len(before) + 20)
    with pytest.raises(OSError):
        learner.teach([1], [1])
    almost_full(2**30)
    assert learner.labels == {0: 1} and events.read_bytes() == before
    learner.teach([2], [2])
    learner.close()
    assert loaded(tmp_path / 'session', data=(X[POOL],)).labels == {0: 1, 2: 2}


def test_an_interrupt_in_mid_write_leaves_nothing_behind(tmp_path, monkeypatch):
    learner = saved(tmp_path / 'session')

    def interrupted(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, 'fsync', interrupted)
        learner.teach([0, 1, 2], [1, 1, 1])
    assert learner.labels == {}
    learner.teach([3], [2])
    learner.close()
    assert loaded(tmp_path / 'session', data=(X[POOL],)).labels == {3: 2}


def test_several_threads_may_teach(tmp_path):
    learner = saved(tmp_path / 'session')
    rows = np.arange(160)

    def teach(first):
        for row in rows[first::8]:
            learner.teach([row], [row % 3])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(teach, range(8)))
    learner.close()
    expected = {int(row): int(row % 3) for row in rows}
    assert learner.labels == expected
    assert loaded(tmp_path / 'session', data=(X[POOL],)).labels == expected


def test_a_closed_session_takes_no_label(tmp_path):
    learner = saved(tmp_path / 'session')
    learner.teach([0], [1])
    learner.close()
    with pytest.raises(DataError, match='was closed'):
        learner.teach([1], [1])
    assert learner.labels == {0: 1}
    learner.save(tmp_path / 'other')
    learner.teach([1], [1])


def test_a_copy_of_the_process_does_not_write(tmp_path, monkeypatch):
    learner = saved(tmp_path / 'session')
    monkeypatch.setattr(os, 'getpid', lambda: -1)
    with pytest.raises(DataError, match='belongs to the process that this one forked from'):
        learner.teach([0], [1])


def test_saving_again_goes_on_in_the_new_place(tmp_path):
    learner = saved(tmp_path / 'one')
    learner.teach([0], [1])
    learner.save(tmp_path / 'two')
    learner.teach([1], [2])
    assert loaded(tmp_path / 'one', data=(X[POOL],)).labels == {0: 1}
    learner.close()
    assert loaded(tmp_path / 'two', data=(X[POOL],)).labels == {0: 1, 1: 2}


def test_what_failed_to_be_saved_leaves_nothing(tmp_path, almost_full):
    learner = new_learner()
    learner.start(X[POOL])
    learner.teach(np.arange(170), Y[POOL])
    almost_full(100)
    with pytest.raises(OSError):
        learner.save(tmp_path / 'session')
    almost_full(2**30)
    assert list(tmp_path.iterdir()) == []


def test_what_failed_to_be_loaded_takes_no_label_and_holds_no_lock(tmp_path):
    path = tmp_path / 'session'
    saved(path).close()
    (path / 'events.jsonl').rename(tmp_path / 'away')
    learner = new_learner()
    with pytest.raises(DataError, match='holds no readable session'):
        learner.load(path, X[POOL])
    with pytest.raises(DataError, match='teach: there is no pool yet'):
        learner.teach([0], [1])
    (tmp_path / 'away').rename(path / 'events.jsonl')
    learner.load(path, X[POOL])


@pytest.mark.parametrize(
    'seconds', [0.02, *(pytest.param(other, marks=pytest.mark.slow) for other in (0.0, 0.1, 0.3))]
)
def test_a_killed_process_has_lost_no_label(seconds, tmp_path):
    path = tmp_path / 'session'
    with subprocess.Popen(
        [sys.executable, PROGRAM, path], env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as process:  # fmt: skip
        told = [process.stdout.readline() for _ in range(5)]
        time.sleep(seconds)
        process.kill()
        told += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    learner = ActiveLearner(mlp(6, 3), 'random', config=CONFIG)
    learner.load(path, X[POOL])
    # The end of an incomplete line did not get through the pipe.
    whole = [line.split() for line in told if line.endswith('\n')]
    assert len(whole) >= 5
    assert {int(row): int(label) for row, label in whole}.items() <= learner.labels.items()


def test_a_session_with_a_label_in_a_column_can_be_loaded(tmp_path):
    """Older versions stored the labels of `y[[6], None]` like this, beside those of other calls."""
    learner = taught(tmp_path / 'session', rounds=0)
    learner._session.store.record({'event': 'teach', 'indices': [0, 1], 'labels': [[1], 0]})
    learner.close()
    learner = loaded(tmp_path / 'session')
    assert learner.labels == {0: 1, 1: 0} and len(learner.query()) == 5
