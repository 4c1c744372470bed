"""Which commit of the Hugging Face hub a backbone's name stands for."""

from pathlib import Path

from pixrec_core.settings import ModelSettings


def pinned(settings: ModelSettings) -> ModelSettings:
    """The settings with a branch or tag of the hub replaced by the commit that it stands for now.

    What is trained by them can be trained again, however the branch moves.
    """
    return settings.model_copy(update={"revision": commit(settings) or settings.revision})


def commit(settings: ModelSettings) -> str | None:
    """The commit, from the hub or, without a network, as it was when the backbone was last fetched.

    None for `tiny`, for a local folder, and where neither the hub nor the local cache knows the backbone.
    """
    if settings.backbone == "tiny" or Path(settings.backbone).exists():
        return None
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import RevisionResolutionError

    try:
        return resolve_revision(settings.backbone, revision=settings.revision).resolved
    except (RevisionResolutionError, OSError, ValueError):  # no network, no such repository, no possible name
        return None
