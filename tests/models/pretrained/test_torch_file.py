"""Files that torch saved: they are read as torch reads them, and nothing in them is run."""

import io
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import pytest

from thinkml.errors import WeightsError
from thinkml.models.pretrained import open_tensors
from thinkml.models.pretrained.torch_file import is_torch_file, read_torch_file

# --- a writer of pickles as torch has them, instruction by instruction -------------------------


def text(value):
    content = value.encode()
    return b'X' + len(content).to_bytes(4, 'little') + content


def number(value):
    return b'J' + value.to_bytes(4, 'little', signed=True)


def long(value):
    content = value.to_bytes((value.bit_length() + 8) // 8, 'little', signed=True)
    return b'\x8a' + bytes([len(content)]) + content


def called(name, *arguments):
    return b'c' + name.replace(' ', '\n').encode() + b'\n(' + b''.join(arguments) + b'tR'


def numbers(*values):
    return b'(' + b''.join(long(value) for value in values) + b't'


def storage(key, count, kind='torch FloatStorage'):
    of = b'c' + kind.replace(' ', '\n').encode() + b'\n'
    return b'(' + text('storage') + of + text(key) + text('cpu') + long(count) + b'tQ'


def tensor(stored, size, stride, offset=0):
    hooks = called('collections OrderedDict')
    return called(
        'torch._utils _rebuild_tensor_v2',
        stored, long(offset), numbers(*size), numbers(*stride), b'\x89', hooks,
    )  # fmt: skip


def state_dict(**entries):
    return b'\x80\x02}(' + b''.join(text(k) + v for k, v in entries.items()) + b'u.'


WEIGHT = np.arange(6, dtype=np.float32)
SOUND = state_dict(weight=tensor(storage('0', 6), (2, 3), (3, 1)))


def archive(pickled=SOUND, data=None, *, compression=zipfile.ZIP_STORED, more=(), order='little'):
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w', compression) as file:
        file.writestr('archive/data.pkl', pickled)
        file.writestr('archive/byteorder', order)
        for key, values in ({'0': WEIGHT} if data is None else data).items():
            file.writestr(f'archive/data/{key}', values.tobytes())
        for name, values in more:
            file.writestr(name, values)
    return content.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'weights.pth'


def read(path, content):
    path.write_bytes(content)
    return read_torch_file(path)


# --- what is read -----------------------------------------------------------------------------


def test_tensors_are_views_of_the_file(path):
    found = read(path, archive())
    assert list(found) == ['weight']
    np.testing.assert_array_equal(found['weight'], WEIGHT.reshape(2, 3))
    assert not found['weight'].flags.writeable and is_torch_file(path)
    assert open_tensors(path).keys() == found.keys()


@pytest.mark.parametrize('key', ['state_dict', 'model'])
def test_checkpoints_hold_their_tensors_under_a_name(key, path):
    inner = b'}(' + text('weight') + tensor(storage('0', 6), (6,), (1,)) + b'u'
    checkpoint = b'\x80\x02}(' + text('epoch') + number(3) + text(key) + inner + b'u.'
    assert read(path, archive(checkpoint))['weight'].shape == (6,)


def test_strides_and_offsets_are_followed(path):
    turned = state_dict(turned=tensor(storage('0', 6), (2, 2), (1, 2), offset=1))
    np.testing.assert_array_equal(read(path, archive(turned))['turned'], [[1, 3], [2, 4]])


@pytest.mark.slow
def test_every_type_and_form_is_what_torch_reads(path):
    torch = pytest.importorskip('torch')
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    saved = {
        **{
            str(kind): (base * 3).to(kind)
            for kind in (
                torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
                torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
            )
        },
        'turned': base.permute(2, 0, 1), 'part': base[:, 1:, ::2], 'shared': base[1],
        'scalar': torch.tensor(3.5), 'empty': torch.zeros(0, 4),
        'parameter': torch.nn.Parameter(base.clone()),
    }  # fmt: skip
    torch.save(saved, path)
    found, expected = read_torch_file(path), torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = value.detach()
        if value.dtype == torch.bfloat16:
            assert found[name].dtype == ml_dtypes.bfloat16
            value = value.float()
        assert found[name].shape == tuple(value.shape), name
        np.testing.assert_array_equal(found[name].astype(value.numpy().dtype), value.numpy())


@pytest.mark.slow
def test_a_module_s_state_is_what_torch_reads(path):
    torch = pytest.importorskip('torch')
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    torch.save({'epoch': 7, 'state_dict': module.state_dict(), 'optimizer': {}}, path)
    found = read_torch_file(path)
    assert found.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(found[name], value.numpy())


# --- what is refused --------------------------------------------------------------------------


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled(value, protocol=2):
    return pickle.dumps(value, protocol)


HARMFUL = {
    'a call of os.system': (pickled(Calls(__import__('os').system, 'touch {}')), 'system'),
    'a call of exec': (pickled({'w': Calls(exec, 'open("{}", "w")')}), 'exec'),
    'a newer pickle': (pickled({'w': Calls(exec, 'open("{}", "w")')}, 4), 'STACK_GLOBAL'),
    'a class': (state_dict(w=b'cargparse\nNamespace\n)\x81'), 'argparse.Namespace'),
    'an instance': (state_dict(w=b'(ios\nsystem\n'), 'INST'),
    'an object': (state_dict(w=b'(cos\nsystem\n' + text('x') + b'o'), 'os.system'),
    'a call of text': (state_dict(w=text('x') + b')R'), 'calls something'),
    'an attribute set on a tensor': (
        state_dict(w=tensor(storage('0', 6), (6,), (1,)) + b'}b'), 'damaged',
    ),
    'a dict made of pairs': (state_dict(w=called('collections OrderedDict', b']')), 'a dict in it'),
    'an extension': (state_dict(w=b'\x82\x01'), 'EXT1'),
    'a name of another process': (state_dict(w=b'Px\n'), 'PERSID'),
    'a storage of a class': (state_dict(w=storage('0', 6, 'os system')), 'os.system'),
    'a storage that is not there': (
        state_dict(w=tensor(storage('1', 6), (6,), (1,))), "storage '1'",
    ),
    'a storage elsewhere': (
        state_dict(w=tensor(storage('../data.pkl', 6), (6,), (1,))), r"storage '\.\./data\.pkl'",
    ),
    '1e12 numbers': (
        state_dict(w=tensor(storage('0', 10**12), (10**12,), (1,))), 'larger than the 6 numbers',
    ),
    '1e12 numbers of one': (
        state_dict(w=tensor(storage('0', 6), (10**6, 10**6), (0, 0))), 'larger than the 6 numbers',
    ),
    'negative strides': (state_dict(w=tensor(storage('0', 6), (6,), (-1,), 5)), 'strides'),
    'a tensor past the end': (
        state_dict(w=tensor(storage('0', 6), (3,), (1,), 4)), 'larger than the 6 numbers',
    ),
    'no storage': (state_dict(w=tensor(text('0'), (6,), (1,))), 'described in a way'),
    'no tensors': (state_dict(w=number(3)), 'no dict of tensors'),
    'a key that is a list': (b'\x80\x02}(]' + number(1) + b'u.', 'list for a key'),
    'no end': (SOUND[:-1], 'damaged'),
    'nothing': (b'', 'damaged'),
    'an empty stack': (b'\x80\x02.', 'damaged'),
    'a value that holds itself': (b'\x80\x02}q\x00(' + text('model') + b'h\x00u.', 'no dict of'),
    'lists of lists of lists': (
        b'\x80\x02' + b''.join(b']q\x00' + b'(' + b'h\x00' * 9 + b'e' for _ in range(50)) + b'.',
        'no dict of tensors',
    ),
    'a tower': (b'\x80\x02' + b']' * 10**6 + b'.', 'no dict of tensors'),
    'marks on a tower': (  # looking through it for each would take hours
        b'\x80\x02' + b'N' * 10**6 + b'(t' * 10**6 + b'.', 'no dict of tensors',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', HARMFUL)
def test_nothing_else_in_a_pickle_is_followed(name, path, tmp_path):
    content, match = HARMFUL[name]
    made = tmp_path / 'made'
    content = content.replace(b'{}', str(made).encode()[:2])  # as long as it was
    with pytest.raises(WeightsError, match=match) as caught:
        read(path, archive(content))
    assert str(path) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]


def test_files_in_the_zip_are_looked_at_before_they_are_read(path):
    zeros = {'0': np.zeros(10**7, np.float32)}
    bomb = archive(state_dict(w=tensor(storage('0', 10**7), (10**7,), (1,))), zeros,
                   compression=zipfile.ZIP_DEFLATED)  # fmt: skip
    assert len(bomb) < 10**5
    with pytest.raises(WeightsError, match='is compressed'):
        read(path, bomb)
    with pytest.raises(WeightsError, match=r'exactly one data\.pkl'):
        read(path, archive(more=[('other/data.pkl', SOUND)]))
    with pytest.warns(UserWarning, match='Duplicate name'):
        twice = archive(more=[('archive/data/0', b'12345678')])
    with pytest.raises(WeightsError, match='two of one name'):
        read(path, twice)
    with pytest.raises(WeightsError, match='another byte order'):
        read(path, archive(order='big'))


def test_what_is_read_into_memory_is_bounded(path):
    filler = b'\x80\x02' + b'}' * 2**23 + b'.'
    with pytest.raises(WeightsError, match=r'data\.pkl. in it has 8388611 bytes'):
        read(path, archive(filler))
    with pytest.raises(WeightsError, match=r'byteorder. in it has 8388609 bytes'):
        read(path, archive(order='x' * (2**23 + 1)))


def test_other_kinds_of_files_are_named(path):
    for content, match in (
        (b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', 'before version 1.6'),
        (b'hello', 'neither a safetensors file'),
        (b'', 'neither a safetensors file'),
        (archive().replace(b'data.pkl', b'data.txt'), 'neither a safetensors file'),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=match):
            open_tensors(path)


def test_damaged_files_give_the_same_tensors_or_an_error(path):
    rng = random.Random(0)
    sound = archive(
        state_dict(
            weight=tensor(storage('0', 6), (2, 3), (3, 1)), bias=tensor(storage('1', 4), (4,), (1,))
        ),
        {'0': WEIGHT, '1': np.ones(4, np.float32)},
    )
    expected = {name: array.copy() for name, array in read(path, sound).items()}
    outcomes = {'same': 0, 'refused': 0}
    for _ in range(3000):
        content = bytearray(sound)
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.choice([1, 1, 2, 8])):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        try:
            found = read(path, bytes(content))
        except WeightsError as error:
            assert str(path) in str(error)
            outcomes['refused'] += 1
            continue
        for name in found.keys() & expected.keys():
            np.testing.assert_array_equal(found[name], expected[name])
        outcomes['same'] += 1
    assert min(outcomes.values()) > 100, outcomes
