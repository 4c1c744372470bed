"""Heavy stages make the same files whichever engine they have, however many workers, and whoever dies."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pixrec_core import pipeline
from pixrec_core.data import database, image_manifest, images, sequences
from pixrec_core.data.image_manifest import Journal, Outcome
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.models import checkpoint, photo_store
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import DatasetPaths
from pixrec_core.retrieval import encode, index, ranking
from pixrec_core.settings import GenerativeSettings, ImageSettings, IndexSettings, RetrievalSettings, SequenceSettings
from pixrec_core.stages import Work
from tests.core.data.hostile_server import hostile_server, jpeg, sends
from tests.core.data.sequence_inputs import write_inputs
from tests.core.data.test_images import snapshot, write_items
from tests.core.engine.conftest import WORKERS
from tests.core.shop import open_shop, untrained

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop with a checkpoint, whose batches are so small that there are many."""
    work = open_shop(tmp_path_factory.mktemp("shop"))
    replace(pipeline.CHECKPOINT, run=untrained, resumes=False).materialise(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_store, "BATCH", 8)
        patch.setattr(encode, "CPU_TOKENS", 256)
        patch.setattr(ranking, "USERS_PER_SEARCH", 16)
        yield work


def encoded_and_ranked(work, engine):
    """Files of item vectors and ranking."""
    paths = work.variant_paths
    encode.encode_items(paths, engine)
    index.build_index(IndexSettings(), paths)
    ranking.rank_test_users(RetrievalSettings(), GenerativeSettings(), paths, engine)
    return {**contents(paths.item_vectors), "ranking": paths.ranking.read_bytes()}


def test_item_vectors_and_rankings(shop, ray_engines):
    mine = encoded_and_ranked(shop, LOCAL)
    assert {Path(name).suffix for name in mine} >= {".npy", ".safetensors", ".parquet"}
    assert encoded_and_ranked(shop, ray_engines[WORKERS]) == mine


def test_workers_compute_with_as_many_threads_as_here(shop, ray_engines):
    """Three threads part a product otherwise than one, two or four do, and its last bits with it."""
    model, processor = checkpoint.load(shop.variant_paths.checkpoint)
    inputs = TowerInputs.load(shop.variant_paths, model.backbone, processor, 8)
    torch.set_num_threads(3)
    try:
        there = encode.Encoder(model, inputs, None).item_vectors(ray_engines[1])
        assert there.tobytes() == encode.Encoder(model, inputs, None).item_vectors().tobytes()
    finally:
        torch.set_num_threads(1)


def test_features_for_a_frozen_vision_tower(shop, ray_engines, tmp_path):
    model, processor = checkpoint.load(shop.variant_paths.checkpoint)
    pixels = TowerInputs.load(shop.variant_paths, model.backbone, processor, 8).pixels
    for name, engine in {"here": LOCAL, "there": ray_engines[1]}.items():
        photo_store.feature_store(tmp_path / name, model, pixels, engine)
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert any(name.endswith(".npy") for name in here)
    assert here == there


def test_the_engine_makes_nothing_stale(shop):
    settings = shop.settings.model_copy(update={"engine": shop.settings.engine.model_copy(update={"kind": "ray"})})
    other = Work(settings, shop.dataset, shop.variant)
    assert pipeline.CHECKPOINT.is_current(other)
    assert pipeline.ITEM_VECTORS.inspect_inputs(other) == pipeline.ITEM_VECTORS.inspect_inputs(shop)


@dataclass(frozen=True)
class DyingTwice:
    """Work whose worker is killed before it has begun, and another time when all but the answer is done."""

    work: Callable[[Any], Any]
    deaths: Path

    def __call__(self, shard):
        die_the_first_time(self.deaths / "before")
        result = self.work(shard)
        die_the_first_time(self.deaths / "after")
        return result


@dataclass(frozen=True)
class DeadlyEngine:
    """An engine two of whose workers die."""

    engine: Engine
    deaths: Path

    @property
    def workers(self):
        return self.engine.workers

    def map_shards(self, function, shards):
        return self.engine.map_shards(DyingTwice(function, self.deaths), shards)


def test_sequences_are_the_same_though_workers_die(tmp_path, ray_engines):
    bought = [(f"user {n % 9}", f"item {n * n % 11}", 1000 + n // 2, 5.0) for n in range(99)]
    items = [f"item {n}" for n in range(11)]
    told, rows = [], []
    for engine in (LOCAL, DeadlyEngine(ray_engines[WORKERS], tmp_path)):
        paths = write_inputs(DatasetPaths(tmp_path / "shop"), bought, items, dict.fromkeys(items, "ok"))
        told.append(sequences.build(SequenceSettings(min_item_interactions=10), paths, engine))
        with database.reading(paths.sequences) as connection:
            rows.append(
                [connection.sql(f"FROM {table}").fetchall() for table in ("interactions", "sequences", "items")]
            )
    assert {path.name for path in tmp_path.iterdir()} == {"shop", "before", "after"}, "two died"
    assert told[0]["dropped_rare_item"] > 0
    assert told[0] == told[1]
    assert rows[0] == rows[1]


def die_the_first_time(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


SETTINGS = ImageSettings(allow_private_hosts=True, threads=5, per_host=4, attempts=2, size=64)


class TestPhotos:
    @pytest.fixture
    def server(self):
        with hostile_server() as server:
            server.answers = {f"/{n}": sends(jpeg(60 + n, 50, colour=(n, 0, 0))) for n in range(60)}
            server.answers["/7"] = sends(b"not a photo")
            yield server

    @pytest.fixture
    def places(self, server, tmp_path):
        """Two folders with one catalogue, a few of whose photos are not there."""
        places = [DatasetPaths(tmp_path / name) for name in ("here", "there")]
        for paths in places:
            write_items(paths, {f"item {n}": server.url(f"/{n}") for n in range(65)})
        return places

    @pytest.mark.parametrize("workers", [1, WORKERS])
    def test_all_files_are_the_same(self, places, ray_engines, workers):
        here, there = places
        mine = images.download_images(SETTINGS, here)
        theirs = images.download_images(SETTINGS, there, ray_engines[workers])
        assert mine["failed_by_reason"] == {"http 404": 5, "not an image": 1}
        assert snapshot(there) == snapshot(here)
        times = {"seconds", "photos_per_second"}
        assert {k: v for k, v in theirs.items() if k not in times} == {k: v for k, v in mine.items() if k not in times}

    def test_a_host_is_asked_no_oftener_at_a_time(self, server, places, ray_engines):
        server.delay_s = 0.05
        images.download_images(SETTINGS, places[0], ray_engines[WORKERS])
        assert server.most <= SETTINGS.per_host
        assert server.most > SETTINGS.per_host // WORKERS, "the workers asked side by side"

    def test_a_worker_killed_in_the_midst_changes_no_file(self, server, places, ray_engines):
        here, there = places
        images.download_images(SETTINGS, here)
        server.hits.clear()
        server.delay_s = 0.05
        with ThreadPoolExecutor(1) as killer:
            killed = killer.submit(kill_a_fetching_worker, there)
            images.download_images(SETTINGS, there, ray_engines[WORKERS])
        assert killed.result()
        assert snapshot(there) == snapshot(here)
        assert server.hits.total() < 2 * 65, "what was noted before the kill is not fetched again"

    def test_what_workers_of_a_killed_run_noted_is_kept(self, server, places):
        """And counted on, whatever the engine of the next run."""
        here, there = places
        images.download_images(SETTINGS, here)
        there.images.mkdir()
        shutil.copytree(here.images, there.images, dirs_exist_ok=True)
        whole = image_manifest.read_manifest(here)
        for worker in range(3):
            with Journal(there.images_journal_of(worker), SETTINGS) as journal:
                for row in whole.gather_every(3, worker).iter_rows(named=True):
                    journal.append(Outcome(**row))
        server.hits.clear()
        assert images.download_images(SETTINGS, there)["reused"] == 65
        assert not server.hits
        assert snapshot(there) == snapshot(here)
        assert [path for path in there.images_journals if path.exists()] == []


def test_shares_part_the_catalogue_and_the_limits(tmp_path):
    """Seven threads and five of one host over three workers."""
    paths = DatasetPaths(tmp_path)
    wanted = {f"item {n}": f"http://a/{n}" for n in range(40)}
    write_items(paths, wanted)
    limits = ImageSettings(threads=7, per_host=5)
    shares = images.split_work(limits, 3)
    assert [(s.number, s.partitions, s.threads, s.per_host) for s in shares] == [
        (0, 3, 3, 2),
        (1, 3, 2, 2),
        (2, 3, 2, 1),
    ]
    parts = [{item: url for item, url, _ in image_manifest.read_wanted(paths, 64, [], n, 3)} for n in range(3)]
    assert all(parts)
    assert sum(map(len, parts)) == 40
    assert parts[0] | parts[1] | parts[2] == wanted
    assert len(images.split_work(ImageSettings(threads=7, per_host=2), 3)) == 2, "none goes without a host"


def kill_a_fetching_worker(paths: DatasetPaths) -> bool:
    """Kill a worker of ours that holds the second share's journal open, once it has noted something."""
    journal = paths.images_journal_of(1)
    for _ in range(6000):
        if journal.exists() and len(journal.read_bytes().splitlines()) > 3:
            break
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        if any(file.path == str(journal) for file in process.open_files()):
            process.kill()
            return True
    return False
