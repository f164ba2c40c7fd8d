"""The same numbers in every supported kind of container."""

from importlib.util import find_spec

import datasets
import grain
import h5py
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import zarr

X = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
Y = np.arange(23) % 3
COLUMNS = ['a', 'b', 'c']

needs_torch = pytest.mark.skipif(find_spec('torch') is None, reason='torch is not installed')


def kinds(table):
    """Returns the kinds of a table to test, with those of torch if it is installed."""
    return [pytest.param(kind, marks=[needs_torch] * ('torch' in kind)) for kind in table]


def memmap(path):
    np.save(path / 'x.npy', X)
    return np.load(path / 'x.npy', mmap_mode='r')


def hdf5(path):
    file = h5py.File(path / 'x.h5', 'w')
    file['x'] = X.astype(np.float64)
    return file['x']


def zarr_array(path):
    array = zarr.create_array(path / 'x.zarr', shape=X.shape, chunks=(4, 3), dtype='float32')
    array[:] = X
    return array


class Pairs:
    """A map-style data set of pairs, as Grain calls it a random access data source."""

    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __repr__(self):  # Grain recognises a source by its repr
        return 'Pairs()'

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def torch_tensor(path=None):
    import torch

    return torch.from_numpy(X)


def torch_inputs(path=None):
    import torch

    return torch.utils.data.TensorDataset(torch_tensor())


def torch_pairs():
    import torch

    return torch.utils.data.TensorDataset(torch_tensor(), torch.tensor(Y))


IN_MEMORY = {
    'numpy': lambda path: X,
    'float64': lambda path: X.astype(np.float64),
    'jax': lambda path: jnp.asarray(X),
    'list': lambda path: X.tolist(),
    'torch': torch_tensor,
    'pandas': lambda path: pd.DataFrame(X, columns=COLUMNS),
    'polars': lambda path: pl.DataFrame(X, schema=COLUMNS),
    'arrow': lambda path: pa.table(dict(zip(COLUMNS, X.T, strict=True))),
}
STORED = {
    'memmap': memmap,
    'hdf5': hdf5,
    'zarr': zarr_array,
    'csr': lambda path: scipy.sparse.csr_matrix(X),
    'coo': lambda path: scipy.sparse.coo_array(X),
    'torch data set': torch_inputs,
    'grain source': lambda path: grain.MapDataset.source(X.tolist()).map(np.float32),
}
ROWS = IN_MEMORY | STORED


def hugging_face():
    return datasets.Dataset.from_dict({'x': X, 'label': Y})


LABELLED = {
    'pairs': Pairs,
    'torch pairs': torch_pairs,
    'hugging face': hugging_face,
    'hugging face for torch': lambda: hugging_face().with_format('torch'),
    'grain': lambda: grain.MapDataset.source(Pairs()).map(
        lambda pair: {'x': pair[0], 'y': pair[1]}
    ),
    'dict': lambda: {'x': X, 'target': Y},
    'pandas': lambda: pd.DataFrame(X, columns=COLUMNS).assign(label=Y),
    'polars': lambda: pl.DataFrame(X, schema=COLUMNS).with_columns(label=Y),
    'arrow': lambda: pa.table(dict(zip(COLUMNS, X.T, strict=True)) | {'label': Y}),
}


def grain_loader():
    return grain.DataLoader(
        data_source=Pairs(),
        sampler=grain.samplers.SequentialSampler(len(X)),
        operations=[grain.transforms.Batch(5)],
    )


def grain_iterable():
    return grain.MapDataset.source(Pairs()).to_iter_dataset().batch(5)


def torch_loader(**options):
    import torch

    return torch.utils.data.DataLoader(torch_pairs(), batch_size=5, **options)


def torch_dict_loader():
    import torch

    return torch.utils.data.DataLoader(hugging_face().with_format('torch'), batch_size=5)


def generate():
    for first in range(0, len(X), 5):
        yield X[first : first + 5], Y[first : first + 5]


class AsInTfData:
    """The part of the interface of a `tf.data.Dataset` that ThinkML uses."""

    def __iter__(self):
        raise AssertionError('it gives tensors of its own')

    def __len__(self):
        raise TypeError('The dataset length is unknown.')

    def as_numpy_iterator(self):
        return generate()


BATCHES = {
    'generator': generate,
    'function': lambda: generate,
    'torch': torch_loader,
    'torch dicts': torch_dict_loader,
    'grain loader': grain_loader,
    'grain iterable': grain_iterable,
    'hugging face': lambda: hugging_face().to_iterable_dataset().with_format('numpy').batch(5),
    'tf.data': AsInTfData,
}
