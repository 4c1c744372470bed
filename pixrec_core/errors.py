"""Every exception that PixRec raises on purpose.

A message says what is wrong, where, and what to do.
"""

import difflib
from collections.abc import Collection

from pixrec_core.printable import printable


class PixRecError(Exception):
    """Base class of all errors that a user of PixRec can correct."""

    def __str__(self) -> str:
        """The message without terminal controls: it may quote ids, URLs and values of a catalogue."""
        return printable(super().__str__())


class SettingsError(PixRecError):
    """A setting in pixrec.toml, an environment variable or the command line is missing, unknown or out of range."""


class SourceError(PixRecError):
    """Raw files are missing or empty, or have a larger share of rejected rows than is allowed."""


class MissingArtefactError(PixRecError):
    """An input artefact has not been built yet."""


class ContractError(PixRecError):
    """A dataset violates its data contract; training on it would be wrong."""


class BackboneError(PixRecError):
    """A vision-language backbone cannot be loaded or does not fit."""


class BusyError(PixRecError):
    """Another process is building the same artefact."""


class EngineError(PixRecError):
    """Workers of an engine cannot be started, or die."""


class CheckpointError(PixRecError):
    """A model's folder is damaged, unsafe, or has weights that do not fit its configuration."""


class LostProcessError(PixRecError):
    """One of several training processes died. Another try may succeed: it resumes."""


class QueryError(PixRecError):
    """A request for recommendations names an unknown user or item, or a text or photo that cannot be read."""


class ArtefactError(PixRecError):
    """An artefact is damaged or does not belong to its inputs."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the most similar known one, else all of them."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f": did you mean `{similar[0]}`?" if similar else f"; known: {', '.join(known) or 'none'}"
