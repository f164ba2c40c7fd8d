"""Inspection of model files, the command line, and export."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from tests.models.forged import forge
from thinkml.core.model.functional import functionalize
from thinkml.errors import ConfigError, ModelFileError
from thinkml.models import ModelManager, load_safetensors, predict_proba, save_safetensors
from thinkml.models.__main__ import main
from thinkml.models.serialization.weights import named_arrays
from thinkml.training import ModelTrainer, TrainingConfig

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = np.where(X[:, 0] > 0, 'yes', 'no')


def network(seed=0):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        nnx.Linear(3, 4, rngs=rngs),
        nnx.BatchNorm(4, rngs=rngs),
        nnx.Dropout(0.1, rngs=rngs),
        nnx.Linear(4, 2, rngs=rngs, param_dtype=jnp.bfloat16),
    )


def trained():
    model = network()
    ModelTrainer(TrainingConfig(epochs=2)).train(model, X, Y, progress=False)
    return model


@pytest.fixture(scope='module')
def model():
    return trained()


@pytest.fixture
def root(model, tmp_path):
    ModelManager(tmp_path).save_model(model, 'small', {'accuracy': 0.9, 'site': {'name': 'B'}})
    return tmp_path


def test_an_inspection_reads_everything_but_the_weights(root, monkeypatch):
    manager = ModelManager(root)
    monkeypatch.setattr('thinkml.models.serialization.model_file.load_arrays', None)
    found = manager.inspect('small')
    shapes = {p.name: (p.kind, p.shape, p.dtype, p.size) for p in found.parameters}
    assert shapes['layers/0/kernel'] == ('Param', (3, 4), 'float32', 12)
    assert shapes['layers/1/mean'] == ('BatchStat', (4,), 'float32', 4)
    assert shapes['layers/3/bias'] == ('Param', (2,), 'bfloat16', 2)
    assert found.num_parameters == 12 + 4 + 4 + 4 + 8 + 2
    assert found.task.classes == ('no', 'yes') and str(found.inputs) == '3 float32'
    assert found.model == 'flax.nnx:Sequential' and found.format == 2
    assert found.metadata == {'accuracy': 0.9, 'site': {'name': 'B'}}
    assert len(found.record.runs[0]['loss']) == 2 and found.parent is None
    assert found.num_bytes == sum(p.stat().st_size for p in found.path.rglob('*') if p.is_file())
    assert set(found.forward_arrays) <= set(shapes)
    text = str(found)
    assert 'layers/0/kernel' in text and 'binary, 2 classes (no, yes)' in text and '3 x 4' in text


def test_an_inspection_finds_damage(root):
    path = ModelManager(root).inspect('small').path
    record = (path / 'record.json').read_bytes()
    (path / 'record.json').write_bytes(record[:-3] + b'0\n}')
    with pytest.raises(ModelFileError, match=r'record\.json'):
        ModelManager(root).inspect('small')
    (path / 'record.json').write_bytes(record)
    forge(path, 'weights/index.json', lambda index: {'a': {'shape': 'x', 'dtype': 'float32'}})
    with pytest.raises(ModelFileError, match=r'weights/index\.json: unreadable'):
        ModelManager(root).inspect('small')


def test_the_command_line(root, capsys, tmp_path):
    assert main(['list', str(root)]) == 0
    assert 'small@1' in capsys.readouterr().out
    assert main(['inspect', '--root', str(root), 'small@1']) == 0
    assert 'layers/0/kernel' in capsys.readouterr().out
    path = root / 'small' / '1'
    assert main(['verify', str(path)]) == 0
    assert 'every file is unchanged since it was saved' in capsys.readouterr().out
    assert main(['export', str(path), str(tmp_path / 'w.safetensors')]) == 0
    assert main(['export', str(path), str(tmp_path / 'w.mlirbc')]) == 0
    assert main(['export', str(path), str(tmp_path / 'w.onnx')]) == 1
    assert 'expected .safetensors or .mlirbc' in capsys.readouterr().err
    (path / 'metadata.json').write_text('{}')
    assert main(['verify', str(path)]) == 1
    assert 'metadata.json' in capsys.readouterr().err
    assert main(['inspect', str(root / 'nothing')]) == 1
    assert 'does not exist' in capsys.readouterr().err


def test_the_command_line_lists_models_that_have_no_names_too(root, model, capsys, tmp_path):
    for name in ('model_v1', 'model_v2'):
        ModelManager().save_model(model, root / name, {'accuracy': 0.8})
    (root / 'model_v2' / 'metadata.json').write_text('{}')
    (root / '.hidden.thinkml-old').symlink_to(root / 'model_v1')
    (root / 'link').symlink_to(root / 'model_v1')
    assert main(['list', str(root)]) == 0
    named, paths = capsys.readouterr().out.split('\n\n')
    assert 'small@1' in named and 'model_v1' not in named
    _, sound, damaged = paths.splitlines()
    assert sound.startswith('model_v1 ') and '0.8000' in sound
    assert damaged.startswith('model_v2 ') and 'path: ' in damaged
    for empty in (tmp_path / 'nowhere', root / 'small' / '1'):
        assert main(['list', str(empty)]) == 1
        assert f'there are no models in {empty}' in capsys.readouterr().err
    assert main(['list', __file__]) == 1
    assert 'can not be listed' in capsys.readouterr().err


def test_it_runs_as_a_module(root):
    command = [sys.executable, '-m', 'thinkml.models', 'inspect', str(root / 'small' / '1')]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert 'binary, 2 classes (no, yes)' in found.stdout and found.stderr == ''


# --- export -------------------------------------------------------------------------------------


def test_safetensors_go_out_and_come_back(model, root, tmp_path):
    numpy_tensors = pytest.importorskip('safetensors.numpy')
    one = save_safetensors(model, tmp_path / 'one.safetensors')
    other = ModelManager(root).export('small', tmp_path / 'other.safetensors')
    assert one.read_bytes() == other.read_bytes()
    found = numpy_tensors.load_file(one)
    assert 'layers.0.kernel' in found and not any('key' in name for name in found)
    np.testing.assert_array_equal(found['layers.0.kernel'], model.layers[0].kernel[...])
    assert found['layers.3.bias'].dtype == jnp.bfloat16
    mine = network(seed=3)
    assert load_safetensors(one, into=mine) is mine
    for name in (0, 3):
        np.testing.assert_array_equal(mine.layers[name].kernel[...], model.layers[name].kernel[...])
    with pytest.raises(ModelFileError, match=r'layers/0/kernel: float32\[5,4\] in the model'):
        load_safetensors(one, into=nnx.Sequential(nnx.Linear(5, 4, rngs=nnx.Rngs(0))))
    one.write_bytes(one.read_bytes()[:50])
    with pytest.raises(ModelFileError, match=r'one\.safetensors can not be read'):
        load_safetensors(one, into=mine)


def test_without_safetensors_it_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
    with pytest.raises(ImportError, match='pip install safetensors'):
        save_safetensors(model, tmp_path / 'x.safetensors')


def test_stablehlo_alone_computes_the_forward_pass(tmp_path):
    """StableHLO's interpreter needs only the file, the weights and the inputs."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))
    ModelTrainer(TrainingConfig(epochs=1)).train(model, X, Y, progress=False)
    manager = ModelManager()
    path = manager.save_model(model, tmp_path / 'model')
    file = manager.export(path, tmp_path / 'model.mlirbc')
    weights = named_arrays(model)
    given = [np.int32(0), *(weights[name] for name in manager.inspect(path).forward_arrays), X]
    with ir.Context() as context, ir.Location.unknown():
        stablehlo.register_interpreter_dialect(context)
        module = stablehlo.deserialize_portable_artifact(context, file.read_bytes())
        assert 'custom_call' not in str(module)
        # The interpreter needs a fixed number of rows.
        module = ir.Module.parse(str(module).replace('tensor<?x', f'tensor<{len(X)}x'))
        arguments = [ir.DenseElementsAttr.get(np.array(a, order='C')) for a in given]
        (outputs,) = stablehlo.eval_module(module, arguments)
        found = np.array(ir.DenseFPElementsAttr(outputs)).reshape(len(X), 2)
    np.testing.assert_allclose(found, model(X), rtol=1e-5, atol=1e-6)


def test_an_untrained_model_has_no_forward_pass_to_export(tmp_path):
    path = ModelManager().save_model(network(), tmp_path / 'untrained')
    assert ModelManager().inspect(path).forward_arrays is None
    with pytest.raises(ModelFileError, match='has no exported forward pass'):
        ModelManager().export(path, tmp_path / 'x.mlirbc')


# --- versions -----------------------------------------------------------------------------------


def test_versions_are_kept_compared_promoted_and_deleted(tmp_path):
    model, manager = trained(), ModelManager(root=tmp_path / 'models')
    for score in (0.7, 0.9):
        path = manager.save_model(model, 'digits', {'metrics': {'f1': score}})
    assert path == tmp_path / 'models' / 'digits' / '2'
    assert manager.list_models() == ['digits']
    table = manager.versions('digits')
    assert table['model'] == ['digits@1', 'digits@2'] and table['metadata.metrics.f1'] == [0.7, 0.9]
    assert table['parent'] == [None, 'digits@1']  # the second came from the first
    assert len(set(table['data'])) == 1 and 'config.epochs' not in table.columns
    longer = trained()
    ModelTrainer(TrainingConfig(epochs=3)).train(longer, X, Y, progress=False)
    manager.save_model(longer, 'other')
    assert manager.compare('digits', 'other')['config.epochs'] == [2, 3]
    manager.delete('other')
    manager.tag('digits@1', 'production')
    assert manager.versions('digits')['tags'] == ['production', '']
    assert manager.metadata('digits@production') == {'metrics': {'f1': 0.7}}
    with pytest.raises(ModelFileError, match='production'):
        manager.delete('digits@1')
    manager.tag('digits@2', 'production')
    manager.delete('digits@1')
    assert manager.versions('digits')['model'] == ['digits@2']
    np.testing.assert_array_equal(
        predict_proba(manager.load_model('digits'), X), predict_proba(model, X)
    )
    with pytest.raises(ModelFileError, match="path: got 'digits@2', expected a name"):
        manager.save_model(model, 'digits@2')
    assert manager.save_model(model, 'digits').name == '3'  # numbers are not used again


def test_a_save_that_failed_leaves_no_name_and_takes_no_number(model, tmp_path):
    manager = ModelManager(root=tmp_path / 'models')
    with pytest.raises(ModelFileError, match=r"metadata\['x'\]"):
        manager.save_model(model, 'digits', {'x': object()})
    assert manager.list_models() == []
    assert manager.save_model(model, 'digits').name == '1'


def test_notes_do_not_hide_which_version_is_which(model, tmp_path):
    manager = ModelManager(root=tmp_path)
    manager.save_model(model, 'digits', {'model': 'cnn', 'tags': 'mine', 'parameters': 5})
    (row,) = manager.versions('digits')
    assert row['model'] == 'digits@1' and row['metadata.model'] == 'cnn'
    assert row['parameters'] == 34 and row['metadata.parameters'] == 5


def test_a_damaged_version_hides_no_other(model, tmp_path, capsys):
    manager = ModelManager(root=tmp_path)
    for _ in range(2):
        path = manager.save_model(model, 'digits')
    (path / 'metadata.json').write_text('{"changed": 1}')
    table = manager.versions('digits')
    assert table['model'] == ['digits@1', 'digits@2'] and 'metadata.json' in table['problem'][1]
    assert main(['list', str(tmp_path)]) == 0 and 'digits@1' in capsys.readouterr().out
    with pytest.raises(ModelFileError, match=r'metadata\.json'):
        manager.compare('digits@2')


@pytest.mark.parametrize('name', ['my model', 'zürich', 'digits@0', 'digits@', 'a@1@2'])
def test_what_can_be_no_name_is_no_path_either(model, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = ModelManager(root='models')
    with pytest.raises(ModelFileError, match='expected a name'):
        manager.save_model(model, name)
    with pytest.raises(ModelFileError, match='expected a name'):
        manager.load_model(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('path', [None, 3, b'x', '/', 'a\0b', 'x' * 250])
def test_what_is_no_path_is_refused(model, path):
    with pytest.raises(ConfigError, match='path: got'):
        ModelManager().save_model(model, path)
    with pytest.raises(ConfigError, match='path: got'):
        ModelManager().load_model(path)


def test_arguments_in_the_wrong_order_give_a_short_error(model):
    with pytest.raises(ConfigError, match=r'^path: got Sequential, expected a path'):
        ModelManager().save_model('models/small', model)


@pytest.mark.parametrize('trusted', [None, [sys], ['my-models']])
def test_what_is_no_module_is_not_trusted(root, trusted):
    with pytest.raises(ConfigError, match=r'trusted: got .*expected names of modules'):
        ModelManager(root).load_model('small', trusted=trusted)


def test_paths_with_dots_links_and_brackets(model, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    manager = ModelManager()
    manager.save_model(model, '../a folder/../model')
    assert manager.load_model('../model') and (tmp_path / 'model').is_dir()
    (tmp_path / 'link').symlink_to(tmp_path, target_is_directory=True)
    assert manager.load_model(tmp_path / 'link' / 'model')
    with pytest.raises(ModelFileError, match=r"contains '\[', which is a pattern to Orbax"):
        manager.save_model(model, tmp_path / 'run[1]' / 'model')


def test_a_path_stays_a_path_and_names_need_a_root(model, tmp_path):
    manager = ModelManager(root=tmp_path / 'models')
    path = manager.save_model(model, tmp_path / 'elsewhere' / 'model')
    assert str(manager.load_model(str(path))) and manager.list_models() == []
    assert len(manager.compare(path, str(path))) == 2
    with pytest.raises(ModelFileError, match="ModelManager\\(root='models'\\)"):
        ModelManager().list_models()


def test_the_code_revision_is_that_of_git(tmp_path, model, monkeypatch):
    from thinkml.versions import code_revision

    monkeypatch.delattr(sys.modules['__main__'], '__file__', raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert code_revision() is None

    def git(*arguments):
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
        run = subprocess.run(['git', *who, *arguments], check=True, capture_output=True, text=True)
        return run.stdout.strip()

    git('init')
    (tmp_path / 'file').write_text('1')
    git('add', 'file')
    git('commit', '-m', 'x')
    assert code_revision() == git('rev-parse', 'HEAD')
    (tmp_path / 'file').write_text('2')
    assert code_revision() == git('rev-parse', 'HEAD') + '-dirty'
    path = ModelManager().save_model(model, tmp_path / 'm')
    assert json.loads((path / 'model.json').read_text())['code'].endswith('-dirty')


def test_the_exported_program_takes_any_number_of_rows(root):
    path = ModelManager(root).inspect('small').path
    exported = export.deserialize(bytearray((path / 'forward.bin').read_bytes()))
    assert exported.platforms == ('cpu', 'cuda', 'tpu')
    assert not isinstance(exported.in_avals[-1].shape[0], int)
    assert functionalize(network(), X, jax.random.key(0)).params
