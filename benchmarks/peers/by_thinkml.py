"""ThinkML: `ModelTrainer` by default, with history, accuracy and progress bar.

In whole programs (W3) the weights are drawn as for a newcomer, by Flax for a net written in Flax or
by ThinkML for one of its own, and then replaced by the given ones.
"""

from thinkml.training import ModelTrainer, Objective, TrainingConfig

from .nets_flax import draw_net, make_net, negative_elbo, with_weights


class TakesTurns:
    def __init__(self, turns):
        self.turns = turns

    def on_train_start(self, run):
        self.turns.start()

    def on_epoch_end(self, run):
        self.turns.over(run.history['loss'][-1])


def drawn_by_flax(workload, weights):
    return with_weights(draw_net(workload), weights)


def drawn_by_thinkml(workload, weights):
    from thinkml.models.zoo import create

    inputs, *hidden, outputs = workload.widths
    net = create('mlp', outputs, in_features=inputs, hidden=hidden)
    named = {f'layers.{name.removeprefix("dense.")}': array for name, array in weights.items()}
    head = f'layers.{len(hidden)}.'
    return with_weights(net, {name.replace(head, 'head.'): named[name] for name in named})


def train(job, turns, *, own_net=False):
    make = drawn_by_flax if job.alone else make_net
    if own_net:
        make = drawn_by_thinkml
    config = TrainingConfig(
        batch_size=job.workload.batch_size, epochs=job.epochs, callbacks=[TakesTurns(turns)]
    )
    net = make(job.workload, job.weights)
    if job.workload.net == 'vae':
        ModelTrainer(config).train(net, job.x, loss_fn=Objective(elbo_of_batch))
    else:
        ModelTrainer(config).train(net, job.x, job.y)


def elbo_of_batch(model, batch, key):
    return negative_elbo(model, batch.x, key)
