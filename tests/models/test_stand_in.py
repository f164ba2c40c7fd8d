"""Models whose code is missing or changed: the exported forward pass stands in."""

import contextlib
import importlib
import linecache
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.models import samples
from tests.models.forged import forge
from thinkml.core import predict_outputs
from thinkml.core.model.exported_forward import ExportedModel
from thinkml.errors import ModelFileError, ModelTypeError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import ArraySpec, InputSpec, ModelRecord, attach_record, record_of
from thinkml.models import ModelManager, predict, predict_proba
from thinkml.tasks import Task
from thinkml.training import ModelTrainer, TrainingConfig

CODE = """
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.hidden = nnx.Linear(3, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.out = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.hidden(x))))
"""
X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = np.where(X[:, 0] > 0, 'yes', 'no')


@contextlib.contextmanager
def written_to(folder):
    """Yields a function that writes the module ``their_network`` and imports it from scratch."""

    def write(text):
        (folder / 'their_network.py').write_text(textwrap.dedent(text))
        sys.modules.pop('their_network', None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        linecache.clearcache()
        return importlib.import_module('their_network')

    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        yield write
    sys.modules.pop('their_network', None)


@pytest.fixture
def code(tmp_path):
    with written_to(tmp_path) as write:
        yield write


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Returns the path of a trained model of that module, and its probabilities."""
    folder = tmp_path_factory.mktemp('trained')
    with written_to(folder) as write:
        model = write(CODE).Network()
        trainer = ModelTrainer(TrainingConfig(epochs=2, batch_size=16))
        trainer.train(model, X, Y, progress=False)
        path = ModelManager().save_model(model, folder / 'model', {'note': 1})
        return path, predict_proba(model, X)


@pytest.fixture
def saved(trained, code, tmp_path):
    """Returns a copy of it, and its probabilities, while the module exists."""
    code(CODE)
    return pathlib.Path(shutil.copytree(trained[0], tmp_path / 'model')), trained[1]


@pytest.mark.compiled
def test_a_renamed_class_predicts_bit_for_bit_with_a_warning(saved, code):
    path, expected = saved
    of_one_row = predict_proba(ModelManager().load_model(path), X[:1])
    code(CODE.replace('Network', 'Net'))
    with pytest.warns(ThinkMLWarning, match=r"'their_network:Network' is gone: .*stands in"):
        loaded = ModelManager().load_model(path)
    np.testing.assert_array_equal(predict_proba(loaded, X), expected)
    np.testing.assert_array_equal(predict_proba(loaded, X[:1]), of_one_row)
    assert predict(loaded, X[:5]).tolist() == np.where(expected[:5, 1] > 0.5, 'yes', 'no').tolist()


def test_it_can_be_evaluated_and_saved_again_but_not_trained(saved, code, tmp_path):
    path, expected = saved
    code('')
    with pytest.warns(ThinkMLWarning, match='stands in'):
        loaded = ModelManager().load_model(path)
    evaluation = ModelEvaluator().evaluate(loaded, X, Y)
    np.testing.assert_array_equal(evaluation.probabilities, expected)
    assert len(record_of(loaded).runs[0]['loss']) == 2
    with pytest.raises(ModelTypeError, match='It can predict and be evaluated, but not be trained'):
        ModelTrainer(TrainingConfig(epochs=1)).train(loaded, X, Y, progress=False)
    again = ModelManager().load_model(ModelManager().save_model(loaded, tmp_path / 'again'))
    np.testing.assert_array_equal(predict_proba(again, X), expected)
    mine = code(CODE).Network()
    ModelManager().load_model(tmp_path / 'again', into=mine)  # nothing was lost on the way
    np.testing.assert_array_equal(predict_proba(mine, X), expected)
    assert loaded(X[:3]).shape == (3, 2)


@pytest.mark.compiled
def test_a_fresh_process_without_the_module_predicts(saved, tmp_path):
    path, expected = saved
    np.save(tmp_path / 'x.npy', X)
    script = f"""
import numpy as np, warnings
from thinkml.models import ModelManager, predict_proba
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    model = ModelManager().load_model({str(path)!r})
assert 'is not imported' in str(caught[0].message), caught
np.save({str(tmp_path / 'y.npy')!r}, predict_proba(model, np.load({str(tmp_path / 'x.npy')!r})))
"""
    subprocess.run([sys.executable, '-c', script], check=True, cwd='/')
    np.testing.assert_array_equal(np.load(tmp_path / 'y.npy'), expected)


@pytest.mark.parametrize(
    'change',
    [
        ('nnx.relu(self.norm(self.hidden(x)))', 'nnx.gelu(self.norm(self.hidden(x)))'),
        ('self.out(nnx', 'self.head(nnx'),
        ('return self.out(nnx.relu(self.norm(self.hidden(x))))', 'return x'),
        ('def __call__', 'def call'),
    ],
)
def test_a_class_that_computes_otherwise_is_noticed(change, saved, code):
    path, expected = saved
    code(CODE.replace(*change))
    with pytest.warns(ThinkMLWarning, match='their_network changed since it was saved'):
        loaded = ModelManager().load_model(path)
    assert isinstance(loaded, ExportedModel)
    np.testing.assert_array_equal(predict_proba(loaded, X), expected)


def test_a_class_that_changed_in_words_alone_is_used(saved, code):
    path, expected = saved
    module = code(CODE.replace('def __call__(self, x):', 'def __call__(self, x):  # as before'))
    loaded = ModelManager().load_model(path)
    assert type(loaded) is module.Network
    np.testing.assert_array_equal(predict_proba(loaded, X), expected)


def test_what_a_class_calls_is_looked_at_too(code, tmp_path, monkeypatch):
    """The changed function is in another module, which no file names."""
    (tmp_path / 'their_functions.py').write_text('def bend(x):\n    return x * (x > 0)\n')
    text = CODE.replace('nnx.relu', 'their_functions.bend')
    model = code('    import their_functions\n' + text).Network()
    ModelTrainer(TrainingConfig(epochs=1)).train(model, X, Y, progress=False)
    expected = predict_proba(model, X)
    path = ModelManager().save_model(model, tmp_path / 'model')
    (tmp_path / 'their_functions.py').write_text('def bend(x):\n    return x * (x > 1)\n')
    monkeypatch.delitem(sys.modules, 'their_functions')
    code('    import their_functions\n' + text)
    with pytest.warns(ThinkMLWarning, match='their_functions changed since it was saved'):
        loaded = ModelManager().load_model(path)
    np.testing.assert_array_equal(predict_proba(loaded, X), expected)


def test_a_change_that_can_not_be_checked_is_said(code, tmp_path):
    path = ModelManager().save_model(code(CODE).Network(), tmp_path / 'untrained')
    code(CODE.replace('nnx.relu', 'nnx.gelu'))
    with pytest.warns(ThinkMLWarning, match='their_network changed since the model was saved'):
        ModelManager().load_model(path)


def test_a_base_class_that_changed_is_noticed(code, tmp_path):
    text = CODE + '\n    class Child(Network):\n        pass\n'
    model = code(text).Child()
    ModelTrainer(TrainingConfig(epochs=1)).train(model, X, Y, progress=False)
    path = ModelManager().save_model(model, tmp_path / 'model')
    code(text.replace('nnx.relu', 'nnx.gelu'))
    with pytest.warns(ThinkMLWarning, match='their_network changed since it was saved'):
        ModelManager().load_model(path)


def test_without_an_exported_forward_pass_the_class_is_needed(code, tmp_path):
    path = ModelManager().save_model(code(CODE).Network(), tmp_path / 'untrained')
    code('')
    with pytest.raises(ModelFileError, match="'their_network:Network' is gone"):
        ModelManager().load_model(path)


def test_what_a_file_may_not_name_is_refused_whatever_stands_in(saved):
    path, _ = saved
    forge(path, 'model.json', lambda about: about['model']['graph'].update(module='os:system'))
    with pytest.raises(ModelFileError, match='of the standard library, which no model is made of'):
        ModelManager().load_model(path)


NAMES = {
    'everything': ('Everything', 'bent', 'Sizes'),
    'linen': ('LinenModule', 'LinenBlock'),
    'functions': ('apply_layers',),
}


@pytest.mark.compiled
@pytest.mark.parametrize(
    'name', [pytest.param('everything', marks=pytest.mark.slow), 'linen', 'functions']
)
def test_every_kind_of_model_predicts_bit_for_bit_without_its_code(name, tmp_path, monkeypatch):
    make, x = samples.SAMPLES[name]
    model, x = make(), np.asarray(x)
    outputs = predict_outputs(model, x)
    spec = InputSpec(ArraySpec(x.shape[1:], x.dtype.name))
    attach_record(model, ModelRecord(Task('regression', None, outputs.shape[1]), spec))
    path = ModelManager().save_model(model, tmp_path / 'model')
    loaded = ModelManager().load_model(path)
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(predict_outputs(loaded, x), outputs)
    for gone in NAMES[name]:
        monkeypatch.delattr(samples, gone)
    with pytest.warns(ThinkMLWarning, match='is gone'):
        stand_in = ModelManager().load_model(path)
    assert isinstance(stand_in, ExportedModel)
    assert predict_outputs(stand_in, x).tobytes() == outputs.tobytes()


ANEW = """
import sys, warnings
import numpy as np
from tests.models import samples
from thinkml.core import predict_outputs
from thinkml.models import ModelManager

root, renamed = sys.argv[1], sys.argv[2] == 'renamed'
if renamed:
    import thinkml.models.zoo.catalog as catalog
    gone = {architecture.make for architecture in catalog.ARCHITECTURES.values()}
    for named in gone | {named for _, _, named in samples.KINDS.values()}:
        home = sys.modules[named.__module__]
        setattr(home, f'{named.__name__}Renamed', vars(home)[named.__name__])
        delattr(home, named.__name__)
inputs = {name: x for name, (_, x, _) in samples.KINDS.items()}
inputs |= {name: x for name, (_, x) in samples.ZOO.items()}
for name, x in inputs.items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model = ModelManager().load_model(f'{root}/{name}')
    assert [' is gone: ' in str(w.message) for w in caught] == [True] * renamed, (name, caught)
    assert (type(model).__name__ == 'ExportedModel') == renamed, name
    np.save(f'{root}/{name}.{sys.argv[2]}.npy', predict_outputs(model, np.asarray(x)))
"""


@pytest.mark.slow
def test_a_fresh_process_predicts_bit_for_bit_of_every_kind_and_after_a_renaming(tmp_path):
    expected = {}
    for name, model, x, _ in samples.every_kind():
        x = np.asarray(x)
        expected[name] = predict_outputs(model, x)
        spec = InputSpec(ArraySpec(x.shape[1:], x.dtype.name))
        task = Task('regression', None, expected[name].shape[1])
        attach_record(model, ModelRecord(task, spec))
        ModelManager().save_model(model, tmp_path / name)
    root = pathlib.Path(__file__).parents[2]
    for how in ('as it was', 'renamed'):
        command = [sys.executable, '-c', ANEW, tmp_path, how]
        subprocess.run(command, check=True, cwd=root)
        for name, outputs in expected.items():
            found = np.load(tmp_path / f'{name}.{how}.npy')
            assert found.dtype == outputs.dtype and found.tobytes() == outputs.tobytes(), name


def test_an_exported_model_without_its_program_is_refused(saved, code):
    path, _ = saved
    forge(path, 'model.json', lambda about: about.update(model={'kind': 'exported'}, forward=None))
    with pytest.raises(ModelFileError, match=r'model\.json: it names no forward pass'):
        ModelManager().load_model(path)
