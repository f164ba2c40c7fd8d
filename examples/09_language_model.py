"""A language model over bytes: train a small transformer on Python source and sample from it."""

import argparse
import inspect
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from thinkml.data import token_windows
from thinkml.evaluation import ModelEvaluator
from thinkml.models import dot_product_attention
from thinkml.training import ModelTrainer, TrainingConfig

EPOCHS = int(os.environ.get('EPOCHS', 30))
LENGTH, WIDTH, HEADS, BYTES = 64, 64, 4, 128

# The source of a module of Python, as bytes, with a tab for each four spaces.
text = inspect.getsource(argparse).replace('    ', '\t')
tokens = np.frombuffer(text.encode('ascii', 'replace'), np.uint8)
end = len(tokens) * 9 // 10  # the rest is for the test
X_train, y_train = token_windows(tokens[:end], LENGTH, stride=LENGTH // 2)
X_test, y_test = token_windows(tokens[end:], LENGTH)
print(X_train.shape, bytes(X_train[0, :12]), bytes(y_train[0, :12]))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm_1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm_2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        heads = (*x.shape[:2], HEADS, WIDTH // HEADS)
        parts = jnp.split(self.qkv(self.norm_1(x)), 3, axis=-1)
        query, key, value = (part.reshape(heads) for part in parts)
        attended = dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(BYTES, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.Sequential(Block(rngs), Block(rngs))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, BYTES, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x) + self.positions(jnp.arange(x.shape[1]))
        return self.out(self.norm(self.blocks(x)))  # (rows, tokens, 128)


model = Transformer(nnx.Rngs(0))
config = TrainingConfig(
    epochs=EPOCHS, learning_rate=0.003, optimizer='adamw', lr_schedule='cosine', validation_split=0
)
history = ModelTrainer(config).train(model, X_train, y_train, metrics=['perplexity'])
evaluation = ModelEvaluator().evaluate(model, X_test, y_test, metrics=['perplexity'])
print(f'perplexity: {history["perplexity"][-1]:.2f}, test text {evaluation["perplexity"]:.2f}')


@nnx.jit(static_argnames='count')
def sample(model, window, key, temperature, count):
    def step(window, key):
        logits = model(window[None])[0, -1]
        token = jax.random.categorical(key, logits / temperature)
        return jnp.append(window[1:], token), token

    _, tokens = jax.lax.scan(step, window, jax.random.split(key, count))
    return tokens


prompt = '''class Count(Action):
\t"""An action that counts how often an option is given."""

\tdef __init__('''
window = jnp.array(list(prompt.encode())[-LENGTH:])
for temperature in (0.5, 1.0):
    tokens = sample(model, window, jax.random.key(1), temperature, count=300)
    print(f'--- temperature {temperature}')
    print((prompt + bytes(tokens.tolist()).decode('ascii', 'replace')).expandtabs(4))
