"""skorch: `NeuralNetClassifier.fit`."""

import skorch
import torch

from .nets_torch import make_net, make_tensors
from .workloads import LEARNING_RATE


class TakesTurns(skorch.callbacks.Callback):
    def __init__(self, turns):
        self.turns = turns

    def on_train_begin(self, net, **_):
        self.turns.start()

    def on_epoch_end(self, net, **_):
        self.turns.over(net.history[-1]['train_loss'])


def train(job, turns, threads=None):
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision('high')
    classifier = skorch.NeuralNetClassifier(
        make_net(job.workload, job.weights), criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam, optimizer__fused=True, lr=LEARNING_RATE,
        batch_size=job.workload.batch_size,
        max_epochs=job.epochs, train_split=None, iterator_train__shuffle=True,
        callbacks=[TakesTurns(turns)], device='cuda' if torch.cuda.is_available() else 'cpu',
    )  # fmt: skip
    classifier.fit(*make_tensors(job))
