"""The book of an active learning: every question and label, in memory and in a file."""

import io
import json
import os
import shutil
import threading
import uuid
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from thinkml.checkpoint.filesystem import lock, read_bounded, sync_folder, unlock, write_synced
from thinkml.errors import DataError, SessionExistsError, SessionNotFoundError
from thinkml.paths import local_directory
from thinkml.training.active.history import ActiveHistory, ActiveQuery, plain
from thinkml.training.active.pool import plain_label

_FORMAT = 1
_MAX_BYTES = 2**31
_EVENTS, _SESSION = 'events.jsonl', 'session.json'

Event = dict[str, Any]


class LabelStore:
    """What became of each row of a pool: the sum of events, which are plain values.

    Attributes:
        labels: the label of each row that has one, in the order they came.
        skipped: the rows that will not be asked for again.
        history: the queries.
        num_changes: how often labels were given, changed or taken back.
    """

    def __init__(self, num_rows: int):
        self.labels: dict[int, Any] = {}
        self.skipped: set[int] = set()
        self.history = ActiveHistory()
        self.num_changes = 0
        self._num_rows = num_rows
        self._query_of: dict[int, ActiveQuery] = {}
        self._num_open: dict[int, int] = {}  # rows of a query without an answer, by its id
        self._changed: dict[int, ActiveQuery] = {}  # since the last training, by their ids
        self._events: list[Event] = []
        self._journal: LabelLog | None = None
        self._taking = threading.Lock()

    @property
    def num_queries(self) -> int:
        """Asked so far."""
        return len(self.history)

    @property
    def waiting(self) -> np.ndarray:
        """The rows that were asked for and have neither a label nor were skipped."""
        asked = list(self._query_of)  # at once: other threads may ask
        return np.array([row for row in asked if not self._is_answered(row)], np.int64)

    @property
    def available(self) -> np.ndarray:
        """Whether a row can still be asked for, bool ``[rows]``."""
        available = np.ones(self._num_rows, bool)
        for rows in (self.labels, self.skipped, self._query_of):
            available[list(rows)] = False
        return available

    def note(self, event: Event) -> None:
        """Takes an event in; where there is a file, it is on disk before.

        Several threads may do so.

        Raises:
            DataError: if the file was closed, or is another process's.
            OSError: if it can't be written; then nothing of the event is taken.
        """
        event = plain(event)
        with self._taking:
            if self._journal is not None:
                self._journal.append(event)
            self._take(event)

    def _is_answered(self, row: int) -> bool:
        return row in self.labels or row in self.skipped

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
        self._num_open[id(query)] = len(event['indices'])

    def _teach(self, event: Event) -> None:
        labels = [plain_label(label) for label in event['labels']]  # older files have [label]
        num_before = len(self.labels)
        asked: dict[int, ActiveQuery] = {}
        for row, label in zip(event['indices'], labels, strict=True):
            query = self._query_of.get(row)
            if query is not None and query.status != 'trained':
                asked[id(query)] = query
                self._num_open[id(query)] -= not self._is_answered(row)
            if label is None:
                self.labels.pop(row, None)
                self.skipped.add(row)
            else:
                self.labels[row] = label
                self.skipped.discard(row)
        given = any(label is not None for label in labels)
        self.num_changes += given or len(self.labels) < num_before
        for query in asked.values():
            has_labels = any(row in self.labels for row in query.indices.tolist())
            if not self._num_open[id(query)]:
                query.status = 'labeled' if has_labels else 'skipped'
        self._changed |= asked

    def _fit(self, event: Event) -> None:
        metrics = {
            name: np.nan if value is None else value for name, value in event['metrics'].items()
        }
        if not self.history.queries:
            self.history.start = (event['num_labels'], metrics)
        for query in self._changed.values():
            if query.status == 'skipped':  # nothing was learned from it
                continue
            if query.status == 'labeled':
                query.status = 'trained'
            query.num_labels, query.metrics = event['num_labels'], metrics
            query.agreement = np.nan if event['agreement'] is None else event['agreement']
            query.seconds += event['seconds']
        self._changed = {}

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Writes all events to a new directory, to which later ones are added from now on.

        Raises:
            DataError: if there is something at the path already.
            OSError: if it can't be written.
        """
        if path.exists():
            raise SessionExistsError(f'path: {path} exists already. Pass another one, or load it.')
        local_directory(path, 'path')
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
        new.mkdir()
        try:
            write_synced(new / _EVENTS, b''.join(map(_line, self._events)))
            write_synced(new / _SESSION, json.dumps({'format': _FORMAT, **plain(about)}).encode())
            sync_folder(new)
            new.rename(path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        sync_folder(path.parent)
        before, self._journal = self._journal, LabelLog(path / _EVENTS)
        if before is not None:
            before.close()

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
        if not path.exists():
            raise SessionNotFoundError(f'path: {path} holds no session: it does not exist.')
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
        try:
            self._journal = journal = LabelLog(path / _EVENTS)
        except OSError as error:
            raise DataError(f'path: {path} holds no session that can be read: {error}.') from error
        try:
            for number, line in enumerate(journal.read(), start=1):
                self._take_line(path / _EVENTS, number, line)
        except BaseException:
            self.close()
            raise
        return saved

    def _take_line(self, path: Path, number: int, line: bytes) -> None:
        checksum, _, text = line.partition(b' ')
        try:
            if checksum != _checksum(text):
                raise ValueError('its checksum is another one')
            self._take(json.loads(text))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f'path: line {number} of {path} is damaged: {error!r}. Take the file from a '
                'backup, or delete this line and all after it to go on with what was before.'
            ) from error

    def close(self) -> None:
        """Lets the file go, so that another process may add to it; no event is taken any more."""
        if self._journal is not None:
            self._journal.close()


class LabelLog:
    """A file that only grows, a line for each event, with a checksum.

    Attributes:
        close: closes the file and gives the lock back; when it is garbage that happens too.

    Raises:
        DataError: if another process writes to it.
        OSError: if it can't be opened.
    """

    def __init__(self, path: Path):
        self._path = path
        locked = lock(path.parent)
        if locked is None:
            raise DataError(
                f'path: another learner or process has the session at {path.parent} open. Close it '
                'first.'
            )
        try:
            self._file = io.FileIO(path, 'r+')
        except OSError:
            unlock(locked)
            raise
        self.close = weakref.finalize(self, _close, self._file, locked)
        self._end = self._file.seek(0, os.SEEK_END)
        self._process = os.getpid()

    def append(self, event: Event) -> None:
        """Writes an event; it is on disk when this returns.

        Raises:
            DataError: if the file was closed, or the process forked from the one that opened it.
            OSError: if that fails; then nothing of it is left.
        """
        if not self.close.alive or self._process != os.getpid():
            why = (
                'was closed' if not self.close.alive else 'belongs to the process this is a copy of'
            )
            raise DataError(
                f'path: the session at {self._path.parent} {why}. Load it again to go on.'
            )
        line = _line(event)
        try:
            self._file.seek(self._end)
            rest = memoryview(line)
            while rest:  # a disk that is almost full takes a part, and says so the next time
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
            self._end += len(line)
        except BaseException:  # Ctrl-C is one
            self._file.truncate(self._end)
            raise

    def read(self) -> list[bytes]:
        """Reads all lines; a last one that was not written to its end is cut off.

        Raises:
            DataError: if it is too large.
        """
        try:
            *lines, torn = read_bounded(self._path, _MAX_BYTES).split(b'\n')
        except ValueError as error:
            raise DataError(f'path: {error}.') from error
        if torn:
            self._end -= len(torn)
            self._file.truncate(self._end)
        return lines


def _close(file: io.FileIO, locked: int) -> None:
    file.close()
    unlock(locked)


def _line(event: Event) -> bytes:
    text = json.dumps(event).encode()
    return _checksum(text) + b' ' + text + b'\n'


def _checksum(text: bytes) -> bytes:
    return b'%08x' % zlib.crc32(text)
