"""Sample models to save, in a module that another process can import."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from thinkml.core.model.adapters import from_functions, from_linen
from thinkml.models.zoo import create


@dataclasses.dataclass(frozen=True)
class Sizes:
    vocabulary: int = 11
    width: int = 8


def bent(x):
    return jnp.where(x > 0, x, 0.3 * x)


class Everything(nnx.Module):
    """A model with tied embedding, LSTM, attention, BatchNorm, Dropout, bfloat16, a weak scalar."""

    def __init__(self, sizes, rngs):
        self.sizes = sizes
        self.embed = nnx.Embed(sizes.vocabulary, sizes.width, rngs=rngs)
        self.rnn = nnx.RNN(nnx.LSTMCell(sizes.width, sizes.width, rngs=rngs))
        self.attention = nnx.MultiHeadAttention(
            2, sizes.width, dropout_rate=0.5, decode=False, rngs=rngs
        )
        self.norm = nnx.BatchNorm(sizes.width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List(
            nnx.Linear(sizes.width, sizes.width, param_dtype=jnp.bfloat16, rngs=rngs)
            for _ in range(11)  # names that sort differently as text: '10' < '2'
        )
        self.gain = nnx.Param(jnp.asarray(0.7))
        self.activation = bent
        self.gate = functools.partial(nnx.gelu, approximate=False)
        self.out = self.embed

    def __call__(self, x):
        x = self.rnn(self.embed(x))
        x = self.norm(x + self.attention(self.dropout(x)))
        for block in self.blocks:
            x = x + self.activation(block(x.astype(jnp.bfloat16)) * self.gain[...])
        return self.out.attend(self.gate(x).mean(axis=1).astype(jnp.float32))


class LinenBlock(nn.Module):
    width: int
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(self.width, kernel_init=self.kernel_init)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


class LinenModule(nn.Module):
    """A Linen module with a block as a field, and one of another kind inside."""

    block: nn.Module
    outputs: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(self.outputs)(self.block(x, train=train))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        return self.out((x + self.attention(x)).mean(axis=1))


class LSTM(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.rnn = nnx.RNN(nnx.LSTMCell(8, 4, rngs=rngs))
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.rnn(self.embed(x))[:, -1])


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.out = self.embed

    def __call__(self, x):
        return self.out.attend(nnx.gelu(self.embed(x)).mean(axis=1))


class Half(nnx.Module):
    """A model entirely in bfloat16."""

    def __init__(self, rngs):
        kinds = {'dtype': jnp.bfloat16, 'param_dtype': jnp.bfloat16, 'rngs': rngs}
        self.hidden = nnx.Linear(4, 8, **kinds)
        self.norm = nnx.BatchNorm(8, **kinds)
        self.out = nnx.Linear(8, 3, **kinds)

    def __call__(self, x):
        return self.out(nnx.silu(self.norm(self.hidden(x))))


class LinenLSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.LSTMCell(4))(nn.Embed(11, 8)(x))
        return nn.Dense(3)(nn.MultiHeadDotProductAttention(num_heads=2)(x, x).mean(axis=1))


def init_layers(key, x):
    first, second = jax.random.split(key)
    return [
        (jax.random.normal(first, (x.shape[-1], 5)), jnp.zeros(5)),
        {
            'w': jax.random.normal(second, (5, 3)),
            'scale': 2,
            'unused': None,
            'none': jnp.ones((0, 3)),
        },
    ]


def apply_layers(params, x):
    (w, b), last = params
    return jax.nn.tanh(x @ w + b) @ last['w'] * last['scale']


@nnx.jit
def everything():
    model = Everything(Sizes(), nnx.Rngs(0))
    model.norm.mean[...] = jnp.linspace(-1, 1, 8)  # as if trained
    return model


def linen():
    module = LinenModule(LinenBlock(6, kernel_init=nn.initializers.normal(0.3)), outputs=3)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4)))
    return from_linen(module, variables)


def functions():
    return from_functions(
        init_layers, apply_layers, init_layers(jax.random.key(1), jnp.zeros((1, 4)))
    )


TOKENS = jax.random.randint(jax.random.key(2), (4, 6), 0, 11)
FEATURES = jax.random.normal(jax.random.key(3), (5, 4))
IMAGES = jax.random.uniform(jax.random.key(4), (2, 16, 16, 3))


def linen_lstm():
    module = LinenLSTM()
    return from_linen(module, module.init(jax.random.key(0), TOKENS))


# One model of each kind whose files must stay readable: its factory, inputs, and named object.
KINDS = {
    'attention': (lambda: Attention(nnx.Rngs(0)), TOKENS, Attention),
    'lstm': (lambda: LSTM(nnx.Rngs(0)), TOKENS, LSTM),
    'tied': (lambda: Tied(nnx.Rngs(0)), TOKENS, Tied),
    'bfloat16': (lambda: Half(nnx.Rngs(0)), FEATURES, Half),
    'linen': (linen, FEATURES, LinenModule),
    'linen_lstm': (linen_lstm, TOKENS, LinenLSTM),
}
ZOO = {
    'mlp': ({'in_features': 4, 'hidden': (8,), 'dropout': 0.2}, FEATURES),
    'residual_mlp': ({'in_features': 4, 'width': 8}, FEATURES),
    'cnn': ({'widths': (4, 8), 'dropout': 0.2}, IMAGES),
    'resnet18': ({'depths': (1, 1)}, IMAGES),
    'convnext_tiny': ({'depths': (1, 1), 'widths': (8, 16), 'drop_path': 0.5}, IMAGES),
    'vit_s16': (
        {'patch_size': 4, 'width': 8, 'depth': 2, 'num_heads': 2, 'image_size': 16},
        IMAGES,
    ),
}


def every_kind():
    """Yields a name, a model, inputs, and the class or function that its file names."""
    for name, (make, x, named) in KINDS.items():
        yield name, make(), x, named
    for name, (options, x) in ZOO.items():
        model = create(name, 3, **options)
        yield name, model, x, type(model)


SAMPLES = {
    'everything': (everything, TOKENS),
    'linen': (linen, FEATURES),
    'functions': (functions, FEATURES),
}
