"""LabelStore: every query and label of active learning, in memory and in a file."""

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
from thinkml.json_values import to_json_value
from thinkml.paths import local_directory
from thinkml.training.active.history import ActiveHistory, ActiveQuery
from thinkml.training.active.pool import plain_label

_FORMAT = 1
_MAX_BYTES = 2**31
_EVENTS, _SESSION = 'events.jsonl', 'session.json'

Event = dict[str, Any]


class LabelStore:
    """The queries and labels of a pool's rows: the result of all events, which are plain values.

    Attributes:
        labels: the label of each row that has one, in the order they were added.
        skipped: the rows that will not be queried again.
        history: the queries.
        num_changes: the number of times that labels were added, changed or removed.
    """

    def __init__(self, num_rows: int):
        self.labels: dict[int, Any] = {}
        self.skipped: set[int] = set()
        self.history = ActiveHistory()
        self.num_changes = 0
        self._num_rows = num_rows
        self._query_by_row: dict[int, ActiveQuery] = {}
        self._num_unanswered: dict[int, int] = {}  # rows of a query without an answer, by its id
        self._changed: dict[int, ActiveQuery] = {}  # queries since the last training, by their ids
        self._events: list[Event] = []
        self._log: LabelLog | None = None
        self._lock = threading.Lock()

    @property
    def num_queries(self) -> int:
        """Returns the number of queries so far."""
        return len(self.history)

    @property
    def waiting(self) -> np.ndarray:
        """Returns the queried rows that have no label and were not skipped."""
        queried = list(self._query_by_row)  # a copy, since other threads may add queries
        return np.array([row for row in queried if not self._is_answered(row)], np.int64)

    @property
    def available(self) -> np.ndarray:
        """Returns a mask of the rows that can still be queried, bool ``[rows]``."""
        available = np.ones(self._num_rows, bool)
        for rows in (self.labels, self.skipped, self._query_by_row):
            available[list(rows)] = False
        return available

    def record(self, event: Event) -> None:
        """Records an event. If there is a file, the event is written to disk first.

        Several threads may call it.

        Raises:
            DataError: if the file was closed, or belongs to another process.
            OSError: if it can't be written; then nothing of the event is recorded.
        """
        event = to_json_value(event)
        with self._lock:
            if self._log is not None:
                self._log.append(event)
            self._apply(event)

    def _is_answered(self, row: int) -> bool:
        return row in self.labels or row in self.skipped

    def _apply(self, event: Event) -> None:
        handlers = {
            'query': self._apply_query,
            'teach': self._apply_labels,
            'fit': self._apply_fit,
        }
        rows = event.get('indices', [])
        if not all(type(row) is int and 0 <= row < self._num_rows for row in rows):
            raise ValueError(f'rows that are not in the pool of {self._num_rows:,}')
        handlers[event['event']](event)
        self._events.append(event)

    def _apply_query(self, event: Event) -> None:
        scores = [np.nan if score is None else score for score in event['scores']]
        query = ActiveQuery(
            np.array(event['indices'], np.int64), np.array(scores, np.float32),
            seconds=event['seconds'],
        )  # fmt: skip
        self.history.queries.append(query)
        self._query_by_row |= dict.fromkeys(event['indices'], query)
        self._num_unanswered[id(query)] = len(event['indices'])

    def _apply_labels(self, event: Event) -> None:
        labels = [plain_label(label) for label in event['labels']]  # older files have [label]
        num_before = len(self.labels)
        queries: dict[int, ActiveQuery] = {}
        for row, label in zip(event['indices'], labels, strict=True):
            query = self._query_by_row.get(row)
            if query is not None and query.status != 'trained':
                queries[id(query)] = query
                self._num_unanswered[id(query)] -= not self._is_answered(row)
            if label is None:
                self.labels.pop(row, None)
                self.skipped.add(row)
            else:
                self.labels[row] = label
                self.skipped.discard(row)
        adds_labels = any(label is not None for label in labels)
        self.num_changes += adds_labels or len(self.labels) < num_before
        for query in queries.values():
            has_labels = any(row in self.labels for row in query.indices.tolist())
            if not self._num_unanswered[id(query)]:
                query.status = 'labeled' if has_labels else 'skipped'
        self._changed |= queries

    def _apply_fit(self, event: Event) -> None:
        metrics = {
            name: np.nan if value is None else value for name, value in event['metrics'].items()
        }
        if not self.history.queries:
            self.history.start = (event['num_labels'], metrics)
        for query in self._changed.values():
            if query.status == 'skipped':  # it added no labels
                continue
            if query.status == 'labeled':
                query.status = 'trained'
            query.num_labels, query.metrics = event['num_labels'], metrics
            query.agreement = np.nan if event['agreement'] is None else event['agreement']
            query.seconds += event['seconds']
        self._changed = {}

    def save(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Writes all events to a new directory; later events are appended to it.

        Raises:
            DataError: if the path exists already, or the file would be too large to read again.
            OSError: if it can't be written.
        """
        if path.exists():
            raise SessionExistsError(f'path: {path} exists already. Pass another one, or load it.')
        local_directory(path, 'path')
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
        saved = {'format': _FORMAT, **to_json_value(metadata)}
        lines = b''.join(map(_line, self._events))
        _check_size(len(lines), path)
        new.mkdir()
        try:
            write_synced(new / _EVENTS, lines)
            write_synced(new / _SESSION, json.dumps(saved).encode())
            sync_folder(new)
            new.rename(path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        sync_folder(path.parent)
        before, self._log = self._log, LabelLog(path / _EVENTS)
        if before is not None:
            before.close()

    def load(self, path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
        """Reads all events of a directory; later events are appended to it.

        Args:
            path: the directory.
            expected: the metadata that the session must have been saved with, by name.

        Returns:
            All metadata that it was saved with.

        Raises:
            DataError: if the session belongs to other data or is damaged, or the path holds none.
        """
        if not path.exists():
            raise SessionNotFoundError(f'path: {path} holds no session: it does not exist.')
        try:
            saved = json.loads(read_bounded(path / _SESSION, 2**20))
            version = saved.pop('format')
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f'path: {path} holds no readable session: {error}.') from error
        if version != _FORMAT:
            raise DataError(f'path: {path} has format {version!r}, this ThinkML reads {_FORMAT}.')
        for name, value in to_json_value(expected).items():
            if saved.get(name) != value:
                raise DataError(
                    f'{name}: got data with the fingerprint {value}, but the session at {path} '
                    f'began with {saved.get(name)}. Pass the same rows in the same order.'
                )
        try:
            self._log = log = LabelLog(path / _EVENTS)
        except OSError as error:
            raise DataError(f'path: {path} holds no readable session: {error}.') from error
        try:
            for number, line in enumerate(log.read(), start=1):
                self._apply_line(path / _EVENTS, number, line)
        except BaseException:
            self.close()
            raise
        return saved

    def _apply_line(self, path: Path, number: int, line: bytes) -> None:
        checksum, _, text = line.partition(b' ')
        try:
            if checksum != _checksum(text):
                raise ValueError('the checksum differs')
            self._apply(json.loads(text))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f'path: line {number} of {path} is damaged: {error!r}. Take the file from a '
                'backup, or delete this line and all lines after it to continue from there.'
            ) from error

    def close(self) -> None:
        """Closes the file, so that another process can open it; no more events are recorded."""
        if self._log is not None:
            self._log.close()


class LabelLog:
    """An append-only file with a line for each event and its checksum.

    Attributes:
        close: closes the file and releases the lock; garbage collection does so too.

    Raises:
        DataError: if another process has it open.
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
            DataError: if the file was closed or would be too large to read again, or the process
                forked from the one that opened it.
            OSError: if writing fails; then no part of the event remains in the file.
        """
        if not self.close.alive or self._process != os.getpid():
            why = 'was closed'
            if self.close.alive:
                why = 'belongs to the process that this one forked from'
            raise DataError(
                f'path: the session at {self._path.parent} {why}. Load it again to continue.'
            )
        line = _line(event)
        _check_size(self._end + len(line), self._path.parent)
        try:
            self._file.seek(self._end)
            rest = memoryview(line)
            while rest:  # an almost full disk writes a part, and raises an error at the next call
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
            self._end += len(line)
        except BaseException:  # Ctrl-C is one
            self._file.truncate(self._end)
            raise

    def read(self) -> list[bytes]:
        """Returns all lines; an incomplete last line is removed from the file.

        Raises:
            DataError: if the file is too large.
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


def _check_size(num_bytes: int, path: Path) -> None:
    if num_bytes > _MAX_BYTES:  # masks take some 3 bytes for each pixel
        raise DataError(
            f'path: the session at {path} would have {num_bytes:,} bytes with these labels, '
            f'expected at most {_MAX_BYTES:,}. Start another session with the labels so far as '
            'y_labeled.'
        )


def _line(event: Event) -> bytes:
    text = json.dumps(event).encode()
    return _checksum(text) + b' ' + text + b'\n'


def _checksum(text: bytes) -> bytes:
    return b'%08x' % zlib.crc32(text)
