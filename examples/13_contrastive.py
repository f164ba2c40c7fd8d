"""Contrastive learning: an encoder learns digits without labels, so that few labels suffice."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score, train_test_split

from thinkml.models import predict
from thinkml.training import ModelTrainer, Objective, TrainingConfig

EPOCHS, OUTPUT = int(os.environ.get('EPOCHS', 100)), Path('output')
X, y = load_digits(return_X_y=True)
X = (X / 16).reshape(-1, 8, 8, 1).astype(np.float32)  # (1797, 8, 8, 1), from 0 to 1
train, test = train_test_split(np.arange(len(X)), test_size=0.4, random_state=0)


def shift(picture, corner):
    padded = jnp.pad(picture, [(1, 1), (1, 1), (0, 0)])
    return jax.lax.dynamic_slice(padded, (*corner, 0), picture.shape)


def make_view(x, key):
    for_corners, for_noise = jax.random.split(key)
    corners = jax.random.randint(for_corners, (len(x), 2), 0, 3)
    return jax.vmap(shift)(x, corners) + 0.1 * jax.random.normal(for_noise, x.shape)


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.out, self.head = nnx.Linear(512, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.out(x.reshape(len(x), 512))  # the embedding: 64 numbers for each picture

    def project(self, x):
        x = self.head(nnx.relu(self(x)))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrast(model, batch, key):
    a, b = (model.project(make_view(batch.x, part)) for part in jax.random.split(key))
    similarity = jnp.where(batch.weight > 0, a @ b.T / 0.5, -1e9)  # (rows, rows)
    losses = optax.softmax_cross_entropy_with_integer_labels(similarity, jnp.arange(len(a)))
    return jnp.average(losses, weights=batch.weight)


encoder = Encoder(nnx.Rngs(0))
config = TrainingConfig(epochs=EPOCHS, learning_rate=0.002, validation_split=0)
print(ModelTrainer(config).train(encoder, X[train], loss_fn=Objective(contrast, coupled=True)))

features = {'pixels': X.reshape(len(X), 64), 'untrained': np.asarray(Encoder(nnx.Rngs(0))(X))}
features['pre-trained'] = predict(encoder, X)
print('labels    pixels  untrained  pre-trained')
for count in (20, 50, 100):
    splits = StratifiedShuffleSplit(10, train_size=count, random_state=0)
    pairs = [(train[rows], test) for rows, _ in splits.split(train, y[train])]
    probe = LogisticRegression(max_iter=2000)
    scores = [cross_val_score(probe, x, y, cv=pairs).mean() for x in features.values()]
    print('{:6}  {:8.3f}  {:9.3f}  {:11.3f}'.format(count, *scores))

figure = Figure(figsize=(10, 3.4), layout='constrained')
for ax, (name, x) in zip(figure.subplots(1, 3), features.items(), strict=True):
    points = ax.scatter(*PCA(2).fit_transform(x[test]).T, c=y[test], cmap='tab10', s=6)
    ax.set(title=name, xticks=[], yticks=[])
figure.legend(*points.legend_elements(), loc='outside right center')
OUTPUT.mkdir(exist_ok=True)
figure.savefig(OUTPUT / 'embeddings.png')
