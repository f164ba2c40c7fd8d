import jax
import numpy as np
import pytest
from flax import nnx

from thinkml.errors import ConfigError
from thinkml.models.zoo import Preprocessing, create, get_preprocessing, list_models


def test_models_have_names():
    names = list_models()
    assert len(set(names)) == len(names) == 11
    assert {'mlp', 'cnn', 'resnet18', 'resnet152', 'convnext_tiny', 'vit_b16'} <= set(names)


@pytest.mark.parametrize(
    ('name', 'suggested'),
    [('resnet_18', 'resnet18'), ('ResNet50', 'resnet50'), ('vit_b_16', 'vit_b16'), ('MLP', 'mlp')],
)
def test_an_unknown_name_is_answered_with_the_closest(name, suggested):
    for function in (create, get_preprocessing):
        with pytest.raises(ConfigError, match=f'name: got {name!r}.*Did you mean {suggested!r}'):
            function(name)


def test_classes_are_those_of_imagenet_or_asked_for():
    assert nnx.eval_shape(lambda: create('resnet18')).head.out_features == 1000
    assert create('resnet18', 7).head.out_features == 7
    for name in ('mlp', 'cnn', 'residual_mlp'):
        options = {} if name == 'cnn' else {'in_features': 3}
        with pytest.raises(ConfigError, match=f'num_classes: got nothing for {name}'):
            create(name, **options)


@pytest.mark.parametrize('num_classes', [0, -1, 2.0, True, 'ten'])
def test_impossible_numbers_of_classes(num_classes):
    with pytest.raises(ConfigError, match=f'num_classes: got {num_classes!r}'):
        create('cnn', num_classes)


def test_options_are_checked():
    with pytest.raises(ConfigError, match=r"got 'in_chanels'.*Did you mean 'in_channels'"):
        create('cnn', 2, in_chanels=1)
    with pytest.raises(ConfigError, match=r'in_features: got nothing for mlp.*in_features=\.\.\.'):
        create('mlp', 2)
    with pytest.raises(ConfigError, match='rngs'):
        create('cnn', 2, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="dtype: got 'int8'"):
        create('cnn', 2, dtype='int8')
    with pytest.raises(ConfigError, match="dtype: got 'half-ish'"):
        create('cnn', 2, dtype='half-ish')
    with pytest.raises(ConfigError, match='seed: got -1'):
        create('cnn', 2, seed=-1)
    with pytest.raises(ConfigError, match="weights: got 3, expected None, 'auto', 'required' or"):
        create('cnn', 2, weights=3)


def test_options_change_the_model():
    assert create('cnn', 2, in_channels=1).stages[0][0].conv.in_features == 1
    assert create('vit_s16', 2, image_size=384).positions.shape == (1, 577, 384)


def test_a_seed_says_what_the_weights_are():
    def leaves(seed):
        model = create('residual_mlp', 3, in_features=4, dropout=0.5, seed=seed)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]

    first, again, other = leaves(1), leaves(1), leaves(2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(first, other, strict=True))


def test_creating_a_large_model_compiles_next_to_nothing(count_compiles):
    create('resnet18')
    # Only zeros and ones of each shape are compiled, not the weights of the 54 convolutions.
    assert count_compiles(create, 'resnet50') <= 20
    assert count_compiles(create, 'resnet50', seed=1) == 0


def test_each_layer_has_its_own_dropout_stream():
    model = create('vit_s16', 2, dropout=0.5)
    keys = jax.tree.leaves(nnx.state(model.blocks, nnx.RngKey))
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == len(keys) >= 24


@pytest.mark.parametrize('name', list_models())
def test_architectures_with_pretrained_weights_have_a_preprocessing(name):
    preprocessing = get_preprocessing(name)
    if name in ('mlp', 'residual_mlp', 'cnn'):
        assert preprocessing is None
    else:
        assert isinstance(preprocessing, Preprocessing) and preprocessing.size == 224
