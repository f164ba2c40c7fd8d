"""load_checkpoint: loads the weights of a run's checkpoint into a model."""

import os
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from thinkml.checkpoint import Checkpointer
from thinkml.checkpoint.checkpointer import has_checkpoints, is_checkpoint
from thinkml.core import functionalize
from thinkml.core.model.frozen_parameters import without_frozen
from thinkml.core.model.functional import PROBE_ROWS
from thinkml.core.model.partly_frozen import merged_low_rank
from thinkml.core.model.training_lock import check_not_trained
from thinkml.core.parallel.sharding import put_like
from thinkml.data.inputs import probe_of
from thinkml.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    is_whole,
    problems,
)
from thinkml.history import History
from thinkml.model_record import InputSpec, ModelRecord, attach_record
from thinkml.models.serialization.json_values import decode
from thinkml.paths import local_path
from thinkml.tasks import task_from_dict
from thinkml.training.run_directory import newest_directory
from thinkml.typing import Model, PyTree

Which = Literal['best', 'latest'] | int


def load_checkpoint(path: str | os.PathLike[str], model: Model, which: Which = 'best') -> Model:
    """Loads the weights and the record of a checkpoint into a model, in place.

    The model then has the state of that step: in eval mode, with the moving average of the
    parameters if there is one, with its classes and its history. The state of the optimizer is not
    loaded: ``train(..., resume=True)`` continues a run.

    Args:
        path: the directory of a run, such as ``'checkpoints/run-1'``; the directory of all runs,
            for the newest; or the directory of one checkpoint, ``'checkpoints/run-1/120'``, which
            overrides ``which``.
        model: a model of the same structure as the trained one; its weights are replaced.
        which: ``'best'``, by the validation loss or the metric that `Checkpoint` monitors;
            ``'latest'``; or a step.

    Returns:
        The model.

    Raises:
        CheckpointError: if there is no such checkpoint, if it is damaged, or if it does not fit the
            model. Names each array that differs.
        ConfigError: for another value of ``which``, for a ``path`` that is not a path, or if the
            model is being trained.
        ModelTypeError: for an object that is not a model.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from flax import nnx
        >>> from thinkml.models import predict
        >>> from thinkml.training import ModelTrainer, TrainingConfig, load_checkpoint
        >>> folder = tempfile.mkdtemp()
        >>> X = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        >>> config = TrainingConfig(epochs=3, callbacks=['checkpoint'], checkpoint_dir=folder)
        >>> trained = nnx.Linear(1, 2, rngs=nnx.Rngs(0))
        >>> history = ModelTrainer(config).train(trained, X, X[:, 0] > 0, progress=False)
        >>> model = load_checkpoint(folder, nnx.Linear(1, 2, rngs=nnx.Rngs(1)), 'latest')
        >>> bool((predict(model, X) == predict(trained, X)).all())
        True
    """
    check_not_trained(model)
    directory, which = _find_run(path, which)
    checkpointer = Checkpointer.to_read(directory)
    step = _find_step(checkpointer, which)
    prefixes = ('state/params/', 'state/model_state/', 'state/ema/params/', 'step_loss')
    saved, metadata = checkpointer.restore(step, None, prefixes)
    record = _make_record(metadata, saved['step_loss'])
    spec = None if record.input_spec is None else probe_of(record.input_spec, PROBE_ROWS)
    functional = functionalize(model, spec, jax.random.key(0))
    arrays = _model_arrays(saved)
    expected = _by_name(functional.params) | _by_name(functional.model_state)
    differing = [
        f'{name}: {_describe(arrays.get(name))} in the checkpoint, '
        f'{_describe(expected.get(name))} in the model'
        for name in sorted(arrays.keys() | expected.keys())
        if _describe(arrays.get(name)) != _describe(expected.get(name))
    ]
    if differing:
        headline = f'model: step {step} in {directory} is of another model. These differ:'
        raise CheckpointError(problems(headline, differing[:10]))
    trees = (functional.params, functional.model_state)
    functional.write(*(_fill(tree, arrays) for tree in trees))
    attach_record(model, record)
    return model


def _find_run(path: str | os.PathLike[str], which: Which) -> tuple[Path, Which]:
    """Returns the directory of the run, and which of its checkpoints to load."""
    if not (which in ('best', 'latest') or is_whole(which)):
        raise ConfigError(f"which: got {which!r}, expected 'best', 'latest' or a step.")
    directory = local_path(path)
    if (directory / 'model.json').is_file():
        raise CheckpointError(
            f'path: {directory} is a saved model, expected the directory of a run. '
            'ModelManager().load_model(path) loads it, into=model puts it into a model.'
        )
    if is_checkpoint(directory) and directory.name.isdecimal():
        return directory.parent, int(directory.name)
    if directory.is_dir() and not has_checkpoints(directory):
        directory = newest_directory(directory, has_checkpoints) or directory
    if not has_checkpoints(directory):
        raise CheckpointNotFoundError(
            f'path: there are no checkpoints in {directory}, expected the directory of a run, such '
            "as 'checkpoints/run-1'. ModelManager().load_model loads what save_model has written."
        )
    return directory, which


def _find_step(checkpointer: Checkpointer, which: Which) -> int:
    if which == 'latest':
        step = checkpointer.latest_sound()
        assert step is not None
        return step
    if which == 'best':
        step = checkpointer.best_step()
        if step is None:
            raise CheckpointError(
                f"which: got 'best', but none of the checkpoints in {checkpointer.directory} was "
                f"saved at the end of an epoch. Pass 'latest', or one of {checkpointer.steps()}."
            )
        return step
    if which not in (steps := checkpointer.steps()):
        raise CheckpointError(
            f"which: got {which}, expected 'best', 'latest' or one of the steps {steps} in "
            f'{checkpointer.directory}.'
        )
    return int(which)


def _make_record(metadata: dict[str, Any], step_loss: np.ndarray | None) -> ModelRecord:
    """Returns the record of the weights; checkpoints of older versions have no task."""
    record = decode(metadata.get('model', {}))
    task, inputs = record.get('task'), record.get('input_spec')
    settings = metadata['settings']
    data = ('data', 'validation')
    return ModelRecord(
        task=None if task is None else task_from_dict(task),
        input_spec=None if inputs is None else InputSpec.from_dict(inputs),
        runs=[History.from_dict(metadata['history'], step_loss)],
        config={name: value for name, value in settings.items() if name not in data},
        data_fingerprint=settings.get('data'),
    )


def _model_arrays(saved: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a model by name; the moving average of parameters if there is one."""

    def under(prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): array
            for name, array in saved.items()
            if name.startswith(prefix)
        }

    params = under('state/params/')
    averages = under('state/ema/params/')
    params |= {name: array.astype(params[name].dtype) for name, array in averages.items()}
    return merged_low_rank(params, without_frozen(under('state/model_state/')))


def _by_name(tree: PyTree) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def _fill(tree: PyTree, arrays: dict[str, Any]) -> PyTree:
    leaves = [put_like(arrays[name], leaf) for name, leaf in _by_name(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _describe(array: jax.Array | np.ndarray | None) -> str:
    return 'missing' if array is None else f'{array.dtype}{list(array.shape)}'
