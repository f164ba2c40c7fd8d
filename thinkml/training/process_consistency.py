"""Process consistency: checks that all processes train the same model on the same data."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from thinkml.core import FunctionalModel
from thinkml.core.parallel.multiprocess import all_gather
from thinkml.errors import ConfigError, problems
from thinkml.typing import PyTree


def check_same_everywhere(settings: Mapping[str, Any], functional: FunctionalModel) -> None:
    """Checks that all processes have the same settings, data and initial model.

    Args:
        settings: the settings of the run, see `Run`.
        functional: the model that this process made.

    Raises:
        ConfigError: if they differ, in all processes. Names the differences and the processes.
    """
    config = {name: value for name, value in settings.items() if name not in _DATA}
    hashes = {
        'the settings': _hash(config),
        'X_train, y_train or their weights': _hash(settings['data']),
        'X_val or y_val': _hash(settings['validation']),
        'the initial arrays of the model': _hash_of_arrays(
            (functional.params, functional.model_state)
        ),
    }
    found = []
    for name, number in hashes.items():
        first, *others = all_gather(number)
        differing = [process for process, other in enumerate(others, 1) if other != first]
        if differing:
            processes = ', '.join(map(str, differing))
            found.append(f'{name}: not the same in process {processes} as in process 0.')
    if found:
        headline = (
            'The processes of this run got different arguments. Pass the same data in each, '
            'and make the model from the same seed:'
        )
        raise ConfigError(problems(headline, found))


_DATA = ('data', 'validation')


def _hash(value: Any) -> int:
    text = json.dumps(value, sort_keys=True, default=str)
    return _as_int(hashlib.sha256(text.encode()).digest())


def _hash_of_arrays(tree: PyTree) -> int:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        # An array on the devices of several processes is the same for all of them anyway.
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            array = np.ascontiguousarray(leaf)
            digest.update(f'{array.shape} {array.dtype}'.encode())
            digest.update(array.view(np.uint8).reshape(-1).data)
    return _as_int(digest.digest())


def _as_int(digest: bytes) -> int:
    return int.from_bytes(digest[:7])
