"""Models on the Hugging Face hub: commits of branches and tags, and downloads."""

from pathlib import Path
from typing import Final

from pixrec_core import files
from pixrec_core.errors import BackboneError, SettingsError
from pixrec_core.settings import ModelSettings

#: Files to download from a repository: no pickled weights and no code.
FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model", "model*.safetensors", "*_Dense/model.safetensors"]

_WITHOUT_NETWORK: Final = (
    "Without a network, download the model on another machine with `hf download NAME --local-dir FOLDER`, and give "
    "that folder in place of the name"
)


def pin_revision(settings: ModelSettings) -> ModelSettings:
    """The settings with the current commit as revision, in place of a branch or tag, so that training is repeatable."""
    return settings.model_copy(update={"revision": resolve_commit(settings.backbone, settings.revision)})


def model_state(name: str, revision: str | None = None) -> object:
    """Return what shows changes of a model: size and time of the files in a local folder, or the commit on the hub.

    None without a commit (see `resolve_commit`) or if it cannot be resolved.
    """
    folder = Path(name)
    if folder.is_dir():
        inside = (path.relative_to(folder) for path in folder.rglob("*"))
        visible = (path for path in inside if not any(part.startswith(".") for part in path.parts))  # no .cache, .git
        stats = files.stat_snapshot(folder / path for path in visible)
        return {str(Path(path).relative_to(folder)): stat for path, stat in stats.items()}
    try:
        return resolve_commit(name, revision)
    except BackboneError:
        return None


def resolve_commit(name: str, revision: str | None, setting: str = "model.backbone") -> str | None:
    """Commit of a model on the hub; without a network, the one in the local cache.

    None for `tiny` and for a local folder, which have no commits. `setting` is what an error calls the name.

    Raises:
        BackboneError: the repository or revision does not exist, or there is neither a network nor a cached commit.
    """
    if name == "tiny" or Path(name).exists():
        return None
    from httpx2 import HTTPError  # no OSError; huggingface_hub lets those of a proxy pass
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return resolve_revision(name, revision=revision).resolved
    except (RevisionResolutionError, HTTPError, OSError, ValueError) as error:
        raise BackboneError(
            f"{setting} = {name!r}, revision {revision or 'of the default branch'}, is no local folder and was not "
            f"found on the Hugging Face hub ({_first_line(error)}). Correct the name or the revision. "
            f"{_WITHOUT_NETWORK}"
        ) from error


def push_folder(folder: Path, name: str, message: str, *, private: bool = True) -> str:
    """Upload a folder to a model repository of the hub, which is created if it does not exist; return its URL.

    The token is that of `hf auth login` or of the environment variable HF_TOKEN; the hub is that of HF_ENDPOINT.

    `name` is `owner/name`; `private` is whether a new repository is private.

    Raises:
        SettingsError: the name is invalid, the hub cannot be reached, or it refuses the upload.
    """
    from httpx2 import HTTPError, RequestError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    try:
        created = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message=message)
    except (HTTPError, HFValidationError, OSError) as error:
        advice = (
            "Check the network and HF_ENDPOINT"
            if isinstance(error, RequestError)
            else "Log in with `hf auth login`, and name a repository `owner/name` that you may write to"
        )
        raise SettingsError(
            f"cannot push to {name} on the Hugging Face hub ({_first_line(error)}). {advice}"
        ) from error
    return str(created)


def download_backbone(name: str, revision: str | None, setting: str = "model.backbone") -> Path:
    """Folder of a backbone's files; downloads one commit from the hub, unless it is a local folder.

    `setting` is what an error calls the name.

    A completely cached commit needs no request. transformers would request optional files one by one and, without a
    network, retry each for many seconds.

    Raises:
        BackboneError: the download failed, and the commit is not completely cached.
    """
    commit = resolve_commit(name, revision, setting)
    if commit is None:
        return Path(name)
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=FILES))
    except (HTTPError, OSError) as error:
        raise BackboneError(
            f"model {name!r}, revision {commit}, could not be downloaded from the Hugging Face hub "
            f"({_first_line(error)}). Check the network and try again. {_WITHOUT_NETWORK}"
        ) from error


def _first_line(error: Exception) -> str:
    """The class of an error and the first line of its message."""
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"
