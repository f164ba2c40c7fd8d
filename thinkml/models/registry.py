"""Named models in numbered versions, with tags that move from one version to another."""

import contextlib
import dataclasses
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from thinkml.checkpoint import filesystem
from thinkml.errors import ModelFileError, ModelNotFoundError, unknown_name
from thinkml.models.registry_entry import (
    FILE,
    LATEST,
    NUMBER,
    Versions,
    for_change,
    is_name,
    is_tag,
    numbers_in,
    read,
    write,
)
from thinkml.models.serialization.directories import absolute

WAIT_SECONDS = 10.0

_TRASH = re.compile(r'\..+\.[0-9a-f]{32}\.deleted')
_RULE = "at most 100 letters (a-z, A-Z), digits and '.', '_', '-', a letter or digit first"


def parse(reference: str) -> tuple[str, int | str | None]:
    """Takes a reference to a version apart.

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
    tags are in ``root/name/versions.json``. Several processes may use a registry at once: changes
    are made under a lock and come to be in one moment, and readers wait for nobody. Where folders
    can't be locked (Windows, some network file systems), only one process at a time may change a
    name.

    Names and tags are at most 100 letters (a-z, A-Z), digits, dots, underscores and hyphens, a
    letter or digit first. A tag is no number, and not ``latest``, which is always the newest
    version.

    Args:
        root: the folder; made when it is first needed.

    Raises:
        ModelFileError: in every method, for names, tags and references that are impossible or
            unknown, for a damaged ``versions.json``, and if the disk refuses.

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
        folder = self._known(name)
        with _reporting(folder):
            return numbers_in(folder)

    def tags(self, name: str) -> dict[str, int]:
        """Returns the tags and the version each is on, sorted by tag."""
        folder = self._known(name)
        with _reporting(folder):
            return dict(sorted(read(folder).tags.items()))

    def reserve(self, name: str) -> Path:
        """Takes the number of the next version, and returns the path its folder is to have.

        Nobody gets a number twice, also if nothing is ever written to the path or the version is
        deleted. Only when the whole name was deleted the numbers start at 1 again.
        """
        with self._locked(name, make=True) as folder:
            if not os.path.lexists(folder / FILE) and (others := _others(folder)):
                raise ModelFileError(
                    f'name: {folder} exists and holds {others[0]!r}, so it does not become a '
                    'folder of versions. Choose another name, or move it away.'
                )
            versions = for_change(folder)
            write(folder, dataclasses.replace(versions, next=versions.next + 1))
            filesystem.sync_folder(self.root)
            return folder / str(versions.next)

    def locate(self, reference: str) -> Path:
        """Returns the folder of a version that exists.

        Args:
            reference: ``'digits'`` for the newest, ``'digits@3'``, ``'digits@production'``.
        """
        folder = self._known(parse(reference)[0])
        with _reporting(folder):
            return folder / str(_number(folder, reference))

    def tag(self, reference: str, tag: str) -> None:
        """Puts a tag on a version that exists; it leaves the version it was on.

        A reader at the same time finds the tag on the one or the other.
        """
        name, _ = parse(reference)
        _check_tag(tag)
        with self._locked(name) as folder:
            versions, number = for_change(folder), _number(folder, reference)
            write(folder, dataclasses.replace(versions, tags={**versions.tags, tag: number}))

    def untag(self, name: str, tag: str) -> None:
        """Takes a tag away; the version stays."""
        _check_name(name)
        _check_tag(tag)
        with self._locked(name) as folder:
            versions = for_change(folder)
            if tag not in versions.tags:
                raise ModelFileError(_unknown_tag(name, tag, versions.tags))
            tags = {other: number for other, number in versions.tags.items() if other != tag}
            write(folder, dataclasses.replace(versions, tags=tags))

    def delete(self, reference: str) -> None:
        """Deletes a version, or a name with all its versions. Nothing brings them back.

        Refused while a tag is on what would go, so a version can't be deleted by its tag.

        Args:
            reference: ``'digits@2'`` deletes this version, ``'digits@latest'`` the newest one.
                ``'digits'``, which means the newest version elsewhere, deletes the name with all
                its versions.
        """
        name, _ = parse(reference)
        with self._locked(name) as folder:
            versions = for_change(folder)
            if '@' in reference:
                number = _number(folder, reference)
                _refuse_tagged(reference, name, versions, number)
                write(folder, versions)  # it knows the number now, also of a copied version
                gone = folder / str(number)
            else:
                _refuse_tagged(reference, name, versions)
                if others := _others(folder):
                    raise ModelFileError(
                        f'reference: {folder} holds {others[0]!r}, which is no version. Move it '
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
                f'name: {folder} is a link, which could lead out of the root. Put a folder there.'
            )
        return folder

    def _known(self, name: str) -> Path:
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
            folder = self._folder(name) if make else self._known(name)
            descriptor = None
            try:
                if make:
                    folder.mkdir(exist_ok=True)
                descriptor = filesystem.lock(folder)
            except (FileNotFoundError, FileExistsError):  # deleted just now, or not a folder
                if os.path.lexists(folder) and not folder.is_dir():
                    raise
            if descriptor is not None and _is_of(descriptor, folder):
                return descriptor
            filesystem.unlock(descriptor)
            if time.monotonic() >= until:
                raise ModelFileError(
                    f'name: {folder} could not be locked for {WAIT_SECONDS:g} seconds: another '
                    'process holds it. Try again when that one is done.'
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


def _is_of(descriptor: int, folder: Path) -> bool:
    """Whether a lock is that of the folder, not of one that was deleted while it waited."""
    if descriptor < 0:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(folder))
    except FileNotFoundError:
        return False


def _others(folder: Path) -> list[str]:
    """What is in the folder of a name and is not ours; hidden files may come and go."""
    return sorted(
        name
        for name in os.listdir(folder)
        if name != FILE and not name.startswith('.') and not NUMBER.fullmatch(name)
    )


def _number(folder: Path, reference: str) -> int:
    """The number of a version that exists."""
    name, which = parse(reference)
    tags, numbers = read(folder).tags, numbers_in(folder)
    if isinstance(which, str):
        if which not in tags:
            there = _there_is(numbers, tags)
            raise ModelNotFoundError(f'{_unknown_tag(name, which, [*tags, LATEST])} {there}')
        which = tags[which]
    elif which is None and numbers:
        which = numbers[-1]
    if which in numbers:
        return which
    if read(folder).tags != tags:  # a tag was moved, and its old version deleted
        return _number(folder, reference)
    missing = 'versions' if which is None else f'version {which}'
    there = _there_is(numbers, tags)
    raise ModelNotFoundError(f'reference: {reference}: {name} has no {missing}. {there}')


def _there_is(numbers: list[int], tags: Mapping[str, int]) -> str:
    listed = ', '.join(map(str, numbers[-20:]))
    parts = [
        f'versions {"..., " if len(numbers) > 20 else ""}{listed}' if numbers else 'no versions'
    ]
    parts += [f'{tag} is {number}' for tag, number in sorted(tags.items())]
    return f'There are {"; ".join(parts)}.'


def _unknown_tag(name: str, tag: str, known: Any) -> str:
    return (
        unknown_name('tag', tag, known) if known else f'tag: got {tag!r}, but {name} has no tags.'
    )


def _refuse_tagged(
    reference: str, name: str, versions: Versions, number: int | None = None
) -> None:
    tags = sorted(tag for tag, on in versions.tags.items() if number in (None, on))
    if tags:
        listed = ', '.join(map(repr, tags))
        raise ModelFileError(
            f'reference: {reference} is not deleted while it has the tag {listed}. Take it away, '
            f'untag({name!r}, {tags[0]!r}), or move it to a version that stays, tag(version, '
            f'{tags[0]!r}).'
        )


def _sweep(folder: Path) -> None:
    """Removes what deletes that were killed have left."""
    for name in os.listdir(folder):
        if _TRASH.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)
