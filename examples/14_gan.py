"""A generative adversarial network: two networks and a training step with two optimizers."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from thinkml.training import ModelTrainer, StepOutput, TrainingConfig

EPOCHS = int(os.environ.get('EPOCHS', 300))
CODE = 16
OUTPUT = Path('output')

X = (load_digits().data / 8 - 1).astype(np.float32)  # (1797, 64), from -1 to 1


class Gan(nnx.Module):
    def __init__(self, rngs):
        self.generator = nnx.Sequential(
            nnx.Linear(CODE, 256, rngs=rngs), nnx.BatchNorm(256, rngs=rngs), nnx.relu,
            nnx.Linear(256, 256, rngs=rngs), nnx.BatchNorm(256, rngs=rngs), nnx.relu,
            nnx.Linear(256, 64, rngs=rngs), jnp.tanh,
        )  # fmt: skip
        self.discriminator = nnx.Sequential(
            nnx.Linear(64, 256, rngs=rngs), nnx.leaky_relu, nnx.Dropout(0.3, rngs=rngs),
            nnx.Linear(256, 128, rngs=rngs), nnx.leaky_relu, nnx.Dropout(0.3, rngs=rngs),
            nnx.Linear(128, 1, rngs=rngs),
        )  # fmt: skip

    def __call__(self, x):
        return self.discriminator(x)[:, 0]  # above 0 for pictures that look real


def discriminator_loss(gan, x, codes):
    fake = jax.lax.stop_gradient(gan.generator(codes))
    return jnp.mean(nnx.softplus(-gan(x)) + nnx.softplus(gan(fake)))


def generator_loss(gan, codes):
    return jnp.mean(nnx.softplus(-gan(gan.generator(codes))))


class GanStep:
    def __init__(self):
        adam = optax.adam(4e-4, b1=0.5)
        self.optimizers = {'discriminator': adam, 'generator': adam}

    def init(self, params):
        return {part: tx.init(params[part]) for part, tx in self.optimizers.items()}

    def __call__(self, state, batch):
        codes = jax.random.normal(state.key, (len(batch.x), CODE))
        state, of_discriminator = self.update(
            state, 'discriminator', lambda gan: discriminator_loss(gan, batch.x, codes)
        )
        state, of_generator = self.update(
            state, 'generator', lambda gan: generator_loss(gan, codes)
        )
        losses = {'discriminator': of_discriminator, 'generator': of_generator}
        return state, StepOutput(of_discriminator + of_generator, losses)

    def update(self, state, part, loss_fn):
        def loss_of(params):
            return state.run(loss_fn, state.params | {part: params})

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, model_state), grads = gradient(state.params[part])
        updates, opt_state = self.optimizers[part].update(grads, state.opt_state[part])
        params = optax.apply_updates(state.params[part], updates)
        return state.replace(
            params=state.params | {part: params},
            opt_state=state.opt_state | {part: opt_state},
            model_state=model_state,
        ), loss


gan = Gan(nnx.Rngs(0))
config = TrainingConfig(epochs=EPOCHS, batch_size=64, ema_decay=0.999)
history = ModelTrainer(config).train(gan, X, step=GanStep())
print('epoch  discriminator  generator')
for epoch in sorted({1, EPOCHS // 10 or 1, EPOCHS}):
    values = (history[name][epoch - 1] for name in ('discriminator', 'generator'))
    print('{:5}  {:13.2f}  {:9.2f}'.format(epoch, *values))

codes = jax.random.normal(jax.random.key(1), (40, CODE))
samples = gan.generator(codes)
real = np.random.default_rng(0).choice(X, 40, replace=False)
figure = Figure(figsize=(10, 2.5), layout='constrained')
parts = figure.subfigures(1, 2, wspace=0.05)
for part, pictures, title in zip(parts, (real, samples), ('real', 'samples'), strict=True):
    part.suptitle(title)
    for ax, picture in zip(part.subplots(4, 10).flat, pictures, strict=True):
        ax.imshow(picture.reshape(8, 8), cmap='gray', vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
OUTPUT.mkdir(exist_ok=True)
figure.savefig(OUTPUT / 'gan.png')
