"""Exported forward passes: programs that run without the Python code of their model.

`jax.export` turns a forward pass into StableHLO, which runs on CPUs, CUDA GPUs and TPUs for any
number of rows. The program is small, because the arrays are its arguments.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thinkml.core.model.adapters import FunctionalModel
from thinkml.core.model.forward import inference_batch_size
from thinkml.core.model.functional import functionalize
from thinkml.core.model.mixed_precision import DType
from thinkml.core.objectives.heads import named_outputs
from thinkml.core.xla.target import tracing_for
from thinkml.errors import ModelFileError, ModelTypeError
from thinkml.typing import Model, PyTree

_PLATFORMS = ('cpu', 'cuda', 'tpu')

# Calls that a program may make in addition to StableHLO operations: shape checks, linear algebra
# and random bits, which jax lowers to calls. None of them leads back into Python, to another
# process, or to a kernel from the file.
_ALLOWED_CALLS = re.compile(
    r'shape_assertion|stablehlo\.dynamic_\w+|(cu|hip)_threefry2x32_ffi|lapack_\w+_ffi|'
    r'(cu|hip)solver_\w+_ffi|(cu|hip)_lu_pivots_to_permutation|ApproxTopK|Eigh|LuDecomposition|'
    r'ProductOfElementaryHouseholderReflectors|Qr'
)
_CALL = re.compile(r'custom_call\s*@(?:"([^"]*)"|([\w.$-]+))\(')
# The first step of `open_program`, run in a separate process that may crash.
_READER = """
import sys
from jax import export
export.deserialize(bytearray(sys.stdin.buffer.read())).mlir_module()
"""
_READ_SECONDS = 60
_CHANNELS = re.compile(r'stablehlo\.(infeed|outfeed|send|recv)\b')


@dataclasses.dataclass(frozen=True)
class Forward:
    """An exported forward pass.

    Attributes:
        program: the program serialised by `jax.export`, ``(arrays, x) -> outputs``.
        arrays: the arrays that it takes, in order.
        rows: the number of rows it computes at a time; None for any number.
    """

    program: bytes
    arrays: list[Any]
    rows: int | None


def export_forward(model: Model, x: PyTree) -> Forward:
    """Exports a model's forward pass in eval mode.

    A model whose program depends on the number of rows is exported for one fixed number.

    Args:
        model: see `functionalize`.
        x: inputs, or `jax.ShapeDtypeStruct`; only the shape of a row and the dtype are read.

    Raises:
        ModelTypeError: if the model can't be exported, with the message of ``jax.export``.
    """
    functional = functionalize(model, x, jax.random.key(0))
    leaves, structure = jax.tree.flatten((functional.params, functional.model_state))
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    arrays = [leaves[i] for i in positions]

    def forward(arrays: Sequence[jax.Array], x: PyTree) -> PyTree:
        array_at = dict(zip(positions, arrays, strict=True))
        filled = [array_at.get(i, leaf) for i, leaf in enumerate(leaves)]  # numbers are constants
        params, model_state = jax.tree.unflatten(structure, filled)
        outputs, _ = functional.apply(params, model_state, x, key=None, train=False)
        # A file does not name the class of a NamedTuple.
        outputs = named_outputs(outputs) if hasattr(outputs, '_fields') else outputs
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)

    array_specs = tuple(map(_aval, arrays))
    from jax import export  # imported only when needed

    failures = []
    (any_number,) = export.symbolic_shape('rows')
    for rows in (None, inference_batch_size(x)):
        batch = _with_rows(x, any_number if rows is None else rows)
        try:
            with _without_locations(), tracing_for(jax.local_devices(backend='cpu')[0]):
                exported = export.export(jax.jit(forward), platforms=_PLATFORMS)(array_specs, batch)
            program = bytes(exported.serialize())
        except Exception as error:  # a model's code may raise any error for another shape
            failures.append(error)
            continue
        return Forward(program, arrays, rows)
    raise ModelTypeError(f'{type(failures[-1]).__name__}: {failures[-1]}') from failures[-1]


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Keeps the file names of this machine, where operations come from, out of a program."""
    name = 'jax_traceback_in_locations_limit'
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _aval(array: Any) -> jax.ShapeDtypeStruct:
    # Weak types matter: a weak float32 times a bfloat16 is a bfloat16, a strong one a float32.
    array = jnp.asarray(array)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=array.weak_type)


def _with_rows(x: PyTree, rows: Any) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), x)


class ExportedModel:
    """A model that consists of an exported forward pass: it predicts, but can't be trained.

    Args:
        forward: the exported forward pass.
        names: the names of the arrays that it takes, in order.
        others: other arrays that the model was saved with, by name.

    Attributes:
        forward: the exported forward pass.
        arrays: the model's arrays by name: those that the program takes, and ``others``.
    """

    def __init__(
        self, forward: Forward, names: Sequence[str], others: Mapping[str, Any] | None = None
    ):
        self.forward = forward
        self.arrays = {**(others or {}), **dict(zip(names, forward.arrays, strict=True))}
        self._apply = _ExportedApply(open_program(forward), forward.rows)

    def functionalize(
        self, x: PyTree, key: jax.Array, compute_dtype: DType | None = None
    ) -> FunctionalModel:
        """Returns the model as a `FunctionalModel`, see `thinkml.core.functionalize`."""

        def write(params: PyTree, model_state: PyTree) -> None:
            raise ModelTypeError(_NO_TRAINING)

        return FunctionalModel(self._apply, {}, tuple(self.forward.arrays), write)

    def __call__(self, x: PyTree) -> PyTree:
        """Returns the outputs for a batch."""
        return self._apply({}, tuple(self.forward.arrays), x, key=None, train=False)[0]

    def __repr__(self) -> str:
        return f'ExportedModel({len(self.arrays)} arrays; predicts, and can not be trained)'


_NO_TRAINING = (
    'model: it is the exported forward pass of a model whose classes are not available here. It '
    'can predict and be evaluated, but not be trained. Load the model where its classes are, or '
    'load its weights into a model you made: load_model(path, into=model).'
)


@dataclasses.dataclass(frozen=True, eq=False)
class _ExportedApply:
    exported: Any
    rows: int | None

    def __call__(
        self, params: PyTree, model_state: PyTree, x: PyTree, *, key: jax.Array | None, train: bool
    ) -> tuple[PyTree, PyTree]:
        if train:
            raise ModelTypeError(_NO_TRAINING)
        if self.rows is None:
            return self.exported.call(model_state, x), model_state
        num_rows = jax.tree.leaves(x)[0].shape[0]
        parts = []
        for first in range(0, num_rows, self.rows):
            indices = jnp.arange(first, first + self.rows) % num_rows
            part = jax.tree.map(lambda leaf, i=indices: leaf[i], x)
            parts.append(self.exported.call(model_state, part))
        outputs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:num_rows], *parts)
        return outputs, model_state


def open_program(forward: Forward) -> Any:
    """Reads an exported program and checks that it only computes.

    Raises:
        ModelFileError: if the program is damaged, or too old or too new for this jax. Also raised
            if it takes other arrays than ``forward.arrays``, or makes a call that is not allowed.
    """
    from jax import export

    try:
        exported = export.deserialize(bytearray(forward.program))
        text = exported.mlir_module()
        array_specs, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
    except Exception as error:
        raise ModelFileError(
            f'the exported forward pass can not be read by jax {jax.__version__}: '
            f'{type(error).__name__}: {error}'
        ) from error
    expected = [(a.shape, jnp.dtype(a.dtype)) for a in map(jnp.asarray, forward.arrays)]
    is_tuple = isinstance(array_specs, tuple)
    if not is_tuple or [(a.shape, a.dtype) for a in array_specs] != expected:
        raise ModelFileError('the exported forward pass takes other arrays than the model has')
    _check_calls(text)
    return exported


def check_readable(program: bytes) -> None:
    """Checks in a separate process that a program from a file can be read.

    The reader is written in C++. For one in a hundred programs with a deliberately flipped bit, it
    crashes the process or never returns.

    Raises:
        ModelFileError: if the program can't be read.
    """
    if not sys.executable:  # Python is embedded in another program
        return
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    try:
        result = subprocess.run(
            [sys.executable, '-c', _READER], input=program, env=environment, timeout=_READ_SECONDS,
            capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        problem = f'took longer than {_READ_SECONDS} seconds'
    else:
        if result.returncode == 0:
            return
        lines = result.stderr.decode(errors='replace').strip().splitlines()
        problem = f'ended with {result.returncode}' + (f': {lines[-1]}' if lines else '')
    raise ModelFileError(f'the exported forward pass can not be read: the reader {problem}')


def check_inputs(model: ExportedModel, x: PyTree) -> None:
    """Checks that an exported model takes inputs of this shape and dtype.

    Args:
        model: the exported model.
        x: inputs, or `jax.ShapeDtypeStruct`; only the shape of a row and the dtype are read.

    Raises:
        ModelFileError: if it takes other inputs.
    """
    exported = model._apply.exported
    args, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    got, expected = ([(a.shape[1:], a.dtype) for a in jax.tree.leaves(i)] for i in (args[1:], x))
    if len(args) != 2 or jax.tree.structure(args[1]) != jax.tree.structure(x) or got != expected:
        raise ModelFileError(
            f'the exported forward pass takes {got}, expected the inputs of the record, {expected}'
        )


def _check_calls(text: str) -> None:
    calls = [quoted or plain for quoted, plain in _CALL.findall(text)]
    forbidden = [name for name in calls if not _ALLOWED_CALLS.fullmatch(name)]
    forbidden += [match[0] for match in _CHANNELS.finditer(text)]
    if forbidden or text.count('custom_call') != len(calls):
        name = f': {forbidden[0]}' if forbidden else ''
        raise ModelFileError(
            f'the exported forward pass makes a call that no model file may make{name}'
        )
