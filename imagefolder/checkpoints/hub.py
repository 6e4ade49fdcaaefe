"""Sources of weights (local paths and `hf://` locations), and publishing to the hub.

A file in the hub's local cache is used without contacting the network; downloads are verified against the hub's hash.
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
    ModelCard,
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

from imagefolder.checkpoints.card import model_card
from imagefolder.checkpoints.native import (
    CONFIG,
    WEIGHTS,
    load_weights,
    read_config,
    require_fitting,
    save_checkpoint,
)
from imagefolder.config import Config
from imagefolder.errors import InputError, reason
from imagefolder.files import file_sha256

SCHEME = "hf://"
_LOCATION = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>.+))?")
REACH_SECONDS = 5


def locate(weights: str | Path) -> Path:
    """Local path of a weight file, or of the folder of a native checkpoint.

    Args:
        weights: a path, `hf://owner/repo/file`, or `hf://owner/repo` for a native checkpoint; `owner/repo@revision`
            pins a commit, tag or branch.

    Raises:
        InputError: it does not exist, there is no network, or a download does not match its hash.
    """
    if not str(weights).startswith(SCHEME):
        path = Path(weights)
        try:
            there = path.exists()
        except (OSError, ValueError) as error:  # too long, or not a file name
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


def download(repo: str, file: str, revision: str | None = None) -> Path:
    """A file of a hub repository: from the local cache, or downloaded (with a progress bar) and verified."""
    what = f"{SCHEME}{repo}{f'@{revision}' if revision else ''}/{file}"
    try:
        cached = try_to_load_from_cache(repo, file, revision=revision)
    except HFValidationError as error:
        raise InputError(f"{what}: {reason(error)}") from None
    if isinstance(cached, str):
        return Path(cached)
    require_network(what)
    try:
        expected = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision)).etag or ""
        path = Path(hf_hub_download(repo, file, revision=revision))
    except EntryNotFoundError:
        raise InputError(f"{what}: the repository has no such file") from None
    except RevisionNotFoundError:
        raise InputError(f"{what}: no such revision") from None
    except RepositoryNotFoundError:
        raise InputError(f"{what}: no such repository, or a private one (log in with `hf auth login`)") from None
    except Exception as error:  # hub clients raise many types
        raise InputError(f"{what}: download failed ({reason(error)})") from None
    if len(expected) in (40, 64) and _hub_hash(path, len(expected)) != expected:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise InputError(f"{what}: the download did not match its hash {expected} and was removed; try again")
    return path


def require_network(what: str) -> None:
    """Raise `InputError` at once if the hub cannot be reached, instead of retrying for a minute as hub clients do."""
    where = constants.ENDPOINT
    if constants.is_offline_mode():
        raise InputError(f"{what}: not in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(where, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # any answer will do
    except OSError as error:
        why = getattr(error, "reason", error)
        raise InputError(
            f"{what}: not in the local cache ({constants.HF_HUB_CACHE}), and {where} cannot be reached ({why}); "
            "download it on a machine with network access and copy the cache or the file here"
        ) from None


def _hub_hash(path: Path, digits: int) -> str:
    """The hub's hash of a file: sha256 for large files, git's blob sha1 for small ones."""
    if digits == 64:
        return file_sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubModel(nn.Module, PyTorchModelHubMixin):
    """A module with `save_pretrained`, `push_to_hub` and `from_pretrained` in the native checkpoint format."""

    config: Config
    config_type: ClassVar[type[Config]]
    float32_sha256: str | None = None
    """of the native weight file in float32, if the model was cast to another type when it was loaded"""

    def weights_module(self) -> nn.Module:
        """The module whose weights are stored."""
        raise AssertionError("abstract")

    def about(self) -> dict[str, Any]:
        """JSON values to store next to the weights."""
        return {}

    def adopt(self, about: dict[str, Any], origin: str) -> None:
        """Take over what `about`, the document next to the weights, says; `InputError` naming `origin` if that is
        wrong."""

    def generate_model_card(self, *args: Any, **arguments: Any) -> ModelCard:
        """The card of a saved or published model; `arguments` (`model_card_kwargs`) are those of `model_card`."""
        return model_card(self.config, *args, **arguments)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """Publish the model; arguments and result are those of `PyTorchModelHubMixin.push_to_hub`."""
        card = {"repo": repo_id, **(arguments.pop("model_card_kwargs", None) or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=card, **arguments)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_checkpoint(Path(save_directory), self.weights_module(), self.config, **self.about())

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **arguments: Any
    ) -> Self:
        """A published model in evaluation mode.

        The weight file is checked against the configuration before the model is built, so that a configuration alone
        cannot allocate memory.

        Args:
            pretrained_model_name_or_path: `owner/repo` on the hub, or the folder of a native checkpoint.
            revision: commit, tag or branch.
            arguments: of the constructor, besides the configuration (a generator's `tokenizer`).

        Raises:
            InputError: nothing found, or files that are damaged, impossible or do not belong together.
        """
        location = str(pretrained_model_name_or_path)
        if not Path(location).is_dir():
            location = f"{SCHEME}{location}{f'@{revision}' if revision else ''}"
        folder = locate(location)
        config = read_config(folder, cls.config_type)
        with torch.device("meta"):
            require_fitting(folder, cls(config, **arguments).weights_module())
        model = cls(config, **arguments)
        model.adopt(load_weights(folder, model.weights_module(), config), str(folder))
        return model.eval()
