"""Tests of the exceptions: their built-in base classes, and tasks in their messages."""

import numpy as np
import pytest
from flax import nnx

from tests.models_for_tests import mlp
from tests.training.active.made import CONFIG, POOL, X
from thinkml.checkpoint import load_arrays
from thinkml.data import encode_targets
from thinkml.errors import ConfigError, DataError, ModelFileError, ThinkMLError
from thinkml.models import ModelManager, create, load_safetensors
from thinkml.tasks import Task
from thinkml.training import ActiveLearner, load_checkpoint


def linear():
    return nnx.Linear(2, 2, rngs=nnx.Rngs(0))


def load_session(path):
    learner = ActiveLearner(mlp(6, 3), 'random', config=CONFIG)
    learner.load(path, X[POOL])


def named(reference):
    def load(path):
        manager = ModelManager(path.parent / 'root')
        manager.save_model(linear(), 'small')
        manager.load_model(reference)

    return load


@pytest.mark.parametrize(
    'read',
    [
        ModelManager().load_model,
        ModelManager().metadata,
        ModelManager().inspect,
        ModelManager().verify,
        lambda path: ModelManager().load_model(path, into=linear()),
        lambda path: ModelManager().export(path, path.with_suffix('.safetensors')),
        lambda path: load_safetensors(path, into=linear()),
        lambda path: create('resnet18', 2, weights=path),
        lambda path: ModelManager(path).load_model('small'),
        named('large'),
        named('small@7'),
        named('small@production'),
        load_arrays,
        lambda path: load_checkpoint(path, linear()),
        load_session,
    ],
)
def test_what_is_not_there_is_a_file_not_found_error(tmp_path, read):
    with pytest.raises(FileNotFoundError) as caught:
        read(tmp_path / 'missing')
    assert isinstance(caught.value, ThinkMLError)


@pytest.mark.parametrize('is_model', [True, False])
def test_a_path_that_is_taken_is_a_file_exists_error(tmp_path, is_model):
    path = tmp_path / 'model'
    if is_model:
        ModelManager().save_model(linear(), path)
    else:
        path.mkdir()
    with pytest.raises(FileExistsError) as caught:
        ModelManager().save_model(linear(), path)
    assert isinstance(caught.value, ModelFileError)


def test_the_path_of_a_session_that_is_taken_is_a_file_exists_error(tmp_path):
    learner = ActiveLearner(linear(), 'random')
    learner.start(np.zeros((4, 2), np.float32))
    with pytest.raises(FileExistsError) as caught:
        learner.save(tmp_path)
    assert isinstance(caught.value, DataError)


CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize('kind', [TypeError, ValueError, ModelFileError])
@pytest.mark.parametrize(
    'metadata',
    [
        {'when': object()}, {'scores': [1, {'deep': lambda: 0}]}, {'raw': b'bytes'}, {'z': 1j},
        {(1, 2): 'tuple as a key'}, {'circle': CIRCLE}, ['not', 'a', 'dict'],
        {'frame': np.array([object()])},
    ],
)  # fmt: skip
def test_metadata_that_can_not_be_stored_is_a_type_and_value_error(tmp_path, metadata, kind):
    with pytest.raises(kind, match='metadata'):
        ModelManager().save_model(linear(), tmp_path / 'model', metadata)
    assert not any(tmp_path.iterdir())


def test_so_is_a_part_of_the_model(tmp_path):
    model = linear()
    model.kernel_init = lambda *_: 0
    with pytest.raises(TypeError, match=r'model\.kernel_init'):
        ModelManager().save_model(model, tmp_path / 'model')


BINARY, NUMBERS = Task('binary', (0, 1), 1), Task('regression', None, 2, (2,))


@pytest.mark.parametrize(
    ('task', 'y', 'says'),
    [
        (BINARY, ['a'], 'y: got dtype <U1, expected labels for binary classification with 2 '
         r'classes \(0, 1\)\.'),
        (BINARY, [2], r'Its task is binary classification with 2 classes \(0, 1\)\. Remove'),
        (Task('multiclass', ('ant', 'bee', 'cat'), 3), ['dog'],
         r'Its task is multiclass classification with 3 classes \(ant, bee, cat\)\.'),
        (NUMBERS, [['a', 'b']], 'expected numbers for regression with 2 targets'),
        (Task('multilabel', ('red', 'blue'), 2, (2,)), [['a', 'b']],
         r'expected numbers for multilabel classification with 2 labels \(red, blue\)'),
    ],
)  # fmt: skip
def test_tasks_read_as_english(task, y, says):
    with pytest.raises(DataError, match=says):
        encode_targets(np.array(y), task, 'y')


def test_tasks_of_strategies_and_rules_read_as_english():
    for options, says in (
        ({'strategy': 'margin'}, "strategy: got 'margin' for regression with 1 target, expected"),
        ({'strategy': 'random', 'min_agreement': 0.9},
         r'min_agreement: got 0\.9 for regression with 1 target, expected None'),
    ):  # fmt: skip
        learner = ActiveLearner(mlp(6, 1), config=CONFIG, **options)
        with pytest.raises(ConfigError, match=says):
            learner.start(X[POOL], X[:9], X[:9, 0])
