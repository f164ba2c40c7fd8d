"""The file ``versions.json`` of a named model: the next version's number and the tags."""

import dataclasses
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

from thinkml.checkpoint import filesystem
from thinkml.errors import ModelFileError
from thinkml.models.serialization.directories import read_json

FORMAT = 1
FILE = 'versions.json'
LATEST = 'latest'
MAX_BYTES = 2**20
MAX_NUMBER = 10**9

NUMBER = re.compile(r'[1-9][0-9]{0,8}')
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,99}')


@dataclasses.dataclass(frozen=True)
class Versions:
    """The content of a name's file.

    Attributes:
        next: the number of the next version.
        tags: the version of each tag.
    """

    next: int = 1
    tags: Mapping[str, int] = dataclasses.field(default_factory=dict)


def is_name(text: object) -> bool:
    """Returns True if a text can be the name of a model."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_tag(text: object) -> bool:
    """Returns True if a text can be a tag: a name that is neither a number nor ``latest``."""
    return isinstance(text, str) and is_name(text) and not text.isdigit() and text != LATEST


def numbers_in(folder: Path) -> list[int]:
    """Returns the numbers of the existing versions, ascending."""
    with os.scandir(folder) as entries:
        return sorted(
            int(entry.name)
            for entry in entries
            if NUMBER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )


def read(folder: Path) -> Versions:
    """Reads the file of a name.

    Raises:
        ModelFileError: if it is damaged or has a newer format.
        FileNotFoundError: if it does not exist.
    """
    file = folder / FILE
    os.lstat(file)
    if file.is_symlink() or not file.is_file():
        raise ModelFileError(f'name: {file} is not a regular file.')
    try:
        values = read_json(folder, FILE, MAX_BYTES)
    except ModelFileError as error:
        raise ModelFileError(f'name: {folder}: {error}.') from error
    if not isinstance(values, dict) or type(values.get('format')) is not int:
        raise ModelFileError(f'name: {file} is damaged: it has no format.')
    if values['format'] != FORMAT:
        raise ModelFileError(
            f'name: {file} has format {values["format"]}, this ThinkML reads {FORMAT}. Install the '
            'newer ThinkML that wrote it.'
        )
    if values.keys() != {'format', 'next', 'tags'} or not _is_valid(values['next'], values['tags']):
        raise ModelFileError(f'name: {file} is damaged: its values are impossible.')
    return Versions(values['next'], values['tags'])


def read_for_update(folder: Path) -> Versions:
    """Returns the file's content, with the next number above every version in the folder."""
    versions = read(folder) if os.path.lexists(folder / FILE) else Versions()
    numbers = [int(name) for name in os.listdir(folder) if NUMBER.fullmatch(name)]
    return dataclasses.replace(versions, next=max(versions.next, *(n + 1 for n in numbers), 1))


def write(folder: Path, versions: Versions) -> None:
    """Replaces the file atomically.

    Raises:
        ModelFileError: if the file would be too large to be read again.
        OSError: if the file can't be written.
    """
    file = folder / FILE
    values = {'format': FORMAT, 'next': versions.next, 'tags': versions.tags}
    content = json.dumps(values, indent=1, sort_keys=True).encode() + b'\n'
    if len(content) > MAX_BYTES or versions.next > MAX_NUMBER:
        raise ModelFileError(
            f'name: {file} would have {len(content)} bytes and the next number {versions.next}, '
            f'at most {MAX_BYTES} bytes and {MAX_NUMBER} are read. Remove tags, or choose '
            'another name.'
        )
    temporary = folder / f'.{FILE}.{uuid.uuid4().hex}.tmp'
    try:
        filesystem.write_synced(temporary, content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    filesystem.sync_folder(folder)


def _is_valid(next_number: object, tags: object) -> bool:
    return (
        type(next_number) is int
        and 1 <= next_number <= MAX_NUMBER
        and isinstance(tags, dict)
        and all(is_tag(tag) for tag in tags)
        and all(type(on) is int and 1 <= on < next_number for on in tags.values())
    )
