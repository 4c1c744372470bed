"""When a stage is current: its settings, its code version and the data versions of its inputs are unchanged.

A finished stage writes a stamp, last and atomically: without a stamp there is no artefact. The stamp records what the
artefact was built from (`fingerprint`) and what it is (`data_version`), so a second run rebuilds only the stages whose
inputs, settings or code have changed.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from pixrec_core import files
from pixrec_core.engine import Launcher, create_engine
from pixrec_core.errors import ArtefactError, BusyError, MissingArtefactError, PixRecError
from pixrec_core.paths import DatasetPaths, VariantPaths
from pixrec_core.settings import DatasetSettings, JointSettings, Settings

log = logging.getLogger(__name__)

#: What a stage reports: counts, shares, seconds, names. JSON values only.
Stats = dict[str, Any]
Stamp = dict[str, Any]
POLL_S: Final = 0.2  # between two looks at the lock of another process
STAMP_KEYS: Final = frozenset({"fingerprint", "data_version", "stats"})

#: Texts of errors of a full disk, a quota or a file size limit. Each library has its own exception for them; the last
#: text is SQLite's.
FULL: Final = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)), "database or disk is full")
#: Texts of errors of folders that cannot be written; the last two are SQLite's.
READ_ONLY: Final = (
    *map(os.strerror, (errno.EROFS, errno.EACCES, errno.EPERM)),
    "attempt to write a readonly database",
    "unable to open database file",
)
#: Errors of a path in which a file stands in place of a folder.
NO_FOLDER: Final = (NotADirectoryError, FileExistsError)


def disk_problem(error: Exception, folder: Path, setting: str = "data_dir") -> str | None:
    """Return why `folder` cannot be written and how to fix it; None if the error has another reason.

    Permissions of other files, such as raw files, are another reason. `setting` is the name of the setting of the
    folder.
    """
    text = str(error)
    first_line = text.partition("\n")[0]
    full = "disk I/O error" in text and shutil.disk_usage(folder).free < 2**20  # SQLite's, which may have other reasons
    if full or any(sign in text for sign in FULL):
        return f"No room in {folder} ({first_line}). Free disk space or set another `{setting}`, then run again"
    if isinstance(error, OSError) and not Path(error.filename or folder).is_relative_to(folder):
        return None
    if isinstance(error, NO_FOLDER):
        return f"{folder}, or a folder in it, is a file ({first_line}). Set another `{setting}`, then run again"
    if not isinstance(error, PixRecError) and any(sign in text for sign in READ_ONLY):
        return f"{folder} is not writable ({first_line}). Make it writable or set another `{setting}`, then run again"
    return None


@dataclass(frozen=True)
class Work:
    """What a stage works on: a dataset or joint training, and a variant unless the stage is partitioned by dataset."""

    settings: Settings
    dataset: str
    variant: str | None = None

    @property
    def dataset_settings(self) -> DatasetSettings:
        return self.settings.dataset(self.dataset)

    @property
    def trained(self) -> DatasetSettings | JointSettings:
        """Settings of the training, of one dataset or a joint one."""
        return self.settings.trained(self.dataset)

    @property
    def engine(self) -> Launcher:
        """The engine for the shards of heavy stages. Results do not depend on it, so no fingerprint contains it."""
        return create_engine(self.settings.engine)

    @property
    def paths(self) -> DatasetPaths:
        return DatasetPaths.of(self.settings.data_dir, self.dataset)

    @property
    def variant_paths(self) -> VariantPaths:
        assert self.variant is not None, "a stage without variants has no variant paths"
        return self.paths.variant(self.variant)

    def with_variant(self, variant: str | None) -> "Work":
        """The same dataset with another variant, or with none."""
        return Work(self.settings, self.dataset, variant)

    def with_dataset(self, dataset: str) -> "Work":
        """The same variant of another dataset or joint training."""
        return Work(self.settings, dataset, self.variant)

    def with_trained(self, trained: DatasetSettings | JointSettings) -> "Work":
        """The same partition with other settings of its dataset or joint training."""
        group = "joint" if self.dataset in self.settings.joint else "datasets"
        named = getattr(self.settings, group) | {self.dataset: trained}
        return Work(self.settings.model_copy(update={group: named}), self.dataset, self.variant)


@dataclass(frozen=True)
class StageInputs:
    """State of everything that an artefact depends on.

    Attributes:
        fingerprint: hexadecimal SHA-256 of code version, settings and input versions.
        versions: data version of each input artefact, by name.
    """

    fingerprint: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline, which builds one artefact per partition.

    Attributes:
        name: name of the stage, of its artefact and of its Dagster asset.
        run: builds the artefact and returns its statistics.
        artefact: path of the artefact.
        inputs: stages whose artefacts this stage reads.
        config_sections: names of the settings sections that change the artefact.
        partitioned_by: one artefact per dataset, per dataset and variant, or per joint training and variant.
        version: increased whenever the code builds another artefact from the same inputs.
        external_inputs: describes inputs from outside the pipeline, cheaply; part of the fingerprint.
        digest: data version computed from the content; without it the fingerprint is the data version.
        resumes: `run` also gets the stage's inputs, and uses the fingerprint to find its own unfinished build.
    """

    name: str
    run: Callable[..., Stats]
    artefact: Callable[[Work], Path]
    inputs: tuple["Stage", ...] = ()
    config_sections: tuple[str, ...] = ()
    partitioned_by: Literal["dataset", "variant", "joint"] = "dataset"
    version: int = 1
    external_inputs: Callable[[Work], Any] | None = None
    digest: Callable[[Work], str] | None = None
    resumes: bool = False

    def stamp_path(self, work: Work) -> Path:
        return (work.paths if self.partitioned_by == "dataset" else work.variant_paths).stamp(self.name)

    def partition_key(self, work: Work) -> str:
        """The partition in Dagster's notation: `dataset`, `dataset|variant` or `joint|variant`."""
        return work.dataset if self.partitioned_by == "dataset" else f"{work.dataset}|{work.variant}"

    def stamp(self, work: Work) -> Stamp | None:
        """The stamp of the last finished build; None without one and for a damaged one: the stage then runs again."""
        try:
            stamp = files.read_json(self.stamp_path(work))
        except PixRecError:
            return None
        return stamp if isinstance(stamp, dict) and stamp.keys() >= STAMP_KEYS else None

    def stats(self, work: Work) -> Stats:
        """The statistics of the last finished build; empty without one."""
        stamp = self.stamp(work)
        return dict(stamp["stats"]) if stamp else {}

    def reads(self, work: Work) -> Iterator["StageRun"]:
        """Yield the stage run of every input artefact."""
        for stage in self.inputs:
            if stage.partitioned_by == "joint":  # a checkpoint reads it, if the settings of the dataset name it
                start = work.dataset_settings.start_from
                read = [work.with_dataset(start)] if start else []
            elif self.partitioned_by == "joint":
                read = [work.with_dataset(dataset) for dataset in work.settings.joint[work.dataset].datasets]
            elif stage.partitioned_by == "variant" and self.partitioned_by == "dataset":
                read = [work.with_variant(variant) for variant in work.settings.variants]
            else:
                read = [work]
            yield from (StageRun(stage, each) for each in read)

    def inspect_inputs(self, work: Work) -> StageInputs:
        """Return the fingerprint and the versions of the input artefacts. This reads files: call it once per build.

        Raises:
            MissingArtefactError: an input has not been built.
            ArtefactError: an input's checksum differs from its stamp.
        """
        versions = self._versions(work)
        parts = {
            "stage": self.name,
            "version": self.version,
            "settings": {name: getattr(work.trained, name).model_dump(mode="json") for name in self.config_sections},
            "variant": None if self.partitioned_by == "dataset" else work.variant,
            "inputs": versions,
            "external_inputs": self.external_inputs(work) if self.external_inputs else None,
        }
        return StageInputs(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(), versions)

    def _versions(self, work: Work) -> dict[str, str]:
        found = {}
        for source in self.reads(work):
            is_same_partition = source.work == work
            stamp = source.stage.stamp(source.work)
            if stamp is None:
                partition = "" if is_same_partition else f" of {source.partition}"
                variant = "" if self.partitioned_by == "dataset" else f" --variant {work.variant}"
                raise MissingArtefactError(
                    f"Cannot run `{self.name}` for {self.partition_key(work)}: "
                    f"its input `{source.stage.name}`{partition} has not been built. "
                    f"Run `pixrec run {work.dataset}{variant} --up-to {self.name}`."
                )
            if not source.stage.is_whole(source.work, stamp):
                raise ArtefactError(
                    f"{source.stage.artefact(source.work)} is damaged: its checksum differs from its stamp. "
                    f"Rebuild it: `pixrec run {source.work.dataset} --stage {source.stage.name} --force`"
                )
            found[source.stage.name if is_same_partition else f"{source.stage.name}|{source.partition}"] = stamp[
                "data_version"
            ]
        return found

    def is_whole(self, work: Work, stamp: Stamp) -> bool:
        """Whether the artefact has the checksum of its stamp; true for a stage without a checksum."""
        try:
            return self.digest is None or bool(self.digest(work) == stamp["data_version"])
        except (PixRecError, TypeError, KeyError):  # the JSON file that holds the checksum is damaged
            return False

    def is_current(self, work: Work, inputs: StageInputs | None = None) -> bool:
        """Whether the artefact exists, is whole, and nothing that it was built from has changed.

        False if an input is missing: a build then reports it. `inputs` is the result of `inspect_inputs`, if the caller
        has it.
        """
        stamp = self.stamp(work)
        try:
            return (
                stamp is not None
                and self.artefact(work).exists()
                and stamp["fingerprint"] == (inputs or self.inspect_inputs(work)).fingerprint
                and self.is_whole(work, stamp)
            )
        except PixRecError:
            return False

    def materialise(self, work: Work, *, inputs: StageInputs | None = None, **callbacks: Any) -> Stamp:
        """Build the artefact and return its stamp. The stamp of an earlier build is removed first.

        If another process is building the artefact or an input, this waits for its end and then keeps an artefact that
        is current. `run` gets the callbacks. `inputs` is the result of `inspect_inputs`, if the caller has it; then
        what another process has built from the same inputs since is kept. If an input changes after the inspection, the
        new artefact is stale and the next run builds it again.

        Raises:
            ArtefactError: the disk is full, or an input is damaged.
            MissingArtefactError: an input has not been built.
            PixRecError: any fault that the stage reports.
        """
        with self.exclusive(work, wait=True) as has_waited:
            for source in self.reads(work):  # no two processes wait for each other: a stage waits for its inputs only
                source.stage._wait_for_build(source.work)
            if has_waited:
                inputs = self.inspect_inputs(work)
            if inputs and (found := self.stamp(work)) and self.is_current(work, inputs):
                return found
            inputs = inputs or self.inspect_inputs(work)
            files.remove(self.stamp_path(work))
            start = time.monotonic()
            stats = self.run(work, inputs, **callbacks) if self.resumes else self.run(work, **callbacks)
            stamp = {
                "stage": self.name,
                "fingerprint": inputs.fingerprint,
                "data_version": self.digest(work) if self.digest else inputs.fingerprint,
                "seconds": round(time.monotonic() - start, 3),
                "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "stats": stats,
            }
            files.write_json(self.stamp_path(work), stamp)
            return stamp

    @contextmanager
    def exclusive(self, work: Work, *, wait: bool = False) -> Iterator[bool]:
        """Keep other processes from building the artefact; yield whether this has waited for one.

        The lock of a process that dies is released by the system.

        Raises:
            BusyError: another process is building it, and `wait` is false.
        """
        path = self._lock_path(work)
        with self._disk_errors(work):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                held, has_waited = lock.acquire(timeout=0), False
            except Timeout:
                if not wait:
                    raise BusyError(
                        f"Cannot run `{self.name}` for {self.partition_key(work)}: another process is building it in "
                        f"{path.parent.parent}. Wait for that process or end it."
                    ) from None
                log.info("waiting for another process that is building `%s` of %s", self.name, self.partition_key(work))
                held, has_waited = lock.acquire(poll_interval=POLL_S), True
            with held:
                yield has_waited

    def _wait_for_build(self, work: Work) -> None:
        """If the artefact is missing and a process is building it, wait for the end of that process."""
        if self.stamp(work) is None and self._lock_path(work).exists():
            with self.exclusive(work, wait=True):
                pass

    def _lock_path(self, work: Work) -> Path:
        return self.stamp_path(work).with_suffix(".lock")

    @contextmanager
    def _disk_errors(self, work: Work) -> Iterator[None]:
        """Raise one type of error for a full or read-only disk: every library has its own."""
        try:
            yield
        except Timeout:  # an OSError of the lock
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and str(error) == "Query interrupted":  # what DuckDB makes of SIGINT
                raise KeyboardInterrupt from error
            if (problem := disk_problem(error, work.settings.data_dir)) is None:
                raise
            raise ArtefactError(
                f"Cannot write `{self.name}` of {self.partition_key(work)}. {problem}; earlier artefacts are kept."
            ) from error


@dataclass(frozen=True)
class StageRun:
    """One stage to run for one partition: one artefact to build."""

    stage: Stage
    work: Work

    @property
    def partition(self) -> str:
        return self.stage.partition_key(self.work)

    def __str__(self) -> str:
        """Stage name and partition key; two runs with the same text build the same artefact."""
        return f"{self.stage.name} {self.partition}"
