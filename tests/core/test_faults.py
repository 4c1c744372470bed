"""Full disks, kills and damage: each stage reports what is wrong, and earlier artefacts stay as they were.

Other faults: killed downloads (`data/sources/test_download.py`, `data/test_images.py`) and trainings
(`training/test_resume.py`), damaged checkpoints (`training/test_training.py`) and indexes (`retrieval/test_index.py`).
"""

import os
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pixrec_core import files, pipeline
from pixrec_core.data import database, splits
from pixrec_core.errors import ArtefactError, PixRecError
from pixrec_core.paths import DatasetPaths
from pixrec_core.retrieval import index
from pixrec_core.settings import IndexSettings, Settings
from pixrec_core.stages import Stage, Work
from tests.core.retrieval.test_index import build_example
from tests.core.shop import settings
from tests.forks import CONTEXT, exit_code

WITHOUT_TRAINING = (*pipeline.DATA, pipeline.BASELINES)


@pytest.fixture
def shop(opened: Path, tmp_path: Path) -> Work:
    shutil.copytree(opened, tmp_path / "shop")
    return Work(settings(tmp_path / "shop"), "shop")


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free))
    yield
    filler.unlink()


def content(path: Path) -> dict[str, bytes]:
    """Return the content of every file of an artefact by relative path."""
    paths = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {str(each.relative_to(path)): each.read_bytes() for each in paths}


@pytest.fixture
def on_small_disk(opened: Path, small_disk: Path) -> Work:
    shutil.copytree(opened, small_disk, dirs_exist_ok=True)
    return Work(settings(small_disk), "shop", "text_only")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # a thread of TensorBoard's
@pytest.mark.parametrize("stage", [*WITHOUT_TRAINING, pipeline.CHECKPOINT], ids=lambda stage: stage.name)
def test_a_full_disk_is_reported_and_damages_nothing(stage: Stage, on_small_disk: Work, small_disk: Path) -> None:
    work = on_small_disk
    before = content(stage.artefact(work)) if stage.artefact(work).exists() else None
    with full(small_disk), pytest.raises(PixRecError, match=r"No space left on device") as reported:
        stage.materialise(work)
    assert re.search("Free disk space|make room|could not be written", str(reported.value))
    assert stage.stamp(work) is None
    assert (content(stage.artefact(work)) if stage.artefact(work).exists() else None) == before
    if stage in pipeline.DATA:  # the others take longer
        stage.materialise(work)
        assert stage.is_current(work)


def test_a_full_disk_never_truncates_an_index(small_disk: Path) -> None:
    paths = build_example(small_disk)
    before = content(paths.item_index)
    with full(small_disk), pytest.raises(OSError, match="No space left on device"):
        index.build_index(IndexSettings(kind="flat"), paths)
    assert content(paths.item_index) == before


def limited(folder: Path, reported: Connection) -> None:
    """Build sequences with a file size limit of 20,000 bytes; the target of a process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        pipeline.SEQUENCES.materialise(Work(settings(folder), "shop"))
    except ArtefactError as error:
        reported.send(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # a measurement of coverage is written at the end


def test_a_file_size_limit_is_reported_too(shop: Work) -> None:
    """As with `ulimit -f` or a quota."""
    before = shop.paths.sequences.read_bytes()
    here, there = CONTEXT.Pipe()
    assert exit_code(limited, shop.settings.root, there) == 0
    assert here.poll()
    assert re.search(r"sequences\.duckdb.*File too large", here.recv())
    assert shop.paths.sequences.read_bytes() == before


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_sequences(folder: Path) -> None:
    """Kill this process while it inserts sequences; the target of a process."""
    ranges = splits.user_ranges

    def first_range(*arguments) -> Iterator[str]:
        yield next(iter(ranges(*arguments)))
        die()

    splits.user_ranges = first_range
    pipeline.SEQUENCES.materialise(Work(settings(folder), "shop"))


def killed_in_index(folder: Path) -> None:
    """Kill this process between writing an index and its manifest; the target of a process."""
    files.write_json = die
    index.build_index(IndexSettings(kind="flat"), DatasetPaths(folder).variant("multimodal"))


TABLES = ("items", "interactions", "sequences", "cuts")


def tables(path: Path) -> dict[str, list[tuple]]:
    with database.open_read_only(path) as connection:
        return {name: connection.execute(f"FROM {name}").fetchall() for name in TABLES}


def test_sequences_after_a_kill_equal_those_of_an_undisturbed_run(shop: Work) -> None:
    undisturbed = tables(shop.paths.sequences)
    shop.paths.sequences.unlink()
    assert exit_code(killed_in_sequences, shop.settings.root) == -signal.SIGKILL
    assert (shop.paths.root / ".sequences.duckdb.partial").exists(), "it was killed in the middle"
    assert not shop.paths.sequences.exists()
    assert not pipeline.SEQUENCES.is_current(shop)
    pipeline.SEQUENCES.materialise(shop)
    assert tables(shop.paths.sequences) == undisturbed
    assert not list(shop.paths.root.glob(".*.partial*"))


def test_a_kill_while_an_index_is_built_keeps_the_old_one(tmp_path: Path) -> None:
    paths = build_example(tmp_path)
    before = content(paths.item_index)
    assert exit_code(killed_in_index, tmp_path) == -signal.SIGKILL
    assert (tmp_path / "variants" / "multimodal" / ".item_index.partial" / index.INDEX).exists()
    assert content(paths.item_index) == before
    index.build_index(IndexSettings(kind="flat"), paths)
    assert content(paths.item_index) == before
    assert not list(tmp_path.rglob(".*.partial"))


def flip(path: Path, position: float) -> None:
    """Flip one bit at a share (0 to 1) of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_a_flipped_bit_in_the_manifest_of_photos_is_reported(shop: Work, position: float) -> None:
    flip(shop.paths.images_manifest, position)
    assert not pipeline.IMAGES.is_current(shop)
    assert not pipeline.SEQUENCES.is_current(shop)
    with pytest.raises(ArtefactError, match=r"images\.parquet is damaged: its checksum .*--stage images --force`"):
        pipeline.SEQUENCES.materialise(shop)


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_damaged_manifest_of_raw_files_is_reported(shop: Work, text: str) -> None:
    shop.paths.raw_manifest.write_text(text)
    assert not pipeline.RAW.is_current(shop)
    assert not pipeline.ITEMS.is_current(shop)
    with pytest.raises(ArtefactError, match=r"raw\.json is damaged: .*--stage raw --force`"):
        pipeline.ITEMS.materialise(shop)


@pytest.mark.parametrize("position", [0.0001, 0.3, 0.5])
def test_a_flipped_bit_in_the_sequences_is_reported(shop: Work, position: float) -> None:
    flip(shop.paths.sequences, position)
    with pytest.raises(ArtefactError, match=r"sequences\.duckdb cannot be read: .*build it again with `pixrec run`"):
        tables(shop.paths.sequences)


def test_a_missing_input_makes_later_stages_stale_and_is_reported(shop: Work) -> None:
    files.remove(pipeline.ITEMS.stamp_path(shop))
    assert not pipeline.SEQUENCES.is_current(shop)
    with pytest.raises(PixRecError, match="Cannot run `sequences` for shop: its input `items` has not been built"):
        pipeline.SEQUENCES.materialise(shop)


def test_a_changed_setting_makes_the_stage_and_later_stages_stale(shop: Work) -> None:
    assert all(stage.is_current(shop) for stage in pipeline.DATA)
    own = shop.settings.datasets["shop"].model_dump() | {"ingest": {"max_bad_share": 0.5}}
    other = Work(Settings(root=shop.settings.root, data_dir=shop.settings.data_dir, datasets={"shop": own}), "shop")
    assert [stage.name for stage in pipeline.DATA if not stage.is_current(other)] == ["items", "interactions"]
    pipeline.ITEMS.materialise(other)
    assert not pipeline.IMAGES.is_current(other)
    assert not pipeline.SEQUENCES.is_current(other)
