"""Event files in TensorBoard's format, with each record in the file when a call returns.

tensorboardX writes records in a thread. A full disk ends that thread; then its queue fills up and
blocks the training.
"""

import functools
import os
import socket
import struct
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0)


class EventFile:
    """A new event file.

    Args:
        directory: the directory of the file; created if it does not exist.
        purge_step: TensorBoard hides points of this step and later ones in earlier files.
        suffix: the end of the file's name. Files are read in the order of their names.

    Attributes:
        close: closes the file.

    Raises:
        OSError: if it can't be written.
    """

    def __init__(self, directory: Path, purge_step: int, suffix: str):
        directory.mkdir(parents=True, exist_ok=True)
        name = f'events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}{suffix}'
        self._file = os.open(directory / name, _NEW, 0o666)
        self.close = weakref.finalize(self, os.close, self._file)
        self._end = 0
        messages, now = _messages(), time.time()
        start = messages.SessionLog(status=messages.SessionLog.START)
        first = messages.Event(wall_time=now, file_version='brain.Event:2')
        self._write([first, messages.Event(wall_time=now, step=purge_step, session_log=start)])

    def add(self, summaries: Iterable[Any], step: int | None, wall_time: float | None) -> None:
        """Writes all summaries, or none.

        Raises:
            OSError: if they can't be written; the next call may succeed.
        """
        event = functools.partial(
            _messages().Event, wall_time=time.time() if wall_time is None else wall_time, step=step
        )
        self._write([event(summary=summary) for summary in summaries])

    def _write(self, events: Iterable[Any]) -> None:
        rest = memoryview(b''.join(_record(event.SerializeToString()) for event in events))
        end = self._end + len(rest)
        try:
            os.lseek(self._file, self._end, os.SEEK_SET)
            while rest:  # a disk that is almost full writes only a part
                rest = rest[os.write(self._file, rest) :]
        except BaseException:  # includes Ctrl-C
            os.ftruncate(self._file, self._end)
            raise
        self._end = end


def _messages() -> Any:
    """Returns the protocol buffers of the format, whose names type checkers don't know."""
    from tensorboardX.proto import event_pb2

    return event_pb2


def _record(data: bytes) -> bytes:
    """Encodes a record in the TFRecord format."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack('<Q', len(data))
    return b''.join(
        [length, struct.pack('<I', masked_crc32c(length)), data,
         struct.pack('<I', masked_crc32c(data))]
    )  # fmt: skip
