"""ModelManager: saves, loads, inspects and compares models, by path or by name."""

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
    read_consistent,
    verify,
)
from thinkml.models.serialization.export import write_safetensors, write_stablehlo
from thinkml.paths import expanded
from thinkml.typing import Model

PathLike = str | os.PathLike[str]


class ModelManager:
    """A store of models, without pickle, at any path or as named versions in a folder.

    A saved model is a directory with these files:

    - ``model.json``: the structure of the model.
    - ``weights``: its arrays.
    - ``forward.bin``: its forward pass as a program that needs no class.
    - ``record.json``: ThinkML's record of the model: task and classes, training runs, settings.
    - ``metadata.json``: the user's metadata.
    - ``manifest.json``: a hash of every file.

    With a ``root``, a model can be saved under a name. Each save makes a new version of the name,
    and tags (``'best'``, ``'production'``) mark versions. A reference then selects a version:
    ``'digits'`` or ``'digits@latest'``, ``'digits@3'``, ``'digits@production'``. Anything with a
    separator is a path.

    Args:
        root: the folder of named models, created at the first save. None allows paths only.

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
        model: Model,
        path: PathLike,
        metadata: Mapping[str, Any] | None = None,
        *,
        overwrite: bool = False,
        include_optimizer: bool = False,
    ) -> Path:
        """Writes a model into a new directory.

        The directory is written under a temporary name and renamed when it is complete. The model
        is not changed. In a run of several processes, each process calls this with a path that all
        can reach.

        Args:
            model: a `flax.nnx.Module`, or a model from `from_linen` or `from_functions`. Its
                classes and functions must be defined in modules, not in the main program.
            path: the directory, whose parents are created; or a name, which gets a new version.
            metadata: values to save with the model: numbers, text, dates, paths, NumPy and JAX
                arrays, dataclasses, and lists and dicts of them. They are kept as plain JSON
                values.
            overwrite: True to replace a model at ``path``.
            include_optimizer: True to save the optimizer's state at the end of the training, so
                that training can be resumed from there.

        Returns:
            The path.

        Raises:
            ModelTypeError: if ``model`` is not a model.
            ModelFileError: if the path exists or can't be written, or a part of the model or of
                the metadata can't be saved. Names it. Nothing is written then.

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
        place = self._new_directory(str(path)) if named else absolute(path)
        with atomic_directory(place, overwrite) as directory:
            model_file.write(directory, contents, place)
        record_of(model).origin = {'path': str(place), 'sha256': fingerprint(place)}
        return place if named else expanded(path)

    def load_model(
        self,
        path: PathLike,
        *,
        into: Model | None = None,
        trusted: Sequence[str] = (),
        include_optimizer: bool = False,
    ) -> Model:
        """Returns a saved model, in eval mode, with its record.

        Every file is first checked against the manifest, which finds damage, not forgery. A model
        file names classes and functions. These may be module classes and array functions of flax
        and jax, and anything in your own modules that is already imported. Other installed
        libraries must be trusted. The model's ``__init__`` is not called.

        If a class is missing or now computes something else, the exported forward pass stands in
        for the model: it predicts and can be evaluated.

        Args:
            path: the directory, or a reference such as ``'digits@production'``.
            into: an existing model whose arrays are replaced by those of the file, in place, on
                the devices where they are. Then no name in the file is looked up.
            trusted: the names of modules that may be imported for this model, with their
                submodules. The model may use everything in them.
            include_optimizer: True to continue with the optimizer's state in the next training.

        Returns:
            A model of the saved class; with ``into``, that model.

        Raises:
            ModelFileError: if there is no model at ``path``, if it is damaged or was written by a
                newer ThinkML, or if it does not fit ``into``. Also if a class or function is
                missing or not trusted, and the model has no forward pass. Names the file, or each
                array.

        Warns:
            ThinkMLWarning: if the exported forward pass stands in. Names the reason and the
                limits.
        """
        trusted = (trusted,) if isinstance(trusted, str) else trusted
        if not isinstance(trusted, list | tuple | set) or not all(map(_is_module, trusted)):
            raise ConfigError(
                f"trusted: got {trusted!r}, expected names of modules, for instance ['my_models']."
            )
        if into is not None:
            check_not_trained(into)
        place = self._directory(path)

        def read(directory: Path) -> Model:
            model = model_file.read(directory, tuple(trusted), into, include_optimizer)
            with model_file.reading(directory):  # another process may replace it at this moment
                origin = {'path': str(place), 'sha256': fingerprint(directory)}
            record_of(model).origin = origin
            return model

        return read_consistent(place, read)

    def metadata(self, path: PathLike) -> dict[str, Any]:
        """Returns the metadata a model was saved with, as plain values.

        Raises:
            ModelFileError: if there is no model at ``path``, or it is damaged.
        """
        return read_consistent(self._directory(path), model_file.read_metadata)

    def inspect(self, path: PathLike) -> Inspection:
        """Returns a model's arrays, inputs, task and history, without reading its weights.

        Raises:
            ModelFileError: if there is no model at ``path``, or it is damaged.
        """
        return read_consistent(self._directory(path), inspect_file)

    def verify(self, path: PathLike) -> None:
        """Compares every file of a model, weights included, with its hash.

        Raises:
            ModelFileError: for the first file that is missing, changed or not listed. Names it.
        """

        def check(directory: Path) -> None:
            with model_file.reading(directory):
                verify(directory)

        read_consistent(self._directory(path), check)

    def export(self, path: PathLike, file: PathLike) -> Path:
        """Writes a saved model to a file for other programs, without needing its classes.

        Args:
            path: the model.
            file: the file to write. With the ending ``.safetensors`` it holds the weights, with
                ``.mlirbc`` only the forward pass, as StableHLO bytecode. The first argument of
                this program is an int32 for the platform (0 CPU, 1 CUDA, 2 TPU). The weights
                follow, in the order of ``inspect(path).forward_arrays``, and then the inputs.

        Returns:
            The file.

        Raises:
            ModelFileError: if there is no model at ``path``, it is damaged or has no forward pass,
                or the file has another ending.
            ImportError: without the package safetensors.
        """
        place = self._directory(path)
        match absolute(file, 'file').suffix.lower():
            case '.safetensors':
                return write_safetensors(read_consistent(place, model_file.read_arrays), file)
            case '.mlirbc':
                return write_stablehlo(read_consistent(place, model_file.read_forward), file)
        raise ModelFileError(f'file: got {str(file)!r}, expected .safetensors or .mlirbc.')

    # --- named models -------------------------------------------------------------------------

    def list_models(self) -> list[str]:
        """Returns the names of the models under the root.

        Raises:
            ModelFileError: if the manager has no root.
        """
        return self._required_registry().names()

    def versions(self, name: str) -> Table:
        """Returns a table of a name's versions, oldest first, with tags, dates and metadata.

        The row of a damaged version contains only the problem.

        Raises:
            ModelFileError: if there is no such name.
        """
        return self._table(
            [f'{name}@{number}' for number in self._required_registry().versions(name)],
            allow_damaged=True,
        )

    def compare(self, *paths: PathLike) -> Table:
        """Returns a table of models: metadata, last values of the training, settings, origin.

        Only those training settings are included in which the models differ.

        Args:
            *paths: directories and references. A name without a version means the latest one.

        Raises:
            ModelFileError: if one of them is not a model.
        """
        return self._table(paths)

    def tag(self, reference: str, tag: str) -> None:
        """Puts a tag such as ``'production'`` on a version and removes it from any other.

        A tag moves atomically: readers see either the old version or the new one.

        Raises:
            ModelFileError: if there is no such version, or the tag can't be one.
        """
        self._required_registry().tag(reference, tag)

    def untag(self, name: str, tag: str) -> None:
        """Removes a tag.

        Raises:
            ModelFileError: if the name has no such tag.
        """
        self._required_registry().untag(name, tag)

    def delete(self, reference: str) -> None:
        """Deletes ``'digits@2'``, or ``'digits'`` with all its versions.

        Raises:
            ModelFileError: if a tag marks it as in use, or there is no such version.
        """
        self._required_registry().delete(reference)

    # --- paths ---------------------------------------------------------------------------------

    def _is_reference(self, path: PathLike) -> bool:
        return self._registry is not None and isinstance(path, str) and not _is_path(path)

    def _required_registry(self) -> Registry:
        if self._registry is None:
            raise ModelFileError(
                'root: this manager has no folder of named models. Create one with: '
                "ModelManager(root='models')."
            )
        return self._registry

    def _directory(self, path: PathLike) -> Path:
        if self._is_reference(path):
            return self._required_registry().locate(str(path))
        return absolute(path)

    def _new_directory(self, name: str) -> Path:
        registry = self._required_registry()
        return Path(broadcast_result(lambda: str(registry.reserve(name)), ModelFileError))

    def _table(self, paths: Sequence[PathLike], *, allow_damaged: bool = False) -> Table:
        rows = []
        for path in paths:
            try:
                rows.append(self._row(path))
            except ModelFileError as error:
                if not allow_damaged:
                    raise
                rows.append({'model': str(path), 'problem': str(error)})
        settings = [row.get('config', {}) for row in rows]
        for row, config in zip(rows, settings, strict=True):
            row['config'] = {
                name: value
                for name, value in config.items()
                if any(other.get(name) != value for other in settings)
            }
        return Table.of(rows)

    def _row(self, path: PathLike) -> dict[str, Any]:
        found = self.inspect(path)
        last = found.record.runs[-1].last() if found.record.runs else {}
        row: dict[str, Any] = {'model': self._name_of(found.path)}
        if self._is_reference(path):
            name, number = found.path.parts[-2:]
            tags = self._required_registry().tags(name).items()
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
        """Returns the reference of a directory under the root, or its path."""
        if self._registry is not None and path.parent.parent == self._registry.root:
            return f'{path.parent.name}@{path.name}'
        return str(path)


def _is_path(text: str) -> bool:
    return any(separator in text for separator in (os.sep, os.altsep) if separator)


def _is_module(name: object) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split('.'))
