"""The public door to model files, and to a folder of them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinkml.core.model.training_lock import check_not_trained
from thinkml.core.parallel.multiprocess import broadcast_result
from thinkml.errors import ConfigError, ModelFileError
from thinkml.model_record import record_of
from thinkml.models.inspection import Inspection, inspect_file
from thinkml.models.model_table import Table
from thinkml.models.registry import Registry, parse
from thinkml.models.serialization import model_file
from thinkml.models.serialization.directories import (
    absolute,
    atomic_directory,
    check_target,
    fingerprint,
    read_whole,
    verify,
)
from thinkml.models.serialization.export import write_safetensors, write_stablehlo
from thinkml.paths import expanded

PathLike = str | os.PathLike[str]


class ModelManager:
    """Saves models and loads them, without pickle; keeps versions of them in a folder.

    A saved model is a directory: ``model.json`` describes the model's structure, ``weights`` holds
    its arrays, ``forward.bin`` its forward pass as a program that needs no class, ``record.json``
    what ThinkML knows of it (task and classes, training runs, settings), ``metadata.json`` what the
    user noted, ``manifest.json`` a hash of every file.

    With a ``root``, a model can be saved under a name: each save is a new version of it, and tags
    (``'best'``, ``'production'``) say which is which. What is asked for then is a reference:
    ``'digits'`` or ``'digits@latest'``, ``'digits@3'``, ``'digits@production'``. Anything with a
    separator is a path.

    Args:
        root: the folder of named models; it is made when something is saved. None: paths alone.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> from thinkml.models import ModelManager
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> manager = ModelManager(root=tempfile.mkdtemp())
        >>> path = manager.save_model(model, 'small', {'accuracy': 0.9})
        >>> loaded = manager.load_model('small')
        >>> bool((loaded.layers[0].kernel[...] == model.layers[0].kernel[...]).all())
        True
        >>> manager.metadata('small@1')
        {'accuracy': 0.9}
    """

    def __init__(self, root: PathLike | None = None):
        self._registry = None if root is None else Registry(root)

    # --- one model ----------------------------------------------------------------------------

    def save_model(
        self,
        model: Any,
        path: PathLike,
        metadata: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
        include_optimizer: bool = False,
    ) -> Path:
        """Writes a model into a new directory.

        The directory is written beside its place and moved there when it is complete. The model
        stays as it is. In a run of several processes each calls this, with a path that all see.

        Args:
            model: a `flax.nnx.Module`, or what `from_linen` or `from_functions` returned. Its
                classes and functions must live in modules, not in the main program.
            path: the directory, whose parents are made; or a name, of which it is a new version.
            metadata: what to note beside it. Numbers, text, dates, paths, NumPy and JAX arrays,
                dataclasses, and lists and dicts of them; kept as plain JSON values.
            overwrite: whether a model that is at ``path`` is replaced.
            include_optimizer: whether the optimizer's state at the end of the training is kept,
                so that training can go on where it was.

        Returns:
            The path.

        Raises:
            ModelTypeError: if ``model`` is not a model.
            ModelFileError: if the path is taken or can't be written, or a part of the model or of
                the metadata can't be. Names it. Nothing is written then.

        Warns:
            ThinkMLWarning: if the forward pass can't be exported.
        """
        named = self._is_reference(path)
        if not named:
            target = absolute(path)
            broadcast_result(lambda: check_target(target, overwrite), ModelFileError)
        elif parse(str(path))[1] is not None or '@' in str(path):
            raise ModelFileError(
                f'path: got {path!r}, expected a name: a save is always a new version. Write '
                f'{str(path).partition("@")[0]!r}, and tag it afterwards.'
            )
        contents = model_file.contents_of(model, metadata, include_optimizer)
        place = self._place_of_new(str(path)) if named else absolute(path)
        with atomic_directory(place, overwrite) as directory:
            model_file.write(directory, contents, place)
        record_of(model).origin = {'path': str(place), 'sha256': fingerprint(place)}
        return place if named else expanded(path)

    def load_model(
        self,
        path: PathLike,
        *,
        into: Any = None,
        trusted: Sequence[str] = (),
        include_optimizer: bool = False,
    ) -> Any:
        """Gives back a saved model, in eval mode, with what was known of it.

        Every file is checked against the manifest first, which finds damage, not forgery. A model
        file names classes and functions: module classes and functions of arrays of flax and jax,
        and those of your own modules, which must have been imported already. What an installed
        library brings must be trusted. The model's ``__init__`` is not called.

        Where a class is not there, or does something else than it did, the exported forward pass
        stands in for it: it predicts and can be evaluated.

        Args:
            path: the directory, or a reference such as ``'digits@production'``.
            into: a model of your own whose arrays are replaced by those of the file, in place, on
                whatever devices they are. No name of the file is looked up then.
            trusted: names of modules, with those inside them, that may be imported for this model
                and of which it may use everything.
            include_optimizer: whether the next training goes on with the optimizer's state.

        Returns:
            A model of the class that was saved; with ``into``, that.

        Raises:
            ModelFileError: if there is no model at ``path``, it is damaged or was written by a
                newer ThinkML, it needs a class or function that is gone or not trusted and has no
                forward pass, or it does not fit ``into``. Names the file, or each array.

        Warns:
            ThinkMLWarning: if the exported forward pass stands in. Says why, and what is lost.
        """
        trusted = (trusted,) if isinstance(trusted, str) else trusted
        if not isinstance(trusted, list | tuple | set) or not all(map(_is_module, trusted)):
            raise ConfigError(
                f"trusted: got {trusted!r}, expected names of modules, as ['my_models']."
            )
        if into is not None:
            check_not_trained(into)
        place = self._place_of(path)

        def read(directory: Path) -> Any:
            model = model_file.read(directory, tuple(trusted), into, include_optimizer)
            with model_file.reading(directory):  # it may be replaced just now
                origin = {'path': str(place), 'sha256': fingerprint(directory)}
            record_of(model).origin = origin
            return model

        return read_whole(place, read)

    def metadata(self, path: PathLike) -> dict[str, Any]:
        """Gives back the metadata a model was saved with, as plain values.

        Raises:
            ModelFileError: if there is no model at ``path``, or it is damaged.
        """
        return read_whole(self._place_of(path), model_file.read_metadata)

    def inspect(self, path: PathLike) -> Inspection:
        """What the file holds: its arrays, inputs, task and history. The weights are not read.

        Raises:
            ModelFileError: if there is no model at ``path``, or it is damaged.
        """
        return read_whole(self._place_of(path), inspect_file)

    def verify(self, path: PathLike) -> None:
        """Compares every file of a model, weights included, with its hash.

        Raises:
            ModelFileError: for the first that is missing, changed or too many. Names it.
        """

        def check(directory: Path) -> None:
            with model_file.reading(directory):
                verify(directory)

        read_whole(self._place_of(path), check)

    def export(self, path: PathLike, file: PathLike) -> Path:
        """Writes a saved model's file for other programs. Its classes are not needed.

        Args:
            path: the model.
            file: where to; the ending says what: ``.safetensors`` for the weights,
                ``.mlirbc`` for the forward pass alone as StableHLO bytecode, whose arguments are
                an int32 that says where it runs (0 CPU, 1 CUDA, 2 TPU), the weights that
                ``inspect(path).forward_arrays`` names, in that order, and the inputs.

        Returns:
            The file.

        Raises:
            ModelFileError: if there is no model at ``path``, it is damaged, or has no forward pass;
                for other endings.
            ImportError: without the package safetensors.
        """
        place = self._place_of(path)
        match absolute(file, 'file').suffix.lower():
            case '.safetensors':
                return write_safetensors(read_whole(place, model_file.read_arrays), file)
            case '.mlirbc':
                return write_stablehlo(read_whole(place, model_file.read_forward), file)
        raise ModelFileError(f'file: got {str(file)!r}, expected .safetensors or .mlirbc.')

    # --- named models -------------------------------------------------------------------------

    def list_models(self) -> list[str]:
        """The names under the root.

        Raises:
            ModelFileError: if the manager has no root.
        """
        return self._named().names()

    def versions(self, name: str) -> Table:
        """The versions of a name, oldest first, with their tags, dates and metadata.

        Of one that is damaged there is its problem alone.

        Raises:
            ModelFileError: if there is no such name.
        """
        return self._table(
            [f'{name}@{number}' for number in self._named().versions(name)], keep_going=True
        )

    def compare(self, *paths: PathLike) -> Table:
        """A table of models: metadata, the last values of their training, where they came from.

        Of the settings of their training, those in which they differ.

        Args:
            *paths: directories and references; a name alone stands for its latest version.

        Raises:
            ModelFileError: if one of them is no model.
        """
        return self._table(paths)

    def tag(self, reference: str, tag: str) -> None:
        """Says that a version is, for instance, ``'production'``; another version ceases to be.

        A tag moves at once: whoever reads sees the one version or the other.

        Raises:
            ModelFileError: if there is no such version, or the tag can't be one.
        """
        self._named().tag(reference, tag)

    def untag(self, name: str, tag: str) -> None:
        """Takes a tag away.

        Raises:
            ModelFileError: if the name has no such tag.
        """
        self._named().untag(name, tag)

    def delete(self, reference: str) -> None:
        """Deletes ``'digits@2'``, or ``'digits'`` with all its versions.

        Raises:
            ModelFileError: if a tag says that it is in use, or there is no such version.
        """
        self._named().delete(reference)

    # --- where ---------------------------------------------------------------------------------

    def _is_reference(self, path: PathLike) -> bool:
        return self._registry is not None and isinstance(path, str) and not _is_path(path)

    def _named(self) -> Registry:
        if self._registry is None:
            raise ModelFileError(
                'root: this manager knows no folder of named models. Make one: '
                "ModelManager(root='models')."
            )
        return self._registry

    def _place_of(self, path: PathLike) -> Path:
        if self._is_reference(path):
            return self._named().locate(str(path))
        return absolute(path)

    def _place_of_new(self, name: str) -> Path:
        registry = self._named()
        return Path(broadcast_result(lambda: str(registry.reserve(name)), ModelFileError))

    def _table(self, paths: Sequence[PathLike], keep_going: bool = False) -> Table:
        rows = []
        for path in paths:
            try:
                rows.append(self._row(path))
            except ModelFileError as error:
                if not keep_going:
                    raise
                rows.append({'model': str(path), 'problem': str(error)})
        settings = [row.get('config', {}) for row in rows]
        for row, own in zip(rows, settings, strict=True):
            differing = {
                name: value
                for name, value in own.items()
                if any(other.get(name) != value for other in settings)
            }
            row['config'] = differing
        return Table.of(rows)

    def _row(self, path: PathLike) -> dict[str, Any]:
        found = self.inspect(path)
        last = found.record.runs[-1].last() if found.record.runs else {}
        row: dict[str, Any] = {'model': self._name_of(found.path)}
        if self._is_reference(path):
            name, number = found.path.parts[-2:]
            tags = self._named().tags(name).items()
            row['tags'] = ', '.join(tag for tag, version in tags if str(version) == number)
        parent = found.parent and self._name_of(
            Path(os.path.normpath(found.path / found.parent['path']))
        )
        data = found.record.data_fingerprint or {}
        return row | {
            'saved': found.created,
            'metadata': found.metadata,
            'last': dict(last),
            'config': found.record.config or {},
            'parameters': found.num_parameters,
            'data': str(data.get('sha256', ''))[:12],
            'code': found.code,
            'parent': parent,
        }

    def _name_of(self, path: Path) -> str:
        """How a directory is called here."""
        if self._registry is not None and path.parent.parent == self._registry.root:
            return f'{path.parent.name}@{path.name}'
        return str(path)


def _is_path(text: str) -> bool:
    return any(separator in text for separator in (os.sep, os.altsep) if separator)


def _is_module(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split('.'))
