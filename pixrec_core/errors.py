"""Every exception that PixRec raises on purpose.

PixRecError
├── SettingsError        pixrec.toml, an environment variable or a command line option is wrong
├── SourceError          raw files are missing, empty, or beyond the share of bad lines that is allowed
├── MissingArtefactError a stage was asked for before the one that it reads
├── ContractError        a dataset broke its data contract; training on it would be wrong
├── BackboneError        a vision-language model could not be loaded or does not fit
├── BusyError            another process is making the same artefact
├── EngineError          workers of other processes cannot be had, or die of their work
├── CheckpointError      a checkpoint is damaged
├── LostProcessError     one of several processes that train together died
├── QueryError           recommendations were asked for by what is unknown, or cannot be read
└── ArtefactError        any other artefact is damaged or does not match the one that it was made from

A message names what was received and how to mend it.
"""

__all__ = [
    "ArtefactError",
    "BackboneError",
    "BusyError",
    "CheckpointError",
    "ContractError",
    "EngineError",
    "LostProcessError",
    "MissingArtefactError",
    "PixRecError",
    "QueryError",
    "SettingsError",
    "SourceError",
]


class PixRecError(Exception):
    """Base of all errors that a user of PixRec can mend."""


class SettingsError(PixRecError):
    """A setting is missing, unknown or out of range."""


class SourceError(PixRecError):
    """Raw files cannot be read as reviews and metadata."""


class MissingArtefactError(PixRecError):
    """An input artefact has not been made yet."""


class ContractError(PixRecError):
    """A dataset broke its data contract."""


class BackboneError(PixRecError):
    """A vision-language backbone cannot be loaded."""


class BusyError(PixRecError):
    """Another process is making the same artefact."""


class EngineError(PixRecError):
    """Workers of an engine cannot be had, or die of their work."""


class CheckpointError(PixRecError):
    """A checkpoint cannot be read."""


class LostProcessError(PixRecError):
    """One of several processes died. Unlike other faults it may not come again: another try resumes."""


class QueryError(PixRecError):
    """Recommendations were asked for by an unknown user or item, or by a text or photo that cannot be read."""


class ArtefactError(PixRecError):
    """An artefact is damaged or does not belong to its inputs."""
