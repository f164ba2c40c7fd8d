"""The workloads: nets, sizes, data and initial weights, all drawn by NumPy."""

import dataclasses
import itertools
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """A net, its data and its batch size, the same for all peers.

    Attributes:
        net: 'mlp', 'cnn', 'resnet', 'transformer', 'gpt' or 'vae'.
        shape: the shape of a row of the data.
        rows: the number of rows; None for scikit-learn's digits.
        batch_size: rows per step.
        rounds: turns in which ThinkML trains an epoch; slow peers take every third.
        widths: the widths of an MLP's layers, inputs and outputs included; of a VAE the inputs, the
            hidden layer and the code.
        depth: the number of blocks of a transformer or GPT.
    """

    title: str
    net: str
    shape: tuple[int, ...]
    rows: int | None
    batch_size: int
    rounds: int
    widths: tuple[int, ...] = ()
    depth: int = 0

    @property
    def num_tokens(self):
        """Returns the number of tokens of a row; None if rows are not tokens."""
        return self.shape[0] if self.net == 'gpt' else None

    @property
    def has_convolutions(self):
        return self.net in ('cnn', 'resnet')


_MLP = {'net': 'mlp', 'shape': (64,)}
_W1 = {'title': 'MLP 64-128-128-10', 'rows': 60_000, 'widths': (64, 128, 128, 10), **_MLP}
WORKLOADS = {
    'w1a': Workload(batch_size=32, rounds=20, **_W1),
    'w1b': Workload(batch_size=512, rounds=26, **_W1),
    'w2': Workload('CNN on 28x28x1', 'cnn', (28, 28, 1), 2_560, 128, 8),
    'w3': Workload(
        "MLP 64-128-64-10 on scikit-learn's digits", rows=None, batch_size=32, rounds=100,
        widths=(64, 128, 64, 10), **_MLP,
    ),
    'w4': Workload('ResNet-8 with BatchNorm on 32x32x3', 'resnet', (32, 32, 3), 1_280, 64, 8),
    'w5': Workload(
        'transformer encoder, 2 layers, sequence 64, width 128', 'transformer', (64, 128), 1_024,
        32, 8, depth=2,
    ),
    'w6': Workload(
        'GPT, 4 layers, 128 tokens, width 128, bytes', 'gpt', (128,), 512, 32, 8, depth=4
    ),
    'w7': Workload(
        'variational autoencoder 64-256-16-256-64, an objective', 'vae', (64,), 60_000, 128, 20,
        widths=(64, 256, 16),
    ),
}  # fmt: skip
STAGES = (16, 32, 64)
WIDTH, HEADS, HIDDEN = 128, 4, 512
VOCABULARY = 256
NORM_EPSILON = 1e-5
LEARNING_RATE = 1e-3


@dataclasses.dataclass
class Job:
    """The work of one peer.

    Attributes:
        workload: the net and the size of a step.
        x: float32 ``[rows, ...]``, images with the channels last; for a GPT int32
            ``[rows, tokens]``.
        y: int64 ``[rows]``; for a GPT the token after each one, ``[rows, tokens]``.
        weights: initial weights by name, as `initial_weights` makes them.
        epochs: passes over the data.
        alone: True if no other peer takes turns, so that epochs need not be separated.
    """

    workload: Workload
    x: np.ndarray
    y: np.ndarray
    weights: dict[str, np.ndarray]
    epochs: int
    alone: bool = False


def make_job(workload, epochs, rows=None, data=None, alone=False):
    """Returns a job on drawn rows, or on those of an ``.npz`` file.

    The drawn rows lie around the centres of ten classes. Those of a GPT are bytes, each one of the
    four that may follow the byte before.
    """
    rng = np.random.default_rng(0)
    if data is None and workload.net == 'gpt':
        x, y = _draw_tokens(rows or workload.rows, workload.num_tokens, rng)
    elif data is None:
        rows = rows or workload.rows
        y = rng.integers(0, 10, rows)
        centres = rng.normal(size=(10, *workload.shape)).astype(np.float32) * 0.3
        x = rng.standard_normal(size=(rows, *workload.shape), dtype=np.float32) + centres[y]
    else:
        with np.load(data) as arrays:
            x, y = arrays['x'], arrays['y']
    return Job(workload, x, y, initial_weights(workload, rng), epochs, alone)


def _draw_tokens(rows, length, rng):
    followers = rng.integers(0, VOCABULARY, (VOCABULARY, 4))
    tokens = np.empty((rows, length + 1), np.int64)
    tokens[:, 0] = rng.integers(0, VOCABULARY, rows)
    for index in range(length):
        tokens[:, index + 1] = followers[tokens[:, index], rng.integers(0, 4, rows)]
    return tokens[:, :-1].astype(np.int32), tokens[:, 1:].copy()


def initial_weights(workload, rng):
    """Returns weights by the path of their layer, in the layout of Flax.

    That is ``[in, out]`` for dense layers, ``[height, width, in, out]`` for convolutions and
    ``[in, heads, size]``, ``[heads, size, out]`` for attention.
    """
    shapes = _SHAPES[workload.net](workload)
    return {name: _draw(name, shape, rng) for name, shape in shapes.items()}


def _draw(name, shape, rng):
    leaf = name.rsplit('.', 1)[1]
    if leaf == 'kernel':
        inputs = WIDTH if '.attention.' in name else math.prod(shape[:-1])
        return (rng.normal(size=shape) * math.sqrt(2 / inputs)).astype(np.float32)
    if leaf == 'embedding':
        return (rng.normal(size=shape) * 0.02).astype(np.float32)
    return (np.ones if leaf in ('scale', 'var') else np.zeros)(shape, np.float32)


def _dense(name, inputs, outputs):
    return {f'{name}.kernel': (inputs, outputs), f'{name}.bias': (outputs,)}


def _conv(name, size, inputs, outputs):
    return {f'{name}.kernel': (size, size, inputs, outputs)}


def _norm(name, width, leaves=('scale', 'bias')):
    return {f'{name}.{leaf}': (width,) for leaf in leaves}


def _batch_norm(name, width):
    return _norm(name, width, ('scale', 'bias', 'mean', 'var'))


def _mlp(workload):
    shapes = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(workload.widths)):
        shapes |= _dense(f'dense.{index}', inputs, outputs)
    return shapes


def _cnn(workload):
    del workload
    shapes = {}
    for index, (inputs, outputs) in enumerate([(1, 32), (32, 64)]):
        shapes |= _conv(f'conv.{index}', 3, inputs, outputs) | {f'conv.{index}.bias': (outputs,)}
    return shapes | _dense('dense.0', 7 * 7 * 64, 128) | _dense('dense.1', 128, 10)


def _resnet(workload):
    shapes = _conv('stem', 3, workload.shape[-1], STAGES[0]) | _batch_norm('stem_norm', STAGES[0])
    inputs = STAGES[0]
    for index, width in enumerate(STAGES):
        block = f'block.{index}'
        shapes |= _conv(f'{block}.conv1', 3, inputs, width) | _batch_norm(f'{block}.norm1', width)
        shapes |= _conv(f'{block}.conv2', 3, width, width) | _batch_norm(f'{block}.norm2', width)
        if inputs != width:
            shapes |= _conv(f'{block}.shortcut', 1, inputs, width)
            shapes |= _batch_norm(f'{block}.shortcut_norm', width)
        inputs = width
    return shapes | _dense('head', inputs, 10)


def _blocks(workload):
    shapes = {}
    for block in (f'block.{index}' for index in range(workload.depth)):
        for name in ('query', 'key', 'value'):
            shapes[f'{block}.attention.{name}.kernel'] = (WIDTH, HEADS, WIDTH // HEADS)
            shapes[f'{block}.attention.{name}.bias'] = (HEADS, WIDTH // HEADS)
        shapes[f'{block}.attention.out.kernel'] = (HEADS, WIDTH // HEADS, WIDTH)
        shapes[f'{block}.attention.out.bias'] = (WIDTH,)
        shapes |= _norm(f'{block}.norm1', WIDTH) | _norm(f'{block}.norm2', WIDTH)
        shapes |= _dense(f'{block}.up', WIDTH, HIDDEN) | _dense(f'{block}.down', HIDDEN, WIDTH)
    return shapes | _norm('norm', WIDTH)


def _transformer(workload):
    return _blocks(workload) | _dense('head', WIDTH, 10)


def _gpt(workload):
    embeddings = {
        'token.embedding': (VOCABULARY, WIDTH),
        'position.embedding': (workload.num_tokens, WIDTH),
    }
    return embeddings | _blocks(workload) | _dense('head', WIDTH, VOCABULARY)


def _vae(workload):
    inputs, hidden, code = workload.widths
    return {
        **_dense('encoder.layers.0', inputs, hidden),
        **_dense('encoder.layers.2', hidden, 2 * code),
        **_dense('decoder.layers.0', code, hidden),
        **_dense('decoder.layers.2', hidden, inputs),
    }


_SHAPES = {
    'mlp': _mlp, 'cnn': _cnn, 'resnet': _resnet, 'transformer': _transformer, 'gpt': _gpt,
    'vae': _vae,
}  # fmt: skip
