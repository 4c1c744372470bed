"""The asset of online metrics."""

import json

import dagster as dg
import polars as pl

from pixrec_assets.online import online_metrics
from pixrec_core import files
from pixrec_core.settings import Settings
from pixrec_core.stages import Work


def test_it_writes_hit_rates_and_shows_them(tmp_path):
    settings = Settings(root=tmp_path, data_dir=tmp_path, datasets={"sample": {"source": {"kind": "sample"}}})
    paths = Work(settings, "sample").paths
    paths.online.mkdir(parents=True)
    pl.DataFrame({"user": ["u"], "item": ["a"], "timestamp": [1000]}).write_parquet(paths.interactions)
    shown = {"time": 10, "user": "u", "method": "blend", "promotion": 1, "items": ["b", "a"]}
    (paths.online / "shown-1.jsonl").write_text(json.dumps(shown) + "\n")
    context = dg.build_asset_context(partition_key="sample", resources={"settings": settings, "inputs": None})
    result = online_metrics(context)
    assert files.read_json(paths.online_metrics)["methods"]["blend"]["hits_by_position"] == {"2": 1}
    assert "| blend | 1 | 1 | 100.00% |" in result.metadata["hit_rates"].md_str
