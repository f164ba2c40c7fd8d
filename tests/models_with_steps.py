"""A small GAN and its training step with two optimizers, which several tests use."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tests.models_for_tests import mlp
from thinkml.training import StepOutput

NOISE = 3


class Gan(nnx.Module):
    """Generates rows from noise, and tells real rows from generated ones."""

    def __init__(self, num_features=6):
        self.generator = mlp(NOISE, num_features, hidden=8)
        self.discriminator = mlp(num_features, 1, hidden=8, seed=1)

    def __call__(self, x):
        return self.discriminator(x)[:, 0]


class GanStep:
    """A step of the discriminator, then one of the generator."""

    def __init__(self):
        self.txs = {'discriminator': optax.adam(0.02), 'generator': optax.sgd(0.05)}

    def init(self, params):
        return {part: tx.init(params[part]) for part, tx in self.txs.items()}

    def __call__(self, state, batch):
        noise = jax.random.normal(state.key, (len(batch.x), NOISE))
        state, of_real = self.update(state, batch, noise, 'discriminator')
        state, of_noise = self.update(state, batch, noise, 'generator')
        return state, StepOutput(of_real + of_noise, {'d_loss': of_real, 'g_loss': of_noise})

    def update(self, state, batch, noise, part):
        def loss_of(params):
            call = lambda gan: gan_loss(gan, batch, noise, part)  # noqa: E731
            loss, model_state = state.run(call, state.params | {part: params})
            return loss, model_state

        (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params[part])
        updates, opt_state = self.txs[part].update(grads, state.opt_state[part])
        return state.replace(
            params=state.params | {part: optax.apply_updates(state.params[part], updates)},
            opt_state=state.opt_state | {part: opt_state},
            model_state=model_state,
        ), loss


def gan_loss(gan, batch, noise, part):
    """Returns the mean loss of a part of a GAN over the rows that count."""
    real, fake = gan(batch.x), gan(gan.generator(noise))
    losses = nnx.softplus(-real) + nnx.softplus(fake)
    losses = losses if part == 'discriminator' else nnx.softplus(-fake)
    return jnp.sum(batch.weight * losses) / jnp.sum(batch.weight)
