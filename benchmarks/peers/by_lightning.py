"""Lightning: a `LightningModule`, a `DataLoader`, `Trainer.fit`; no logger, no checkpoints."""

import lightning
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from .nets_torch import make_net, make_tensors
from .workloads import LEARNING_RATE


class Module(lightning.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch):
        x, y = batch
        loss = functional.cross_entropy(self.net(x).flatten(0, -2), y.flatten())
        self.log('loss', loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), LEARNING_RATE, fused=True)


class TakesTurns(lightning.Callback):
    def __init__(self, turns):
        self.turns = turns

    def on_train_start(self, trainer, pl_module):
        self.turns.start()

    def on_train_epoch_end(self, trainer, pl_module):
        self.turns.over(trainer.callback_metrics['loss'].item())


def train(job, turns, threads=None):
    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision('high')
    rows = TensorDataset(*make_tensors(job))
    loader = DataLoader(rows, batch_size=job.workload.batch_size, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=job.epochs, devices=1, logger=False, enable_checkpointing=False,
        callbacks=[TakesTurns(turns)],
    )  # fmt: skip
    trainer.fit(Module(make_net(job.workload, job.weights)), loader)
