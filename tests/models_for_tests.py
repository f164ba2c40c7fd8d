"""Models that several tests use, in an importable module so that they can be saved."""

import jax
import jax.numpy as jnp
from flax import nnx


def mlp(num_features, num_outputs, *, hidden=16, seed=0):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        nnx.Linear(num_features, hidden, rngs=rngs),
        nnx.relu,
        nnx.Linear(hidden, num_outputs, rngs=rngs),
    )


class DropoutBatchNorm(nnx.Module):
    def __init__(self, num_features, num_outputs, rngs):
        self.hidden = nnx.Linear(num_features, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(16, num_outputs, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


class TokenTagger(nnx.Module):
    """Returns the logits of each token, with dropout."""

    def __init__(self, num_words, num_tags, rngs):
        self.embed = nnx.Embed(num_words, 8, rngs=rngs)
        self.mix = nnx.Conv(8, 8, (3,), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, num_tags, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.mix(self.embed(x)))))


class PixelClassifier(nnx.Module):
    """Returns the logits of each pixel, with dropout and batch normalization."""

    def __init__(self, num_classes, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Conv(8, num_classes, (1, 1), rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.conv(x)))))


class Recurrent(nnx.Module):
    """Reads the features as a sequence."""

    def __init__(self, num_outputs, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(1, 8, rngs=rngs))
        self.out = nnx.Linear(8, num_outputs, rngs=rngs)

    def __call__(self, x):
        return self.out(self.rnn(x[..., None])[:, -1])


class Attention(nnx.Module):
    """One attention block over the features as a sequence."""

    def __init__(self, num_outputs, rngs):
        self.embed = nnx.Linear(1, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=8, dropout_rate=0.5, decode=False, rngs=rngs
        )
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.out = nnx.Linear(8, num_outputs, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x[..., None])
        x = self.norm(x + self.attention(x))
        return self.out(x.mean(axis=1))


class Tied(nnx.Module):
    """Uses one layer twice."""

    def __init__(self, num_features, num_outputs, rngs):
        self.first = nnx.Linear(num_features, num_features, rngs=rngs)
        self.second = self.first
        self.out = nnx.Linear(num_features, num_outputs, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.second(nnx.relu(self.first(x)))))


class WithFlag(nnx.Module):
    """Takes the train switch as an argument instead of by mode."""

    def __init__(self, num_features, num_outputs, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(num_features, num_outputs, rngs=rngs)

    def __call__(self, x, *, training):
        return self.out(self.dropout(x, deterministic=not training))


def init_mlp(key, x, hidden=16, num_outputs=3):
    first, second = jax.random.split(key)
    return {
        'w1': jax.random.normal(first, (x.shape[-1], hidden)) * 0.3,
        'b1': jnp.zeros(hidden),
        'w2': jax.random.normal(second, (hidden, num_outputs)) * 0.3,
        'b2': jnp.zeros(num_outputs),
    }


def apply_mlp(params, x):
    hidden = jax.nn.relu(x @ params['w1'] + params['b1'])
    return hidden @ params['w2'] + params['b2']


class SmallCNN(nnx.Module):
    """For grey images."""

    def __init__(self, rngs, side=8):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.out = nnx.Linear((side // 2) ** 2 * 8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.conv(x / 16)), (2, 2), (2, 2))
        return self.out(x.reshape(len(x), -1))
