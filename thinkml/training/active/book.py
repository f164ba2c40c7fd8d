"""The book of an active learning: every question and label, in memory and in a file."""

import json
import os
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thinkml.checkpoint.disk import lock, read_bounded, sync_folder, unlock, write_synced
from thinkml.errors import DataError
from thinkml.training.active.history import ActiveHistory, ActiveQuery, plain

_FORMAT = 1
_MAX_BYTES = 2**31
_EVENTS, _SESSION = 'events.jsonl', 'session.json'

Event = dict[str, Any]


class LabelBook:
    """What became of each row of a pool: the sum of events, which are plain values.

    Attributes:
        labels: the label of each row that has one, in the order they came.
        skipped: the rows that will not be asked for again.
        history: the queries.
        has_model: whether a model was trained at all.
    """

    def __init__(self, num_rows: int):
        self.labels: dict[int, Any] = {}
        self.skipped: set[int] = set()
        self.history = ActiveHistory()
        self.has_model = False
        self._num_rows = num_rows
        self._query_of: dict[int, ActiveQuery] = {}
        self._changed: list[ActiveQuery] = []  # since the last training
        self._events: list[Event] = []
        self._journal: Journal | None = None

    @property
    def num_queries(self) -> int:
        """Asked so far."""
        return len(self.history)

    @property
    def waiting(self) -> np.ndarray:
        """The rows that were asked for and have neither a label nor were skipped."""
        done = self.labels.keys() | self.skipped
        return np.array([row for row in self._query_of if row not in done], np.int64)

    @property
    def available(self) -> np.ndarray:
        """Whether a row can still be asked for, bool ``[rows]``."""
        available = np.ones(self._num_rows, bool)
        for rows in (self.labels, self.skipped, self._query_of):
            available[list(rows)] = False
        return available

    def note(self, event: Event) -> None:
        """Takes an event in; where there is a file, it is on disk before."""
        event = plain(event)
        if self._journal is not None:
            self._journal.append(event)
        self._take(event)

    def _take(self, event: Event) -> None:
        known = {'query': self._query, 'teach': self._teach, 'fit': self._fit}
        rows = event.get('indices', [])
        if not all(type(row) is int and 0 <= row < self._num_rows for row in rows):
            raise ValueError(f'rows that are not in the pool of {self._num_rows:,}')
        known[event['event']](event)
        self._events.append(event)

    def _query(self, event: Event) -> None:
        scores = [np.nan if score is None else score for score in event['scores']]
        query = ActiveQuery(
            np.array(event['indices'], np.int64), np.array(scores, np.float32),
            seconds=event['seconds'],
        )  # fmt: skip
        self.history.queries.append(query)
        self._query_of |= dict.fromkeys(event['indices'], query)

    def _teach(self, event: Event) -> None:
        rows = event['indices']
        for row, label in zip(rows, event['labels'], strict=True):
            if label is None:
                self.labels.pop(row, None)
                self.skipped.add(row)
            else:
                self.labels[row] = label
                self.skipped.discard(row)
        for query in {id(q): q for row in rows if (q := self._query_of.get(row))}.values():
            self._changed.append(query)
            done = self.labels.keys() | self.skipped
            if all(row in done for row in query.indices.tolist()):
                query.status = 'labeled'

    def _fit(self, event: Event) -> None:
        metrics = {
            name: np.nan if value is None else value for name, value in event['metrics'].items()
        }
        self.has_model = True
        if not self.history.queries:
            self.history.start = (event['num_labels'], metrics)
        for query in {id(query): query for query in self._changed}.values():
            if query.status == 'labeled':
                query.status = 'trained'
            query.num_labels, query.metrics = event['num_labels'], metrics
            query.agreement = np.nan if event['agreement'] is None else event['agreement']
            query.seconds += event['seconds']
        self._changed = []

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Writes all events to a new directory, to which later ones are added from now on.

        Raises:
            DataError: if there is something at the path already.
            OSError: if it can't be written.
        """
        if path.exists():
            raise DataError(f'path: {path} exists already. Pass another one, or load it.')
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        new.mkdir()
        write_synced(new / _EVENTS, b''.join(map(_line, self._events)))
        write_synced(new / _SESSION, json.dumps({'format': _FORMAT, **plain(about)}).encode())
        new.rename(path)
        sync_folder(path.parent)
        self._journal = Journal(path / _EVENTS)

    def load(self, path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
        """Takes all events of a directory in; later ones are added to it.

        Args:
            path: the directory.
            about: what the session must have been saved about, by name.

        Returns:
            what it was saved about.

        Raises:
            DataError: if it is of other data, damaged, or no session.
        """
        try:
            saved = json.loads(read_bounded(path / _SESSION, 2**20))
            found = saved.pop('format')
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f'path: {path} holds no session that can be read: {error}.') from error
        if found != _FORMAT:
            raise DataError(f'path: {path} has format {found!r}, this ThinkML reads {_FORMAT}.')
        for name, value in plain(about).items():
            if saved.get(name) != value:
                raise DataError(
                    f'{name}: it is not the data of the session at {path}: got {value}, which '
                    f'began with {saved.get(name)}. Pass the same rows in the same order.'
                )
        self._journal = journal = Journal(path / _EVENTS)
        try:
            for number, event in enumerate(journal.read(), start=1):
                self._take_from(path / _EVENTS, number, event)
        except BaseException:
            self.close()
            raise
        return saved

    def _take_from(self, path: Path, number: int, event: Event) -> None:
        try:
            self._take(event)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f'path: line {number} of {path}: {error!r}.') from error

    def close(self) -> None:
        """Lets the file go, so that another process may add to it."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None


class Journal:
    """A file that only grows, a line for each event, with a checksum.

    Attributes:
        close: closes the file and gives the lock back; when it is garbage that happens too.

    Raises:
        DataError: if another process writes to it.
    """

    def __init__(self, path: Path):
        self._path = path
        locked = lock(path.parent)
        if locked is None:
            raise DataError(
                f'path: another learner or process has the session at {path.parent} open. Close it '
                'first.'
            )
        self._file = os.open(path, os.O_RDWR)
        self.close = weakref.finalize(self, _close, self._file, locked)
        self._end = os.fstat(self._file).st_size

    def append(self, event: Event) -> None:
        """Writes an event; it is on disk when this returns.

        Raises:
            OSError: if that fails; then nothing of it is left.
        """
        line = _line(event)
        try:
            os.pwrite(self._file, line, self._end)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def read(self) -> Iterator[Event]:
        """Reads all events; a last one that was not written to its end is cut off.

        Raises:
            DataError: if a line is damaged.
        """
        content = read_bounded(self._path, _MAX_BYTES)
        *lines, torn = content.split(b'\n')
        if torn:
            self._end -= len(torn)
            os.ftruncate(self._file, self._end)
        for number, line in enumerate(lines, start=1):
            checksum, _, text = line.partition(b' ')
            if checksum != _checksum(text):
                raise DataError(
                    f'path: line {number} of {self._path} is damaged: its checksum is another one.'
                )
            yield json.loads(text)


def _close(file: int, locked: int) -> None:
    os.close(file)
    unlock(locked)


def _line(event: Event) -> bytes:
    text = json.dumps(event).encode()
    return _checksum(text) + b' ' + text + b'\n'


def _checksum(text: bytes) -> bytes:
    return b'%08x' % zlib.crc32(text)
