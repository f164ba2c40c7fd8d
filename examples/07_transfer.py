"""Transfer learning: a network trained on the digits 0 to 4 learns 5 to 9 from a few examples.

With more epochs a network trained from scratch catches up here, since images and network are small.

``TransferLearner('resnet50')`` does the same with weights learned from a million photographs. They
would be downloaded, so this example pretrains its own base.
"""

import numpy as np
from sklearn.datasets import load_digits

from thinkml.evaluation import ModelEvaluator
from thinkml.models import create
from thinkml.training import ModelTrainer, TrainingConfig, TransferLearner

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32).reshape(-1, 8, 8, 1)

base = create('cnn', 5, in_channels=1, widths=(32, 64))
ModelTrainer(TrainingConfig(epochs=8)).train(base, X[y < 5], y[y < 5], progress=False)

others_X, others_y = X[y >= 5], y[y >= 5]
few, rest = slice(0, 50), slice(50, None)

config = TrainingConfig(batch_size=10, epochs=5)
learner = TransferLearner(base, fine_tune_layers=2, config=config)
transferred = learner.fine_tune(X_train=others_X[few], y_train=others_y[few], progress=False)
print(learner.summary())

scratch = create('cnn', 5, in_channels=1, widths=(32, 64), seed=1)
ModelTrainer(config).train(scratch, others_X[few], others_y[few], progress=False)

for name, model in {'transferred': transferred, 'from scratch': scratch}.items():
    evaluation = ModelEvaluator().evaluate(model, others_X[rest], others_y[rest], ['accuracy'])
    print(f'{name:<12}  accuracy {evaluation["accuracy"]:.3f} of {len(others_y[rest])} images')
