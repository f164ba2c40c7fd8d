import contextlib
import dataclasses
import datetime
import enum
import importlib
import inspect
import json
import math
import os
import pathlib
import pickle
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import samples
from tests.models.forged import forge, sign
from tests.models_for_tests import DropoutBatchNorm
from thinkml.checkpoint import filesystem, manifest
from thinkml.core.model.adapters import from_functions, from_linen
from thinkml.core.model.functional import functionalize
from thinkml.errors import ModelFileError, ModelTypeError
from thinkml.history import History
from thinkml.model_record import ArraySpec, InputSpec, ModelRecord, attach_record, record_of
from thinkml.models.manager import ModelManager
from thinkml.models.serialization import directories, model_file
from thinkml.tasks import Task

MANAGER = ModelManager()
SLOW = pytest.mark.slow


def forward(model, x):
    parts = functionalize(model, x, jax.random.key(0))
    apply = jax.jit(parts.apply, static_argnames='train')
    return apply(parts.params, parts.model_state, x, key=None, train=False)[0]


def mlp():
    return nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu)


@pytest.fixture
def saved(tmp_path):
    return MANAGER.save_model(mlp(), tmp_path / 'model', {'note': 'x'})


FRESH = """
import sys
import numpy as np
import thinkml.models.manager
assert not any(name.startswith('orbax') for name in sys.modules)
from tests.models.test_model_manager import forward
from tests.models import samples
from tests.models.forged import forge, sign
from tests.models_for_tests import DropoutBatchNorm
for name in sys.argv[2:]:
    model = thinkml.models.manager.ModelManager().load_model(f'{sys.argv[1]}/{name}')
    np.save(f'{sys.argv[1]}/{name}.npy', forward(model, (samples.SAMPLES | samples.KINDS)[name][1]))
"""


@pytest.mark.compiled
@pytest.mark.parametrize(
    'names', [['tied', 'linen', 'functions'], pytest.param(['everything'], marks=SLOW)]
)
def test_a_fresh_process_predicts_bit_for_bit(names, tmp_path):
    expected = {}
    for name in names:
        make, x, *_ = (samples.SAMPLES | samples.KINDS)[name]
        model = make()
        MANAGER.save_model(model, tmp_path / name)
        expected[name] = np.asarray(forward(model, x))
    root = pathlib.Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, '-W', 'error', '-c', FRESH, tmp_path, *names],
        check=True, cwd=root, env={**os.environ, 'PYTHONPATH': str(root)},
    )  # fmt: skip
    for name, outputs in expected.items():
        got = np.load(tmp_path / f'{name}.npy')
        assert got.dtype == outputs.dtype
        assert got.tobytes() == outputs.tobytes()


@pytest.mark.parametrize('name', samples.SAMPLES)
def test_arrays_keep_values_types_and_structure(name, tmp_path):
    model = samples.SAMPLES[name][0]()
    x = samples.SAMPLES[name][1]
    loaded = MANAGER.load_model(MANAGER.save_model(model, tmp_path / 'model'))
    old, new = (functionalize(m, x, jax.random.key(0)) for m in (model, loaded))
    assert type(loaded) is type(model)
    for before, after in ((old.params, new.params), (old.model_state, new.model_state)):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert jnp.asarray(a).aval == jnp.asarray(b).aval  # shape, dtype, weak or not
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_random_state_tied_weights_and_mode_are_kept(tmp_path):
    model = samples.everything()
    model.train()
    loaded = MANAGER.load_model(MANAGER.save_model(model, tmp_path / 'model'))
    assert model.dropout.deterministic is False
    assert loaded.dropout.deterministic is True and loaded.norm.use_running_average is True
    assert loaded.out is loaded.embed
    assert loaded.sizes == samples.Sizes()
    keys = [jax.random.key_data(m.dropout.rngs.key[...]).tolist() for m in (model, loaded)]
    assert keys[0] == keys[1]


def test_a_loaded_model_trains_on_as_the_saved_one_would(tmp_path):
    model = DropoutBatchNorm(4, 3, nnx.Rngs(0))
    loaded = MANAGER.load_model(MANAGER.save_model(model, tmp_path / 'model'))
    x = samples.FEATURES

    def step(model):
        parts = functionalize(model, x, jax.random.key(0))

        def loss(params):
            key = jax.random.key(1)
            outputs, state = parts.apply(params, parts.model_state, x, key=key, train=True)
            return jnp.square(outputs).mean(), state

        grads, state = jax.jit(jax.grad(loss, has_aux=True))(parts.params)
        parts.write(jax.tree.map(lambda p, g: p - 0.1 * g, parts.params, grads), state)
        return forward(model, x)

    before = forward(loaded, x)
    expected, got = step(model), step(loaded)
    assert (got == expected).all()
    assert not (got == before).all()


def test_a_loaded_model_shares_compiled_programs_with_the_saved_one(tmp_path):
    model = mlp()
    loaded = MANAGER.load_model(MANAGER.save_model(model, tmp_path / 'model'))
    x = jnp.zeros((1, 3))
    old, new = (functionalize(m, x, jax.random.key(0)).apply for m in (model, loaded))
    assert old == new and hash(old) == hash(new)


class Tables(nnx.Module):
    def __init__(self, **tables):
        for name, table in tables.items():
            setattr(self, name, table)


def test_numpy_arrays_of_a_module_stay_what_they_are(tmp_path):
    model = Tables(
        ids=np.array([2**40, 1]), mean=np.array([1 / 3]), empty=np.zeros((0, 2), np.float64),
        scale=np.float64(1 / 3), small=np.arange(3, dtype=np.int8), device=jnp.arange(3),
    )  # fmt: skip
    loaded = MANAGER.load_model(MANAGER.save_model(model, tmp_path / 'model'))
    for name in ('ids', 'mean', 'empty', 'scale', 'small', 'device'):
        before, after = getattr(model, name), getattr(loaded, name)
        assert isinstance(after, type(before))
        assert after.dtype == before.dtype and after.shape == before.shape
        assert np.asarray(after).tobytes() == np.asarray(before).tobytes()


@pytest.mark.parametrize('table', [np.array(['a', 'b']), np.array([b'a']), np.array([{}])])
def test_arrays_of_anything_but_numbers_are_refused_by_name(table, tmp_path):
    with pytest.raises(ModelFileError, match=f'words: got an array of {table.dtype}, expected'):
        MANAGER.save_model(Tables(words=table), tmp_path / 'model')
    assert list(tmp_path.iterdir()) == []


# --- the record -------------------------------------------------------------------------------


def history(*losses, **attributes):
    history = History()
    for loss in losses:
        history.add_steps([loss])
        history.add_epoch({'loss': loss})
    for name, value in attributes.items():
        setattr(history, name, value)
    return history


@pytest.mark.parametrize(
    'classes',
    [
        (0, 1, 2),
        (0.5, 1.5, 2.5),
        ('no', 'yes', 'perhaps'),
        (np.int8(3), np.int8(7), np.int8(9)),
        (np.str_('a'), np.str_('b'), 'c'),
    ],
)
@pytest.mark.filterwarnings('ignore:model. its forward pass was not exported')  # made-up inputs
def test_the_record_comes_back(classes, tmp_path):
    model = mlp()
    record = ModelRecord(
        task=Task('multiclass', classes, num_outputs=3, target_shape=(3,)),
        input_spec=InputSpec(
            {'image': ArraySpec((8, 8), 'uint8'), 'id': (ArraySpec((2,), 'float32', ('a', 'b')),)}
        ),
        runs=[history(1.0, math.nan, best_epoch=np.int64(1)), history(math.inf, seconds=2.0)],
        config={'epochs': 3, 'learning_rate': 1e-3, 'callbacks': [], 'seed': np.int64(1)},
        data_fingerprint={'rows': 10, 'shape': (10, 3), 'sha256': 'abc'},
    )
    attach_record(model, record)
    loaded = record_of(MANAGER.load_model(MANAGER.save_model(model, tmp_path / 'model')))
    assert loaded.task == record.task
    assert [type(label) for label in loaded.task.classes] == [type(label) for label in classes]
    assert loaded.input_spec == record.input_spec
    assert loaded.runs == record.runs and all(type(run) is History for run in loaded.runs)
    assert loaded.runs[1].seconds == 2.0
    assert loaded.config == {'epochs': 3, 'learning_rate': 1e-3, 'callbacks': [], 'seed': 1}
    assert loaded.data_fingerprint == {'rows': 10, 'shape': [10, 3], 'sha256': 'abc'}
    again = record_of(MANAGER.load_model(MANAGER.save_model(model, tmp_path / 'again')))
    assert again.task == record.task


def test_a_task_that_could_not_be_loaded_is_not_saved(tmp_path):
    model = mlp()
    attach_record(model, ModelRecord(task=Task('multiclass', ('a', 'b'), num_outputs=4)))
    with pytest.raises(ModelFileError, match=r'record\.task: multiclass with 2 classes and 4'):
        MANAGER.save_model(model, tmp_path / 'model')


def test_what_a_class_of_the_main_program_learned_is_carried_over(tmp_path):
    """The recipe of the error message and of docs/guides/saving/notebook-classes.md."""
    source = inspect.getsource(DropoutBatchNorm)
    in_main = {'__name__': '__main__', 'nnx': nnx}
    exec(source, in_main)  # the same class, as a notebook has it
    model = in_main['DropoutBatchNorm'](4, 3, nnx.Rngs(0))
    model.train()
    model(samples.FEATURES)  # moves the statistics
    model.eval()
    expected = forward(model, samples.FEATURES)
    attach_record(model, ModelRecord(task=Task('multiclass', ('a', 'b', 'c'), 3)))
    with pytest.raises(ModelFileError, match=r'main program.*nnx\.update\(new, nnx\.state\(model'):
        MANAGER.save_model(model, tmp_path / 'model')

    new = DropoutBatchNorm(4, 3, nnx.Rngs(7))
    nnx.update(new, nnx.state(model))
    attach_record(new, record_of(model))
    loaded = MANAGER.load_model(MANAGER.save_model(new, tmp_path / 'model'))
    assert forward(loaded, samples.FEATURES).tobytes() == expected.tobytes()
    assert record_of(loaded) == record_of(model)


@pytest.mark.parametrize('name', ['linen', 'functions'])
def test_so_is_what_others_of_the_main_program_learned(name, tmp_path, monkeypatch):
    make, x = samples.SAMPLES[name]
    model = make()
    attach_record(model, ModelRecord(task=Task('multiclass', ('a', 'b', 'c'), 3)))
    recipe = {
        'linen': r'new = from_linen\(module, model\.variables\) of',
        'functions': r'new = from_functions\(init, apply, model\.params\) of',
    }
    with monkeypatch.context() as patched:
        for thing in (samples.LinenModule, samples.apply_layers):
            patched.setattr(thing, '__module__', '__main__')
        with pytest.raises(ModelFileError, match=f'main program.*{recipe[name]}'):
            MANAGER.save_model(model, tmp_path / 'model')
    if name == 'linen':
        new = from_linen(model.module, model.variables)
    else:
        new = from_functions(model.init, model.apply, model.params)
    attach_record(new, record_of(model))
    loaded = MANAGER.load_model(MANAGER.save_model(new, tmp_path / 'model'))
    assert forward(loaded, x).tobytes() == forward(model, x).tobytes()
    assert record_of(loaded) == record_of(model)


def test_a_loaded_models_record_is_saved_again_as_it_was(tmp_path):
    model = mlp()
    attach_record(model, ModelRecord(runs=[history(0.1, math.nan)]))
    first = MANAGER.save_model(model, tmp_path / '1')
    second = MANAGER.save_model(MANAGER.load_model(first), tmp_path / '2')
    for name in ('record.json', 'metadata.json'):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one, other = (json.loads((path / 'model.json').read_text()) for path in (first, second))
    assert one['model'] == other['model']
    assert one['parent'] is None and other['parent']['path'] == '../1'


def test_an_empty_record_comes_back_empty(saved):
    assert record_of(MANAGER.load_model(saved)) == ModelRecord()


# --- metadata ---------------------------------------------------------------------------------


class Stage(enum.Enum):
    BEST = 'best'


@dataclasses.dataclass
class Scores:
    accuracy: float
    confusion: np.ndarray


def test_metadata_comes_back_as_plain_values(tmp_path):
    metadata = {
        'version': '1.0',
        'metrics': {'accuracy': np.float32(0.5), 'auc': float('nan'), 'worst': -np.inf},
        'array': jnp.arange(3, dtype=jnp.bfloat16),
        'scalar': jnp.asarray(2),
        'rows': np.array([[True], [False]]),
        'days': np.array(['2024-04-26'], 'datetime64[D]'),
        'names': np.array(['a', 'b']),
        'date': datetime.date(2024, 4, 26),
        'time': datetime.datetime(2024, 4, 26, 12, 30),
        'path': pathlib.PurePosixPath('a/b'),
        'scores': Scores(0.25, np.eye(2, dtype=int)),
        'stage': Stage.BEST,
        'class_weights': {0: 1.0, 1: 2.0},
        'labels': {'b', 'a'},
        'pair': (1, None),
        '$ref': True,
    }
    path = MANAGER.save_model(mlp(), tmp_path / 'model', metadata)
    loaded = MANAGER.metadata(path)
    assert math.isnan(loaded['metrics'].pop('auc'))
    assert loaded == {
        'version': '1.0',
        'metrics': {'accuracy': 0.5, 'worst': -math.inf},
        'array': [0.0, 1.0, 2.0],
        'scalar': 2,
        'rows': [[True], [False]],
        'days': ['2024-04-26'],
        'names': ['a', 'b'],
        'date': '2024-04-26',
        'time': '2024-04-26T12:30:00',
        'path': 'a/b',
        'scores': {'accuracy': 0.25, 'confusion': [[1, 0], [0, 1]]},
        'stage': 'best',
        'class_weights': {0: 1.0, 1: 2.0},
        'labels': ['a', 'b'],
        'pair': [1, None],
        '$ref': True,
    }
    json.loads((path / 'metadata.json').read_text(), parse_constant=pytest.fail)


def _cycle():
    cycle = {}
    cycle['again'] = cycle
    return cycle


def _donated():
    array = jnp.ones(3)
    array.delete()
    return array


@pytest.mark.parametrize(
    ('metadata', 'message'),
    [
        ({'loss': [_donated()]}, r"metadata\['loss'\]\[0\]: the array can not be read: .*deleted"),
        ({'a': {'b': [0, object()]}}, r"metadata\['a'\]\['b'\]\[1\]: got builtins.object"),
        ({'f': print}, r"metadata\['f'\]: got builtins.builtin_function_or_method"),
        ({'key': jax.random.key(0)}, r"metadata\['key'\]: "),
        ({'a': {(1, 2): 3}}, r"metadata\['a'\]: got the key \(1, 2\)"),
        ({'a': np.array([b'x'])}, r"metadata\['a'\]\[0\]: got numpy.bytes_"),
        (_cycle(), 'contains itself'),
        (5, 'metadata: got int, expected a dict'),
    ],
)
def test_metadata_that_is_no_json_names_the_key_and_nothing_is_written(metadata, message, tmp_path):
    with pytest.raises(ModelFileError, match=message):
        MANAGER.save_model(mlp(), tmp_path / 'new' / 'model', metadata)
    assert list(tmp_path.iterdir()) == []


# --- writing whole ----------------------------------------------------------------------------


def first_weight(path):
    return float(MANAGER.load_model(path).layers[0].kernel[0, 0])


def test_an_existing_path_is_refused_before_any_work(saved):
    with pytest.raises(ModelFileError, match=f'path: {saved} exists.*overwrite=True'):
        MANAGER.save_model('not even a model', saved)
    with pytest.raises(ModelTypeError):
        MANAGER.save_model('not even a model', saved, overwrite=True)


def test_overwrite_replaces_all_of_it(saved):
    MANAGER.save_model(samples.functions(), saved, overwrite=True)
    assert MANAGER.load_model(saved).apply is samples.apply_layers
    assert MANAGER.metadata(saved) == {}
    assert [path.name for path in saved.parent.iterdir()] == ['model']


def test_what_is_no_model_is_never_overwritten(tmp_path):
    (tmp_path / 'papers').mkdir()
    (tmp_path / 'papers' / 'thesis.txt').write_text('x')
    (tmp_path / 'file').write_text('x')
    for name in ('papers', 'file'):
        with pytest.raises(ModelFileError, match=f'path: .*{name} exists and is not a model'):
            MANAGER.save_model(mlp(), tmp_path / name, overwrite=True)
    assert (tmp_path / 'papers' / 'thesis.txt').exists()


def test_parents_are_made_and_the_path_is_given_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = MANAGER.save_model(mlp(), 'models/final')
    assert path == pathlib.Path('models/final')
    first_weight('models/final')


def test_a_failed_save_leaves_the_old_model_and_nothing_else(saved, monkeypatch):
    def full(*_):
        raise OSError('no space left on device')

    before = first_weight(saved)
    monkeypatch.setattr(model_file, 'save_arrays', full)
    with pytest.raises(ModelFileError, match=f'path: {saved} could not be written: no space'):
        MANAGER.save_model(mlp(), saved, overwrite=True)
    assert first_weight(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ['model']


class Killed(BaseException):
    """An exception that stops a save like a signal, without any clean-up."""


@pytest.mark.parametrize('renames', [0, 1, 2])
def test_a_kill_between_the_moves_leaves_a_model(renames, saved, monkeypatch):
    model = mlp()
    model.layers[0].kernel[...] = jnp.full((3, 4), 7.0)
    before, rename, left = first_weight(saved), pathlib.Path.rename, [renames]

    def rename_or_die(self, target):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(pathlib.Path, 'rename', rename_or_die)
        patched.setattr(shutil, 'rmtree', lambda *_, **__: None)
        MANAGER.save_model(model, saved, overwrite=True)
    assert first_weight(saved) == (7.0 if renames == 2 else before)
    MANAGER.save_model(model, saved, overwrite=True)
    assert first_weight(saved) == 7.0


def test_a_model_left_aside_is_put_back_before_the_next_save(saved):
    aside = saved.with_name('.model.thinkml-old')
    saved.rename(aside)
    assert first_weight(saved) == float(mlp().layers[0].kernel[0, 0])
    with pytest.raises(ModelFileError, match=f'path: {saved} exists.*overwrite=True'):
        MANAGER.save_model(mlp(), saved)
    assert saved.exists() and not aside.exists()


def test_what_stands_aside_and_is_no_model_is_kept(saved):
    aside = saved.with_name('.model.thinkml-old')
    aside.mkdir()
    (aside / 'thesis.txt').write_text('x')
    (saved.parent / '.model.old').mkdir()  # nor is anything else with a likely name touched
    with pytest.raises(ModelFileError, match=f'path: {aside} is in the way and is not a model'):
        MANAGER.save_model(mlp(), saved, overwrite=True)
    first_weight(saved)
    assert (aside / 'thesis.txt').exists() and (saved.parent / '.model.old').exists()
    shutil.rmtree(saved)
    with pytest.raises(ModelFileError, match=f'path: {saved} does not exist'):
        MANAGER.load_model(saved)


def test_of_two_saves_without_overwrite_one_wins(tmp_path, monkeypatch):
    path, write, turn = tmp_path / 'model', manifest.write, []

    def another_save_first(directory, **about):
        write(directory, **about)
        if not turn:
            turn.append(MANAGER)
            MANAGER.save_model(samples.functions(), path)

    monkeypatch.setattr(manifest, 'write', another_save_first)
    with pytest.raises(ModelFileError, match=f'path: {path} exists.*overwrite=True'):
        MANAGER.save_model(mlp(), path)
    assert MANAGER.load_model(path).apply is samples.apply_layers
    assert [file.name for file in tmp_path.iterdir()] == ['model']


def test_of_two_saves_that_move_at_once_one_wins(tmp_path, monkeypatch):
    """This can happen only if folders can't be locked; otherwise the second save waits."""
    monkeypatch.setattr(filesystem, 'lock', lambda folder: -1)
    path, rename, turn = tmp_path / 'model', pathlib.Path.rename, []

    def another_save_first(self, target):
        if target == path and not turn:
            turn.append(MANAGER)
            MANAGER.save_model(samples.functions(), path)
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, 'rename', another_save_first)
    with pytest.raises(ModelFileError, match=f'path: {path} exists.*overwrite=True'):
        MANAGER.save_model(mlp(), path)
    assert MANAGER.load_model(path).apply is samples.apply_layers


def test_a_move_that_fails_puts_the_old_model_back(saved, monkeypatch):
    rename = pathlib.Path.rename

    def full(self, target):
        if target == saved and self.suffix == '.thinkml-new':
            raise OSError('no space left on device')
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, 'rename', full)
    with pytest.raises(ModelFileError, match='could not be written: no space'):
        MANAGER.save_model(samples.functions(), saved, overwrite=True)
    first_weight(saved)
    assert [file.name for file in saved.parent.iterdir()] == ['model']


def test_a_model_replaced_while_it_is_read_is_read_again(saved, monkeypatch):
    verify, turn = directories.verify, []

    def swapped(directory):
        turn.append(directory)
        if len(turn) == 1:
            MANAGER.save_model(samples.functions(), saved, overwrite=True)
            raise ModelFileError('weights is damaged')
        verify(directory)

    monkeypatch.setattr(model_file, 'verify', swapped)
    assert MANAGER.load_model(saved).apply is samples.apply_layers
    assert len(turn) == 2
    turn.clear()

    def damaged(directory):
        turn.append(directory)
        raise ModelFileError('weights is damaged')

    monkeypatch.setattr(model_file, 'verify', damaged)
    with pytest.raises(ModelFileError, match=f'path: {saved}: weights is damaged'):
        MANAGER.load_model(saved)
    assert len(turn) == 1


def test_what_is_read_is_never_of_two_models(tmp_path, monkeypatch):
    """While it is read, the model is replaced by another whose arrays fit too."""
    path, read_arrays = tmp_path / 'model', model_file._read_arrays
    old, new = mlp(), mlp()
    new.layers[0].kernel[...] = jnp.full((3, 4), 7.0)
    attach_record(new, ModelRecord(config={'epochs': 7}))
    MANAGER.save_model(old, path)

    def late(directory):
        if first_time:
            MANAGER.save_model(new, first_time.pop(), overwrite=True)
        return read_arrays(directory)

    first_time = [path]
    monkeypatch.setattr(model_file, '_read_arrays', late)
    loaded = MANAGER.load_model(path)
    assert float(loaded.layers[0].kernel[0, 0]) == 7.0
    assert record_of(loaded).config == {'epochs': 7}


def test_a_model_that_is_replaced_without_end_is_an_error(saved, monkeypatch):
    read_metadata = model_file.read_metadata

    def late(directory):
        MANAGER.save_model(mlp(), saved, overwrite=True)
        return read_metadata(directory)

    monkeypatch.setattr(model_file, 'read_metadata', late)
    with pytest.raises(ModelFileError, match=f'path: {saved} was replaced 20 times while'):
        MANAGER.metadata(saved)


def test_what_saves_that_were_killed_left_is_removed_by_the_next(saved):
    folder = saved.parent
    left = folder / '.other.0123456789ab.thinkml-new'
    at_work = folder / '.model.ba9876543210.thinkml-new'
    others = ('.model.0123456789ab.tmp', '.model.thinkml-new', 'a.0123456789ab.thinkml-new')
    for path in (left, at_work, *(folder / name for name in others)):
        path.mkdir()
        (path / 'weights').write_text('x')
    (folder / '.link.0123456789ab.thinkml-new').symlink_to(saved)
    held = filesystem.lock(at_work)
    MANAGER.save_model(mlp(), saved, overwrite=True)
    assert not left.exists() and at_work.exists()
    filesystem.unlock(held)
    MANAGER.save_model(mlp(), folder / 'another')
    assert {path.name for path in folder.iterdir()} == {
        'model', 'another', '.link.0123456789ab.thinkml-new', *others
    }  # fmt: skip
    first_weight(saved)


def test_a_folder_that_another_process_holds_is_waited_for(saved, monkeypatch):
    monkeypatch.setattr(directories, '_WAIT_SECONDS', 0.05)
    held = filesystem.lock(saved.parent)
    with pytest.raises(ModelFileError, match=f'path: {saved} can not be written: another process'):
        MANAGER.save_model(mlp(), saved, overwrite=True)
    first_weight(saved)  # readers wait for nobody
    also_held = os.dup(held)  # as a process that was forked meanwhile has it
    filesystem.unlock(held)
    MANAGER.save_model(mlp(), saved, overwrite=True)
    os.close(also_held)
    assert [file.name for file in saved.parent.iterdir()] == ['model']


def test_a_model_directory_does_not_say_where_it_was_written(saved):
    for path in saved.rglob('*'):
        assert path.is_dir() or str(saved.parent).encode() not in path.read_bytes()


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize('turns', [100, pytest.param(400, marks=SLOW)])
def test_every_damage_names_path_and_file(turns, saved):
    names = sorted(p.relative_to(saved).as_posix() for p in saved.rglob('*') if p.is_file())
    assert {'model.json', 'record.json', 'metadata.json', 'manifest.json'} < set(names)
    rng = random.Random(0)
    for turn in range(turns):
        name = names[turn % len(names)]
        file = saved / name
        content = file.read_bytes()
        damaged = bytearray(content)
        if turn % 3 == 0 or not content:
            damaged = damaged[: rng.randrange(len(damaged) or 1)] if content else b'x'
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(ModelFileError) as caught:
            MANAGER.load_model(saved)
        assert str(saved) in str(caught.value)
        if name != 'manifest.json':
            assert name in str(caught.value)
        file.write_bytes(content)
    first_weight(saved)


@pytest.mark.parametrize('step', [31, pytest.param(7, marks=SLOW)])
def test_every_bit_of_the_manifest_counts(step, saved):
    content = (saved / 'manifest.json').read_bytes()
    for position in range(0, 8 * len(content), step):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        (saved / 'manifest.json').write_bytes(damaged)
        with pytest.raises(ModelFileError):
            directories.verify(saved)


def test_missing_and_extra_files_and_links_are_refused(saved, tmp_path):
    (saved / 'record.json').rename(tmp_path / 'record.json')
    with pytest.raises(ModelFileError, match=r"'record\.json' is missing"):
        MANAGER.load_model(saved)
    (saved / 'record.json').symlink_to(tmp_path / 'record.json')
    with pytest.raises(ModelFileError, match=r"'record\.json' is not part of it"):
        MANAGER.load_model(saved)
    (saved / 'record.json').unlink()
    shutil.copy(tmp_path / 'record.json', saved)
    (saved / 'weights' / 'more').write_text('x')
    with pytest.raises(ModelFileError, match="'weights/more' is not part of it"):
        MANAGER.load_model(saved)
    (saved / 'weights' / 'more').unlink()
    first_weight(saved)


def test_what_is_no_model_says_so(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(ModelFileError, match='missing does not exist'):
        MANAGER.load_model(tmp_path / 'missing')
    with pytest.raises(ModelFileError, match='file is a file, expected the directory'):
        MANAGER.load_model(tmp_path / 'file')
    with pytest.raises(ModelFileError, match='not the directory of a saved model'):
        MANAGER.load_model(tmp_path)


class Marks:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def task(**changes):
    values = {'kind': 'multiclass', 'classes': ['a', 'b'], 'num_outputs': 2, 'target_shape': []}
    return values | changes


def array(**changes):
    return {'shape': [2], 'dtype': 'float32', 'columns': None} | changes


def first_layer(about):
    layers = dict(about['model']['graph']['attributes'])['layers']
    return dict(layers['attributes'])[0]


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('model.json', lambda about: about.update(format=3), 'format 3 was written by ThinkML'),
        ('model.json', lambda about: [], 'unreadable'),
        ('model.json', lambda about: about.pop('model') and None, 'unreadable'),
        (
            'model.json',
            lambda about: first_layer(about).update(module='subprocess:Popen'),
            'standard library',
        ),
        (
            'model.json',
            lambda about: first_layer(about).update(module='pytest:Item'),
            'an installed library',
        ),
        (
            'model.json',
            lambda about: first_layer(about)['attributes'].append(['__class__', {'static': 1}]),
            "an attribute named '__class__'",
        ),
        ('record.json', lambda record: record.update(runs=5), 'not a list of histories'),
        ('record.json', lambda record: record.update(input_spec=array(shape=[-1])), 'not a size'),
        ('record.json', lambda record: record.update(task={'kind': 'x'}), 'not a kind of task'),
        ('record.json', lambda record: record.update(task=task(num_outputs=0)), 'without outputs'),
        ('record.json', lambda record: record.update(task=task(num_outputs=3)), '2 classes and 3'),
        ('record.json', lambda record: record.update(task=task(classes=None)), 'classes None'),
        ('record.json', lambda record: record.update(task=task(classes=[1])), '1 classes and 2'),
        ('record.json', lambda record: record.update(task=task(classes=[1, 1])), 'not different'),
        ('record.json', lambda record: record.update(task=task(classes=[[], 1])), 'not different'),
        ('record.json', lambda record: record.update(task=task(classes='ab')), 'not different'),
        ('record.json', lambda record: record.update(task=task(kind='regression')), 'classes'),
        ('record.json', lambda record: record.update(task=task(kind='binary', num_outputs=3)), '3'),
        ('record.json', lambda record: record.update(task=task(target_shape=2)), 'not a shape'),
        ('record.json', lambda record: record.update(runs=[{}]), 'impossible keys'),
        ('record.json', lambda record: record.update(input_spec=array(dtype='float33')), 'float33'),
        ('record.json', lambda record: record.update(input_spec=array(dtype='object')), 'object'),
        ('record.json', lambda record: record.update(input_spec=array(dtype=[])), 'not a numeric'),
        ('record.json', lambda record: record.update(input_spec=array(columns=['a'])), 'names of'),
        ('record.json', lambda record: record.update(input_spec=array(columns=[1, 2])), 'names of'),
        ('record.json', lambda record: record.update(input_spec=array(shape='ab')), 'not a shape'),
        ('record.json', lambda record: record.update(input_spec={'dict': {}}), 'describe inputs'),
        ('record.json', lambda record: record.update(input_spec={'tuple': [1]}), 'describe inputs'),
        ('record.json', lambda record: record.update(config=[1]), 'not a dict'),
        ('record.json', lambda record: record.update(config={'$partial': []}), 'unknown'),
        ('weights/index.json', lambda index: index.popitem() and None, 'is missing'),
        ('weights/index.json', lambda index: index.clear(), 'is missing'),
        (
            'weights/index.json',
            lambda index: next(iter(index.values())).update(shape=[10**12]),
            'the arrays differ',
        ),
    ],
)
def test_forged_files_are_model_file_errors(name, change, message, saved):
    forge(saved, name, change)
    with pytest.raises(ModelFileError, match=message) as caught:
        MANAGER.load_model(saved)
    assert str(saved) in str(caught.value)


def given_by_the_file(value):
    """Returns a partial function that would always return ``value``, if it was allowed."""
    arguments = {'key': 'no such key', 'default': value}
    return {'$partial': [{'$function': 'optax.tree:get'}, [], arguments]}


def forged_functions(path, first, second):
    """Replaces two functions of a model, as an attacker would."""

    def replaced(node):
        if node == {'$function': 'jax.nn:relu'}:
            return first
        if node == {'$function': 'jax.nn:gelu'}:
            return second
        if isinstance(node, dict):
            return {key: replaced(item) for key, item in node.items()}
        return [replaced(item) for item in node] if isinstance(node, list) else node

    MANAGER.save_model(nnx.Sequential(jax.nn.relu, jax.nn.gelu), path)
    forge(path, 'model.json', replaced)


# numpy.testing, joblib and all of numpy are imported as soon as scikit-learn is.
RUNSTRING = {'$function': 'numpy.testing:runstring'}
MARK = 'import pathlib; pathlib.Path({!r}).touch()'


@pytest.mark.parametrize('attack', ['numpy:load', 'joblib:load', 'numpy.testing:runstring'])
def test_no_forged_file_runs_code(attack, tmp_path):
    importlib.import_module(attack.split(':')[0])
    mark = tmp_path / 'executed'
    pickled = tmp_path / 'pickled'
    pickled.write_bytes(pickle.dumps(Marks(str(mark))))
    arguments = {
        'numpy:load': {'file': str(pickled), 'allow_pickle': True},
        'joblib:load': {'filename': str(pickled)},
        'numpy.testing:runstring': {'astr': MARK.format(str(mark)), 'dict': {}},
    }
    path = tmp_path / 'model'
    forged_functions(path, given_by_the_file(arguments[attack]), {'$function': attack})
    with pytest.raises(
        ModelFileError,
        match=r"model\.json: '.*' is (of an installed library|none of the functions)",
    ):
        forward(MANAGER.load_model(path), jnp.ones((2, 3)))
    assert not mark.exists()


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        # each way out on its own: what is called, and what hands on the arguments
        ({'$function': 'jax.nn:relu'}, RUNSTRING),
        (given_by_the_file({'astr': 'x', 'dict': {}}), {'$function': 'jax.nn:relu'}),
        ({'$partial': [RUNSTRING, ['x'], {'dict': {}}]}, {'$function': 'jax.nn:relu'}),
        ({'$partial': [{'$function': 'jax.numpy:load'}, ['x'], {}]}, {'$function': 'jax.nn:relu'}),
        (
            {'$partial': [{'$function': 'jax.lax:stop_gradient'}, [{'astr': 'x'}], {}]},
            {'$function': 'jax.nn:relu'},
        ),
        (
            {'$partial': [{'$function': 'jax.numpy:apply_along_axis'}, [RUNSTRING], {}]},
            {'$function': 'jax.nn:relu'},
        ),
        (
            {'$partial': [{'$function': 'jax.numpy:where'}, [RUNSTRING], {}]},
            {'$function': 'jax.nn:relu'},
        ),
    ],
)
def test_no_part_of_an_attack_is_loaded(first, second, tmp_path):
    forged_functions(tmp_path / 'model', first, second)
    with pytest.raises(ModelFileError, match=r'model\.json: '):
        MANAGER.load_model(tmp_path / 'model')


def test_deep_and_large_json_is_refused(saved, monkeypatch):
    (saved / 'record.json').write_text('[' * 200_000 + ']' * 200_000)
    (saved / 'manifest.json').unlink()
    sign(saved)
    with pytest.raises(ModelFileError, match=r'record\.json is damaged'):
        MANAGER.load_model(saved)
    monkeypatch.setattr(directories, 'MAX_JSON_BYTES', 100_000)
    with pytest.raises(ModelFileError, match=r'record.json has 400000 bytes, at most 100000'):
        MANAGER.load_model(saved)


def test_metadata_too_large_to_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(directories, 'MAX_JSON_BYTES', 100_000)
    with pytest.raises(ModelFileError, match=r'metadata.json: .* at most 100000'):
        MANAGER.save_model(mlp(), tmp_path / 'model', {'a': 'x' * 100_000})
    assert list(tmp_path.iterdir()) == []


UNTRUSTED = """
import sys
from thinkml.errors import ModelFileError
from thinkml.models.manager import ModelManager
try:
    ModelManager().load_model(sys.argv[1])
except ModelFileError as error:
    assert "import tests.models.samples first, or pass trusted=['tests']" in str(error), error
else:
    raise SystemExit('loaded what nobody trusted')
assert 'tests' not in sys.modules
model = ModelManager().load_model(sys.argv[1], trusted=['tests.models'])
assert type(model).__module__ == 'tests.models.samples'
"""


def test_modules_are_imported_only_where_they_are_trusted(tmp_path):
    path = MANAGER.save_model(samples.Tied(nnx.Rngs(0)), tmp_path / 'model')
    root = pathlib.Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, '-W', 'error', '-c', UNTRUSTED, path],
        check=True, cwd=root, env={**os.environ, 'PYTHONPATH': str(root)},
    )  # fmt: skip
