"""What makes a stage current: its settings, its code version and the data versions of its inputs.

A stage leaves a stamp, written last and atomically: no stamp, no artefact. The stamp says what
the artefact was made from (`fingerprint`) and what it is (`data_version`), so that a second run
redoes exactly what a change of input, setting or code made stale.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from pixrec_core import files
from pixrec_core.engine import Engine, choose
from pixrec_core.errors import ArtefactError, BusyError, MissingArtefactError, PixRecError
from pixrec_core.paths import DatasetPaths, VariantPaths
from pixrec_core.settings import DatasetSettings, JointSettings, Settings

#: What a stage reports: counts, shares, seconds, names. JSON values only.
Stats = dict[str, Any]
Stamp = dict[str, Any]

#: How a system call says that nothing more can be written: no room, no quota, or a file past its limit.
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Work:
    """One stage's place of work: a dataset, and a variant where the stage has one.

    Attributes:
        settings: of the whole project.
        dataset: its name, or that of a joint training: the two share one namespace, and one layout of files.
        variant: None in a stage without variants.
    """

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
    def engine(self) -> Engine:
        """What the shards of heavy stages are worked on by; what they make is the same, so no fingerprint has it."""
        return choose(self.settings.engine)

    @property
    def paths(self) -> DatasetPaths:
        return DatasetPaths.of(self.settings.data_dir, self.dataset)

    @property
    def variant_paths(self) -> VariantPaths:
        assert self.variant is not None, "asked for the variant's paths in a stage without variants"
        return self.paths.variant(self.variant)

    def with_variant(self, variant: str | None) -> "Work":
        """The same dataset seen from another variant, or from none."""
        return Work(self.settings, self.dataset, variant)

    def with_dataset(self, dataset: str) -> "Work":
        """The same variant of another dataset or joint training."""
        return Work(self.settings, dataset, self.variant)


@dataclass(frozen=True)
class Stage:
    """One arrow of the pipeline.

    Attributes:
        name: of the artefact, the stage and the Dagster asset alike.
        run: does the work and returns what it saw.
        artefact: where its artefact lies.
        inputs: names of the stages whose artefacts it reads.
        config_sections: names of the settings sections that change its result.
        partitioned_by: whether there is one artefact a dataset, one a dataset and variant, or one a joint training and variant.
        version: raised whenever the code comes to make another artefact from the same input.
        external_inputs: describes inputs from outside the pipeline, cheaply; part of the fingerprint.
        digest: data version taken from content; without it, the fingerprint serves.
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

    def stamp_path(self, work: Work) -> Path:
        return (work.paths if self.partitioned_by == "dataset" else work.variant_paths).stamp(self.name)

    def partition_key(self, work: Work) -> str:
        """The partition as Dagster writes it: `dataset`, `dataset|variant` or `joint|variant`."""
        return work.dataset if self.partitioned_by == "dataset" else f"{work.dataset}|{work.variant}"

    def stamp(self, work: Work) -> Stamp | None:
        """What the last finished run left, or None."""
        path = self.stamp_path(work)
        return files.read_json(path) if path.exists() else None

    def fingerprint(self, work: Work) -> str:
        """Hash of all that the artefact depends on.

        Raises:
            MissingArtefactError: an input has not been made.
            ArtefactError: an input is not the one that its stamp tells of.
        """
        parts = {
            "stage": self.name,
            "version": self.version,
            "settings": {name: getattr(work.trained, name).model_dump(mode="json") for name in self.config_sections},
            "variant": None if self.partitioned_by == "dataset" else work.variant,
            "inputs": self.versions(work),
            "external_inputs": self.external_inputs(work) if self.external_inputs else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def reads(self, work: Work) -> Iterable[tuple["Stage", Work]]:
        """Every artefact that this one is made from: its stage and its place of work."""
        for stage in self.inputs:
            if (
                stage.partitioned_by == "joint"
            ):  # read by a dataset's checkpoint alone, and only where it starts from one
                places = (
                    [work.with_dataset(work.dataset_settings.start_from)] if work.dataset_settings.start_from else []
                )
            elif self.partitioned_by == "joint":
                places = [work.with_dataset(dataset) for dataset in work.settings.joint[work.dataset].datasets]
            elif stage.partitioned_by == "variant" and self.partitioned_by == "dataset":
                places = [work.with_variant(variant) for variant in work.settings.variants]
            else:
                places = [work]
            yield from ((stage, place) for place in places)

    def versions(self, work: Work) -> dict[str, str]:
        """Data version of every artefact that this one is made from, by name.

        Raises:
            MissingArtefactError: one of them has not been made.
            ArtefactError: one of them is not what its stamp tells of.
        """
        found = {}
        for stage, at in self.reads(work):
            stamp = stage.stamp(at)
            if stamp is None:
                raise MissingArtefactError(
                    f"{self.name} of {work.dataset} needs {stage.name} of {stage.partition_key(at)}, not made yet"
                )
            if not stage.is_whole(at, stamp):
                raise ArtefactError(
                    f"{stage.artefact(at)} is damaged: its checksum is not the one in its stamp; make it again: "
                    f"`pixrec run --dataset {at.dataset} --stage {stage.name} --force`"
                )
            found[stage.name if at == work else f"{stage.name}|{stage.partition_key(at)}"] = stamp["data_version"]
        return found

    def is_whole(self, work: Work, stamp: Stamp) -> bool:
        """Whether the artefact is the one that its stamp tells of, as far as the stage has a checksum of it."""
        try:
            return self.digest is None or bool(self.digest(work) == stamp["data_version"])
        except (ValueError, KeyError):  # the JSON that holds the checksum is none any more
            return False

    def is_current(self, work: Work) -> bool:
        """Whether the artefact is there and nothing that it was made from has changed.

        What cannot be told, because an input is gone, is not current: making it again names the fault.
        """
        stamp = self.stamp(work)
        try:
            return (
                stamp is not None
                and self.artefact(work).exists()
                and stamp["fingerprint"] == self.fingerprint(work)
                and self.is_whole(work, stamp)
            )
        except PixRecError:
            return False

    def materialise(self, work: Work, **callbacks: Any) -> Stamp:
        """Run the stage and leave its stamp; a stamp of an earlier run is withdrawn first.

        Raises:
            BusyError: another process is at it. The system frees the lock of one that dies, however it dies.
            ArtefactError: the disk is full, or an input is damaged.
            MissingArtefactError: an input has not been made.
            PixRecError: whatever the stage found wrong.
        """
        lock = self.stamp_path(work).with_suffix(".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0), self._full_disk_named(work):
                return self._materialise(work, callbacks)
        except Timeout:
            message = f"another process is making {self.name} in {lock.parent.parent}; wait for it or end it"
            raise BusyError(message) from None

    def _materialise(self, work: Work, callbacks: dict[str, Any]) -> Stamp:
        fingerprint = self.fingerprint(work)
        files.remove(self.stamp_path(work))
        start = time.monotonic()
        stats = self.run(work, **callbacks)
        stamp = {
            "stage": self.name,
            "fingerprint": fingerprint,
            "data_version": self.digest(work) if self.digest else fingerprint,
            "seconds": round(time.monotonic() - start, 3),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stats": stats,
        }
        files.write_json(self.stamp_path(work), stamp)
        return stamp

    @contextmanager
    def _full_disk_named(self, work: Work) -> Iterator[None]:
        """Every library words a full disk in its own way, and with its own exception; people need one."""
        try:
            yield
        except PixRecError:
            raise
        except Exception as error:
            if not any(os.strerror(code) in str(error) for code in FULL):
                raise
            message = (
                f"no room to make {self.name} of {self.partition_key(work)} in {work.settings.data_dir} ({error}); make room, "
                "or name another `data_dir`, and run again: what was there before is kept"
            )
            raise ArtefactError(message) from error
