"""Keras on JAX: `compile` and `fit`."""

import math
import os

os.environ.setdefault('KERAS_BACKEND', 'jax')

import keras

from .nets_keras import make_net
from .workloads import LEARNING_RATE


class TakesTurns(keras.callbacks.Callback):
    def __init__(self, turns):
        super().__init__()
        self.turns = turns

    def on_train_begin(self, logs=None):
        self.turns.start()

    def on_epoch_end(self, epoch, logs=None):
        self.turns.over(logs['loss'])


def train(job, turns, steps_per_execution):
    batch_size = job.workload.batch_size
    model = make_net(job.workload, job.weights)
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=min(steps_per_execution, math.ceil(len(job.x) / batch_size)),
    )
    callbacks = [TakesTurns(turns)]
    model.fit(job.x, job.y, batch_size=batch_size, epochs=job.epochs, callbacks=callbacks)
