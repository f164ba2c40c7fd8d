"""Six trainings whose loss is more than one of outputs and labels, and their losses by hand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from thinkml.training import ModelTrainer, Objective, TrainingConfig

ROWS = 24
X = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int32)


# --- as users write them ----------------------------------------------------------------------


class Vae(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.encoder, self.decoder = nnx.Linear(6, 4, rngs=rngs), nnx.Linear(2, 6, rngs=rngs)

    def encode(self, x):
        return jnp.split(self.encoder(x), 2, axis=-1)

    def __call__(self, x):
        return self.decoder(self.encode(x)[0])


def elbo(model, batch, key):
    mean, log_var = model.encode(batch.x)
    z = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
    reconstruction = jnp.square(model.decoder(z) - batch.x).sum(axis=-1)
    kl = (jnp.exp(log_var) + mean**2 - 1 - log_var).sum(axis=-1) / 2
    return reconstruction + kl, {'reconstruction': reconstruction, 'kl': kl}


def linear(outputs=2):
    return nnx.Linear(6, outputs, rngs=nnx.Rngs(0))


def contrast(model, batch, key):
    noise = 0.1 * jax.random.normal(key, (2, *batch.x.shape))
    a, b = (model(batch.x + part) for part in noise)
    similarity = a @ b.T - 1e9 * (batch.weight == 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(similarity, jnp.arange(len(a)))
    return jnp.sum(batch.weight * losses) / jnp.sum(batch.weight)


class TwoTowers(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.image, self.text = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x):
        return (self.image(x[:, :4]) * self.text(x[:, 4:])).sum(axis=-1)


def clip(model, batch, key):
    similarity = model.image(batch.x[:, :4]) @ model.text(batch.x[:, 4:]).T
    losses = optax.softmax_cross_entropy_with_integer_labels
    labels = jnp.arange(len(similarity))
    return (losses(similarity, labels) + losses(similarity.T, labels)).mean() / 2


TEACHER = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)


def distil(model, batch, key):
    logits = model(batch.x)
    soft = optax.softmax_cross_entropy(logits, jax.nn.softmax(batch.x @ TEACHER))
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
    return 0.5 * soft + 0.5 * hard, {'hard': hard}


class Experts(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.gate, self.experts = nnx.Linear(6, 3, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        gates = jax.nn.softmax(self.gate(x))
        self.sow(nnx.Intermediate, 'balance', 3 * jnp.sum(gates.mean(axis=0) ** 2))
        return (gates * self.experts(x)).sum(axis=-1)


class Velocity(nnx.Module):
    def __init__(self):
        self.out = nnx.Linear(7, 6, rngs=nnx.Rngs(0))

    def __call__(self, x, t=0.0):
        return self.out(jnp.concatenate([x, jnp.full((len(x), 1), t)], axis=-1))


def flow(model, batch, key):
    noise = jax.random.normal(key, batch.x.shape)
    t = jax.random.uniform(jax.random.fold_in(key, 1), (len(batch.x), 1))
    velocity = model((1 - t) * noise + t * batch.x, t)
    return jnp.square(velocity - (batch.x - noise)).mean(axis=-1)


# --- the recipes ------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """A training.

    Attributes:
        make: returns the model.
        loss_fn: the argument of ``train``.
        y: the labels; None for none.
        settings: settings of the training.
        values: the names of what it records beside the loss.
    """

    make: Callable[[], nnx.Module]
    loss_fn: Any
    y: np.ndarray | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    values: tuple[str, ...] = ()

    def train(self, trainer=ModelTrainer, settings=None, resume=False):
        """Returns the trained model and the history."""
        config = TrainingConfig(**SETTINGS | self.settings | (settings or {}))
        model = self.make()
        return model, trainer(config).train(
            model, X, self.y, loss_fn=self.loss_fn, resume=resume, progress=False
        )

    @property
    def code(self) -> list[Any]:
        """Returns the definitions that a user writes."""
        function = getattr(self.loss_fn, 'fn', None)
        return [code for code in (self.make, function) if code not in (None, linear)]


SETTINGS = {'epochs': 3, 'batch_size': 8, 'optimizer': 'sgd', 'learning_rate': 0.05}
RECIPES = {
    'vae': Recipe(Vae, Objective(elbo), values=('reconstruction', 'kl')),
    'contrastive': Recipe(linear, Objective(contrast, coupled=True)),
    'two towers': Recipe(TwoTowers, Objective(clip, coupled=True)),
    'distillation': Recipe(linear, Objective(distil), LABELS, values=('hard',)),
    'experts': Recipe(
        Experts, 'mse', X.sum(axis=1), {'aux_losses': {'balance': 0.1}}, values=('balance',)
    ),
    'flow matching': Recipe(Velocity, Objective(flow)),
}  # fmt: skip


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# --- by hand ----------------------------------------------------------------------------------


def losses_by_hand(recipe, model, batch, key):
    """Returns the loss of a batch and the other values, without ThinkML."""
    if recipe.loss_fn != 'mse':
        result = recipe.loss_fn.fn(model, batch, key)
        losses, values = result if isinstance(result, tuple) else (result, {})
        return jnp.mean(losses), jax.tree.map(jnp.mean, values)
    gates = jax.nn.softmax(model.gate(batch.x))
    predicted = (gates * model.experts(batch.x)).sum(axis=-1)
    balance = 3 * jnp.sum(gates.mean(axis=0) ** 2)
    return jnp.mean((predicted - batch.y) ** 2) + 0.1 * balance, {'balance': balance}
