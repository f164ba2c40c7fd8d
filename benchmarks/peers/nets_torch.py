"""The nets in torch. Images have the channels first."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .workloads import HEADS, HIDDEN, NORM_EPSILON, STAGES, VOCABULARY, WIDTH


class MLP(nn.Module):
    def __init__(self, workload):
        super().__init__()
        self.dense = nn.ModuleList(nn.Linear(*both) for both in itertools.pairwise(workload.widths))

    def forward(self, x):
        for layer in self.dense[:-1]:
            x = functional.relu(layer(x))
        return self.dense[-1](x)


class CNN(nn.Module):
    def __init__(self, workload):
        super().__init__()
        channels = itertools.pairwise((workload.shape[-1], 32, 64))
        self.conv = nn.ModuleList(nn.Conv2d(*both, 3, padding=1) for both in channels)
        self.dense = nn.ModuleList([nn.Linear(7 * 7 * 64, 128), nn.Linear(128, 10)])

    def forward(self, x):
        for conv in self.conv:
            x = functional.max_pool2d(functional.relu(conv(x)), 2)
        return self.dense[1](functional.relu(self.dense[0](x.flatten(1))))


def _conv(inputs, outputs, size, stride):
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.norm1 = nn.BatchNorm2d(outputs, NORM_EPSILON)
        self.conv2 = _conv(outputs, outputs, 3, 1)
        self.norm2 = nn.BatchNorm2d(outputs, NORM_EPSILON)
        self.shortcut = None if stride == 1 else _conv(inputs, outputs, 1, stride)
        self.shortcut_norm = None if stride == 1 else nn.BatchNorm2d(outputs, NORM_EPSILON)

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return functional.relu(x + y)


class ResNet(nn.Module):
    def __init__(self, workload):
        super().__init__()
        self.stem = _conv(workload.shape[-1], STAGES[0], 3, 1)
        self.stem_norm = nn.BatchNorm2d(STAGES[0], NORM_EPSILON)
        widths = itertools.pairwise((STAGES[0], *STAGES))
        self.block = nn.ModuleList(Block(*both) for both in widths)
        self.head = nn.Linear(STAGES[-1], 10)

    def forward(self, x):
        x = functional.relu(self.stem_norm(self.stem(x)))
        for block in self.block:
            x = block(x)
        return self.head(x.mean((2, 3)))


def _encoder(depth):
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, dropout=0.0, activation=nn.GELU('tanh'), batch_first=True,
        norm_first=True, layer_norm_eps=NORM_EPSILON,
    )  # fmt: skip
    norm = nn.LayerNorm(WIDTH, NORM_EPSILON)
    return nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)


class Transformer(nn.Module):
    def __init__(self, workload):
        super().__init__()
        self.encoder = _encoder(workload.depth)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class GPT(nn.Module):
    def __init__(self, workload):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(workload.num_tokens, WIDTH)
        self.encoder = _encoder(workload.depth)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        mask = nn.Transformer.generate_square_subsequent_mask(workload.num_tokens)
        self.register_buffer('mask', mask, persistent=False)

    def forward(self, tokens):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.encoder(x, self.mask, is_causal=True))


NETS = {'mlp': MLP, 'cnn': CNN, 'resnet': ResNet, 'transformer': Transformer, 'gpt': GPT}


def make_net(workload, weights):
    """Returns the net with these weights."""
    net = NETS[workload.net](workload)
    translate = _of_encoder if workload.depth else _of_layers
    arrays = {name: torch.from_numpy(array) for name, array in translate(weights).items()}
    counters = {k: v for k, v in net.state_dict().items() if k.endswith('num_batches_tracked')}
    net.load_state_dict(arrays | counters)
    return net


def make_tensors(job):
    """Returns the rows and labels; images have the channels first."""
    x = job.x.transpose(0, 3, 1, 2) if job.workload.has_convolutions else job.x
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(job.y)


_LEAVES = {
    'kernel': 'weight', 'embedding': 'weight', 'scale': 'weight', 'bias': 'bias',
    'mean': 'running_mean', 'var': 'running_var',
}  # fmt: skip


def _of_layers(weights):
    arrays = {}
    for name, array in weights.items():
        layer, leaf = name.rsplit('.', 1)
        if name == 'dense.0.kernel' and 'conv.0.kernel' in weights:
            # The flattened input is [channels, height, width] here.
            array = array.reshape(7, 7, 64, -1).transpose(2, 0, 1, 3).reshape(array.shape)
        if leaf == 'kernel':
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        arrays[f'{layer}.{_LEAVES[leaf]}'] = np.array(array)
    return arrays


def _of_encoder(weights):
    arrays = {
        name.replace('block.', 'encoder.layers.').replace('.up.', '.linear1.')
        .replace('.down.', '.linear2.'): array
        for name, array in _of_layers(
            {name: array for name, array in weights.items() if '.attention.' not in name}
        ).items()
    }  # fmt: skip
    arrays = {
        f'encoder.{name}' if name.startswith('norm.') else name: array
        for name, array in arrays.items()
    }
    depth = sum(name.endswith('.attention.out.kernel') for name in weights)
    for index in range(depth):
        ours, theirs = f'block.{index}.attention', f'encoder.layers.{index}.self_attn'
        inward = [f'{ours}.{name}' for name in ('query', 'key', 'value')]
        arrays[f'{theirs}.in_proj_weight'] = np.concatenate(
            [weights[f'{name}.kernel'].reshape(WIDTH, WIDTH).T for name in inward]
        )
        arrays[f'{theirs}.in_proj_bias'] = np.concatenate(
            [weights[f'{name}.bias'].reshape(WIDTH) for name in inward]
        )
        out = weights[f'{ours}.out.kernel'].reshape(WIDTH, WIDTH).T
        arrays[f'{theirs}.out_proj.weight'] = np.array(out)
        arrays[f'{theirs}.out_proj.bias'] = weights[f'{ours}.out.bias']
    return arrays
