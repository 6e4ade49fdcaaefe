"""Where weights come from: local paths, `hf://` locations; and models that publish themselves (hub mixin).

A file already in the hub's cache is used as it is, without asking the network; what is downloaded is verified against
the hub's own hash.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import (
    PyTorchModelHubMixin,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import nn

from imagefolder.checkpoints.native import (
    CONFIG,
    WEIGHTS,
    load_weights,
    read_config,
    require_fitting,
    save_checkpoint,
)
from imagefolder.config import GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError, reason
from imagefolder.files import file_sha256

SCHEME = "hf://"
_LOCATION = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>.+))?")
REACH_SECONDS = 5


def locate(weights: str | Path) -> Path:
    """Local path of a file, or of the folder of a native checkpoint.

    Args:
        weights: a path, `hf://owner/repo/file`, or `hf://owner/repo` for a native checkpoint; `owner/repo@revision`
            pins a commit, tag or branch.

    Raises:
        InputError: nothing there, no network, or a download that does not match its hash.
    """
    if not str(weights).startswith(SCHEME):
        path = Path(weights)
        try:
            there = path.exists()
        except (OSError, ValueError) as error:  # a name too long, or no name at all
            raise InputError(f"{weights}: no such file or folder ({reason(error)})") from None
        if not there:
            raise InputError(f"{weights}: no such file or folder")
        return path.parent if path.name == WEIGHTS and (path.parent / CONFIG).exists() else path
    match = _LOCATION.fullmatch(str(weights))
    if match is None or ".." in Path(match["file"] or "").parts:
        raise InputError(f"{weights}: expected hf://owner/repo, hf://owner/repo/file or hf://owner/repo@revision/file")
    repo, revision = match["repo"], match["revision"]
    if match["file"] and match["file"] != WEIGHTS:
        return download(repo, match["file"], revision)
    folder = download(repo, CONFIG, revision).parent
    download(repo, WEIGHTS, revision)
    return folder


def download(
    repo: str, file: str, revision: str | None = None, cache_dir: str | Path | None = None, token: Any = None
) -> Path:
    """A file of a hub repository: from the local cache if there, else downloaded (with progress) and verified."""
    what = f"{SCHEME}{repo}{f'@{revision}' if revision else ''}/{file}"
    try:
        cached = try_to_load_from_cache(repo, file, cache_dir=cache_dir, revision=revision)
    except HFValidationError as error:
        raise InputError(f"{what}: {reason(error)}") from None
    if isinstance(cached, str):
        return Path(cached)
    require_network(what)
    try:
        expected = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), token=token).etag or ""
        path = Path(hf_hub_download(repo, file, revision=revision, cache_dir=cache_dir, token=token))
    except EntryNotFoundError:
        raise InputError(f"{what}: the repository holds no such file") from None
    except RevisionNotFoundError:
        raise InputError(f"{what}: no such revision") from None
    except RepositoryNotFoundError:
        raise InputError(f"{what}: no such repository, or a private one (log in with `hf auth login`)") from None
    except Exception as error:  # hub clients raise many kinds
        raise InputError(f"{what}: download failed ({reason(error)})") from None
    if len(expected) in (40, 64) and _hub_hash(path, len(expected)) != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise InputError(f"{what}: the download does not match its hash {expected}; removed, try again")
    return path


def require_network(what: str) -> None:
    """`InputError` at once if the hub cannot be reached, instead of a client's minute of retries."""
    where = constants.ENDPOINT
    if constants.is_offline_mode():
        raise InputError(f"{what}: not in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(where, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer, whatever it says
    except OSError as error:
        why = getattr(error, "reason", error)
        raise InputError(
            f"{what}: not in the local cache ({constants.HF_HUB_CACHE}), and {where} cannot be reached ({why}); "
            "fetch it on a machine with network and copy the cache or the file here"
        ) from None


def _hub_hash(path: Path, digits: int) -> str:
    """The hub's hash of a file: sha256 of large files, git's blob sha1 of small ones."""
    if digits == 64:
        return file_sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubModel(
    PyTorchModelHubMixin,
    library_name="imagefolder",
    license="other",
    tags=["image-generation", "image-tokenizer", "arxiv:2410.01756"],
):
    """`save_pretrained`, `push_to_hub` and `from_pretrained` of a model, in the native checkpoint format.

    Licence "other": weights converted from the authors' files keep the authors' non-commercial terms.
    """

    config: TokenizerConfig | GeneratorConfig
    config_type: ClassVar[type]

    def weights_module(self) -> nn.Module:
        """The part whose weights are stored."""
        raise AssertionError("abstract")

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(Path(save_directory), self.weights_module(), self.config)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **arguments: Any
    ) -> Self:
        """A published model in evaluation mode.

        The weight file must hold what the configuration asks for, before the model is built: a configuration alone
        takes no memory.

        Args:
            pretrained_model_name_or_path: `owner/repo` on the hub, or the folder of a native checkpoint.
            revision: commit, tag or branch.
            arguments: of the constructor, beside the configuration (a generator's `tokenizer`).

        Raises:
            InputError: nothing there, or files that are damaged, impossible or do not belong together.
        """
        location = str(pretrained_model_name_or_path)
        if not Path(location).is_dir():
            location = f"{SCHEME}{location}{f'@{revision}' if revision else ''}"
        folder = locate(location)
        config = read_config(folder, cls.config_type)
        with torch.device("meta"):
            require_fitting(folder, cls(config, **arguments).weights_module())
        model = cls(config, **arguments)
        load_weights(folder, model.weights_module(), config)
        return model.eval()
