"""Export for other programs: weights as safetensors, the forward pass as StableHLO."""

import contextlib
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.checkpoint.filesystem import write_synced
from thinkml.core.model.exported_forward import Forward, open_program
from thinkml.core.parallel.multiprocess import is_first_process
from thinkml.errors import ModelFileError, ModelNotFoundError
from thinkml.models.serialization.weights import fill, named_arrays
from thinkml.paths import expanded, local_path
from thinkml.typing import Model

PathLike = str | os.PathLike[str]


def save_safetensors(model: Model, path: PathLike) -> Path:
    """Writes the arrays of a model into one file that other libraries can read.

    Names are the arrays' paths in the model, joined by dots: ``layers.0.kernel``. Keys of random
    streams are left out. An existing file is replaced atomically.

    Args:
        model: a `flax.nnx.Module`, or a model from `from_linen` or `from_functions`.
        path: the file, which by convention ends in ``.safetensors``.

    Returns:
        The path.

    Raises:
        ModelTypeError: if ``model`` is not a model.
        ImportError: without the package safetensors.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> from thinkml.models import load_safetensors, save_safetensors
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> path = save_safetensors(model, tempfile.mkdtemp() + '/linear.safetensors')
        >>> _ = load_safetensors(path, into=nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
    """
    return write_safetensors(named_arrays(model), path, 'path')


def write_safetensors(arrays: Mapping[str, Any], path: PathLike, argument: str = 'file') -> Path:
    """Writes arrays, named as in a model file, in the format of `save_safetensors`."""
    named = {
        name.replace('/', '.'): np.asarray(array, order='C')
        for name, array in arrays.items()
        if not _is_key(array)
    }
    if len(named) != sum(not _is_key(array) for array in arrays.values()):
        raise ModelFileError("model: two array names differ only in '.' and '/'. Rename one.")
    return _write_atomically(path, _safetensors().numpy.save(named), argument)


def load_safetensors(path: PathLike, *, into: Model) -> Model:
    """Puts the arrays of a safetensors file into a model: all, or none if one does not fit.

    Args:
        path: the file, with names as `save_safetensors` writes them.
        into: a model whose arrays have these names, shapes and dtypes. Its keys of random streams
            are not changed.

    Returns:
        The model, in eval mode.

    Raises:
        ModelFileError: if there is no such file, it is damaged, or does not fit. Names each array.
        ImportError: without the package safetensors.
    """
    path, current = local_path(path), named_arrays(into)
    names: dict[str, str] = {name.replace('/', '.'): name for name in current}
    try:
        found = read_safetensors(path)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f'path: {path} does not exist.') from error
    except Exception as error:  # the library's own type, or an OSError
        raise ModelFileError(f'path: {path} can not be read: {error}') from error
    arrays = {names.get(str(n), str(n)): jnp.asarray(array) for n, array in found.items()}
    fill(into, {n: array for n, array in current.items() if _is_key(array)} | arrays, str(path))
    return into


def read_safetensors(path: PathLike) -> dict[str, Any]:
    """Returns the arrays of a file by name."""
    return _safetensors().numpy.load_file(path)


def write_stablehlo(forward: Forward, path: PathLike) -> Path:
    """Writes the forward pass as StableHLO's portable bytecode.

    Its arguments are an int32 for the platform (0 CPU, 1 CUDA, 2 TPU), the arrays, and the inputs.
    """
    program = _without_assertions(open_program(forward).mlir_module_serialized)
    return _write_atomically(path, program, 'file')


def _without_assertions(program: bytes) -> bytes:
    """Removes jax's custom calls that compare shapes, which no other program supports."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    assertions = []

    def collect(operation: Any) -> Any:
        called = operation.attributes.get('call_target_name')
        if called is not None and ir.StringAttr(called).value == 'shape_assertion':
            assertions.append(operation)
        return ir.WalkResult.ADVANCE

    with ir.Context() as context:
        module = stablehlo.deserialize_portable_artifact(context, bytes(program))
        module.operation.walk(collect)
        for operation in assertions:
            operation.erase()
        compatibility = stablehlo.StablehloCompatibilityRequirement.WEEK_12
        version = stablehlo.get_version_from_compatibility_requirement(compatibility)
        return stablehlo.serialize_portable_artifact(module, version)


def _write_atomically(path: PathLike, content: bytes, argument: str) -> Path:
    target = local_path(path, argument)
    if not is_first_process():
        return expanded(path)
    temporary = target.with_name(f'.{target.name}.tmp')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, content)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ModelFileError(f'{argument}: {target} could not be written: {error}') from error
    return expanded(path)


def _is_key(array: jax.Array | np.ndarray) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _safetensors() -> types.ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            'safetensors is not installed. Install it with pip install safetensors.'
        ) from error
    return safetensors
