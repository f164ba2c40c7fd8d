"""Search for files of pretrained weights: in local folders and caches, then at Hugging Face."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from thinkml.environment import cache_home
from thinkml.errors import PretrainedWeightsWarning, WeightsError, warn_user


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of pretrained weights.

    Attributes:
        file: the file's name. The names of torch's files end in the first digits of the SHA-256.
        repository: the repository at Hugging Face; None for torch's own files.
        revision: the commit that the file is pinned to.
        sha256: the hash of the content, or its first digits; None if it is not known. A file is
            downloaded only if its revision and its full hash are given.
    """

    file: str
    repository: str | None = None
    revision: str | None = None
    sha256: str | None = None

    @classmethod
    def torchvision(cls, name: str, digits: str) -> 'Source':
        """Returns the source of one of torch's files.

        The files are listed at https://docs.pytorch.org/vision/stable/models.html.

        Args:
            name: the beginning of the file's name.
            digits: the first digits of its SHA-256, with which its name ends.
        """
        return cls(f'{name}-{digits}.pth', sha256=digits)

    @classmethod
    def hugging_face(
        cls, repository: str, *, sha256: str | None = None, revision: str | None = None
    ) -> 'Source':
        """Returns the source of the file ``model.safetensors`` in a repository."""
        return cls('model.safetensors', repository, revision, sha256)

    @property
    def local_name(self) -> str:
        """Returns the path of the file within the folder of weights in ThinkML's cache."""
        return self.file if self.repository is None else f'{self.repository}/{self.file}'

    @property
    def address(self) -> str:
        """Returns the URL from which the file can be downloaded."""
        if self.repository is None:
            return f'https://download.pytorch.org/models/{self.file}'
        path = f'{self.repository}/resolve/{self.revision or "main"}/{self.file}'
        return f'https://huggingface.co/{path}'

    @property
    def is_pinned(self) -> bool:
        """Returns True if the commit and the full hash of the file are given."""
        return self.revision is not None and self.sha256 is not None and len(self.sha256) == 64


def find_weights(sources: Sequence[Source]) -> Path | None:
    """Returns the file of one of the sources, and downloads it if it is pinned.

    The search order is ``$THINKML_HOME/weights``, the caches of Hugging Face and of torch hub, and
    then the web. A file is downloaded, by huggingface_hub, only if its commit and hash are pinned.

    Args:
        sources: the files that fit, the preferred ones first.

    Returns:
        The path of the file; None if no file is found and none may be downloaded.

    Warns:
        PretrainedWeightsWarning: if a download fails. Says why.

    Raises:
        WeightsError: if the hash of a file is not the expected one.
    """
    for search in (_in_cache_home, _in_hub_cache, _in_torch_cache, _downloaded):
        for source in sources:
            path = search(source)
            if path is not None and path.is_file():
                _check_hash(path, source)
                return path
    return None


def download_advice(name: str, sources: Sequence[Source]) -> str:
    """Returns a sentence for error messages: which file to download, and where to put it.

    Args:
        name: the architecture's name, for the sentence.
        sources: the files that fit, the preferred ones first.
    """
    if not sources:
        return f'No pretrained weights of {name} are known; pass the path of a file.'
    source = sources[0]
    target = cache_home() / 'weights' / source.local_name
    return f'Get {source.address} and put it at {target}, or pass its path: weights=...'


def _in_cache_home(source: Source) -> Path | None:
    return cache_home() / 'weights' / source.local_name


def _in_hub_cache(source: Source) -> Path | None:
    if source.repository is None:
        return None
    cache = os.environ.get('HF_HUB_CACHE')
    root = Path(os.environ.get('HF_HOME') or '~/.cache/huggingface').expanduser() / 'hub'
    folder = (Path(cache).expanduser() if cache else root) / _cache_folder(source.repository)
    revision = source.revision or _main_revision(folder)
    return None if revision is None else folder / 'snapshots' / revision / source.file


def _cache_folder(repository: str) -> str:
    return 'models--' + repository.replace('/', '--')


def _main_revision(folder: Path) -> str | None:
    """Returns the revision to which the branch main pointed at the last download."""
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
        path = hub.hf_hub_download(source.repository, source.file, revision=source.revision)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):  # there is no connection
        return None
    except Exception as error:  # the HTTP library's own type, which differs between versions
        warn_user(
            f'weights: {source.address} was not downloaded: {type(error).__name__}: {error}.',
            PretrainedWeightsWarning,
        )
        return None
    return Path(path)


def _check_hash(path: Path, source: Source) -> None:
    if source.sha256 is None:
        return
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if not digest.startswith(source.sha256):
        raise WeightsError(
            f'weights: {path} is damaged or another file: its SHA-256 begins with {digest[:16]}, '
            f'expected {source.sha256[:16]}. Remove it and get it again: {source.address}.'
        )
