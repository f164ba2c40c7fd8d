"""The same training on one device, on four, and on four with a sharded model.

On a machine with one CPU the four devices are simulated. On a machine with GPUs, remove the line
that sets ``jax_num_cpu_devices``.
"""

import jax
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits

from thinkml.training import DistributedTrainer, ModelTrainer, TrainingConfig

jax.config.update('jax_num_cpu_devices', 4)

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)


def make_model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs))


config = TrainingConfig(epochs=5, batch_size=64, validation_split=0.2)
trainers = {
    'one device': ModelTrainer(config),
    'mirrored': DistributedTrainer(config, strategy='mirrored'),
    'fsdp': DistributedTrainer(config, strategy='fsdp'),
}
for name, trainer in trainers.items():
    model = make_model()
    history = trainer.train(model, X, y, progress=False)
    kernel = model.layers[0].kernel[...]
    shapes = {shard.data.shape for shard in kernel.addressable_shards}
    losses = ' '.join(f'{loss:.5f}' for loss in history['val_loss'])
    print(f'{name:<10}  val_loss {losses}  shards of the first kernel: {shapes}')

print(f'{len(jax.devices())} devices of kind {jax.devices()[0].platform}')
