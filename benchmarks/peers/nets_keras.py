"""The nets in Keras, with its functional API."""

import keras
from keras import layers

from .workloads import HEADS, HIDDEN, NORM_EPSILON, STAGES, VOCABULARY, WIDTH


def _mlp(workload, x):
    for index, width in enumerate(workload.widths[1:-1]):
        x = layers.Dense(width, activation='relu', name=f'dense.{index}')(x)
    return layers.Dense(workload.widths[-1], name=f'dense.{len(workload.widths) - 2}')(x)


def _cnn(workload, x):
    del workload
    for index, width in enumerate((32, 64)):
        x = layers.Conv2D(width, 3, padding='same', activation='relu', name=f'conv.{index}')(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(128, activation='relu', name='dense.0')(layers.Flatten()(x))
    return layers.Dense(10, name='dense.1')(x)


def _conv(x, width, size, stride, name):
    if stride > 1 and size > 1:  # 'same' would pad the end alone
        x = layers.ZeroPadding2D(size // 2)(x)
    padding = 'same' if stride == 1 else 'valid'
    return layers.Conv2D(width, size, stride, padding, use_bias=False, name=name)(x)


def _batch_norm(x, name):
    return layers.BatchNormalization(momentum=0.9, epsilon=NORM_EPSILON, name=name)(x)


def _resnet(workload, x):
    del workload
    x = layers.ReLU()(_batch_norm(_conv(x, STAGES[0], 3, 1, 'stem'), 'stem_norm'))
    for index, width in enumerate(STAGES):
        stride, block = 1 if x.shape[-1] == width else 2, f'block.{index}'
        y = _batch_norm(_conv(x, width, 3, stride, f'{block}.conv1'), f'{block}.norm1')
        y = _conv(layers.ReLU()(y), width, 3, 1, f'{block}.conv2')
        y = _batch_norm(y, f'{block}.norm2')
        if stride > 1:
            x = _conv(x, width, 1, stride, f'{block}.shortcut')
            x = _batch_norm(x, f'{block}.shortcut_norm')
        x = layers.ReLU()(layers.Add()([x, y]))
    return layers.Dense(10, name='head')(layers.GlobalAveragePooling2D()(x))


def _norm(x, name):
    return layers.LayerNormalization(epsilon=NORM_EPSILON, name=name)(x)


def _gelu(x):
    return keras.activations.gelu(x, approximate=True)


def _blocks(workload, x, causal=False):
    for block in (f'block.{index}' for index in range(workload.depth)):
        y = _norm(x, f'{block}.norm1')
        attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f'{block}.attention')
        y = attention(y, y, use_causal_mask=causal)
        x = layers.Add()([x, y])
        y = layers.Dense(HIDDEN, activation=_gelu, name=f'{block}.up')(_norm(x, f'{block}.norm2'))
        x = layers.Add()([x, layers.Dense(WIDTH, name=f'{block}.down')(y)])
    return _norm(x, 'norm')


def _transformer(workload, x):
    x = layers.GlobalAveragePooling1D()(_blocks(workload, x))
    return layers.Dense(10, name='head')(x)


class Positions(layers.Layer):
    def build(self, shape):
        self.embedding = self.add_weight(shape=shape[1:], name='embedding')

    def call(self, x):
        return x + self.embedding


def _gpt(workload, tokens):
    x = Positions(name='position')(layers.Embedding(VOCABULARY, WIDTH, name='token')(tokens))
    return layers.Dense(VOCABULARY, name='head')(_blocks(workload, x, causal=True))


_NETS = {'mlp': _mlp, 'cnn': _cnn, 'resnet': _resnet, 'transformer': _transformer, 'gpt': _gpt}
_ATTENTION = [
    f'{name}.{leaf}' for name in ('query', 'key', 'value', 'out') for leaf in ('kernel', 'bias')
]
# Keras keeps a layer's weights in this order.
_ORDER = ['embedding', 'kernel', 'scale', 'bias', 'mean', 'var', *_ATTENTION]


def make_net(workload, weights):
    """Returns the net with these weights."""
    dtype = 'int32' if workload.net == 'gpt' else 'float32'
    inputs = keras.Input(workload.shape, dtype=dtype)
    net = keras.Model(inputs, _NETS[workload.net](workload, inputs))
    for layer in net.layers:
        names = [f'{layer.name}.{leaf}' for leaf in _ORDER]
        layer.set_weights([weights[name] for name in names if name in weights])
    return net
