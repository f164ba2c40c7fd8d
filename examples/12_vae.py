"""A variational autoencoder: it learns the digits and draws new ones."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from thinkml.training import ModelTrainer, Objective, TrainingConfig

EPOCHS = int(os.environ.get('EPOCHS', 300))
CODE, NOISE = 6, 0.2
OUTPUT = Path('output')

X = (load_digits().data / 16).astype(np.float32)  # (1797, 64), from 0 to 1


class Vae(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Sequential(
            nnx.Linear(64, 256, rngs=rngs), nnx.relu, nnx.Linear(256, 2 * CODE, rngs=rngs)
        )
        self.decoder = nnx.Sequential(
            nnx.Linear(CODE, 256, rngs=rngs), nnx.relu, nnx.Linear(256, 64, rngs=rngs)
        )

    def encode(self, x):
        return jnp.split(self.encoder(x), 2, axis=-1)  # means and logarithms of variances

    def decode(self, code):
        return nnx.sigmoid(self.decoder(code))

    def __call__(self, x):
        mean, _ = self.encode(x)
        return self.decode(mean)


def negative_elbo(model, batch, key):
    mean, log_var = model.encode(batch.x)
    code = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
    errors = jnp.square(model.decode(code) - batch.x).sum(axis=-1)
    reconstruction = errors / (2 * NOISE**2)
    kl = (jnp.exp(log_var) + mean**2 - 1 - log_var).sum(axis=-1) / 2
    return reconstruction + kl, {'reconstruction': reconstruction, 'kl': kl}


model = Vae(nnx.Rngs(0))
config = TrainingConfig(
    epochs=EPOCHS, learning_rate=0.002, lr_schedule='cosine', validation_split=0.1
)
history = ModelTrainer(config).train(model, X, loss_fn=Objective(negative_elbo))
print('epoch  reconstruction     kl  val_loss')
for epoch in sorted({1, EPOCHS // 30 or 1, EPOCHS}):
    values = (history[name][epoch - 1] for name in ('reconstruction', 'kl', 'val_loss'))
    print('{:5}  {:14.2f}  {:5.2f}  {:8.2f}'.format(epoch, *values))

codes = jax.random.normal(jax.random.key(1), (40, CODE))
samples = model.decode(codes)
real = np.random.default_rng(0).choice(X, 40, replace=False)
figure = Figure(figsize=(10, 2.5), layout='constrained')
parts = figure.subfigures(1, 2, wspace=0.05)
for part, pictures, title in zip(parts, (real, samples), ('real', 'samples'), strict=True):
    part.suptitle(title)
    for ax, picture in zip(part.subplots(4, 10).flat, pictures, strict=True):
        ax.imshow(picture.reshape(8, 8), cmap='gray', vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
OUTPUT.mkdir(exist_ok=True)
figure.savefig(OUTPUT / 'samples.png')
