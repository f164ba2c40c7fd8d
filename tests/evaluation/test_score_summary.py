"""Evaluations whose scores are too large to be kept: the values of all scores, in less memory."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError, DataError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator, model_outputs, score_summary
from thinkml.evaluation.metrics.registry import METRICS

ROWS, TOKENS, WORDS = 30, 6, 23
OF_ALL_SCORES = ['roc_auc', 'roc_auc_ovo', 'average_precision']
NAMES = [name for name in METRICS['multiclass'] if name not in OF_ALL_SCORES]


class LanguageModel(nnx.Module):
    """A language model whose probabilities round to 0 and 1 if its scale is large."""

    def __init__(self, scale=1.0, words=WORDS):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(words, 16, rngs=rngs)
        self.out = nnx.Linear(16, words, rngs=rngs)
        self.scale = scale

    def __call__(self, x):
        return self.scale * self.out(jnp.tanh(self.embed(x)))


class Constant(nnx.Module):
    """A model whose outputs are equal, so that the first class is predicted."""

    def __call__(self, x):
        return jnp.zeros((*x.shape, WORDS))


class TwoHeads(nnx.Module):
    def __init__(self):
        self.model = LanguageModel()

    def __call__(self, x):
        return {'word': self.model(x), 'length': x.sum(axis=1).astype(jnp.float32)}


class Classifier(nnx.Module):
    def __init__(self):
        self.out = nnx.Linear(TOKENS, WORDS, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.out(x.astype(jnp.float32))


def sentences():
    rng = np.random.default_rng(0)
    x = rng.integers(0, WORDS, (ROWS, TOKENS))
    return x, np.where(rng.random(x.shape) < 0.2, -100, (x * 3 + 1) % WORDS)


def evaluate(model, x=None, y=None, **settings):
    x, y = sentences() if x is None else (x, y)
    return ModelEvaluator().evaluate(model, x, y, **settings)


@pytest.fixture
def summarize(monkeypatch):
    """Returns a function after whose call no scores are kept, however few."""
    return lambda: monkeypatch.setattr(score_summary, 'MOST_SCORE_BYTES', 0)


def both(summarize, model, *data, **settings):
    kept = evaluate(model, *data, **settings)
    summarize()
    return kept, evaluate(model, *data, **settings)


def assert_equal(kept, summarized, rtol=2e-6):
    assert summarized.probabilities is None and summarized.scored.outputs is None
    assert kept.metrics.keys() == summarized.metrics.keys()
    for name, value in kept.metrics.items():
        np.testing.assert_allclose(summarized[name], value, rtol, 1e-7, err_msg=name)
    np.testing.assert_array_equal(summarized.predictions, kept.predictions)
    np.testing.assert_array_equal(summarized.confusion_matrix, kept.confusion_matrix)
    assert summarized.per_class == kept.per_class


@pytest.mark.filterwarnings('ignore::thinkml.errors.ThinkMLWarning')
@pytest.mark.parametrize(
    'model', [LanguageModel(), LanguageModel(60.0), Constant()], ids=['usual', 'confident', 'ties']
)
def test_metrics_equal_those_of_all_scores(model, summarize):
    names = [*NAMES, 'top_1_accuracy', 'top_3_accuracy']
    slices = {'even': np.arange(ROWS) % 2 == 0}
    weight = None if isinstance(model, Constant) else np.random.default_rng(1).random(ROWS)
    kept, summarized = both(
        summarize, model, metrics=names, sample_weight=weight, slices=slices, min_support=1
    )
    assert_equal(kept, summarized)
    of_slice = kept.slices['even'].metrics, summarized.slices['even'].metrics
    for name in names:
        np.testing.assert_allclose(of_slice[1][name], of_slice[0][name], 2e-6, 1e-7)
        intervals = (one.confidence_intervals[name] for one in (summarized, kept))
        np.testing.assert_allclose(*intervals, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings('ignore::thinkml.errors.ThinkMLWarning')
def test_rows_with_one_class(summarize):
    x, y = sentences()
    y = (x[:, 0] * 3 + 1) % WORDS
    assert_equal(*both(summarize, Classifier(), x, y, metrics=NAMES))


@pytest.mark.filterwarnings('ignore::thinkml.errors.ThinkMLWarning')
def test_a_head_with_many_classes_beside_a_small_one(monkeypatch):
    x, y = sentences()
    targets = {'word': y, 'length': x.sum(axis=1) * 1.5}
    metrics = {'word': ['accuracy', 'perplexity'], 'length': ['mae']}
    kept = evaluate(TwoHeads(), x, targets, metrics=metrics)
    monkeypatch.setattr(score_summary, 'MOST_SCORE_BYTES', 0)
    summarized = evaluate(TwoHeads(), x, targets, metrics=metrics)
    assert_equal(kept['word'], summarized['word'])
    assert summarized['length'].metrics == kept['length'].metrics
    assert summarized['length'].scored.outputs is not None


def custom(logits, labels):
    return logits[:, 0] - labels


def test_metrics_of_all_scores_are_refused_before_the_prediction(summarize, monkeypatch):
    summarize()
    monkeypatch.setattr(model_outputs, 'predict_outputs', None)
    says = r"metrics: 'roc_auc', 'custom' need the scores of all classes, but .* and 23 classes"
    with pytest.raises(ConfigError, match=says):
        evaluate(LanguageModel(), metrics=['accuracy', 'roc_auc', custom])


@pytest.mark.filterwarnings('ignore:(precision|recall):thinkml.errors.ThinkMLWarning')
def test_defaults_that_need_all_scores_are_left_out_with_a_warning(summarize):
    summarize()
    with pytest.warns(ThinkMLWarning, match='roc_auc: left out, since the scores of 180 examples'):
        found = evaluate(LanguageModel())
    assert list(found) == ['accuracy', 'precision', 'recall', 'f1', 'log_loss']
    assert found.warnings[0].startswith('roc_auc: left out')


def test_outputs_that_are_not_finite(summarize):
    summarize()
    with pytest.raises(DataError, match='returns NaN or infinite values for 30 of 30 rows'):
        evaluate(LanguageModel(np.inf), metrics=['accuracy'])


@pytest.mark.filterwarnings('ignore::thinkml.errors.ThinkMLWarning')
def test_reports_have_what_they_can(summarize):
    names = ['accuracy', 'log_loss', 'brier', 'ece', 'top_3_accuracy']
    settings = {'metrics': names, 'confidence': None}
    kept, summarized = both(summarize, LanguageModel(3.0), **settings)
    first, second = (ModelEvaluator().generate_report(one).to_dict() for one in (kept, summarized))
    for part in ('baseline', 'calibration', 'errors', 'surprises', 'confusions', 'averages'):
        compare(first[part], second[part])


def compare(kept, summarized):
    """Compares nested values, with numbers to the precision of float32."""
    if isinstance(kept, dict):
        assert kept.keys() == summarized.keys()
        kept, summarized = list(kept.values()), list(summarized.values())
    if isinstance(kept, list):
        assert len(kept) == len(summarized)
        for pair in zip(kept, summarized, strict=True):
            compare(*pair)
    elif isinstance(kept, float):
        np.testing.assert_allclose(summarized, kept, rtol=1e-5, atol=1e-6)
    else:
        assert kept == summarized


SCRIPT = """
import json, sys, threading, time, warnings
from pathlib import Path
import numpy as np
from tests.evaluation.test_score_summary import LanguageModel
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.tasks import Task

def resident_bytes():
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmRSS'))

rows, tokens, words = map(int, sys.argv[1:])
model, x = LanguageModel(words=words), np.arange(rows * tokens).reshape(rows, tokens) % words
record_of(model).task = Task(
    'multiclass', tuple(range(words)), num_outputs=words, element_shape=(tokens,),
    ignore_label=-100,
)
warnings.simplefilter('ignore')
before, most, done = resident_bytes(), [0], threading.Event()

def watch():
    while not done.is_set():
        most[0] = max(most[0], resident_bytes())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
found = ModelEvaluator().evaluate(model, x, (x + 1) % words)
done.set()
watcher.join()
print(json.dumps([most[0] - before, found.confusion_matrix is None, found['log_loss']]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='asks Linux for the memory of a process')
def test_the_memory_of_an_evaluation_does_not_hold_all_scores():
    rows, tokens, words = 300, 64, 16_000
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, str(rows), str(tokens), str(words)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    most, has_no_matrix, log_loss = json.loads(done.stdout)
    assert most < 300e6 < 4 * rows * tokens * words / 4
    assert has_no_matrix and 9 < log_loss < 11
