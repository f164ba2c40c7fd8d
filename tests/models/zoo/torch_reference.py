"""Reference networks in torch, with the tensor names that files have, and random weights."""

import re

import pytest

torch = pytest.importorskip('torch')
nn = torch.nn


class TorchBlock(nn.Module):
    """A residual block of ResNet 1.5, named as in torchvision."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        after = width * 4 if bottleneck else width
        self.conv1 = (
            nn.Conv2d(before, width, 1, bias=False)
            if bottleneck
            else nn.Conv2d(before, width, 3, stride, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride if bottleneck else 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if bottleneck:
            self.conv3 = nn.Conv2d(width, after, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(after)
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, 'conv3'):
            y = self.bn3(self.conv3(torch.relu(y)))
        return torch.relu(y + (self.downsample(x) if hasattr(self, 'downsample') else x))


class TorchResNet(nn.Module):
    def __init__(self, depths, bottleneck):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            after = width * 4 if bottleneck else width
            blocks = [
                TorchBlock(
                    before if index == 0 else after,
                    width,
                    2 if index == 0 and stage > 0 else 1,
                    bottleneck,
                )
                for index in range(depth)
            ]
            setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
            before = after
        self.fc = nn.Linear(before, 1000)

    def maps(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        found = []
        for stage in range(1, 5):
            x = getattr(self, f'layer{stage}')(x)
            found.append(x)
        return found

    def forward(self, x):
        return self.fc(self.maps(x)[-1].mean((2, 3)))


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Sets random weights and statistics that keep activations at the scale of 1.

    Branches are damped before they are added, as trained ones are: otherwise rounding errors grow
    from block to block, in torch as well.
    """
    torch.manual_seed(seed)
    for name, tensor in model.named_parameters():
        if re.search(r'gamma|layer_scale|bn3.weight|layer.2.normalization.weight', name):
            tensor.uniform_(0.05, 0.3)
        elif tensor.ndim == 1 and name.endswith('weight'):
            tensor.uniform_(0.8, 1.2)
        elif tensor.ndim == 1 or 'embeddings.cls' in name or 'position' in name:
            tensor.normal_(0, 0.2)
        else:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        model.eval()
        return
    for norm in norms:
        norm.momentum = None  # statistics are means over what follows
    model.train()
    model(torch.randn(8, 3, 96, 96))
    for norm in norms:
        norm.running_mean += 0.1 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    model.eval()


# --- names of other libraries, from transformers' -----------------------------------------------


def convnext_as_timm(tensors):
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix('convnext.')
        for old, new in (
            ('embeddings.patch_embeddings', 'stem.0'),
            ('embeddings.layernorm', 'stem.1'),
            ('encoder.stages', 'stages'),
            ('downsampling_layer', 'downsample'),
            ('layers', 'blocks'),
            ('dwconv', 'conv_dw'),
            ('pwconv', 'mlp.fc'),
            ('layer_scale_parameter', 'gamma'),
        ):
            name = name.replace(old, new)
        name = re.sub(r'^classifier', 'head.fc', name)
        name = re.sub(r'^layernorm', 'head.norm', name).replace('layernorm', 'norm')
        renamed[name] = tensor
    return renamed


def convnext_as_torchvision(tensors):
    block_parts = {'conv_dw': 0, 'norm': 2, 'mlp.fc1': 3, 'mlp.fc2': 5}
    renamed = {}
    for name, tensor in convnext_as_timm(tensors).items():
        if name.startswith('stem'):
            name = name.replace('stem', 'features.0')
        elif name.startswith('head'):
            name = name.replace('head.norm', 'classifier.0').replace('head.fc', 'classifier.2')
        elif 'downsample' in name:
            _, stage, _, *rest = name.split('.')
            name = '.'.join(['features', str(2 * int(stage)), *rest])
        else:
            _, stage, _, block, part, last = re.fullmatch(
                r'(stages)\.(\d)\.(blocks)\.(\d)\.(gamma|.*(?=\.))\.?(.*)', name
            ).groups()
            place = f'features.{2 * int(stage) + 1}.{block}'
            if part == 'gamma':
                name, tensor = f'{place}.layer_scale', tensor[:, None, None]
            else:
                name = f'{place}.block.{block_parts[part]}.{last}'
        renamed[name] = tensor
    return renamed


_VIT_NAMES = {
    'timm': {
        'vit.embeddings.cls_token': 'cls_token',
        'vit.embeddings.position_embeddings': 'pos_embed',
        'vit.embeddings.patch_embeddings.projection': 'patch_embed.proj',
        'vit.encoder.layer.': 'blocks.',
        'attention.output.dense': 'attn.proj',
        'intermediate.dense': 'mlp.fc1',
        'output.dense': 'mlp.fc2',
        'layernorm_before': 'norm1',
        'layernorm_after': 'norm2',
        'vit.layernorm': 'norm',
        'classifier': 'head',
        'qkv.': 'attn.qkv.',
    },
    'torchvision': {
        'vit.embeddings.cls_token': 'class_token',
        'vit.embeddings.position_embeddings': 'encoder.pos_embedding',
        'vit.embeddings.patch_embeddings.projection': 'conv_proj',
        'vit.encoder.layer.': 'encoder.layers.encoder_layer_',
        'attention.output.dense': 'self_attention.out_proj',
        'intermediate.dense': 'mlp.0',
        'output.dense': 'mlp.3',
        'layernorm_before': 'ln_1',
        'layernorm_after': 'ln_2',
        'vit.layernorm': 'encoder.ln',
        'classifier': 'heads.head',
        'qkv.': 'self_attention.in_proj_',
    },
}


def vit_as(layout, tensors):
    joined = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r'(.*)attention\.attention\.(query|key|value)(\..*)', name)
        if match is None:
            joined[name] = tensor
        elif match[2] == 'query':
            parts = [tensors[f'{match[1]}attention.attention.{p}{match[3]}'] for p in PARTS]
            joined[f'{match[1]}qkv{match[3]}'] = torch.cat(parts)
    renamed = {}
    for name, tensor in joined.items():
        for old, new in _VIT_NAMES[layout].items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


PARTS = ('query', 'key', 'value')
