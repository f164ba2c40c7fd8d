"""Segmentation: a small U-Net labels each pixel of noisy pictures of circles and squares."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from thinkml.evaluation import ModelEvaluator
from thinkml.models import predict
from thinkml.training import ModelTrainer, TrainingConfig

EPOCHS = int(os.environ.get('EPOCHS', 40))
SIDE, BACKGROUND, CIRCLE, SQUARE, IGNORED = 32, 0, 1, 2, 255
OUTPUT = Path('output')


def draw(count, seed):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    masks = np.full((count, SIDE, SIDE), BACKGROUND)
    for mask in masks:
        for label in rng.permutation([CIRCLE, SQUARE]):
            (row, column), radius = rng.uniform(7, SIDE - 7, 2), rng.uniform(4, 8)
            down, right = abs(rows - row), abs(columns - column)
            distance = np.hypot(down, right) if label == CIRCLE else np.maximum(down, right)
            mask[distance < radius + 0.7] = IGNORED  # the edge
            mask[distance < radius - 0.7] = label
    clean = np.select([masks == BACKGROUND, masks == IGNORED], [0.3, 0.5], 0.7)
    pictures = clean + rng.normal(0, 0.2, masks.shape)
    return pictures[..., None].astype(np.float32), masks  # (count, 32, 32, 1), (count, 32, 32)


X_train, y_train = draw(512, seed=0)
X_test, y_test = draw(128, seed=1)


class Convolutions(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.first = nnx.Conv(inputs, outputs, (3, 3), rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(outputs, num_groups=4, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.second(nnx.relu(self.first(x)))))


class UNet(nnx.Module):
    def __init__(self, rngs):
        self.down = nnx.List(Convolutions(*size, rngs) for size in [(1, 8), (8, 16), (16, 32)])
        self.up = nnx.List(Convolutions(*size, rngs) for size in [(48, 16), (24, 8)])
        self.out = nnx.Conv(8, 3, (1, 1), rngs=rngs)

    def __call__(self, x):
        first = self.down[0](x)  # 32 x 32 pixels
        second = self.down[1](nnx.max_pool(first, (2, 2), (2, 2)))  # 16 x 16
        x = self.down[2](nnx.max_pool(second, (2, 2), (2, 2)))  # 8 x 8
        for block, skipped in zip(self.up, (second, first), strict=True):
            x = jax.image.resize(x, (*skipped.shape[:3], x.shape[-1]), 'nearest')
            x = block(jnp.concatenate([x, skipped], axis=-1))
        return self.out(x)  # (rows, 32, 32, 3)


model = UNet(nnx.Rngs(0))
config = TrainingConfig(epochs=EPOCHS, learning_rate=0.003, validation_split=0.1)
ModelTrainer(config).train(
    model, X_train, y_train, loss_fn='dice', metrics=['mean_iou'], ignore_label=IGNORED,
    augmentation=['flip', 'vertical_flip'],
)  # fmt: skip

evaluation = ModelEvaluator().evaluate(model, X_test, y_test, metrics=['accuracy', 'mean_iou'])
for name, (low, high) in evaluation.confidence_intervals.items():
    print(f'{name}: {evaluation[name]:.3f}, from {low:.3f} to {high:.3f}')

found = predict(model, X_test)
correct = [(a == b)[b != IGNORED].mean() for a, b in zip(found, y_test, strict=True)]
order = np.argsort(correct)  # the worst first
figure = Figure(figsize=(6, 6), layout='constrained')
for axes, row in zip(figure.subplots(3, 3), order[[-1, len(order) // 2, 0]], strict=True):
    target = np.where(y_test[row] == IGNORED, np.nan, y_test[row])
    axes[0].imshow(X_test[row, ..., 0], cmap='gray')
    axes[1].imshow(target, vmin=0, vmax=2)
    axes[2].imshow(found[row], vmin=0, vmax=2)
    for ax, title in zip(axes, ('input', 'target', f'{correct[row]:.0%} right'), strict=True):
        ax.set(title=title, xticks=[], yticks=[])
OUTPUT.mkdir(exist_ok=True)
figure.savefig(OUTPUT / 'segmentation.png')
