"""Trainings on sequences of different lengths: padding, masks and buckets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from thinkml.core import BucketFeed, Shortening
from thinkml.data import pack_sequences, place
from thinkml.data.sequences import bucket_lengths, is_ragged
from thinkml.errors import ConfigError, DataError, ThinkMLWarning
from thinkml.evaluation import ModelEvaluator
from thinkml.model_record import record_of
from thinkml.models import predict, predict_proba
from thinkml.training import ActiveLearner, ModelTrainer, TrainingConfig, TransferLearner

WORDS, ROWS, LONGEST = 7, 40, 20
RNG = np.random.default_rng(0)
LENGTHS = np.concatenate([[LONGEST], RNG.integers(1, LONGEST, ROWS - 1)])
TOKENS = [RNG.integers(1, WORDS, length) for length in LENGTHS]
TAGS = [(row * 2 + np.arange(len(row))) % 3 for row in TOKENS]
KIND = np.array([row.sum() % 2 for row in TOKENS])
SETTINGS = {'epochs': 2, 'batch_size': 8, 'learning_rate': 0.05, 'validation_split': 0}
MASK = np.arange(LONGEST) < LENGTHS[:, None]
DENSE = np.zeros((ROWS, LONGEST), np.int64)
DENSE[MASK] = np.concatenate(TOKENS)


class Reader(nnx.Module):
    """Returns outputs for each token, or for each row; padding changes nothing."""

    def __init__(self, outputs=3, of_rows=False):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(WORDS, 8, rngs=rngs)
        self.out = nnx.Linear(8, outputs, rngs=rngs)
        self.of_rows = of_rows

    def __call__(self, tokens, mask):
        h = jnp.tanh(self.embed(tokens)) * mask[..., None]
        mean = h.sum(1) / mask.sum(1)[:, None]
        return self.out(mean) if self.of_rows else self.out(h + mean[:, None])


def train(model, X, y, settings=None, **more):
    config = TrainingConfig(**SETTINGS | (settings or {}))
    return model, ModelTrainer(config).train(model, X, y, progress=False, **more)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def assert_close(a, b, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol), a, b)


FULL = {'batch_size': LONGEST * ROWS}


def test_ragged_rows_of_one_bucket_train_as_padded_ones():
    short = [row[:8] for row in TOKENS]
    tags = [row[:8] for row in TAGS]
    ragged, history = train(Reader(), short, tags, FULL)
    padded = np.where(MASK[:, :8], np.zeros((ROWS, 8), np.int64), -100)
    padded[MASK[:, :8]] = np.concatenate(tags)
    inputs = {'tokens': DENSE[:, :8] * MASK[:, :8], 'mask': MASK[:, :8]}
    dense, expected = train(Reader(), inputs, padded, FULL)
    np.testing.assert_allclose(history['loss'], expected['loss'], atol=1e-6)
    assert_close(params_of(ragged), params_of(dense), 1e-6)


@pytest.mark.parametrize(
    ('rows', 'labels'),
    [
        (TOKENS, TAGS),
        ([row.tolist() for row in TOKENS], [row.tolist() for row in TAGS]),
        (pd.Series([row.tolist() for row in TOKENS]), pd.Series([row.tolist() for row in TAGS])),
        (np.array(TOKENS, object), np.array(TAGS, object)),
    ],
    ids=['arrays', 'lists', 'pandas', 'objects'],
)
def test_a_list_or_column_of_sequences_is_padded(rows, labels):
    model, history = train(Reader(), rows, labels, {'epochs': 1})
    assert record_of(model).input_spec.arrays['tokens'].shape == (LONGEST,)
    assert len(history['loss']) == 1
    predicted = predict(model, rows)
    assert [len(row) for row in predicted] == LENGTHS.tolist()
    right = np.concatenate(predicted) == np.concatenate(TAGS)
    evaluation = ModelEvaluator().evaluate(model, rows, labels, metrics=['accuracy'])
    assert evaluation['accuracy'] == pytest.approx(right.mean())
    np.testing.assert_array_equal(
        [row.argmax(-1).tolist() for row in predict_proba(model, rows)][3], predicted[3]
    )


def test_arrow_columns_are_sequences():
    arrow = pytest.importorskip('pyarrow')
    model, _ = train(Reader(), arrow.array([row.tolist() for row in TOKENS]), TAGS, {'epochs': 1})
    assert record_of(model).task.element_shape == (LONGEST,)


def test_padding_changes_nothing_in_any_bucket():
    """An epoch of buckets has the mean loss over all tokens, as one batch of all of them."""
    model = Reader()
    _, history = train(
        model, TOKENS, TAGS, {'epochs': 1, 'learning_rate': 1e-12}, X_val=TOKENS, y_val=TAGS
    )
    _, one = train(Reader(), TOKENS, TAGS, FULL | {'epochs': 1, 'learning_rate': 1e-12})
    inputs = {'tokens': DENSE, 'mask': MASK}
    tags = np.full((ROWS, LONGEST), -100)
    tags[MASK] = np.concatenate(TAGS)
    evaluation = ModelEvaluator().evaluate(model, inputs, tags, metrics=['log_loss', 'accuracy'])
    for loss in (history['loss'][0], history['val_loss'][0], one['loss'][0]):
        assert loss == pytest.approx(evaluation['log_loss'], abs=1e-6)
    assert history['val_accuracy'][0] == pytest.approx(evaluation['accuracy'])


def test_one_label_a_row():
    model, history = train(
        Reader(2, of_rows=True), TOKENS, KIND, {'epochs': 3}, X_val=TOKENS, y_val=KIND
    )
    accuracy = np.mean(predict(model, TOKENS) == KIND)
    assert history['val_accuracy'][-1] == pytest.approx(accuracy)


def test_each_bucket_has_a_program_and_later_epochs_none(count_compiles):
    settings = {'epochs': 1}
    train(Reader(), TOKENS, TAGS, settings)
    again = functools.partial(train, Reader(), TOKENS, TAGS, settings | {'epochs': 5})
    assert count_compiles(again) == 0


def test_a_resumed_run_is_the_same_run(tmp_path):
    settings = {'epochs': 3, 'callbacks': ['checkpoint']}
    whole, history = train(
        Reader(), TOKENS, TAGS, settings | {'checkpoint_dir': str(tmp_path / 'a')}
    )
    part = settings | {'checkpoint_dir': str(tmp_path / 'b')}
    train(Reader(), TOKENS, TAGS, part | {'max_steps': 8})
    resumed, again = train(Reader(), TOKENS, TAGS, part, resume='continue')
    assert dict(history) == dict(again)
    jax.tree.map(np.testing.assert_array_equal, params_of(whole), params_of(resumed))


def test_rows_held_out_and_class_weights():
    _, history = train(
        Reader(), TOKENS, TAGS, {'validation_split': 0.25, 'epochs': 1}, class_weights={1: 2.0}
    )
    assert 'val_loss' in history


def test_longer_rows_are_cut_and_counted():
    with pytest.warns(
        ThinkMLWarning, match=r'X_train: got \d+ rows of more than 8 positions, up to 20'
    ):
        model, _ = train(Reader(), TOKENS, TAGS, {'epochs': 1}, max_length=8)
    assert record_of(model).input_spec.arrays['mask'].shape == (8,)
    with pytest.warns(ThinkMLWarning, match='the length that the model was trained on'):
        assert max(map(len, predict(model, TOKENS))) == 8


def test_a_model_without_a_mask_gets_zeros():
    class Bag(nnx.Module):
        def __init__(self):
            self.embed = nnx.Embed(WORDS, 2, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.embed(x).sum(1)

    model, _ = train(Bag(), TOKENS, KIND, {'epochs': 1})
    assert record_of(model).input_spec.arrays.shape == (LONGEST,)
    np.testing.assert_array_equal(predict(model, TOKENS), predict(model, DENSE))


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'y': [*TAGS[:5], TAGS[5][:-1], *TAGS[6:]]}, DataError, r'got \d+ labels in row 5'),
        ({'y': TAGS[:-1]}, DataError, r'y_train: got 39 rows beside inputs of 40'),
        ({'y': [row + 0.5 for row in TAGS]}, DataError, 'y_train: got floats in rows'),
        ({'X': [['a'], *TOKENS[1:]]}, DataError, r'X_train, row 0: got <U1 .* token ids'),
        ({'max_length': 0}, ConfigError, 'max_length: got 0'),
        ({'X': {'tokens': DENSE, 'mask': MASK}, 'max_length': 5}, ConfigError, 'max_length: got 5'),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, error, message):
    arguments = {'X': TOKENS, 'y': TAGS} | change
    with pytest.raises(error, match=message):
        train(Reader(), **arguments)


def test_what_is_ragged():
    assert is_ragged(TOKENS) and is_ragged(tuple(map(list, TOKENS)))
    for other in (
        DENSE,
        DENSE.tolist(),
        ['a', 'bc'],
        [1, 2],
        [],
        None,
        (DENSE, MASK),
        {'a': DENSE},
    ):
        assert not is_ragged(other)


# --- parts --------------------------------------------------------------------------------------


def test_buckets_pad_least():
    lengths = np.concatenate([RNG.integers(1, 30, 300), RNG.integers(100, 257, 20)])
    chosen = bucket_lengths(lengths)
    assert len(chosen) == 4 and chosen[-1] == lengths.max()
    padded = chosen[np.searchsorted(chosen, lengths)].sum()

    def total(sizes):
        sizes = np.array(sorted({*sizes, chosen[-1]}))
        return sizes[np.searchsorted(sizes, lengths)].sum()

    others = [total(RNG.choice(np.arange(8, 257, 8), 3, replace=False)) for _ in range(500)]
    assert padded <= min(others)


def test_a_feed_of_buckets_visits_each_row_once_and_resumes():
    data = place(DENSE.astype(np.int32), np.zeros(ROWS, np.int32))
    buckets = np.searchsorted([8, LONGEST], LENGTHS)
    feed = BucketFeed(
        data, rows=np.arange(ROWS), buckets=buckets,
        shortenings=[Shortening(8, (False,)), Shortening(LONGEST, (False,))],
        batch_size=4, shuffle_key=jax.random.key(0),
    )  # fmt: skip

    def steps(first):
        found = []
        for block in feed.blocks(1, first):
            for step in range(block.first, block.last):
                rows = np.asarray(block.plan)[step]
                valid = np.arange(4) + 4 * step < int(block.data.num_rows)
                found.append(
                    (block.start + step, block.data.shortening.length, rows[valid].tolist())
                )
        return found

    found = steps(0)
    assert [step for step, *_ in found] == list(range(feed.steps_per_epoch))
    assert sorted(row for *_, rows in found for row in rows) == list(range(ROWS))
    assert all((LENGTHS[rows] <= length).all() for _, length, rows in found)
    for first in (1, 5, feed.steps_per_epoch - 1):
        assert steps(first) == found[first:]


def test_packed_sequences_keep_every_token_in_order():
    packed = pack_sequences(TOKENS, 16, pad=0)
    assert packed['tokens'].shape[1] == 16
    used = packed['segments'] > 0
    assert used.sum() == LENGTHS.sum() and (packed['tokens'][~used] == 0).all()
    pieces = [
        row[segments == number].tolist()
        for row, segments in zip(packed['tokens'], packed['segments'], strict=True)
        for number in range(1, segments.max() + 1)
    ]
    expected = [row[i : i + 16].tolist() for row in TOKENS for i in range(0, len(row), 16)]
    assert sorted(pieces) == sorted(expected)
    with pytest.raises(DataError, match='sequences, row 1'):
        pack_sequences([[1], [0.5]], 4)


# --- single requests and other forms ----------------------------------------------------------


def test_one_sequence_and_rows_of_one_length_are_predicted():
    model, _ = train(Reader(), TOKENS, TAGS, {'epochs': 1})
    all_rows = predict(model, TOKENS)
    np.testing.assert_array_equal(predict(model, TOKENS[3:4])[0], all_rows[3])
    three = [TOKENS[0][:3], TOKENS[1][:3].repeat(3)[:3]]
    assert [len(row) for row in predict(model, three)] == [3, 3]
    evaluation = ModelEvaluator().evaluate(model, TOKENS[:1], TAGS[:1], metrics=['accuracy'])
    assert evaluation['accuracy'] == np.mean(all_rows[0] == TAGS[0])
    train(Reader(), [row.tolist() for row in DENSE], [row.tolist() for row in DENSE % 3])


def test_rows_of_jax_and_a_column_of_hugging_face_are_sequences():
    datasets = pytest.importorskip('datasets')
    column = datasets.Dataset.from_dict({'t': [row.tolist() for row in TOKENS]})['t']
    expected, _ = train(Reader(), TOKENS, TAGS, {'epochs': 1})
    for rows in (column, [jnp.asarray(row) for row in TOKENS]):
        model, _ = train(Reader(), rows, TAGS, {'epochs': 1})
        assert_close(params_of(model), params_of(expected), 1e-6)


def test_the_mask_may_come_first():
    class Swapped(Reader):
        def __call__(self, mask, tokens):
            return super().__call__(tokens, mask)

    model, _ = train(Swapped(), TOKENS, TAGS, {'epochs': 1})
    assert set(record_of(model).input_spec.arrays) == {'tokens', 'mask'}


def test_a_row_without_positions_is_refused():
    empty = [TOKENS[0], np.array([], int), *TOKENS[2:]]
    with pytest.raises(DataError, match='X_train: got no positions in row 1'):
        train(Reader(), empty, KIND)


def test_a_model_of_one_length_is_refused_before_training():
    class Fixed(Reader):
        def __init__(self):
            super().__init__()
            self.positions = nnx.Param(jnp.zeros((LONGEST, 3)))

        def __call__(self, tokens, mask):
            return super().__call__(tokens, mask) + self.positions[...]

    with pytest.raises(DataError, match=r'let the model take shorter sequences'):
        train(Fixed(), TOKENS, TAGS)


def test_ragged_rows_of_a_table_are_a_mistake():
    table = [[1.0, 2.0, 3.0]] * 5 + [[1.0, 2.0]]
    with pytest.raises(DataError, match='Expected rows of equal length'):
        train(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), table, [0, 1] * 3)


# --- several inputs and heads -----------------------------------------------------------------


class Aged(nnx.Module):
    """Returns tags of tokens and a class of each row, from tokens and a number of the row."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed, self.age = nnx.Embed(WORDS, 8, rngs=rngs), nnx.Linear(1, 8, rngs=rngs)
        self.tags, self.kind = nnx.Linear(8, 3, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, age, tokens, mask):
        h = jnp.tanh(self.embed(tokens) + self.age(age)[:, None]) * mask[..., None]
        return {'tags': self.tags(h), 'kind': self.kind(h.sum(1) / mask.sum(1)[:, None])}


AGE = RNG.normal(size=(ROWS, 1)).astype(np.float32)
PARTS = {'age': AGE, 'tokens': TOKENS}
PADDED_TAGS = np.full((ROWS, LONGEST), -100)
PADDED_TAGS[MASK] = np.concatenate(TAGS)


def test_ragged_parts_of_inputs_and_heads_train_as_padded_ones():
    targets, padded = {'tags': TAGS, 'kind': KIND}, {'tags': PADDED_TAGS, 'kind': KIND}
    dense = {'age': AGE, 'tokens': DENSE, 'mask': MASK}
    validation = {'X_val': {'age': AGE[1:], 'tokens': TOKENS[1:]}}
    validation['y_val'] = {'tags': TAGS[1:], 'kind': KIND[1:]}
    model, history = train(Aged(), PARTS, targets, **validation)
    rows = {
        'X_val': {name: part[1:] for name, part in dense.items()},
        'y_val': {name: part[1:] for name, part in padded.items()},
    }
    other, expected = train(Aged(), dense, padded, **rows)
    for name in expected:
        np.testing.assert_allclose(history[name], expected[name], atol=1e-6, err_msg=name)
    assert_close(params_of(model), params_of(other), 1e-6)
    found, of_dense = predict(model, PARTS), predict(other, dense)
    assert [len(row) for row in found['tags']] == LENGTHS.tolist()
    np.testing.assert_array_equal(np.concatenate(found['tags']), of_dense['tags'][MASK])
    np.testing.assert_array_equal(found['kind'], of_dense['kind'])
    one = {'age': AGE[3:4], 'tokens': [TOKENS[3].tolist()]}
    np.testing.assert_array_equal(predict(model, one)['tags'][0], found['tags'][3])
    evaluation = ModelEvaluator().evaluate(model, PARTS, targets, confidence=None)
    right = np.concatenate(found['tags']) == np.concatenate(TAGS)
    assert evaluation['tags']['accuracy'] == pytest.approx(right.mean())


def test_heads_of_sequences_alone_use_buckets():
    class Pair(Reader):
        def __call__(self, tokens, mask):
            tags = super().__call__(tokens, mask)
            return tags, tags.sum(1)

    model, history = train(Pair(), TOKENS, (TAGS, KIND), {'epochs': 1, 'learning_rate': 1e-12})
    dense = {'tokens': DENSE, 'mask': MASK}
    evaluation = ModelEvaluator().evaluate(
        model, dense, (PADDED_TAGS, KIND), metrics=['log_loss'], confidence=None
    )
    assert history['0_loss'][0] == pytest.approx(evaluation['0']['log_loss'], abs=1e-5)
    marked = [np.where(row == 0, 9, row) for row in TAGS]
    model, _ = train(
        Pair(), TOKENS, (marked, KIND), {'epochs': 1}, ignore_label={'0': 9}, metrics=['accuracy']
    )
    assert record_of(model).task.by_name['0'].ignore_label == 9


def test_parts_of_different_lengths_are_refused():
    parts = {'age': [row[:1] for row in TOKENS[1:]] + [TOKENS[0]], 'tokens': TOKENS}
    with pytest.raises(DataError, match=r"X_train\['tokens'\]: got rows of other lengths than"):
        train(Aged(), parts, {'kind': KIND})


def test_active_and_transfer_learning_ask_for_padded_rows():
    learner = ActiveLearner(Reader(2, of_rows=True), 'margin')
    with pytest.raises(DataError, match=r'X_unlabeled: .* pad or cut them first'):
        learner.start(TOKENS)
    with pytest.raises(DataError, match=r'X_train: .* pad or cut them first'):
        TransferLearner(nnx.Embed(WORDS, 4, rngs=nnx.Rngs(0))).fine_tune(
            X_train=TOKENS, y_train=KIND
        )
