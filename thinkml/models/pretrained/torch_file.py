"""Reading of weight files from torch, without torch and without running code in the file.

``torch.save`` writes a zip file. It contains the bytes of each storage as a separate, uncompressed
entry, and a pickle that describes the tensors in these storages. A pickle is a program that may
call anything. It is not run here: its instructions are read one by one, and only those that build
dicts, lists, numbers, text and tensors are followed.
"""

import dataclasses
import math
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from thinkml.errors import WeightsError

_MAX_PICKLE_BYTES = 8 * 2**20  # torch needs about 200 per tensor; memory use is 64 times as much
_MAX_ENTRIES = 200_000
_CHUNK = 2**24

_DTYPES: Mapping[str, type[np.generic]] = {
    'torch FloatStorage': np.float32,
    'torch DoubleStorage': np.float64,
    'torch HalfStorage': np.float16,
    'torch BFloat16Storage': ml_dtypes.bfloat16,
    'torch LongStorage': np.int64,
    'torch IntStorage': np.int32,
    'torch ShortStorage': np.int16,
    'torch CharStorage': np.int8,
    'torch ByteStorage': np.uint8,
    'torch BoolStorage': np.bool_,
}


def is_torch_file(path: Path) -> bool:
    """Returns True for a zip file with the pickle that torch writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r'[^/]*/data\.pkl', name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict by name, as views of the file's bytes.

    If the file contains several dicts (a checkpoint), the state dict is the one under
    ``state_dict``, ``model_state_dict``, ``model_ema``, ``model`` or ``net``.

    Raises:
        WeightsError: for a file that is damaged, or contains anything but tensors. Names it.
        OSError: if it can't be read.
    """
    with open(path, 'rb') as file:
        try:
            return _read(path, file)
        except _Refused as error:
            raise WeightsError(f'weights: {path} is not loaded: {error}.') from None
        except Exception as error:  # the zip reader and the tokeniser raise many types
            raise WeightsError(f'weights: {path} is damaged: {error!r}.') from error


def _read(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        entries = _entries(archive)
        (prefix,) = (name[: -len('data.pkl')] for name in entries if name.endswith('/data.pkl'))
        order = entries.get(f'{prefix}byteorder')
        if order is not None and _content(archive, order) != b'little':
            raise _Refused('it was written on a machine with another byte order')
        pickle = _content(archive, entries[f'{prefix}data.pkl'])
    data = f'{prefix}data/'
    storages = _Storages(
        path, {n.removeprefix(data): entry for n, entry in entries.items() if n.startswith(data)}
    )
    described = _state_dict(_Reader().read(pickle))
    return {name: storages.array(tensor) for name, tensor in described.items()}


class _Refused(Exception):
    """A content of the file that is not supported."""


# --- the zip file -----------------------------------------------------------------------------


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    found = archive.infolist()
    entries = {entry.filename: entry for entry in found}
    if len(found) > _MAX_ENTRIES or len(entries) != len(found):
        raise _Refused('it contains too many files, or two of one name')
    for entry in found:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise _Refused(f'{entry.filename!r} in it is compressed, which torch never does')
    if sum(name.endswith('/data.pkl') for name in entries) != 1:
        raise _Refused('it does not contain exactly one data.pkl')
    return entries


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > _MAX_PICKLE_BYTES:
        raise _Refused(f'{entry.filename!r} in it has {entry.file_size} bytes')
    return archive.read(entry)


class _Storages:
    """The storages of a file: the bytes that its tensors are views of."""

    def __init__(self, path: Path, entries: Mapping[str, zipfile.ZipInfo]):
        self._bytes = np.memmap(path, np.uint8, 'r')
        self._entries = entries
        self._checked: dict[str, np.ndarray] = {}

    def array(self, tensor: '_Tensor') -> np.ndarray:
        """Returns a tensor as a view of its storage."""
        dtype = np.dtype(tensor.storage.dtype)
        content = self._storage(tensor.storage.key)
        length = len(content) // dtype.itemsize
        size, stride = tensor.size, tensor.stride
        last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(size, default=1) == 0:
            return np.zeros(size, dtype)
        if last >= length or math.prod(size) > length:
            raise _Refused(f'a tensor of shape {size} is larger than the {length} numbers stored')
        flat = content[: length * dtype.itemsize].view(dtype)[tensor.offset :]
        steps = [step * dtype.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False)
        return view if flat.ctypes.data % dtype.itemsize == 0 else view.copy()

    def _storage(self, key: str) -> np.ndarray:
        if key not in self._checked:
            if key not in self._entries:
                raise _Refused(f'the storage {key!r} of a tensor is missing')
            self._checked[key] = self._checked_bytes(self._entries[key])
        return self._checked[key]

    def _checked_bytes(self, entry: zipfile.ZipInfo) -> np.ndarray:
        """Returns the bytes of an entry, after its local header, with a check of the CRC."""
        header = self._bytes[entry.header_offset : entry.header_offset + 30].tobytes()
        if len(header) < 30 or header[:4] != b'PK\x03\x04':
            raise _Refused(f'{entry.filename!r} in it is damaged')
        name, extra = struct.unpack('<HH', header[26:])
        start = entry.header_offset + 30 + name + extra
        content = self._bytes[start : start + entry.file_size]
        crc = 0
        for first in range(0, len(content), _CHUNK):
            crc = zlib.crc32(content[first : first + _CHUNK].data, crc)
        if len(content) != entry.file_size or crc != entry.CRC:
            raise _Refused(f'{entry.filename!r} in it is damaged')
        return content


# --- the pickle -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: type[np.generic]
    key: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> _Tensor:
    is_consistent = (
        isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    )
    if not (isinstance(storage, _Storage) and is_consistent and len(size) <= 32):
        raise _Refused('a tensor in it is described in a way that torch never uses')
    if not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride)):
        raise _Refused(f'a tensor in it has the shape {size} and the strides {stride}')
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor: _Tensor, *_: object) -> _Tensor:
    return tensor


def _ordered_dict(*pairs: object) -> dict[Any, Any]:
    if pairs:
        raise _Refused('a dict in it is made in a way that torch never uses')
    return {}


_CALLABLES: Mapping[str, Callable[..., Any]] = {
    'torch._utils _rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils _rebuild_parameter': _rebuild_parameter,
    'collections OrderedDict': _ordered_dict,
}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_VALUES = (
    'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE',
    'BINUNICODE8', 'SHORT_BINSTRING', 'BINSTRING',
)  # fmt: skip


class _Reader:
    """An interpreter of those pickle instructions that build tensors and their containers."""

    def __init__(self):
        self._stack: list[Any] = []
        self._before_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            name = opcode.name
            if name == 'STOP':
                return self._pop()
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in ('BINPUT', 'LONG_BINPUT'):
                self._memo[argument] = self._top()
            elif name in ('BINGET', 'LONG_BINGET'):
                self._stack.append(self._memo[argument])
            elif name == 'MEMOIZE':
                self._memo[len(self._memo)] = self._top()
            elif name == 'GLOBAL':
                self._stack.append(_allowed_global(argument))
            elif name not in ('PROTO', 'FRAME'):
                step = getattr(self, f'_{name.lower()}', None)
                if step is None:
                    raise _Refused(f'its pickle has the instruction {name}, which builds no tensor')
                step()
        raise _Refused('its pickle has no end')

    def _top(self) -> Any:
        return self._stack[-1]

    def _pop(self) -> Any:
        return self._stack.pop()

    def _since_mark(self) -> list[Any]:
        found, self._stack = self._stack, self._before_marks.pop()
        return found

    def _mark(self) -> None:
        self._before_marks.append(self._stack)
        self._stack = []

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_tuple(self) -> None:
        self._stack.append(())

    def _tuple(self) -> None:
        found = tuple(self._since_mark())
        self._stack.append(found)

    def _tuple1(self) -> None:
        self._stack.append((self._pop(),))

    def _tuple2(self) -> None:
        second, first = self._pop(), self._pop()
        self._stack.append((first, second))

    def _tuple3(self) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._stack.append((first, second, third))

    def _append(self) -> None:
        value = self._pop()
        self._of_kind(list).append(value)

    def _appends(self) -> None:
        values = self._since_mark()
        self._of_kind(list).extend(values)

    def _setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._of_kind(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise _Refused(f'a dict in it has a {type(key).__name__} for a key')
            target[key] = value

    def _of_kind(self, kind: type) -> Any:
        if type(self._top()) is not kind:
            raise _Refused('its pickle is damaged')
        return self._top()

    def _binpersid(self) -> None:
        match self._pop():
            case ('storage', _Global(name), str() as key, str(), int()) if name in _DTYPES:
                self._stack.append(_Storage(_DTYPES[name], key))
            case other:
                raise _Refused(f'its pickle names something that is not a storage: {other!r:.100}')

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not (isinstance(function, _Global) and function.name in _CALLABLES):
            raise _Refused('its pickle calls something that makes no tensor')
        if not isinstance(arguments, tuple):
            raise _Refused('its pickle is damaged')
        self._stack.append(_CALLABLES[function.name](*arguments))

    def _build(self) -> None:
        """Drops the attributes of a dict, such as the versions of the modules."""
        self._pop()
        self._of_kind(dict)


def _allowed_global(name: str) -> _Global:
    if name not in _CALLABLES and name not in _DTYPES:
        raise _Refused(
            f'its pickle names {name.replace(" ", ".")}, which is not allowed, since a file may '
            'name anything. Save only the tensors: torch.save(model.state_dict(), path)'
        )
    return _Global(name)


def _state_dict(found: object) -> dict[str, _Tensor]:
    for name in ('state_dict', 'model_state_dict', 'model_ema', 'model', 'net'):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    tensors = {
        str(name): value
        for name, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, _Tensor)
    }
    if not tensors:
        raise _Refused(
            'it contains no dict of tensors. Save one: torch.save(model.state_dict(), path)'
        )
    return tensors
