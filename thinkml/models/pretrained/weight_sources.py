"""Where pretrained weights are found: in files at hand, else at Hugging Face."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from thinkml.errors import PretrainedWeightsWarning, WeightsError, warn_user


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of pretrained weights.

    Attributes:
        file: its name; torch's end in the first digits of their SHA-256.
        repository: at Hugging Face; None for torch's own files.
        revision: the commit it is pinned to.
        sha256: of its content, or its first digits; None where it is not known. Without all of
            them, or without a revision, it is not downloaded.
    """

    file: str
    repository: str | None = None
    revision: str | None = None
    sha256: str | None = None

    @property
    def name_at_home(self) -> str:
        """The name under which it is looked for among ThinkML's own files."""
        return self.file if self.repository is None else f'{self.repository}/{self.file}'

    @property
    def address(self) -> str:
        """Where people get it."""
        if self.repository is None:
            return f'https://download.pytorch.org/models/{self.file}'
        where = f'{self.repository}/resolve/{self.revision or "main"}/{self.file}'
        return f'https://huggingface.co/{where}'

    @property
    def is_pinned(self) -> bool:
        """Whether it is known which commit it is of, and its whole hash."""
        return self.revision is not None and self.sha256 is not None and len(self.sha256) == 64


def _torch(name: str, digits: str) -> Source:
    return Source(f'{name}-{digits}.pth', sha256=digits)


def _hub(repository: str, sha256: str | None = None, revision: str | None = None) -> Source:
    return Source('model.safetensors', repository, revision, sha256)


# Those that may be downloaded first. All of an architecture were trained on images prepared alike.
# torch's files: https://docs.pytorch.org/vision/stable/models.html
SOURCES: Mapping[str, tuple[Source, ...]] = {
    'resnet18': (
        _hub(
            'timm/resnet18.a1_in1k',
            '80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612',
            '491b427b45c94c7fb0e78b5474cc919aff584bbf',
        ),
        _torch('resnet18', 'f37072fd'),
    ),
    'resnet34': (
        _hub(
            'timm/resnet34.a1_in1k',
            '829a220f9529d2b1ffdc8719d3273463001e0daf411eaf1916865d9db62c0ed2',
        ),
        _torch('resnet34', 'b627a593'),
    ),
    'resnet50': (
        _hub(
            'timm/resnet50.a1_in1k',
            '773525d5821de224f8f30c33377b7a795d7863e08522698200d3217d3f2a41bb',
            '767268603ca0cb0bfe326fa87277f19c419566ef',
        ),
        _torch('resnet50', '11ad3fa6'),
        _torch('resnet50', '0676ba61'),
        _hub('microsoft/resnet-50'),
    ),
    'resnet101': (_torch('resnet101', 'cd907fc2'), _torch('resnet101', '63fe2227')),
    'resnet152': (_torch('resnet152', 'f82ba261'), _torch('resnet152', '394f9c45')),
    'convnext_tiny': (
        _hub(
            'timm/convnext_tiny.fb_in1k',
            '08b9dc9c3a3a29421de7996761e176501896d1ae7fc3085cf56a643772329276',
            'b43a6303c9fcf176d2d707478a128c2c91e93528',
        ),
        _torch('convnext_tiny', '983f1562'),
        _hub('facebook/convnext-tiny-224'),
    ),
    'vit_s16': (
        _hub(
            'timm/vit_small_patch16_224.augreg_in21k_ft_in1k',
            '79c03c635cdfd798a364a9d8c4e5c0b7255b975ea2c9616046d4f77ab01435aa',
            '7e2c55630205e1266030f18370f4c6ed1a514b52',
        ),
    ),
    'vit_b16': (
        _hub(
            'timm/vit_base_patch16_224.augreg2_in21k_ft_in1k',
            '32aa17d6e17b43500f531d5f6dc9bc93e56ed8841b8a75682e1bb295d722405b',
            '063c6c38a5d8510b2e57df480445e94b231dad2c',
        ),
    ),
}


def home() -> Path:
    """``$THINKML_HOME``, or ``~/.cache/thinkml``: a folder ``weights`` in it is looked at first."""
    return Path(os.environ.get('THINKML_HOME') or '~/.cache/thinkml').expanduser()


def find_weights(name: str) -> Path | None:
    """Returns the file of pretrained weights for an architecture, downloading it if it is pinned.

    Looked for in this order: ``$THINKML_HOME/weights``, the caches of Hugging Face and of torch
    hub, and then the web, through huggingface_hub, if the file's commit and hash are pinned.

    Args:
        name: of an architecture.

    Returns:
        None if there is none at hand and none that may be downloaded.

    Warns:
        PretrainedWeightsWarning: if a download fails. Says why.

    Raises:
        WeightsError: if a file is not what its hash says.
    """
    sources = SOURCES.get(name, ())
    for places in (_at_home, _in_hub_cache, _in_torch_cache, _downloaded):
        for source in sources:
            path = places(source)
            if path is not None and path.is_file():
                _check_hash(path, source)
                return path
    return None


def how_to_get(name: str) -> str:
    """Says which file to get, where from and where to put it."""
    sources = SOURCES.get(name, ())
    if not sources:
        return f'No pretrained weights of {name} are known; pass the path of a file.'
    source = sources[0]
    target = home() / 'weights' / source.name_at_home
    return f'Get {source.address} and put it at {target}, or pass its path: weights=...'


def _at_home(source: Source) -> Path | None:
    return home() / 'weights' / source.name_at_home


def _in_hub_cache(source: Source) -> Path | None:
    if source.repository is None:
        return None
    cache = os.environ.get('HF_HUB_CACHE')
    root = Path(os.environ.get('HF_HOME') or '~/.cache/huggingface').expanduser() / 'hub'
    folder = (Path(cache).expanduser() if cache else root) / _folder_of(source.repository)
    revision = source.revision or _main_of(folder)
    return None if revision is None else folder / 'snapshots' / revision / source.file


def _folder_of(repository: str) -> str:
    return 'models--' + repository.replace('/', '--')


def _main_of(folder: Path) -> str | None:
    """The revision that was last taken for the newest."""
    ref = folder / 'refs' / 'main'
    if not ref.is_file():
        return None
    revision = ref.read_text()[:64].strip()
    return revision if revision.isalnum() else None


def _in_torch_cache(source: Source) -> Path | None:
    if source.repository is not None:
        return None
    default = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'torch'
    folder = Path(os.environ.get('TORCH_HOME') or default).expanduser()
    return folder / 'hub' / 'checkpoints' / source.file


def _downloaded(source: Source) -> Path | None:
    if source.repository is None or not source.is_pinned:
        return None
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError:
        return None
    try:
        found = hub.hf_hub_download(source.repository, source.file, revision=source.revision)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):  # there is no connection
        return None
    except Exception as error:  # of the library under it, which is another one in each version
        warn_user(
            f'weights: {source.address} was not downloaded: {type(error).__name__}: {error}.',
            PretrainedWeightsWarning,
        )
        return None
    return Path(found)


def _check_hash(path: Path, source: Source) -> None:
    if source.sha256 is None:
        return
    with open(path, 'rb') as file:
        found = hashlib.file_digest(file, 'sha256').hexdigest()
    if not found.startswith(source.sha256):
        raise WeightsError(
            f'weights: {path} is damaged or another file: its SHA-256 begins with {found[:16]}, '
            f'expected {source.sha256[:16]}. Remove it and get it again: {source.address}.'
        )
