import functools
import importlib
import json
import re
import sys
import types

import dm_pix
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

from tests.models import samples
from thinkml.core.model.adapters import from_functions, from_linen
from thinkml.errors import ModelFileError, ModelTypeError
from thinkml.models.serialization import import_allowlist
from thinkml.models.serialization.architecture import build, describe
from thinkml.models.serialization.attribute_codec import decode_special, encode_attribute
from thinkml.models.serialization.json_values import decode, encode, plain


def decode_attribute(node, trusted=()):
    return decode(node, functools.partial(decode_special, trusted=trusted))


def through_json(structure):
    return json.loads(json.dumps(structure, allow_nan=False))


def rebuilt(model, **kwargs):
    structure, arrays = describe(model)
    return build(through_json(structure), arrays, **kwargs)


LAYERS = [
    lambda rngs: nnx.Dict(a=nnx.Linear(2, 3, rngs=rngs)),
    lambda rngs: nnx.List([nnx.Linear(2, 3, rngs=rngs) for _ in range(12)]),
    lambda rngs: nnx.MultiHeadAttention(2, 8, decode=True, dropout_rate=0.1, rngs=rngs),
    lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs)),
    lambda rngs: nnx.Bidirectional(
        nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)), nnx.RNN(nnx.SimpleCell(3, 4, rngs=rngs)), rngs=rngs
    ),
    lambda rngs: nnx.Conv(3, 4, (3, 3), padding=((1, 1), (0, 0)), rngs=rngs),
    lambda rngs: nnx.ConvTranspose(3, 4, (3, 3), rngs=rngs),
    lambda rngs: nnx.Linear(
        3, 4, dtype=jnp.bfloat16, precision=jax.lax.Precision.HIGHEST, rngs=rngs
    ),
    lambda rngs: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=rngs),
    lambda rngs: nnx.Einsum('ab,bc->ac', (3, 4), (4,), rngs=rngs),
    lambda rngs: nnx.LoRALinear(3, 4, lora_rank=2, rngs=rngs),
    lambda rngs: nnx.GroupNorm(32, rngs=rngs),
    lambda rngs: nnx.InstanceNorm(4, rngs=rngs),
    lambda rngs: nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs),
    lambda rngs: nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs),
    lambda rngs: nnx.Sequential(
        nnx.PReLU(), nnx.relu, jnp.tanh, jnp.add, nnx.log_softmax, samples.bent
    ),
    lambda rngs: nnx.vmap(lambda key: nnx.Linear(2, 3, rngs=nnx.Rngs(key)))(rngs.params.split(4)),
]


@pytest.mark.parametrize('make', LAYERS)
def test_layers_of_flax_come_back_equal(make):
    layer = make(nnx.Rngs(0, dropout=1))
    copy = rebuilt(layer)
    layer.eval()
    assert nnx.graphdef(copy) == nnx.graphdef(layer)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a == b).all(), nnx.state(copy), nnx.state(layer))
    )


class Holder(nnx.Module):
    def __init__(self, **attributes):
        for name, value in attributes.items():
            setattr(self, name, value)


def _make_local():
    def local(x):
        return x

    return local


def test_what_is_shared_stays_shared():
    linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    model = Holder(first=linear, second=linear, kernel=linear.kernel)
    copy = rebuilt(model)
    assert copy.first is copy.second
    assert copy.kernel is copy.first.kernel
    assert len(describe(model)[1]) == 2


def test_arrays_and_numbers_that_are_no_variables_come_back():
    model = Holder(
        parts=nnx.data([jnp.arange(3), (np.arange(2), None)]), table=nnx.data({'a': 2.5, 'b': 'x'})
    )
    copy = rebuilt(model)
    assert copy.parts[0].tolist() == [0, 1, 2]
    assert copy.parts[1][0].tolist() == [0, 1] and copy.parts[1][1] is None
    assert copy.table == {'a': 2.5, 'b': 'x'}


def test_describing_leaves_the_model_in_train_mode_and_the_copy_in_eval_mode():
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    model.train()
    assert rebuilt(model).use_running_average is True
    assert model.use_running_average is False


def test_building_calls_no_init(monkeypatch):
    structure, arrays = describe(samples.everything())
    for kind in (samples.Everything, samples.Sizes, nnx.Linear):
        monkeypatch.setattr(kind, '__init__', None)
    assert build(through_json(structure), arrays).sizes.width == 8


VALUES = [
    None, True, 3, 2.5, 'text', float('inf'), -float('inf'), [1, (2, [3])], {'a': 1},
    {1: 'a', (2, 3): 'b'}, {'$float': 'nan'}, Ellipsis,
    np.float32(0.1), np.int8(3), np.bool_(True), np.str_('a'), jnp.dtype('bfloat16').type(0.5),
    jnp.float32, jnp.bfloat16, jnp.bool_, np.dtype('float16'), jnp.dtype('bfloat16'), np.float64,
    float, int, nnx.LSTMCell, nnx.Param, samples.Everything, samples.Sizes(vocabulary=3),
    jax.lax.Precision.HIGHEST, FrozenDict({'a': (1,)}),
    nnx.StateAxes({nnx.Param: 0, ...: nnx.Carry}), nnx.relu, jnp.tanh, jnp.add, samples.bent,
    jax.nn.initializers.zeros, nn.Dense(3, name='last'), nn.Sequential([nn.Dense(2), nn.relu]),
]  # fmt: skip


@pytest.mark.parametrize('value', VALUES)
def test_attributes_come_back_equal_and_of_the_same_type(value):
    copy = decode_attribute(through_json(encode_attribute(value, ('model',))))
    assert copy == value
    assert type(copy) is type(value)


def test_nan_comes_back():
    assert np.isnan(decode(through_json(encode(float('nan'), ('x',)))))


def test_partial_functions_come_back():
    function = functools.partial(nnx.leaky_relu, negative_slope=0.25)
    copy = decode_attribute(through_json(encode_attribute(function, ('model',))))
    assert (copy.func, copy.args, copy.keywords) == (nnx.leaky_relu, (), {'negative_slope': 0.25})


@pytest.mark.parametrize(
    'initializer',
    [
        nn.initializers.he_normal(),
        nn.initializers.glorot_uniform(in_axis=0, out_axis=1, dtype=jnp.bfloat16),
        nn.initializers.normal(0.3),
        nn.initializers.uniform(2.0, dtype=jnp.float16),
        nn.initializers.constant(3.0),
        nn.initializers.orthogonal(2.0, column_axis=0),
        nn.initializers.delta_orthogonal(0.5),
        nn.initializers.truncated_normal(0.5, lower=-1.0),
    ],
)
def test_initializers_draw_the_same_weights(initializer):
    copy = decode_attribute(through_json(encode_attribute(initializer, ('model',))))
    expected, got = (f(jax.random.key(0), (3, 4, 5)) for f in (initializer, copy))
    assert got.dtype == expected.dtype
    assert (got == expected).all()


def _in_main(x):
    return x


def _lambda_in_main():
    function = lambda x: x  # noqa: E731
    function.__module__ = '__main__'
    return function


_in_main.__module__ = '__main__'


class Outer:
    class Inner(nnx.Module):
        pass


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (lambda x: x, r'model\.layers\[0\]\.act: .*lambda.*top level of a module'),
        (_make_local(), r'model\.layers\[0\]\.act: .*local.*top level of a module'),
        (_in_main, r'model\.layers\[0\]\.act: .*main program.*my_models'),
        (_lambda_in_main(), r'model\.layers\[0\]\.act: .*lambda.*top level of a module'),
        (Outer.Inner, r"model\.layers\[0\]\.act: 'Outer.Inner' is nested.*Define Inner at the top"),
        (jnp.load, r'model\.layers\[0\]\.act: .*jax that a model file may name'),
        (functools.partial(jnp.where, samples.bent), r'act\[0\]: a partial function is given func'),
        (
            functools.partial(jnp.where, x=[{'a': Holder}]),
            r'act\.x\[0\]\.a: a partial function',
        ),
        (1 + 2j, r'model\.layers\[0\]\.act: got builtins.complex'),
        (nnx.Rngs(0).fork, r'model\.layers\[0\]\.act: got builtins\.method'),
        (object(), r'model\.layers\[0\]\.act: got builtins\.object'),
        (re.compile, r'model\.layers\[0\]\.act: .*standard library'),
        (types.SimpleNamespace, r'model\.layers\[0\]\.act: .*standard library'),
        (functools.partial(_make_local(), 1), r'top level of a module'),
        ({'a': [1, lambda x: x]}, r'model\.layers\[0\]\.act\.a\[1\]: '),
    ],
)
def test_what_another_process_could_not_find_is_refused_with_its_place(value, message):
    model = Holder(layers=nnx.List([Holder(act=nnx.static(value))]))
    with pytest.raises(ModelFileError, match=message):
        describe(model)


def test_a_class_of_the_main_program_is_refused(monkeypatch):
    monkeypatch.setattr(Holder, '__module__', '__main__')
    with pytest.raises(ModelFileError, match=r"model: 'Holder' is defined in the main program"):
        describe(Holder())


def test_a_name_that_means_something_else_by_now_is_refused(monkeypatch):
    old = samples.bent
    monkeypatch.setattr(samples, 'bent', lambda x: x)
    with pytest.raises(ModelFileError, match='bent is something else'):
        encode_attribute(old, ('model',))


def test_what_is_no_model_is_a_type_error_that_names_the_adapter():
    with pytest.raises(ModelTypeError, match='from_linen'):
        describe(nn.Dense(3))
    with pytest.raises(ModelFileError, match='no parameters yet'):
        describe(from_linen(nn.Dense(3)))


@pytest.mark.parametrize(
    ('name', 'kind', 'message'),
    [
        ('os:system', import_allowlist.FUNCTION, 'standard library'),
        ('builtins:eval', import_allowlist.FUNCTION, 'standard library'),
        ('posixpath:join', import_allowlist.FUNCTION, 'standard library'),
        ('__main__:f', import_allowlist.FUNCTION, 'not the name'),
        ('jax.__init__:f', import_allowlist.FUNCTION, 'not the name'),
        ('jax:numpy.tanh', import_allowlist.FUNCTION, 'not the name'),
        ('jax.numpy:__loader__', import_allowlist.FUNCTION, 'not the name'),
        ('jax:numpy', import_allowlist.FUNCTION, 'not a function'),
        ('jax.numpy:save', import_allowlist.FUNCTION, 'not a function|may name'),
        ('jax', import_allowlist.FUNCTION, 'not the name'),
        ('jax.no_such_module:f', import_allowlist.FUNCTION, 'is gone'),
        ('jax.nn:no_such_function', import_allowlist.FUNCTION, 'is gone'),
        ('not_imported_module:f', import_allowlist.FUNCTION, r"trusted=\['not_imported_module'\]"),
        ('flax.nnx:Linear', import_allowlist.FUNCTION, 'not a function'),
        ('flax.nnx:relu', import_allowlist.NODE, 'not an nnx module class'),
        ('flax.nnx:Linear', import_allowlist.VARIABLE, 'not an nnx variable class'),
        ('tests.models.samples:functools', import_allowlist.FUNCTION, 'not a function'),
        ('tests.models.test_architecture:through_json', import_allowlist.CLASS, 'not a class'),
        ('tests.models.borrowed:dumps', import_allowlist.FUNCTION, 'defined in json'),
        ('tests.models.borrowed:load', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('tests.models.borrowed:norm', import_allowlist.FUNCTION, 'defined in numpy.linalg'),
        ('tests.models.no_file:bent', import_allowlist.FUNCTION, r"trusted=\['tests'\]"),
        ('numpy.testing:runstring', import_allowlist.FUNCTION, r"trusted=\['numpy'\]"),
        ('optax.tree:get', import_allowlist.FUNCTION, 'optax that a model file may name'),
        (
            'optax.losses:make_fenchel_young_loss',
            import_allowlist.FUNCTION,
            'optax that a model file may',
        ),
        ('optax:FactoredState', import_allowlist.CLASS, 'is not a class that models are made of'),
        ('sklearn.utils:Bunch', import_allowlist.CLASS, r"trusted=\['sklearn'\]"),
        ('jax.numpy:load', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('jax.numpy:fromfile', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('jax.numpy:apply_along_axis', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('jax.lax:while_loop', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('jax.lax:map', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('jax.lax:stop_gradient', import_allowlist.FUNCTION, 'jax that a model file may name'),
        (
            'jax._src.lax.lax:_nary_lower_hlo',
            import_allowlist.FUNCTION,
            'jax that a model file may name',
        ),
        ('jax:pure_callback', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('jax.tree_util:tree_map', import_allowlist.FUNCTION, 'jax that a model file may name'),
        ('flax.nnx:jit', import_allowlist.FUNCTION, 'flax that a model file may name'),
        ('flax.linen:pool', import_allowlist.FUNCTION, 'flax that a model file may name'),
        (
            'flax.nnx.proxy_caller:DelayedAccessor',
            import_allowlist.DATACLASS,
            'flax that a model file may',
        ),
        (
            'thinkml.checkpoint:save_arrays',
            import_allowlist.FUNCTION,
            'thinkml that a model file may name',
        ),
    ],
)
def test_hostile_names_are_refused(name, kind, message, monkeypatch):
    borrowed = types.ModuleType('tests.models.borrowed')
    borrowed.__file__ = __file__
    borrowed.dumps, borrowed.load, borrowed.norm = (
        json.dumps,
        jnp.load,
        types.FunctionType(samples.bent.__code__, {}),
    )
    borrowed.norm.__module__ = 'numpy.linalg'
    monkeypatch.setitem(sys.modules, 'tests.models.borrowed', borrowed)
    no_file = types.ModuleType('tests.models.no_file')
    no_file.bent = samples.bent
    monkeypatch.setitem(sys.modules, 'tests.models.no_file', no_file)
    importlib.import_module(name.split(':')[0]) if name.startswith(('numpy.', 'sklearn.')) else None
    with pytest.raises(ModelFileError, match=message):
        import_allowlist.resolve(name, kind)


@pytest.mark.parametrize(
    'name', ['jax.numpy:load', 'jax.numpy:fromfile', 'jax:pure_callback', 'optax.tree:get']
)
def test_no_arguments_of_a_file_reach_what_is_no_function_of_arrays(name):
    node = {'$partial': [{'$function': name}, [], {}]}
    with pytest.raises(ModelFileError, match=r'may name|installed library'):
        decode_attribute(node)


@pytest.mark.parametrize(
    'argument',
    [
        {'$function': 'jax.nn:relu'},
        {'$class': 'flax.nnx:Linear'},
        {'$partial': [{'$function': 'jax.nn:relu'}, [], {}]},
        [{'deep': {'$tuple': [{'$function': 'jax.nn:relu'}]}}],
        {'$linen': ['flax.linen:Dense', {'features': 3}]},
    ],
)
def test_a_partial_function_is_given_nothing_to_call(argument):
    for given in ([[argument], {}], [[], {'x': argument}]):
        with pytest.raises(ModelFileError, match='a partial function is given'):
            decode_attribute({'$partial': [{'$function': 'jax.numpy:where'}, *given]})


@pytest.mark.parametrize(
    ('old', 'now'),
    [
        ('parts:ConvNorm', 'layers'),
        ('table:ResidualMLP', 'tabular_resnet'),
    ],
)
def test_older_files_find_the_classes_of_modules_that_were_renamed(old, now):
    found = import_allowlist.resolve(f'thinkml.models.zoo.{old}', import_allowlist.CLASS)
    assert found.__module__ == f'thinkml.models.zoo.{now}'


def test_a_function_of_a_trusted_library_is_found():
    node = encode_attribute(dm_pix.flip_left_right, ('model',))
    assert decode_attribute(node, ['dm_pix']) is dm_pix.flip_left_right
    with pytest.raises(ModelFileError, match=r"trusted=\['dm_pix'\]"):
        decode_attribute(node)
    loss = encode_attribute(optax.softmax_cross_entropy, ('model',))
    assert decode_attribute(loss) is optax.softmax_cross_entropy
    with pytest.raises(ModelFileError, match='standard library'):
        import_allowlist.resolve('os:getcwd', import_allowlist.FUNCTION, ['os'])


def test_arguments_reach_a_users_function_only_where_it_is_trusted():
    model = from_functions(
        samples.init_layers, functools.partial(samples.apply_layers), {'w': jnp.ones(2)}
    )
    with pytest.raises(ModelFileError, match=r"trusted=\['tests.models.samples'\]"):
        rebuilt(model)
    copy = rebuilt(model, trusted=['tests.models'])
    assert copy.apply.func is samples.apply_layers


@pytest.mark.parametrize(
    ('change', 'error'),
    [
        (lambda s: s.update(kind='other'), ValueError),
        (lambda s: s['graph'].update(module='flax.nnx:Param'), ModelFileError),
        (lambda s: s['graph']['attributes'][0].__setitem__(0, '__class__'), ValueError),
        (lambda s: s['graph']['attributes'].clear(), ModelFileError),
        (lambda s: s['graph'].update(id=1), Exception),
        (lambda s: s['graph'].clear(), Exception),
    ],
)
def test_a_changed_structure_is_refused(change, error):
    structure, arrays = describe(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    change(structure)
    with pytest.raises(error):
        build(structure, arrays)


def test_missing_and_left_over_arrays_are_refused():
    structure, arrays = describe(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ModelFileError, match="'bias' is missing"):
        build(structure, {'kernel': arrays['kernel']})
    with pytest.raises(ModelFileError, match='no place for extra'):
        build(structure, {**arrays, 'extra': arrays['bias']})


def test_parameters_hold_nothing_but_arrays_and_numbers():
    structure, _ = describe(from_functions(samples.init_layers, samples.apply_layers, {'w': 1.0}))
    structure['params'] = '/etc/passwd'
    with pytest.raises(ValueError, match='a str among the parameters'):
        build(structure, {})


def test_plain_values_name_what_they_refuse():
    with pytest.raises(ModelFileError, match=r"metadata\['a'\]\[0\]\['b'\]: got builtins.object"):
        plain({'a': [{'b': object()}]}, ('metadata',))
