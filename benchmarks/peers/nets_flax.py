"""The nets in Flax NNX."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from .workloads import HEADS, HIDDEN, NORM_EPSILON, STAGES, VOCABULARY, WIDTH


class MLP(nnx.Module):
    def __init__(self, workload, rngs):
        widths = itertools.pairwise(workload.widths)
        self.dense = nnx.List(nnx.Linear(*both, rngs=rngs) for both in widths)

    def __call__(self, x):
        for layer in self.dense[:-1]:
            x = nnx.relu(layer(x))
        return self.dense[-1](x)


class CNN(nnx.Module):
    def __init__(self, workload, rngs):
        channels = itertools.pairwise((workload.shape[-1], 32, 64))
        self.conv = nnx.List(nnx.Conv(*both, (3, 3), rngs=rngs) for both in channels)
        widths = itertools.pairwise((7 * 7 * 64, 128, 10))
        self.dense = nnx.List(nnx.Linear(*both, rngs=rngs) for both in widths)

    def __call__(self, x):
        for conv in self.conv:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.dense[1](nnx.relu(self.dense[0](x.reshape(len(x), -1))))


def _conv(inputs, outputs, size, stride, rngs):
    return nnx.Conv(
        inputs, outputs, (size, size), stride, padding=size // 2, use_bias=False, rngs=rngs
    )


def _batch_norm(width, rngs):
    return nnx.BatchNorm(width, momentum=0.9, epsilon=NORM_EPSILON, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        stride = 1 if inputs == outputs else 2
        self.conv1 = _conv(inputs, outputs, 3, stride, rngs)
        self.norm1 = _batch_norm(outputs, rngs)
        self.conv2 = _conv(outputs, outputs, 3, 1, rngs)
        self.norm2 = _batch_norm(outputs, rngs)
        self.shortcut = nnx.data(None if stride == 1 else _conv(inputs, outputs, 1, stride, rngs))
        self.shortcut_norm = nnx.data(None if stride == 1 else _batch_norm(outputs, rngs))

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    def __init__(self, workload, rngs):
        self.stem = _conv(workload.shape[-1], STAGES[0], 3, 1, rngs)
        self.stem_norm = _batch_norm(STAGES[0], rngs)
        widths = itertools.pairwise((STAGES[0], *STAGES))
        self.block = nnx.List(Block(*both, rngs) for both in widths)
        self.head = nnx.Linear(STAGES[-1], 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_norm(self.stem(x)))
        for block in self.block:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


class EncoderLayer(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=NORM_EPSILON, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=NORM_EPSILON, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x, mask=None):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    def __init__(self, workload, rngs):
        self.block = nnx.List(EncoderLayer(rngs) for _ in range(workload.depth))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=NORM_EPSILON, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        for block in self.block:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


class GPT(nnx.Module):
    def __init__(self, workload, rngs):
        self.token = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.position = nnx.Embed(workload.num_tokens, WIDTH, rngs=rngs)
        self.block = nnx.List(EncoderLayer(rngs) for _ in range(workload.depth))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=NORM_EPSILON, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.token(tokens) + self.position(jnp.arange(tokens.shape[1]))
        mask = nnx.make_causal_mask(tokens)
        for block in self.block:
            x = block(x, mask)
        return self.head(self.norm(x))


class VAE(nnx.Module):
    def __init__(self, workload, rngs):
        inputs, hidden, code = workload.widths
        self.encoder = nnx.Sequential(
            nnx.Linear(inputs, hidden, rngs=rngs), nnx.relu,
            nnx.Linear(hidden, 2 * code, rngs=rngs),
        )  # fmt: skip
        self.decoder = nnx.Sequential(
            nnx.Linear(code, hidden, rngs=rngs), nnx.relu, nnx.Linear(hidden, inputs, rngs=rngs)
        )

    def encode(self, x):
        return jnp.split(self.encoder(x), 2, axis=-1)

    def __call__(self, x):
        return self.decoder(self.encode(x)[0])


def negative_elbo(net, x, key):
    """Returns the losses of a VAE, ``[rows]``, and their two parts by name."""
    mean, log_var = net.encode(x)
    code = mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)
    reconstruction = jnp.square(net.decoder(code) - x).sum(axis=-1)
    kl = (jnp.exp(log_var) + mean**2 - 1 - log_var).sum(axis=-1) / 2
    return reconstruction + kl, {'reconstruction': reconstruction, 'kl': kl}


NETS = {
    'mlp': MLP, 'cnn': CNN, 'resnet': ResNet, 'transformer': Transformer, 'gpt': GPT, 'vae': VAE,
}  # fmt: skip


def make_net(workload, weights):
    """Returns the net with these weights, without drawing others, which costs many programs."""
    return with_weights(nnx.eval_shape(lambda: draw_net(workload)), weights)


def draw_net(workload):
    """Returns the net with weights that Flax draws."""
    return NETS[workload.net](workload, nnx.Rngs(0))


def with_weights(net, weights):
    """Returns the net with its weights replaced."""
    weights = jax.device_put(weights)
    state = nnx.state(net, (nnx.Param, nnx.BatchStat))
    arrays = {'.'.join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    if arrays.keys() != weights.keys():
        raise ValueError(f'weights: {sorted(arrays.keys() ^ weights.keys())} are on one side only')
    for name, variable in arrays.items():
        if variable.get_value().shape != weights[name].shape:
            raise ValueError(f'weights: {name} is {variable.get_value().shape} in the net')
        variable.set_value(weights[name])
    nnx.update(net, state)
    return net
