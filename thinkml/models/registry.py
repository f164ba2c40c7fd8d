"""Registry: named models in numbered versions, with movable tags."""

import contextlib
import dataclasses
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from thinkml.checkpoint import filesystem
from thinkml.errors import ModelFileError, ModelNotFoundError, unknown_name
from thinkml.models.registry_entry import (
    FILE,
    LATEST,
    NUMBER,
    Versions,
    is_name,
    is_tag,
    numbers_in,
    read,
    read_for_update,
    write,
)
from thinkml.models.serialization.directories import absolute

WAIT_SECONDS = 10.0

_TRASH = re.compile(r'\..+\.[0-9a-f]{32}\.deleted')
_RULE = "at most 100 letters (a-z, A-Z), digits and '.', '_', '-', a letter or digit first"


def parse(reference: str) -> tuple[str, int | str | None]:
    """Splits a reference into a name and a version.

    Args:
        reference: ``'digits'`` or ``'digits@latest'`` for the newest version, ``'digits@3'`` for
            a number, ``'digits@production'`` for a tag.

    Returns:
        The name, and the number, the tag, or None for the newest version.

    Raises:
        ModelFileError: for anything else.

    Example:
        >>> from thinkml.models.registry import parse
        >>> parse('digits@3'), parse('digits@production'), parse('digits')
        (('digits', 3), ('digits', 'production'), ('digits', None))
    """
    name, at, which = reference.partition('@') if isinstance(reference, str) else ('', '', '')
    if is_name(name) and (not at or which == LATEST):
        return name, None
    if is_name(name) and NUMBER.fullmatch(which):
        return name, int(which)
    if is_name(name) and is_tag(which):
        return name, which
    raise ModelFileError(
        f'reference: got {reference!r}, expected a name, name@3 with a version, name@tag or '
        f'name@{LATEST}. Names and tags are {_RULE}.'
    )


class Registry:
    """Named models under one root folder, in versions that are numbered from 1.

    A version is the folder ``root/name/number``, which the caller fills. The next number and the
    tags are stored in ``root/name/versions.json``. Several processes may use a registry at once:
    changes are atomic and made under a lock, and readers need no lock. If folders can't be locked
    (Windows, some network file systems), only one process at a time may change a name.

    Names and tags have at most 100 letters (a-z, A-Z), digits, dots, underscores and hyphens, and
    begin with a letter or digit. A tag is not a number, and not ``latest``, which always means the
    newest version.

    Args:
        root: the folder; created when it is first needed.

    Raises:
        ModelFileError: in every method, for invalid or unknown names, tags and references, for a
            damaged ``versions.json``, and if the file system reports an error.

    Example:
        >>> import tempfile
        >>> from thinkml.models.registry import Registry
        >>> registry = Registry(tempfile.mkdtemp())
        >>> for _ in range(3):
        ...     registry.reserve('digits').mkdir()
        >>> registry.tag('digits@2', 'production')
        >>> registry.names(), registry.versions('digits'), registry.tags('digits')
        (['digits'], [1, 2, 3], {'production': 2})
        >>> registry.locate('digits@production').name, registry.locate('digits').name
        ('2', '3')
        >>> registry.delete('digits@3')
        >>> registry.reserve('digits').name
        '4'
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = absolute(root, 'root')

    def names(self) -> list[str]:
        """Returns the names, sorted."""
        try:
            entries = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelFileError(f'root: {self.root} can not be listed: {error}') from error
        return [
            name
            for name in entries
            if is_name(name)
            and not (self.root / name).is_symlink()
            and os.path.lexists(self.root / name / FILE)
        ]

    def versions(self, name: str) -> list[int]:
        """Returns the numbers of the versions that exist, ascending."""
        folder = self._existing_folder(name)
        with _reporting(folder):
            return numbers_in(folder)

    def tags(self, name: str) -> dict[str, int]:
        """Returns the tags, sorted, with the version of each."""
        folder = self._existing_folder(name)
        with _reporting(folder):
            return dict(sorted(read(folder).tags.items()))

    def reserve(self, name: str) -> Path:
        """Reserves the number of the next version and returns the path for its folder.

        A number is never given out twice, even if nothing is written to the path or the version is
        deleted. Numbers start at 1 again only after the name itself was deleted.
        """
        with self._locked(name, make=True) as folder:
            if not os.path.lexists(folder / FILE) and (others := _others(folder)):
                raise ModelFileError(
                    f'name: {folder} exists and holds {others[0]!r}, so it can not become a '
                    'folder of versions. Choose another name, or move it away.'
                )
            versions = read_for_update(folder)
            write(folder, dataclasses.replace(versions, next=versions.next + 1))
            filesystem.sync_folder(self.root)
            return folder / str(versions.next)

    def locate(self, reference: str) -> Path:
        """Returns the folder of a version that exists.

        Args:
            reference: ``'digits'`` for the newest, ``'digits@3'``, ``'digits@production'``.
        """
        folder = self._existing_folder(parse(reference)[0])
        with _reporting(folder):
            return folder / str(_number(folder, reference))

    def tag(self, reference: str, tag: str) -> None:
        """Moves a tag to an existing version.

        Concurrent readers find the tag on either the old version or the new one.
        """
        name, _ = parse(reference)
        _check_tag(tag)
        with self._locked(name) as folder:
            versions, number = read_for_update(folder), _number(folder, reference)
            write(folder, dataclasses.replace(versions, tags={**versions.tags, tag: number}))

    def untag(self, name: str, tag: str) -> None:
        """Removes a tag; the version stays."""
        _check_name(name)
        _check_tag(tag)
        with self._locked(name) as folder:
            versions = read_for_update(folder)
            if tag not in versions.tags:
                raise ModelFileError(_unknown_tag(name, tag, versions.tags))
            tags = {other: number for other, number in versions.tags.items() if other != tag}
            write(folder, dataclasses.replace(versions, tags=tags))

    def delete(self, reference: str) -> None:
        """Deletes a version, or a name with all its versions. This can not be undone.

        A tagged version is not deleted, so a version can't be deleted by its tag.

        Args:
            reference: ``'digits@2'`` deletes this version, ``'digits@latest'`` the newest one.
                ``'digits'`` deletes the name with all its versions, although it means the newest
                version elsewhere.
        """
        name, _ = parse(reference)
        with self._locked(name) as folder:
            versions = read_for_update(folder)
            if '@' in reference:
                number = _number(folder, reference)
                _refuse_tagged(reference, name, versions, number)
                # Keeps the number from being given out again, even if the version was copied here.
                write(folder, versions)
                gone = folder / str(number)
            else:
                _refuse_tagged(reference, name, versions)
                if others := _others(folder):
                    raise ModelFileError(
                        f'reference: {folder} holds {others[0]!r}, which is not a version. Move it '
                        'away, then delete the name.'
                    )
                gone = folder
            filesystem.remove(gone, gone.with_name(f'.{gone.name}.{uuid.uuid4().hex}.deleted'))
            _sweep(gone.parent)

    def _folder(self, name: str) -> Path:
        _check_name(name)
        folder = self.root / name
        if folder.is_symlink():
            raise ModelFileError(
                f'name: {folder} is a link, which could point out of the root. Put a folder there.'
            )
        return folder

    def _existing_folder(self, name: str) -> Path:
        folder = self._folder(name)
        if os.path.lexists(folder / FILE):
            return folder
        if names := self.names():
            raise ModelNotFoundError(unknown_name('name', name, names))
        raise ModelNotFoundError(f'name: got {name!r}, but {self.root} holds no models.')

    @contextlib.contextmanager
    def _locked(self, name: str, make: bool = False) -> Iterator[Path]:
        folder = self._folder(name)
        with _reporting(folder):
            descriptor = self._lock(name, make)
            try:
                yield folder
            finally:
                filesystem.unlock(descriptor)

    def _lock(self, name: str, make: bool) -> int:
        until = time.monotonic() + WAIT_SECONDS
        if make:
            self.root.mkdir(parents=True, exist_ok=True)
        while True:
            folder = self._folder(name) if make else self._existing_folder(name)
            descriptor = None
            try:
                if make:
                    folder.mkdir(exist_ok=True)
                descriptor = filesystem.lock(folder)
            except (FileNotFoundError, FileExistsError):  # just deleted, or not a folder
                if os.path.lexists(folder) and not folder.is_dir():
                    raise
            if descriptor is not None and _is_locked_folder(descriptor, folder):
                return descriptor
            filesystem.unlock(descriptor)
            if time.monotonic() >= until:
                raise ModelFileError(
                    f'name: {folder} could not be locked for {WAIT_SECONDS:g} seconds: another '
                    'process holds it. Try again when that process is done.'
                )
            time.sleep(0.01)


def _check_name(name: object) -> None:
    if not is_name(name):
        raise ModelFileError(f'name: got {name!r}, expected {_RULE}.')


def _check_tag(tag: object) -> None:
    if not is_tag(tag):
        raise ModelFileError(
            f'tag: got {tag!r}, expected {_RULE}, not a number, and not {LATEST!r}, which is '
            'always the newest version.'
        )


@contextlib.contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    try:
        yield
    except ModelFileError:
        raise
    except OSError as error:
        raise ModelFileError(f'name: {folder} can not be read or written: {error}') from error


def _is_locked_folder(descriptor: int, folder: Path) -> bool:
    """Returns True if the locked folder is still at its path, not deleted in the meantime."""
    if descriptor < 0:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(folder))
    except FileNotFoundError:
        return False


def _others(folder: Path) -> list[str]:
    """Returns the foreign files in a name's folder, except hidden ones, which are temporary."""
    return sorted(
        name
        for name in os.listdir(folder)
        if name != FILE and not name.startswith('.') and not NUMBER.fullmatch(name)
    )


def _number(folder: Path, reference: str) -> int:
    """Returns the number of an existing version."""
    name, which = parse(reference)
    tags, numbers = read(folder).tags, numbers_in(folder)
    if isinstance(which, str):
        if which not in tags:
            existing = _existing(numbers, tags)
            raise ModelNotFoundError(f'{_unknown_tag(name, which, [*tags, LATEST])} {existing}')
        which = tags[which]
    elif which is None and numbers:
        which = numbers[-1]
    if which in numbers:
        return which
    if read(folder).tags != tags:  # a tag was moved, and its old version deleted
        return _number(folder, reference)
    missing = 'versions' if which is None else f'version {which}'
    existing = _existing(numbers, tags)
    raise ModelNotFoundError(f'reference: {reference}: {name} has no {missing}. {existing}')


def _existing(numbers: list[int], tags: Mapping[str, int]) -> str:
    listed = ', '.join(map(str, numbers[-20:]))
    parts = [
        f'versions {"..., " if len(numbers) > 20 else ""}{listed}' if numbers else 'no versions'
    ]
    parts += [f'{tag} is {number}' for tag, number in sorted(tags.items())]
    return f'There are {"; ".join(parts)}.'


def _unknown_tag(name: str, tag: str, tags: Collection[str]) -> str:
    return unknown_name('tag', tag, tags) if tags else f'tag: got {tag!r}, but {name} has no tags.'


def _refuse_tagged(
    reference: str, name: str, versions: Versions, number: int | None = None
) -> None:
    tags = sorted(tag for tag, on in versions.tags.items() if number in (None, on))
    if tags:
        listed = ', '.join(map(repr, tags))
        raise ModelFileError(
            f'reference: {reference} is not deleted while it has the tag {listed}. Remove the tag, '
            f'untag({name!r}, {tags[0]!r}), or move it to another version, tag(version, '
            f'{tags[0]!r}).'
        )


def _sweep(folder: Path) -> None:
    """Removes the remains of deletions whose process was killed."""
    for name in os.listdir(folder):
        if _TRASH.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)
