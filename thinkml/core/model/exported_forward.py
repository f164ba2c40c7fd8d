"""A forward pass as a program of its own, which needs none of the code it was written in.

`jax.export` turns it into StableHLO that runs on CPUs, CUDA GPUs and TPUs, for any number of rows.
The arrays are its arguments, so it is small.
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

from thinkml.core.model.adapters import FunctionalModel, PyTree
from thinkml.core.model.forward import inference_batch_size
from thinkml.core.model.functional import functionalize
from thinkml.core.model.mixed_precision import DType
from thinkml.errors import ModelFileError, ModelTypeError

_PLATFORMS = ('cpu', 'cuda', 'tpu')

# What a program may call besides StableHLO's own operations: checks of shapes, and the linear
# algebra and random bits that jax lowers to calls. Nothing that leads back into Python, out to
# another process, or to a kernel that the file brings.
_ALLOWED_CALLS = re.compile(
    r'shape_assertion|stablehlo\.dynamic_\w+|(cu|hip)_threefry2x32_ffi|lapack_\w+_ffi|'
    r'(cu|hip)solver_\w+_ffi|(cu|hip)_lu_pivots_to_permutation|ApproxTopK|Eigh|LuDecomposition|'
    r'ProductOfElementaryHouseholderReflectors|Qr'
)
_CALL = re.compile(r'custom_call\s*@(?:"([^"]*)"|([\w.$-]+))\(')
# What `open_program` does first, in a process that may end.
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
        program: what `jax.export` serialised: ``(arrays, x) -> outputs``.
        arrays: those it takes, in their order.
        rows: how many it computes at a time; None for any number.
    """

    program: bytes
    arrays: list[Any]
    rows: int | None


def export_forward(model: Any, x: PyTree) -> Forward:
    """Exports a model's forward pass in eval mode.

    A model that does other things for other numbers of rows is exported for one such number.

    Args:
        model: see `functionalize`.
        x: inputs, or `jax.ShapeDtypeStruct`; only the shape of a row and the dtype are read.

    Raises:
        ModelTypeError: if it can't be exported, in ``jax.export``'s words.
    """
    functional = functionalize(model, x, jax.random.key(0))
    leaves, structure = jax.tree.flatten((functional.params, functional.model_state))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]
    arrays = [leaves[i] for i in places]

    def forward(arrays: Sequence[jax.Array], x: PyTree) -> jax.Array:
        given = dict(zip(places, arrays, strict=True))  # numbers are part of the program
        filled = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
        params, model_state = jax.tree.unflatten(structure, filled)
        outputs, _ = functional.apply(params, model_state, x, key=None, train=False)
        return outputs.astype(jnp.float32)

    taken = tuple(map(_aval, arrays))
    from jax import export  # not before it is needed

    failures = []
    (any_number,) = export.symbolic_shape('rows')
    for rows in (None, inference_batch_size(x)):
        batch = _with_rows(x, any_number if rows is None else rows)
        try:
            with _without_locations():
                exported = export.export(jax.jit(forward), platforms=_PLATFORMS)(taken, batch)
            program = bytes(exported.serialize())
        except Exception as error:  # whatever a model's own code raises at another shape
            failures.append(error)
            continue
        return Forward(program, arrays, rows)
    raise ModelTypeError(f'{type(failures[-1]).__name__}: {failures[-1]}') from failures[-1]


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Programs else name the files of this machine that their operations come from."""
    name = 'jax_traceback_in_locations_limit'
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _aval(array: Any) -> jax.ShapeDtypeStruct:
    # A weak float32 times a bfloat16 is a bfloat16, a strong one a float32.
    array = jnp.asarray(array)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=array.weak_type)


def _with_rows(x: PyTree, rows: Any) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), x)


class ExportedModel:
    """A model that is nothing but its forward pass: it predicts, and can't be trained.

    Attributes:
        forward: what it runs.
        arrays: the model's, by name; those it takes, and others that it was saved with.
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
        """See `thinkml.core.functionalize`."""

        def write(params: PyTree, model_state: PyTree) -> None:
            raise ModelTypeError(_NO_TRAINING)

        return FunctionalModel(self._apply, {}, tuple(self.forward.arrays), write)

    def __call__(self, x: PyTree) -> jax.Array:
        """The outputs for a batch."""
        return self._apply({}, tuple(self.forward.arrays), x, key=None, train=False)[0]

    def __repr__(self) -> str:
        return f'ExportedModel({len(self.arrays)} arrays; predicts, and can not be trained)'


_NO_TRAINING = (
    'model: it is the exported forward pass of a model whose classes are not here, which can be '
    'evaluated and asked for predictions, but not trained. Load the model where its classes are, '
    'or load its weights into a model you made: load_model(path, into=model).'
)


@dataclasses.dataclass(frozen=True, eq=False)
class _ExportedApply:
    exported: Any
    rows: int | None

    def __call__(
        self, params: PyTree, model_state: PyTree, x: PyTree, *, key: Any, train: bool
    ) -> tuple[jax.Array, PyTree]:
        if train:
            raise ModelTypeError(_NO_TRAINING)
        if self.rows is None:
            return self.exported.call(model_state, x), model_state
        num_rows = jax.tree.leaves(x)[0].shape[0]
        parts = []
        for first in range(0, num_rows, self.rows):
            chosen = (jnp.arange(first, first + self.rows)) % num_rows
            part = jax.tree.map(lambda leaf, c=chosen: leaf[c], x)
            parts.append(self.exported.call(model_state, part))
        return jnp.concatenate(parts)[:num_rows], model_state


def open_program(forward: Forward) -> Any:
    """Reads an exported program, and checks that it does no more than compute.

    Raises:
        ModelFileError: if it is damaged, too old or too new for this jax, takes other arrays than
            there are, or calls what is not allowed.
    """
    from jax import export

    try:
        exported = export.deserialize(bytearray(forward.program))
        text = exported.mlir_module()
        taken, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
    except Exception as error:
        raise ModelFileError(
            f'the exported forward pass can not be read by jax {jax.__version__}: '
            f'{type(error).__name__}: {error}'
        ) from error
    expected = [(a.shape, jnp.dtype(a.dtype)) for a in map(jnp.asarray, forward.arrays)]
    if not isinstance(taken, tuple) or [(a.shape, a.dtype) for a in taken] != expected:
        raise ModelFileError('the exported forward pass takes other arrays than the model has')
    _check_calls(text)
    return exported


def check_readable(program: bytes) -> None:
    """Checks in a process of its own that a program from a file can be read.

    What reads it is written in C++: of programs with a bit flipped on purpose, one in a hundred
    ends the process or never returns.

    Raises:
        ModelFileError: if it can't.
    """
    if not sys.executable:  # inside another program
        return
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    try:
        done = subprocess.run(
            [sys.executable, '-c', _READER], input=program, env=environment, timeout=_READ_SECONDS,
            capture_output=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        problem = f'took longer than {_READ_SECONDS} seconds'
    else:
        if done.returncode == 0:
            return
        lines = done.stderr.decode(errors='replace').strip().splitlines()
        problem = f'ended with {done.returncode}' + (f': {lines[-1]}' if lines else '')
    raise ModelFileError(f'the exported forward pass can not be read: the reader {problem}')


def check_inputs(model: ExportedModel, x: PyTree) -> None:
    """Checks that an exported model takes such inputs.

    Args:
        model: the exported model.
        x: inputs, or `jax.ShapeDtypeStruct`; only the shape of a row and the dtype are read.

    Raises:
        ModelFileError: if it takes others.
    """
    exported = model._apply.exported
    args, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    taken, given = ([(a.shape[1:], a.dtype) for a in jax.tree.leaves(i)] for i in (args[1:], x))
    if len(args) != 2 or jax.tree.structure(args[1]) != jax.tree.structure(x) or taken != given:
        raise ModelFileError(
            f'the exported forward pass takes {taken}, expected the inputs of the record, {given}'
        )


def _check_calls(text: str) -> None:
    calls = [quoted or plain for quoted, plain in _CALL.findall(text)]
    unknown = [name for name in calls if not _ALLOWED_CALLS.fullmatch(name)]
    unknown += [found[0] for found in _CHANNELS.finditer(text)]
    if unknown or text.count('custom_call') != len(calls):
        named = f': {unknown[0]}' if unknown else ''
        raise ModelFileError(f'the exported forward pass calls what no model file may{named}')
