"""Search for pretrained weights: the order of places, the messages, and loading from a file."""

import hashlib
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
from flax import nnx

from thinkml.environment import cache_home
from thinkml.errors import PretrainedWeightsWarning, WeightsError
from thinkml.models import save_safetensors
from thinkml.models.pretrained.keras_file import read_keras_file
from thinkml.models.pretrained.weight_sources import (
    Source,
    download_advice,
    find_weights,
)
from thinkml.models.zoo import CNN, create, load_pretrained
from thinkml.models.zoo.architecture import Architecture
from thinkml.models.zoo.catalog import ARCHITECTURES
from thinkml.models.zoo.keras_weights import load_keras

CONTENT = b'weights'
HASH = hashlib.sha256(CONTENT).hexdigest()
HUB = Source('model.safetensors', 'us/net', 'abc123', HASH)
TORCH = Source(f'net-{HASH[:8]}.pth', sha256=HASH[:8])
SOURCES = (HUB, TORCH)


class Places:
    """The paths in the folders of the caches, which are empty."""

    def __init__(self, root):
        self.home = root / 'home' / 'weights'
        self.hub = root / 'hf' / 'hub' / 'models--us--net'
        self.torch = root / 'torch' / 'hub' / 'checkpoints'

    def snapshot(self, revision='abc123'):
        return self.hub / 'snapshots' / revision / 'model.safetensors'


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def places(tmp_path, monkeypatch):
    for name, folder in (('THINKML_HOME', 'home'), ('HF_HOME', 'hf'), ('TORCH_HOME', 'torch')):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv('HF_HUB_CACHE', raising=False)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)  # as if it were not installed
    monkeypatch.setitem(ARCHITECTURES, 'net', Architecture(CNN, sources=SOURCES))
    return Places(tmp_path)


def test_own_files_come_before_the_caches_and_those_before_the_web(places, monkeypatch, tmp_path):
    calls = pretend_hub(monkeypatch, put(tmp_path / 'downloaded'))
    assert find_weights(SOURCES) == tmp_path / 'downloaded'
    assert calls == [('us/net', 'model.safetensors', 'abc123')]
    for path in (
        places.torch / TORCH.file,
        places.snapshot(),
        places.home / TORCH.file,
        places.home / 'us' / 'net' / 'model.safetensors',
    ):
        put(path)
        assert find_weights(SOURCES) == path
    assert len(calls) == 1


class Offline(ConnectionError):
    pass


class Unreachable(FileNotFoundError):
    pass


def pretend_hub(monkeypatch, path=None, error=None):
    calls = []

    def download(repository, file, *, revision):
        calls.append((repository, file, revision))
        if error is not None:
            raise error
        return str(path)

    errors = types.SimpleNamespace(
        LocalEntryNotFoundError=Unreachable, OfflineModeIsEnabled=Offline
    )
    hub = types.SimpleNamespace(hf_hub_download=download, errors=errors)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    monkeypatch.setitem(sys.modules, 'huggingface_hub.errors', errors)
    return calls


def test_the_cache_of_the_hub_may_be_elsewhere(places, monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'elsewhere'))
    path = put(tmp_path / 'elsewhere/models--us--net/snapshots/abc123/model.safetensors')
    assert find_weights(SOURCES) == path


@pytest.mark.parametrize('sha256', [None, HASH])
def test_a_file_without_a_pin_is_the_newest_of_the_cache_and_is_not_downloaded(
    sha256, places, monkeypatch, tmp_path
):
    calls = pretend_hub(monkeypatch, put(tmp_path / 'downloaded'))
    unpinned = Source('model.safetensors', 'us/net', sha256=sha256)
    assert find_weights([unpinned]) is None and not calls
    put(places.hub / 'refs' / 'main', b'fed321')
    assert find_weights([unpinned]) is None
    path = put(places.snapshot('fed321'))
    assert find_weights([unpinned]) == path
    put(places.hub / 'refs' / 'main', b'../../../fed321')
    assert find_weights([unpinned]) is None


@pytest.mark.parametrize('where', ['home', 'torch', 'download'])
def test_another_file_than_the_pinned_one_is_refused(where, places, monkeypatch, tmp_path):
    wrong = b'other weights'
    if where == 'home':
        path = put(places.home / TORCH.file, wrong)
    elif where == 'torch':
        path = put(places.torch / TORCH.file, wrong)
    else:
        path = put(tmp_path / 'downloaded', wrong)
        pretend_hub(monkeypatch, path)
    with pytest.raises(WeightsError, match='damaged or another file: its SHA-256') as caught:
        find_weights(SOURCES)
    assert str(path) in str(caught.value)


def test_without_a_connection_there_is_nothing(places, monkeypatch):
    for error in (Offline('by choice'), Unreachable('no route')):
        calls = pretend_hub(monkeypatch, error=error)
        assert find_weights(SOURCES) is None and len(calls) == 1
    # HTTP libraries raise other errors than OSError when a download breaks off.
    pretend_hub(monkeypatch, error=RuntimeError('broken off'))
    with pytest.warns(PretrainedWeightsWarning, match='not downloaded: RuntimeError: broken off'):
        assert find_weights(SOURCES) is None


def test_all_sources_say_where_they_are_from():
    for name, architecture in ARCHITECTURES.items():
        sources = architecture.sources
        assert bool(sources) == bool(architecture.preprocessing)
        advice = download_advice(name, sources)
        if not sources:
            assert advice.startswith(f'No pretrained weights of {name} are known')
            continue
        assert sources[0].address in advice
        assert str(cache_home() / 'weights' / sources[0].local_name) in advice
        for source in sources:
            assert source.address.startswith('https://')
            assert source.sha256 is None or len(source.sha256) in (8, 64)
            assert source.revision is None or len(source.revision) == 40
            assert not source.is_pinned or source.repository


# --- loading ----------------------------------------------------------------------------------


def test_without_weights_the_model_is_random_and_that_is_said(places):
    model = create('cnn', 3, in_channels=1)
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    with pytest.warns(PretrainedWeightsWarning, match='RANDOM') as caught:
        assert load_pretrained(model, 'net', 'auto') is None
    message = str(caught[0].message)
    assert HUB.address in message and str(places.home) in message
    after = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    with pytest.raises(WeightsError, match='no pretrained weights of net were found'):
        load_pretrained(model, 'net', 'required')
    with pytest.raises(WeightsError, match='there is no file'):
        load_pretrained(model, 'net', places.home / 'nowhere.pth')


@pytest.mark.parametrize('by', ['path', 'name'])
def test_weights_are_loaded_from_a_file_or_by_name(by, places, monkeypatch, tmp_path):
    path = save_safetensors(create('cnn', 3, in_channels=1, seed=1), tmp_path / 'cnn.safetensors')
    if by == 'name':
        digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        source = Source(f'cnn-{digits}.safetensors', sha256=digits)
        monkeypatch.setitem(ARCHITECTURES, 'cnn', Architecture(CNN, sources=(source,)))
        path = put(places.home / source.file, path.read_bytes())
    model = create('cnn', 3, in_channels=1, weights=path if by == 'path' else 'required')
    x = np.ones((2, 16, 16, 1), np.float32)
    expected = create('cnn', 3, in_channels=1, seed=1)
    expected.eval()
    np.testing.assert_array_equal(model(x), expected(x))


# --- Keras ------------------------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.out = nnx.Linear(8, 3, rngs=rngs)
        self.second = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.out(self.second(self.norm(self.first(x))).mean((1, 2)))


# The names of a layer's arrays in the old format, where their order is alphabetical.
OLD_NAMES = {
    2: ('kernel', 'bias'),
    4: ('gamma', 'beta', 'moving_mean', 'moving_variance'),
}


def keras_file(path, model, *, legacy=False):
    """Writes a file in the format of Keras 3 or the old one, with layers in no order."""
    h5py = pytest.importorskip('h5py')
    norm = [model.norm.scale, model.norm.bias, model.norm.mean, model.norm.var]
    layers = {
        'conv2d': [model.first.kernel, model.first.bias],
        'dense': [model.out.kernel, model.out.bias],
        'batch_normalization': norm,
        'conv2d_1': [model.second.kernel, model.second.bias],
    }
    with h5py.File(path, 'w') as file:
        for name, variables in layers.items():
            for number, variable in enumerate(variables):
                old = f'model_weights/{name}/{name}/{OLD_NAMES[len(variables)][number]}:0'
                file[old if legacy else f'layers/{name}/vars/{number}'] = np.asarray(variable[...])
        file['optimizer_weights/0' if legacy else 'optimizer/vars/0'] = np.zeros(3)
    return path


@pytest.mark.parametrize('legacy', [False, True])
def test_keras_files_are_read_by_kind_and_number(legacy, tmp_path):
    saved, model = Net(1), Net(2)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    saved(x)  # moves the statistics
    for variable in (saved.norm.scale, saved.norm.bias):
        variable[...] += np.random.default_rng(1).normal(size=4).astype(np.float32)
    layers = read_keras_file(keras_file(tmp_path / 'net.weights.h5', saved, legacy=legacy))
    assert load_keras(model, layers, x, what='net') == 10
    saved.eval(), model.eval()
    np.testing.assert_array_equal(model(x), saved(x))


def test_other_layers_of_keras_are_named(tmp_path):
    layers = read_keras_file(keras_file(tmp_path / 'net.h5', Net(1)))
    smaller = nnx.Sequential(nnx.Conv(3, 5, (3, 3), rngs=nnx.Rngs(0)))
    with pytest.raises(WeightsError) as caught:
        load_keras(smaller, layers, np.zeros((1, 8, 8, 3), np.float32), what='net.h5')
    message = str(caught.value)
    assert 'convolutions: 2 layers in the file, 1 in the model' in message
    assert 'layers/conv2d: (3, 3, 3, 4), (4,) in the file' in message
    (tmp_path / 'broken.h5').write_bytes(b'\x89HDF\r\n\x1a\n' + b'x' * 100)
    with pytest.raises(WeightsError, match='can not be read as a Keras file'):
        read_keras_file(tmp_path / 'broken.h5')


def test_arrays_of_keras_files_are_in_them(tmp_path):
    h5py = pytest.importorskip('h5py')
    (tmp_path / 'outside').write_bytes(bytes(400))
    with h5py.File(tmp_path / 'outer.h5', 'w') as file:
        file.create_dataset('w', (100,), 'f4', external=[(str(tmp_path / 'outside'), 0, 400)])
    with h5py.File(tmp_path / 'large.h5', 'w') as file:
        file.create_dataset('w', (10**12,), 'f4', chunks=(1000,))
    with h5py.File(tmp_path / 'zeros.h5', 'w') as file:
        file.create_dataset('w', data=np.zeros(10**6, np.float32), compression='gzip')
    with zipfile.ZipFile(tmp_path / 'zeros.keras', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('model.weights.h5', bytes(10**6))
    for name, match in (
        ('outer.h5', 'w is in another file'),
        ('large.h5', 'w is float32 of shape'),
        ('zeros.h5', 'w is float32 of shape'),
        ('zeros.keras', 'model.weights.h5 in it has 1000000 bytes'),
    ):
        with pytest.raises(WeightsError, match=match):
            read_keras_file(tmp_path / name)
