"""Two stages of training: what Dagster and the command line make of a joint training in the settings."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from pixrec_core import pipeline
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work
from tests.assets.ticks import evaluate

TOML = """
[joint.both]
datasets = ["books", "toys"]

[datasets.books]
source = { kind = "sample", seed = 1 }
start_from = "both"

[datasets.toys]
source = { kind = "sample", seed = 2 }

[datasets.cars]
source = { kind = "sample", seed = 3 }
"""
DATA = ("raw", "items", "interactions", "images", "sequences")
TRAINED = ("checkpoint", "item_vectors", "item_index", "ranking")


@pytest.fixture
def settings(project: Path, assets_anew: None) -> Settings:
    """Settings with a joint training, and `pixrec_assets` as a process that starts with them imports it."""
    (project / "pixrec.toml").write_text(TOML)
    return load_settings()


def fresh(module: str) -> Any:
    return importlib.import_module(f"pixrec_assets.{module}")


@pytest.fixture
def materialise(settings: Settings, instance: dg.DagsterInstance) -> Callable[..., dg.ExecuteInProcessResult]:
    assets, asset_keys = fresh("definitions").ASSETS, fresh("stage_asset").asset_keys

    def run(names: tuple[str, ...], partition: str) -> dg.ExecuteInProcessResult:
        keys = [key for name in names for key in asset_keys(getattr(pipeline, name.upper()))]
        return dg.materialize(
            assets,
            selection=keys,
            partition_key=partition,
            resources={"settings": settings, "inputs": None},
            instance=instance,
        )

    return run


@pytest.fixture
def pixrec(settings: Settings, instance: dg.DagsterInstance, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run `pixrec` with arguments: exit code and standard output."""
    cli = fresh("cli")
    monkeypatch.setattr(fresh("execution"), "open_instance", lambda _: instance)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pixrec", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().out

    return call


def built(out: str) -> list[str]:
    return [line.removesuffix(": building ...") for line in out.splitlines() if line.endswith("building ...")]


def test_the_joint_training_is_an_asset_with_partitions_and_a_job(settings: Settings):
    definitions = fresh("definitions").defs
    dg.Definitions.validate_loadable(definitions)
    node = definitions.resolve_asset_graph().get(dg.AssetKey("joint_checkpoint"))
    assert (node.group_name, set(node.kinds), node.pools) == ("joint", {"pytorch", "huggingface"}, {"gpu"})
    assert len(node.description) > 40
    keys = ["both|multimodal", "both|collaborative", "both|text_only"]
    assert node.partitions_def.get_partition_keys() == keys
    assert definitions.resolve_job_def("train_jointly").partitions_def.get_partition_keys() == keys
    assert "books|text_only" in definitions.resolve_job_def("train").partitions_def.get_partition_keys()


def partitions_read(reader: str, partition: str, source: str) -> set[str]:
    """Partitions of an asset that another one's partition is made from, as Dagster sees it."""
    graph = fresh("definitions").defs.resolve_asset_graph()
    key, parent = dg.AssetKey(reader), dg.AssetKey(source)
    subset = graph.get(key).partitions_def.subset_with_partition_keys([partition])
    mapping = graph.get_partition_mapping(key, parent)
    result = mapping.get_upstream_mapped_partitions_result_for_partitions(
        subset, graph.get(key).partitions_def, graph.get(parent).partitions_def
    )
    return set(result.partitions_subset.get_partition_keys())


def test_lineage_of_partitions_is_the_settings(settings: Settings):
    assert partitions_read("joint_checkpoint", "both|text_only", "sequences") == {"books", "toys"}
    assert partitions_read("checkpoint", "books|text_only", "joint_checkpoint") == {"both|text_only"}
    assert partitions_read("checkpoint", "toys|text_only", "joint_checkpoint") == set()
    assert partitions_read("checkpoint", "toys|text_only", "sequences") == {"toys"}


def test_each_epoch_is_an_observation_of_the_joint_partition(materialise, settings: Settings):
    for dataset in ("books", "toys"):
        assert materialise((*DATA, "item_features"), dataset).success
    result = materialise(("joint_checkpoint",), "both|text_only")
    observations = [e.asset_observation_data.asset_observation for e in result.all_events if e.is_asset_observation]
    assert [o.metadata["loss"].value for o in observations] == [2.0, 1.5]
    assert {(o.asset_key.to_user_string(), o.partition) for o in observations} == {
        ("joint_checkpoint", "both|text_only")
    }
    assert materialise(("checkpoint",), "books|text_only").success


def test_new_data_request_the_joint_training_before_its_successors(materialise, instance, settings):
    defs = fresh("definitions").defs
    _, cursor = evaluate(defs, instance)
    for dataset in ("books", "toys"):
        assert materialise((*DATA, "item_features"), dataset).success
    asked, cursor = evaluate(defs, instance, cursor)
    assert asked == {
        "joint_checkpoint": {"both|multimodal", "both|collaborative", "both|text_only"},
        "baselines": {"books", "toys"},
    }
    for variant in ("multimodal", "collaborative", "text_only"):
        assert materialise(("joint_checkpoint",), f"both|{variant}").success
    asked, _ = evaluate(defs, instance, cursor)
    names = [f"{dataset}|{variant}" for dataset in ("books", "toys") for variant in settings.variants]
    assert asked["checkpoint"] == set(names)


def test_a_run_of_a_dataset_builds_its_joint_training_first_and_no_stage_twice(pixrec):
    code, out = pixrec("run", "books", "--variant", "text_only")
    assert code == 0
    assert built(out) == [
        *(f"{name} books" for name in (*DATA, "item_features", "baselines")),
        *(f"{name} toys" for name in DATA),
        "joint_checkpoint both|text_only",
        *(f"{name} books|text_only" for name in TRAINED),
    ]
    assert built(pixrec("run", "books", "--variant", "text_only")[1]) == []
    assert built(pixrec("run", "both")[1]) == [
        "joint_checkpoint both|multimodal",
        "joint_checkpoint both|collaborative",
    ]


def test_a_dataset_without_a_joint_training_does_not_run_it(pixrec):
    assert not any("both" in line or "books" in line for line in built(pixrec("run", "cars")[1]))


def test_one_stage_of_a_dataset_leaves_the_others_alone(pixrec):
    assert built(pixrec("run", "books", "--stage", "raw")[1]) == ["raw books"]


def test_a_new_joint_checkpoint_makes_its_successor_stale(pixrec, settings: Settings, monkeypatch):
    pixrec("run", "books", "--variant", "text_only")
    pixrec("run", "toys", "--variant", "text_only")
    assert pipeline.CHECKPOINT.is_current(Work(settings, "books", "text_only"))
    Path("pixrec.toml").write_text(TOML.replace("[joint.both]", "[joint.both]\ntraining = { seed = 7 }"))
    changed = load_settings()
    joint = pipeline.JOINT_CHECKPOINT
    assert not joint.is_current(Work(changed, "both", "text_only"))
    joint.materialise(Work(changed, "both", "text_only"), on_epoch=lambda _: None)
    assert not pipeline.CHECKPOINT.is_current(Work(changed, "books", "text_only"))
    assert pipeline.CHECKPOINT.is_current(Work(changed, "toys", "text_only"))


def test_status_shows_the_joint_training_once(pixrec):
    out = pixrec("status")[1]
    assert out.count("joint_checkpoint") == 3, "one line a variant"
    assert out.index("joint_checkpoint") < out.index("books\n")
