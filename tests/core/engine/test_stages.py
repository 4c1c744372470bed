"""Heavy stages build the same files with any engine and any number of workers, even if workers die."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import torch

from pixrec_core import pipeline
from pixrec_core.data import image_manifest, images
from pixrec_core.data.image_manifest import Journal, Outcome
from pixrec_core.engine import LOCAL
from pixrec_core.models import checkpoint, length_batches, photo_store
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import DatasetPaths
from pixrec_core.retrieval import encode, index, ranking
from pixrec_core.settings import GenerativeSettings, ImageSettings, IndexSettings, RetrievalSettings
from pixrec_core.stages import Work
from tests.core.data.hostile_server import hostile_server, jpeg, sends
from tests.core.data.test_images import snapshot, write_items
from tests.core.engine.conftest import WORKERS
from tests.core.shop import open_shop, untrained

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A shop with a checkpoint; small batches, so that there are many."""
    work = open_shop(tmp_path_factory.mktemp("shop"))
    replace(pipeline.CHECKPOINT, run=untrained, resumes=False).materialise(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_store, "BATCH", 8)
        patch.setattr(length_batches, "CPU_TOKENS", 256)
        patch.setattr(ranking, "USERS_PER_SEARCH", 16)
        yield work


def encoded_and_ranked(work, engine):
    """Files of item vectors and ranking."""
    paths = work.variant_paths
    encode.encode_items(paths, engine)
    index.build_index(IndexSettings(), paths)
    ranking.rank_test_users(RetrievalSettings(), GenerativeSettings(), paths, engine)
    return {**contents(paths.item_vectors), "ranking": paths.ranking.read_bytes()}


def test_item_vectors_and_rankings_are_the_same(shop, ray_engines):
    """With three threads: their number changes the last bits of a matrix product, so workers must use as many."""
    torch.set_num_threads(3)
    try:
        local = encoded_and_ranked(shop, LOCAL)
        assert {Path(name).suffix for name in local} >= {".npy", ".safetensors", ".parquet"}
        assert encoded_and_ranked(shop, ray_engines[WORKERS]) == local
    finally:
        torch.set_num_threads(1)


def test_photo_features_of_a_frozen_vision_tower_are_the_same(shop, ray_engines, tmp_path):
    model, processor = checkpoint.load(shop.variant_paths.checkpoint)
    pixels = TowerInputs.load(shop.variant_paths, model.backbone, processor, 8).pixels
    for name, engine in {"local": LOCAL, "ray": ray_engines[1]}.items():
        photo_store.feature_store(tmp_path / name, model, pixels, engine)
    local = contents(tmp_path / "local")
    assert any(name.endswith(".npy") for name in local)
    assert contents(tmp_path / "ray") == local


def test_another_engine_makes_nothing_stale(shop):
    settings = shop.settings.model_copy(update={"engine": shop.settings.engine.model_copy(update={"kind": "ray"})})
    other = Work(settings, shop.dataset, shop.variant)
    assert pipeline.CHECKPOINT.is_current(other)
    assert pipeline.ITEM_VECTORS.inspect_inputs(other) == pipeline.ITEM_VECTORS.inspect_inputs(shop)


SETTINGS = ImageSettings(
    allow_private_hosts=True, threads=5, per_host=4, attempts=2, size=64, timeout_s=3600, deadline_s=3600
)

NOTED, ANSWERED = 3, 8  # lines in the second worker's journal before it is killed; requests answered until then


class TestPhotos:
    @pytest.fixture
    def server(self):
        with hostile_server() as server:
            server.answers = {f"/{n}": sends(jpeg(60 + n, 50, colour=(n, 0, 0))) for n in range(60)}
            server.answers["/7"] = sends(b"not a photo")
            yield server

    @pytest.fixture
    def folders(self, server, tmp_path):
        """Two folders with the same catalogue; a few of its photos do not exist."""
        folders = [DatasetPaths(tmp_path / name) for name in ("here", "there")]
        for paths in folders:
            write_items(paths, {f"item {n}": server.url(f"/{n}") for n in range(65)})
        return folders

    @pytest.mark.parametrize("workers", [1, WORKERS])
    def test_all_files_are_the_same(self, folders, ray_engines, workers):
        local, on_ray = folders
        expected = images.download_images(SETTINGS, local)
        stats = images.download_images(SETTINGS, on_ray, ray_engines[workers])
        assert expected["failed_by_reason"] == {"http 404": 5, "not an image": 1}
        assert snapshot(on_ray) == snapshot(local)
        times = {"seconds", "photos_per_second"}
        assert {k: v for k, v in stats.items() if k not in times} == {
            k: v for k, v in expected.items() if k not in times
        }

    def test_the_limit_per_host_holds_over_all_workers(self, server, folders, ray_engines):
        """Each worker may have half of it; the server answers nothing until both have sent requests."""
        both = threading.Event()

        def answer_when_both_ask(answer):
            def wait(handler):
                if server.most > SETTINGS.per_host // WORKERS:
                    both.set()
                both.wait()
                answer(handler)

            return wait

        server.answers = {path: answer_when_both_ask(answer) for path, answer in server.answers.items()}
        images.download_images(SETTINGS, folders[0], ray_engines[WORKERS])
        assert both.is_set()
        assert server.most <= SETTINGS.per_host

    def test_a_worker_killed_during_downloads_changes_no_file(self, server, folders, ray_engines):
        local, on_ray = folders
        images.download_images(SETTINGS, local)
        server.hits.clear()
        killed = threading.Event()
        second_share = {
            urlsplit(url).path for _, url, *_ in image_manifest.read_wanted(on_ray, SETTINGS, [], 1, WORKERS)
        }
        assert len(second_share) > ANSWERED

        def answer_until_the_kill(path, answer):
            def wait(handler):
                if path in second_share and sum(server.hits[each] for each in second_share) > ANSWERED:
                    killed.wait()
                answer(handler)

            return wait

        server.answers = {path: answer_until_the_kill(path, answer) for path, answer in server.answers.items()}
        with ThreadPoolExecutor(1) as killer:
            kill = killer.submit(kill_second_worker, on_ray, killed)
            images.download_images(SETTINGS, on_ray, ray_engines[WORKERS])
        assert kill.result()
        assert snapshot(on_ray) == snapshot(local)
        assert server.hits.total() < 2 * 65, "photos noted before the kill are not fetched again"

    def test_notes_of_killed_workers_are_reused(self, server, folders):
        """With any engine of the next run."""
        complete, resumed = folders
        images.download_images(SETTINGS, complete)
        resumed.images.mkdir()
        shutil.copytree(complete.images, resumed.images, dirs_exist_ok=True)
        manifest = image_manifest.read_manifest(complete)
        for worker in range(3):
            with Journal(resumed.images_journal_of(worker), SETTINGS) as journal:
                for row in manifest.gather_every(3, worker).iter_rows(named=True):
                    journal.append(Outcome(**row))
        server.hits.clear()
        assert images.download_images(SETTINGS, resumed)["reused"] == 65
        assert not server.hits
        assert snapshot(resumed) == snapshot(complete)
        assert [path for path in resumed.images_journals if path.exists()] == []


def test_shares_divide_the_catalogue_and_the_limits(tmp_path):
    """Seven threads and five requests per host, over three workers."""
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
    parts = [{item: url for item, url, *_ in image_manifest.read_wanted(paths, SETTINGS, [], n, 3)} for n in range(3)]
    assert all(parts)
    assert sum(map(len, parts)) == 40
    assert parts[0] | parts[1] | parts[2] == wanted
    assert len(images.split_work(ImageSettings(threads=7, per_host=2), 3)) == 2, "no worker without a request per host"


def kill_second_worker(paths: DatasetPaths, killed: threading.Event) -> bool:
    """Kill the worker that has the journal of the second share open, once it has noted something."""
    journal = paths.images_journal_of(1)
    while not journal.exists() or len(journal.read_bytes().splitlines()) <= NOTED:
        time.sleep(0.01)
    try:
        for process in psutil.Process().children(recursive=True):
            if any(file.path == str(journal) for file in process.open_files()):
                process.kill()
                return True
        return False
    finally:
        killed.set()
