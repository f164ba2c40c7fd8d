"""Tests of exported forward passes, which run without the code of their model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from thinkml.core import predict_outputs
from thinkml.core.model import exported_forward
from thinkml.core.model.exported_forward import ExportedModel, Forward, export_forward, open_program
from thinkml.errors import ModelFileError, ModelTypeError


class Network(nnx.Module):
    """A model with a convolution, statistics, dropout and a reshape by the number of rows."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.convolution = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4 * 6 * 6, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.convolution(x)))
        return self.out(self.dropout(x.reshape(x.shape[0], -1)))


class Odd(nnx.Module):
    """A model that computes something else for few rows, so one program can't fit any number."""

    def __init__(self):
        self.scale = nnx.Param(jnp.float32(3))

    def __call__(self, x):
        return x * self.scale[...] if x.shape[0] > 5 else x * self.scale[...] + 0


X = np.random.default_rng(0).normal(size=(50, 6, 6, 1)).astype(np.float32)


def standing_in(model, x):
    forward = export_forward(model, x)
    return ExportedModel(forward, [str(index) for index in range(len(forward.arrays))])


@pytest.mark.parametrize('rows', [1, 13, 50])
def test_it_predicts_bit_for_bit(rows):
    model = Network()
    np.testing.assert_array_equal(
        predict_outputs(standing_in(model, X), X[:rows]), predict_outputs(model, X[:rows])
    )


def test_depthwise_convolutions_of_a_cpu_are_computed_in_another_way():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Conv(32, 32, (7, 7), feature_group_count=32, rngs=rngs), lambda x: x.mean((1, 2))
    )
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 32)).astype(np.float32)
    stand_in = predict_outputs(standing_in(model, x), x)
    np.testing.assert_allclose(stand_in, predict_outputs(model, x), rtol=0, atol=1e-6)


def test_a_model_that_looks_at_the_number_of_rows_is_exported_for_one():
    model, x = Odd(), np.arange(60, dtype=np.float32).reshape(20, 3)
    forward = export_forward(model, x)
    assert forward.rows is not None
    stand_in = ExportedModel(forward, ['scale'])
    np.testing.assert_array_equal(predict_outputs(stand_in, x), predict_outputs(model, x))
    outputs = predict_outputs(stand_in, x, batch_size=7)
    np.testing.assert_array_equal(outputs, predict_outputs(model, x))


def test_it_does_not_say_where_it_was_made():
    assert not re.search(rb'/\w+\.py', export_forward(Network(), X).program)


def test_a_dict_of_inputs():
    class Sum(nnx.Module):
        def __call__(self, x):
            return x['a'] + x['b'].astype(jnp.float32)

    x = {'a': np.ones((4, 2), np.float32), 'b': np.arange(8, dtype=np.int32).reshape(4, 2)}
    np.testing.assert_array_equal(predict_outputs(standing_in(Sum(), x), x), x['a'] + x['b'])


def test_what_cannot_be_exported_says_why():
    class Asks(nnx.Module):
        def __call__(self, x):
            return jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    with pytest.raises(ModelTypeError, match=r'\w+Error: '):
        export_forward(Asks(), X)


def test_it_is_not_trained():
    stand_in = standing_in(Network(), X)
    functional = stand_in.functionalize(X, jax.random.key(0))
    with pytest.raises(ModelTypeError, match=re.escape('load_model(path, into=model)')):
        functional.apply({}, functional.model_state, X, key=None, train=True)


# --- hostile programs -------------------------------------------------------------------------


def program_of(function, *shapes):
    checks = [
        export.DisabledSafetyCheck.custom_call(name)
        for name in ('evil', 'xla_ffi_python_cpu_callback')
    ]
    exported = export.export(jax.jit(function), disabled_checks=checks)(*shapes)
    return bytes(exported.serialize())


def test_a_program_that_calls_python_is_refused():
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)

    def calls(arrays, x):
        return jax.ffi.ffi_call('evil', shape)(x)

    forward = Forward(program_of(calls, (), shape), [], None)
    with pytest.raises(ModelFileError, match='makes a call that no model file may make: evil'):
        open_program(forward)


@pytest.mark.parametrize(
    ('reader', 'message'),
    [
        ('import os; os.abort()', 'ended with -6'),
        ('while True: pass', 'took longer than 1 seconds'),
    ],
)
def test_a_program_that_ends_or_holds_its_reader_is_a_model_file_error(
    reader, message, monkeypatch
):
    program = export_forward(Network(), X).program
    exported_forward.check_readable(program)
    monkeypatch.setattr(exported_forward, '_READER', reader)
    monkeypatch.setattr(exported_forward, '_READ_SECONDS', 1)
    with pytest.raises(ModelFileError, match=message):
        exported_forward.check_readable(program)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match='the exported forward pass can not be read'):
        exported_forward.check_readable(program[:100])


@pytest.mark.parametrize('change', ['bits', 'cut', 'empty', 'arrays'])
def test_a_damaged_program_is_a_model_file_error(change):
    forward = export_forward(Network(), X)
    program, arrays = bytearray(forward.program), list(forward.arrays)
    if change == 'bits':
        program[: len(program) // 2] = bytes(len(program) // 2)
    elif change == 'cut':
        program = program[: len(program) // 2]
    elif change == 'empty':
        program = bytearray()
    else:
        arrays[0] = jnp.zeros((7, 7))
    with pytest.raises(ModelFileError, match='the exported forward pass'):
        open_program(Forward(bytes(program), arrays, None))
