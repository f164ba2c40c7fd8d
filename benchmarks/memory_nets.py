"""The nets whose memory is measured, and the data for them."""

from flax import nnx
from step_overhead import CNN, make_mlp


class Residual(nnx.Module):
    def __init__(self, features_in, features, stride, rngs):
        kernel = (3, 3)
        self.conv1 = nnx.Conv(
            features_in, features, kernel, strides=stride, use_bias=False, rngs=rngs
        )
        self.norm1 = nnx.BatchNorm(features, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, kernel, use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(features, rngs=rngs)
        self.shortcut = nnx.List()
        if features_in != features:
            self.shortcut.append(
                nnx.Conv(features_in, features, (1, 1), strides=stride, use_bias=False, rngs=rngs)
            )

    def __call__(self, x):
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        for conv in self.shortcut:
            x = conv(x)
        return nnx.relu(y + x)


class ResNet8(nnx.Module):
    """Three residual blocks of 16, 32 and 64 features, for images 32x32x3."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        sizes = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        self.blocks = nnx.List([Residual(*size, rngs) for size in sizes])
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.out(x.mean((1, 2)))


class Encoder(nnx.Module):
    """Two layers of a transformer encoder, 4 heads, over sequences of 64 vectors of 128."""

    def __init__(self, num_layers=2, width=128):
        rngs = nnx.Rngs(0)
        self.attention = nnx.List(
            nnx.MultiHeadAttention(num_heads=4, in_features=width, decode=False, rngs=rngs)
            for _ in range(num_layers)
        )
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2 * num_layers))
        self.up = nnx.List(nnx.Linear(width, 4 * width, rngs=rngs) for _ in range(num_layers))
        self.down = nnx.List(nnx.Linear(4 * width, width, rngs=rngs) for _ in range(num_layers))
        self.out = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        for layer, attention in enumerate(self.attention):
            x = x + attention(self.norms[2 * layer](x))
            x = x + self.down[layer](nnx.gelu(self.up[layer](self.norms[2 * layer + 1](x))))
        return self.out(x.mean(1))


# workload: (net, rows, shape of a row, batch size)
WORKLOADS = {
    'mlp-32': (make_mlp, 60_000, (64,), 32),
    'mlp-512': (make_mlp, 60_000, (64,), 512),
    'cnn-128': (CNN, 2_560, (28, 28, 1), 128),
    'resnet-64': (ResNet8, 1_280, (32, 32, 3), 64),
    'encoder-32': (Encoder, 1_280, (64, 128), 32),
}
