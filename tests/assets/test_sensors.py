"""What starts runs by itself asks for what is new and what depends on it, and for nothing else."""

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pixrec_assets.definitions import defs
from pixrec_assets.sensors import new_raw_files
from pixrec_core import pipeline
from pixrec_core.data import raw_files
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work
from tests.assets import fake_stages
from tests.assets.ticks import evaluate

TOML = """
[datasets.books.source]
kind = "amazon_2023"
folder = "books"

[datasets.films.source]
kind = "amazon_2023"
folder = "films"

[datasets.drawn.source]
kind = "sample"
"""


TABLES = """
[datasets.shop.source]
kind = "tables"
interactions = "orders.csv"
items = "items.csv"
interaction_columns = { user = "u", item = "i", timestamp = "t" }
item_columns = { item = "i" }
"""


class Folders:
    """Two datasets in local folders, and the sensor that watches them."""

    def __init__(self, settings: Settings, datasets: Sequence[str] = ("books", "films")) -> None:
        self.settings, self.cursor, self.time = settings, None, 1_000_000_000
        for dataset in datasets:
            for name in ("reviews", "meta"):
                self.write(dataset, name, "{}\n")

    def write(self, dataset: str, name: str, text: str, *, age: float | None = None) -> None:
        path = self.settings.root / dataset / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.time += 10
        if age is None:
            os.utime(path, (self.time, self.time))

    def tick(self) -> list[str]:
        """Datasets whose runs were asked for."""
        with dg.build_sensor_context(cursor=self.cursor, resources={"settings": self.settings}) as context:
            result: Any = new_raw_files(context)
        self.cursor, self.reported = result.cursor, result.skip_reason
        keys = [request.run_key for request in result.run_requests]
        assert len(keys) == len(set(keys))
        self.keys = keys
        assert not any(request.asset_selection for request in result.run_requests), "the job has more assets"
        return [request.partition_key for request in result.run_requests]


@pytest.fixture
def folders(project: Path) -> Folders:
    (project / "pixrec.toml").write_text(TOML)
    return Folders(load_settings())


def test_new_datasets_are_prepared_completely_and_once(folders):
    assert folders.tick() == ["books", "films"]
    assert folders.tick() == []
    assert folders.reported.skip_message == "no file in a local folder has new content"


@pytest.mark.parametrize("name", ["reviews", "meta"])
def test_new_content_of_either_file_prepares_the_dataset(folders, name):
    folders.tick()
    folders.write("books", name, '{"more": 1}\n')
    assert folders.tick() == ["books"]
    assert folders.tick() == []


def test_files_from_the_future_are_used(folders):
    """The clock has gone back since they were written, or another machine's is ahead."""
    folders.tick()
    folders.time = 4_000_000_000
    folders.write("books", "meta", '{"more": 1}\n')
    assert folders.tick() == ["books"]


def test_the_same_content_with_another_time_requests_no_run(folders):
    folders.tick()
    folders.write("books", "reviews", "{}\n")
    assert folders.tick() == []


def test_content_that_returns_is_requested_under_another_key(folders):
    folders.tick()
    before = folders.keys
    for text in ('{"other": 1}\n', "{}\n"):
        folders.write("books", "reviews", text)
        assert folders.tick() == ["books"]
        assert not set(folders.keys) & set(before)
        before += folders.keys


def test_a_file_that_is_being_copied_waits(folders):
    folders.tick()
    folders.write("books", "reviews", '{"half": ', age=0)
    assert folders.tick() == []
    folders.write("books", "reviews", '{"half": 1}\n')
    assert folders.tick() == ["books"]


def test_a_missing_folder_is_reported_and_does_not_delay_others(folders):
    folders.tick()
    (folders.settings.root / "books").rename(folders.settings.root / "moved")
    folders.write("films", "reviews", '{"more": 1}\n')
    assert folders.tick() == ["films"]
    assert folders.tick() == []
    assert "books: " in folders.reported.skip_message
    assert "is not a folder; correct `folder`" in folders.reported.skip_message


def test_a_missing_table_is_reported(project):
    (project / "pixrec.toml").write_text(TABLES)
    for name, text in (("orders.csv", "u,i,t\na,b,2024-05-01\n"), ("items.csv", "i\nb\n")):
        (project / name).write_text(text)
        os.utime(project / name, (1_000_000_000, 1_000_000_000))
    shop = Folders(load_settings(), [])
    assert shop.tick() == ["shop"]
    (project / "orders.csv").unlink()
    assert shop.tick() == []
    assert "orders.csv does not exist; correct [datasets.shop.source]" in shop.reported.skip_message


def test_datasets_prepared_before_the_sensor_started_are_not_prepared_again(folders, monkeypatch):
    def external_inputs(work: Work) -> Any:
        return raw_files.describe(work.dataset_settings.source, work.settings.root)

    raw = replace(pipeline.RAW, external_inputs=external_inputs)
    monkeypatch.setattr(pipeline, "RAW", raw)
    raw.materialise(Work(folders.settings, "books"))
    assert folders.tick() == ["films"]


def test_dagster_accepts_the_runs_that_the_sensor_requests(folders, instance, assets_anew):
    fresh = importlib.import_module("pixrec_assets.definitions").defs
    context = dg.build_sensor_context(
        instance=instance, repository_def=fresh.get_repository_def(), resources={"settings": folders.settings}
    )
    with context:
        tick = fresh.resolve_sensor_def("new_raw_files").evaluate_tick(context)
    assert {request.partition_key for request in tick.run_requests} == {"books", "films"}
    assert set(json.loads(tick.cursor)) >= {"books", "films"}


def materialise(instance: dg.DagsterInstance, job: str, partition: str = "sample") -> None:
    """With the settings of the present folder: those of `defs` are of the one that the tests were started in."""
    resources = {"settings": load_settings()}
    made = defs.resolve_job_def(job).execute_in_process(partition_key=partition, instance=instance, resources=resources)
    assert made.success


VARIANTS = {f"sample|{variant}" for variant in ("multimodal", "collaborative", "text_only")}
MODEL = ("checkpoint", "item_vectors", "item_index", "ranking")


def test_new_sequences_request_every_variant_and_the_baselines(instance, settings):
    """The contract of the sequences has a warning here, which stops nothing."""
    _, cursor = evaluate(defs, instance)
    materialise(instance, "prepare_data")
    assert evaluate(defs, instance, cursor)[0] == {"baselines": {"sample"}, **dict.fromkeys(MODEL, VARIANTS)}


@pytest.fixture
def evaluated(instance: dg.DagsterInstance, settings: Settings) -> dg.DagsterInstance:
    """An instance in which everything was made."""
    materialise(instance, "prepare_data")
    for partition in VARIANTS:
        materialise(instance, "train", partition)
    materialise(instance, "evaluate")
    return instance


def test_unchanged_data_request_nothing(evaluated):
    _, cursor = evaluate(defs, evaluated)
    materialise(evaluated, "prepare_data")
    assert evaluate(defs, evaluated, cursor)[0] == {}


def test_new_data_request_training_and_then_the_evaluation(evaluated, monkeypatch):
    _, cursor = evaluate(defs, evaluated)
    monkeypatch.setattr(pipeline, "SEQUENCES", replace(pipeline.SEQUENCES, version=99))
    materialise(evaluated, "prepare_data")
    asked, cursor = evaluate(defs, evaluated, cursor)
    assert asked == {"baselines": {"sample"}, **dict.fromkeys(MODEL, VARIANTS)}
    for partition in VARIANTS:
        materialise(evaluated, "train", partition)
    asked, cursor = evaluate(defs, evaluated, cursor)
    assert asked == {}, "the rankings have changed in this very tick"
    assert evaluate(defs, evaluated, cursor)[0] == {
        name: {"sample"} for name in ("blend", "promoted", "evaluation", "report", "refit")
    }


def test_data_with_a_broken_contract_request_nothing(instance, settings, monkeypatch):
    _, cursor = evaluate(defs, instance)
    monkeypatch.setattr(pipeline, "SEQUENCES", replace(pipeline.SEQUENCES, run=fake_stages.broken("sequences")))
    job = defs.resolve_job_def("prepare_data")
    assert not job.execute_in_process(
        partition_key="sample", instance=instance, raise_on_error=False, resources={"settings": load_settings()}
    ).success
    assert evaluate(defs, instance, cursor)[0] == {}
