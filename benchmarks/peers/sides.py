"""The sides of a race: each peer with its options, and the workloads without it."""

import dataclasses
import importlib.util
import os
from typing import Any


@dataclasses.dataclass(frozen=True)
class Side:
    """A peer with certain options.

    Attributes:
        title: the name in the tables.
        module: the file with its ``train``.
        packages: the packages it needs.
        options: keyword arguments of its ``train``.
        slow: True if every third turn is enough.
        on_jax: True if it runs on JAX, so that a compilation cache matters.
        threads: True if it takes the workload's number of torch threads.
    """

    title: str
    module: str
    packages: tuple[str, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    slow: bool = False
    on_jax: bool = False
    threads: bool = False


CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
_JAX = {'packages': ('jax', 'flax', 'optax'), 'on_jax': True}
_KERAS = {'module': 'by_keras', 'packages': ('keras', 'jax'), 'on_jax': True}
_TORCH = {'module': 'by_torch', 'packages': ('torch',)}
_SKLEARN = {'module': 'by_sklearn', 'packages': ('sklearn',)}

# Sides of one peer begin with its name and a dash; for goals the fastest of them counts.
SIDES = {
    'thinkml': Side('ThinkML', 'by_thinkml', **_JAX),
    'thinkml-own': Side("ThinkML's own MLP", 'by_thinkml', options={'own_net': True}, **_JAX),
    'scan': Side('scan by hand', 'by_hand', options={'scanned': True}, **_JAX),
    'loop': Side('loop by hand', 'by_hand', options={'scanned': False}, **_JAX),
    'keras': Side('Keras', options={'steps_per_execution': 1}, **_KERAS),
    'keras-50': Side('Keras, 50 steps at once', options={'steps_per_execution': 50}, **_KERAS),
    'torch': Side('torch, eager', **_TORCH),
    'torch-1': Side('torch, 1 thread', options={'threads': 1}, slow=True, **_TORCH),
    'torch-all': Side(f'torch, {CORES} threads', options={'threads': CORES}, slow=True, **_TORCH),
    'torch-compile': Side('torch.compile', options={'compiled': True}, **_TORCH),
    'nnx': Side('nnx.jit', 'by_nnx', slow=True, **_JAX),
    'lightning': Side(
        'Lightning', 'by_lightning', ('lightning', 'torch'), slow=True, threads=True
    ),
    'skorch': Side('skorch', 'by_skorch', ('skorch', 'torch'), slow=True, threads=True),
    'sklearn': Side('scikit-learn', slow=True, **_SKLEARN),
    'sklearn-1': Side('scikit-learn, 1 thread', options={'threads': 1}, slow=True, **_SKLEARN),
}  # fmt: skip
OURS = ('thinkml', 'thinkml-own')


def peer_of(name):
    """Returns the peer a side belongs to."""
    return name.split('-')[0]


def sides_for(workload, on_cpu, with_scan=False):
    """Returns the sides of a workload, and why others are left out: ``(names, {name: reason})``."""
    left_out = {}
    for name, side in SIDES.items():
        missing = [package for package in side.packages if not importlib.util.find_spec(package)]
        if missing:
            left_out[name] = f'{", ".join(missing)} not installed'
        elif name == 'thinkml-own' and workload.rows is not None:
            left_out[name] = 'of whole programs'
        elif peer_of(name) == 'sklearn' and workload.net != 'mlp':
            left_out[name] = 'trains MLPs alone'
        elif workload.net == 'vae' and name not in ('thinkml', 'scan', 'loop'):
            left_out[name] = 'the objective is compared with the step by hand alone'
        elif name == 'skorch' and workload.num_tokens:
            left_out[name] = 'its classifier has one label for each row'
        elif name == 'scan' and on_cpu and workload.has_convolutions and not with_scan:
            left_out[name] = 'on a CPU 6 to 40 times slower than the loop; --with-scan runs it'
        elif name in ('torch-1', 'torch-all') and not on_cpu:
            left_out[name] = 'of a CPU'
        elif name in ('torch', 'torch-compile') and on_cpu:
            left_out[name] = 'of a GPU'
        elif name == 'torch-all' and CORES == 1:
            left_out[name] = 'there is one core'
    return [name for name in SIDES if name not in left_out], left_out


def options_for(name, workload, on_cpu):
    """Returns the options of a side on a workload."""
    side = SIDES[name]
    if side.threads and on_cpu:
        return side.options | {'threads': 1 if workload.net == 'mlp' else CORES}
    return side.options
