"""A custom training loop on the functional core: the steps of ModelTrainer, written by hand."""

import jax
from flax import nnx
from sklearn.datasets import load_digits

from thinkml import core
from thinkml.data import check_inputs, place

X, y = load_digits(return_X_y=True)
X, y = check_inputs(X / 16), y.astype('int32')
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))

# The loop, in 25 lines.
functional = core.functionalize(model, X[:1], jax.random.key(0))
loss_fn = core.get_loss('cross_entropy')
metrics = core.make_metrics(('accuracy',))
tx = core.make_optimizer('adamw')
train_step = core.make_train_step(functional.apply, loss_fn, tx, metrics)
eval_step = core.make_eval_step(functional.apply, loss_fn, metrics)
state = core.init_state(functional.params, functional.model_state, tx, jax.random.key(1), 1e-3)
train_data, test_data = place(X[:1500], y[:1500]), place(X[1500:], y[1500:])
shuffle_key = jax.random.key(2)
feed = core.ResidentFeed(train_data, num_rows=1500, batch_size=32, shuffle_key=shuffle_key)
for chunk in core.train_chunks(train_step, metrics, state, feed, epochs=20):
    if chunk.ends_epoch and chunk.epoch % 5 == 4:
        arrays = (chunk.state.params, chunk.state.model_state)
        test = core.evaluate(eval_step, metrics, *arrays, test_data, batch_size=512)
        train = chunk.epoch_metrics()
        print(f'epoch {chunk.epoch + 1}: loss {train["loss"]:.4f}, test {test["accuracy"]:.3f}')
functional.write(chunk.state.params, chunk.state.model_state)
