"""Refreshed promotions by command and in Dagster; the asset of online metrics."""

import json
import shutil
from unittest import mock

import click
import dagster as dg
import polars as pl
import pytest
from huggingface_hub import constants

from pixrec_assets import assets
from pixrec_assets.assets import online_metrics
from pixrec_assets.cli import cli
from pixrec_assets.jobs import rollback
from pixrec_core import files
from pixrec_core.paths import PromotedPaths
from pixrec_core.serving.promotion import read_promotion
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work
from tests.core.shop import served_shop
from tests.core.upload_hub import UploadHub


def test_it_writes_hit_rates_and_shows_them(tmp_path):
    settings = Settings(root=tmp_path, data_dir=tmp_path, datasets={"sample": {"source": {"kind": "sample"}}})
    paths = Work(settings, "sample").paths
    paths.online.mkdir(parents=True)
    pl.DataFrame({"user": ["u", "v"], "item": ["a", "a"], "timestamp": [1000, 30 * 86_400_000]}).write_parquet(
        paths.interactions
    )
    shown = {"time": 10, "user": "u", "method": "blend", "promotion": 1, "items": ["b", "a"]}
    (paths.online / "shown-1.jsonl").write_text(json.dumps(shown) + "\n")
    with dg.build_asset_context(partition_key="sample", resources={"settings": settings, "inputs": None}) as context:
        result = online_metrics(context)
    assert files.read_json(paths.online_metrics)["methods"]["blend"]["hits_by_position"] == {"2": 1}
    assert "| blend | 1 | 1 | 100.00% |" in result.metadata["hit_rates"].md_str


TOML = """
variants = ["text_only"]
[datasets.shop]
source = { kind = "sample", users = 58, items = 40 }
model = { embedding_dim = 16, item_tokens = 8 }
training = { epochs = 2, batch_size = 16, max_history_len = 4 }
"""


@pytest.fixture(scope="module")
def promoted(tmp_path_factory):
    """A folder with a promotion. Copy it; do not change it."""
    folder = tmp_path_factory.mktemp("promoted")
    (folder / "pixrec.toml").write_text(TOML)
    served_shop(folder, "text_only", baselines=["ease"])
    return folder


@pytest.fixture
def project(promoted, tmp_path, monkeypatch):
    """A copy of the folder with a promotion, which is the working folder."""
    monkeypatch.chdir(shutil.copytree(promoted, tmp_path, dirs_exist_ok=True))
    return tmp_path


def test_the_command_refreshes_and_says_what_serves(project, capsys):
    cli.main(["refresh", "shop"], standalone_mode=False)
    promotion = read_promotion(PromotedPaths(project / "data/shop/promoted"))
    assert (promotion.number, promotion.measured) == (2, 1)
    assert f"{promotion.method} serves as promotion 2 with" in capsys.readouterr().out


def test_an_earlier_promotion_serves_again(project, capsys):
    for command in (["refresh", "shop"], ["rollback", "shop", "--to", "1"], ["rollback", "shop"]):
        cli.main(command, standalone_mode=False)
    folder = PromotedPaths(project / "data/shop/promoted")
    assert read_promotion(folder).number == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("shop: ") and "serves as promotion 1; data of 20" in line for line in lines)
    assert [line.split()[:2] for line in lines[-3:-1]] == [["1", "(serves)"], ["2", read_promotion(folder).method]]

    def restore(number: int) -> dg.ExecuteInProcessResult:
        return rollback.graph.to_job(
            resource_defs={"settings": load_settings()}, partitions_def=dg.StaticPartitionsDefinition(["shop"])
        ).execute_in_process(
            {"ops": {"restore_promotion": {"config": {"promotion": number}}}},
            partition_key="shop", raise_on_error=False,
        )  # fmt: skip

    assert restore(2).success
    assert read_promotion(folder).number == 2
    assert not (failed := restore(5)).success
    assert (
        "promotion 5 of shop is not kept"
        in failed.failure_data_for_node("restore_promotion").user_failure_data.description
    )


def test_commands_hand_over_a_tower(tmp_path, monkeypatch, capsys):
    (tmp_path / "pixrec.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    served_shop(tmp_path, "text_only", baselines=["ease"], model={"user_encoder": "items"})
    onnx = ["export", "shop", "--format", "onnx", "--output", "shop-onnx"]
    with pytest.raises(click.UsageError, match="--whole-urls is for item vectors"):
        cli.main([*onnx, "--whole-urls"], standalone_mode=False)
    cli.main(onnx, standalone_mode=False)
    assert "text_only of shop as ONNX, largest difference from PyTorch: item_encoder" in capsys.readouterr().out
    assert (tmp_path / "shop-onnx" / "user_encoder.onnx").is_file()
    hub = UploadHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    cli.main(["push", "shop", "owner/tower"], standalone_mode=False)
    assert f"pushed to {hub.url}/owner/tower" in capsys.readouterr().out
    assert "owner/tower/README.md" not in hub.files, "this checkpoint of random weights has no card"
    assert "owner/tower/model.safetensors" in hub.files
    hub.close()


def test_the_asset_refreshes(project):
    resources = {"settings": load_settings(), "inputs": None}
    with (
        mock.patch.object(assets, "work_of", return_value=Work(load_settings(), "shop")),
        dg.build_asset_context(partition_key="sample", resources=resources) as context,
    ):
        metadata = assets.refreshed(context).metadata
    assert metadata["promotion"] == 2


@pytest.mark.parametrize("asset", assets.SERVING_ASSETS, ids=lambda asset: asset.key.to_user_string())
def test_without_a_run_the_assets_say_what_is_missing(asset, tmp_path):
    settings = Settings(root=tmp_path, data_dir=tmp_path, datasets={"sample": {"source": {"kind": "sample"}}})
    resources = {"settings": settings, "inputs": None}
    with (
        dg.build_asset_context(partition_key="sample", resources=resources) as context,
        pytest.raises(dg.Failure, match="Error: ") as raised,
    ):
        asset(context)
    assert not raised.value.allow_retries
