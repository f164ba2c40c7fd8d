"""ThinkML: `ModelTrainer` as it is, with history, accuracy and progress bar."""

from thinkml.training import ModelTrainer, TrainingConfig

from .nets_flax import make_net


class TakesTurns:
    def __init__(self, turns):
        self.turns = turns

    def on_train_start(self, run):
        self.turns.start()

    def on_epoch_end(self, run):
        self.turns.over(run.history['loss'][-1])


def train(job, turns):
    config = TrainingConfig(
        batch_size=job.workload.batch_size, epochs=job.epochs, callbacks=[TakesTurns(turns)]
    )
    ModelTrainer(config).train(make_net(job.workload, job.weights), job.x, job.y)
