"""Backbones on the Hugging Face hub: the commit that a name stands for, and its files."""

from pathlib import Path

from pixrec_core.errors import BackboneError
from pixrec_core.settings import ModelSettings

#: What is fetched of a repository: no pickled weights and no code.
FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model", "model*.safetensors"]


def pin_revision(settings: ModelSettings) -> ModelSettings:
    """The settings with a branch or tag of the hub replaced by the commit that it stands for now.

    What is trained by them can be trained again, however the branch moves.

    Raises:
        BackboneError: as `resolve_commit`.
    """
    return settings.model_copy(update={"revision": resolve_commit(settings.backbone, settings.revision)})


def current_commit(settings: ModelSettings) -> str | None:
    """The commit that a backbone stands for now; None where there is none, or none can be had."""
    try:
        return resolve_commit(settings.backbone, settings.revision)
    except BackboneError:
        return None


def resolve_commit(name: str, revision: str | None) -> str | None:
    """The commit of a backbone on the hub: asked of the hub or, without a network, as it was when last asked.

    None for `tiny` and for a local folder, which have no commits.

    Raises:
        BackboneError: there is no such repository or revision, or no network and nothing in the local cache.
    """
    if name == "tiny" or Path(name).exists():
        return None
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return resolve_revision(name, revision=revision).resolved
    except (RevisionResolutionError, OSError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise BackboneError(
            f"backbone {name!r}, revision {revision or 'of the default branch'}, is no local folder and was not found "
            f"on the Hugging Face hub ({type(error).__name__}: {first_line}). Mend the name or the revision; without a "
            "network, set model.backbone to a local folder that holds the model, fetched elsewhere by "
            "`hf download NAME --local-dir FOLDER`"
        ) from error


def download_backbone(name: str, revision: str | None) -> Path:
    """The folder of a backbone's files: a local one itself; of the hub, all that is read, from one commit.

    A commit that is cached whole asks the hub nothing. transformers itself would ask for optional files one by one,
    and without a network try each for many seconds.

    Raises:
        BackboneError: as `resolve_commit`.
        OSError: the hub cannot be reached, or refuses, and the commit is not cached whole.
    """
    commit = resolve_commit(name, revision)
    if commit is None:
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=commit, allow_patterns=FILES))
