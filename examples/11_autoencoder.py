"""An autoencoder with anomaly scores: it learns nine of ten digits and finds the other one."""

import os
from pathlib import Path

import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from thinkml.models import predict
from thinkml.training import ModelTrainer, TrainingConfig

EPOCHS = int(os.environ.get('EPOCHS', 100))
UNKNOWN = 9
OUTPUT = Path('output')

digits = load_digits()
X = (digits.images / 16).astype(np.float32)  # (rows, 8, 8), from 0 to 1
X_rest, X_test, y_rest, y_test = train_test_split(X, digits.target, random_state=0)
X_train = X_rest[y_rest != UNKNOWN]
print(X_train.shape, X_test.shape, f'{(y_test == UNKNOWN).sum()} unknown')


class Autoencoder(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Sequential(
            nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 8, rngs=rngs)
        )
        self.decoder = nnx.Sequential(
            nnx.Linear(8, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 64, rngs=rngs)
        )

    def __call__(self, x):
        code = self.encoder(x.reshape(len(x), 64))  # 8 numbers for each picture
        return nnx.sigmoid(self.decoder(code)).reshape(x.shape)


model = Autoencoder(nnx.Rngs(0))
config = TrainingConfig(
    epochs=EPOCHS, learning_rate=0.003, validation_split=0.1, early_stopping=True
)
history = ModelTrainer(config).train(model, X_train, X_train, metrics=['mae'])
print(history)

rebuilt = predict(model, X_test)
scores = np.square(rebuilt - X_test).mean(axis=(1, 2))
print(f'ROC AUC: {roc_auc_score(y_test == UNKNOWN, scores):.3f}')
for digit in range(10):
    print(digit, f'{scores[y_test == digit].mean():.4f}')

highest = np.argsort(-scores)[:10]
figure = Figure(figsize=(10, 2.4), layout='constrained')
for (above, below), row in zip(figure.subplots(2, 10).T, highest, strict=True):
    above.imshow(X_test[row], cmap='gray', vmin=0, vmax=1)
    below.imshow(rebuilt[row], cmap='gray', vmin=0, vmax=1)
    above.set(title=f'{y_test[row]}: {scores[row]:.3f}', xticks=[], yticks=[])
    below.set(xticks=[], yticks=[])
OUTPUT.mkdir(exist_ok=True)
figure.savefig(OUTPUT / 'anomalies.png')
