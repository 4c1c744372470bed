"""Exported vectors as Parquet readers and a vector database see them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from huggingface_hub import constants
from pyarrow import parquet

from pixrec_core import files
from pixrec_core.errors import ArtefactError, QueryError, SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.paths import PromotedPaths
from pixrec_core.serving import Recommender, export
from pixrec_core.serving.promotion import read_promotion
from pixrec_core.stages import Work
from tests.core.upload_hub import UploadHub


@pytest.fixture
def folder(served: Work) -> PromotedPaths:
    return served.paths.promoted


def test_every_item_is_exported_with_its_vector_and_photo(
    folder: PromotedPaths, served: Work, recommender: Recommender, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(export, "ROWS_PER_BATCH", 7)
    export.export_items(folder, tmp_path / "new" / "export")
    path, retriever = tmp_path / "new" / "export" / "items.parquet", recommender.tower("collaborative").retriever
    schema = parquet.read_schema(path)
    assert schema.names == ["item", "title", "image_url", "photo", "vector"]
    assert schema.field("vector").type == pa.list_(pa.float32(), retriever.item_index.vectors.shape[1])
    rows = pl.read_parquet(path)
    catalogue = recommender.catalogue
    assert rows["item"].to_list() == retriever.item_index.items
    assert rows.select("item", "title", "image_url").equals(catalogue.select("item", "title", "image_url"))
    np.testing.assert_array_equal(rows["vector"].to_numpy(), retriever.item_index.vectors)
    assert rows["photo"].is_not_null().equals(catalogue["has_image"], check_names=False)
    assert all((served.paths.root / photo).is_file() for photo in rows["photo"].drop_nulls())
    assert {each.name for each in (tmp_path / "new").iterdir()} == {"export"}


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("https://user:secret@example.com/a.jpg?key=1#x", "https://example.com/a.jpg"),
        *((path, path) for path in ("mug@2x.jpg", "photos/blue #1.jpg", "a?b.jpg", "red:1.jpg")),
    ],
)
def test_urls_lose_their_secrets_and_local_paths_stay(image: str, shown: str) -> None:
    assert export.shown_image(image) == shown


def test_the_manifest_names_the_origin_and_the_metric(folder: PromotedPaths, served: Work, tmp_path: Path) -> None:
    manifest = export.export_items(folder, tmp_path / "export")
    assert files.read_json(tmp_path / "export" / "export.json") == manifest
    expected = {
        "dataset": "shop", "method": "collaborative", "dimension": 16, "metric": "inner_product", "unit_vectors": True,
        "seen_offset": -0.1,
        "checkpoint_sha256": checkpoint.weights_sha256(served.variant_paths.checkpoint),
        "items_sha256": files.sha256_file(tmp_path / "export" / "items.parquet"),
    }  # fmt: skip
    assert expected.items() <= manifest.items()
    assert manifest["items"] == len(pl.read_parquet(tmp_path / "export" / "items.parquet"))


def test_only_an_earlier_export_is_replaced(folder: PromotedPaths, tmp_path: Path) -> None:
    output = tmp_path / "export"
    output.mkdir()
    first, second = (export.export_items(folder, output) for _ in range(2))
    assert first["items_sha256"] == second["items_sha256"]
    (output / "holiday.jpg").touch()
    (tmp_path / "file").touch()
    for other in (output, tmp_path / "file"):
        with pytest.raises(SettingsError, match="exists and is no earlier export; name a folder that does not exist"):
            export.export_items(folder, other)
    assert {each.name for each in output.iterdir()} == {"holiday.jpg", "items.parquet", "export.json"}


def test_damaged_vectors_are_not_exported(shop: Work, tmp_path: Path) -> None:
    path = shop.paths.promoted.root / "1" / "variants" / "collaborative" / "item_vectors" / "vectors.safetensors"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(ArtefactError, match=r"vectors\.safetensors is damaged"):
        export.export_items(shop.paths.promoted, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_another_tower_can_be_exported_and_a_baseline_cannot(folder: PromotedPaths, tmp_path: Path) -> None:
    assert export.export_items(folder, tmp_path / "export", "text_only")["method"] == "text_only"
    with pytest.raises(QueryError, match="method ease has no item vectors; name one of collaborative, "):
        export.export_items(folder, tmp_path / "other", "ease")
    without = read_promotion(folder).model_copy(update={"towers": ()})
    with pytest.raises(QueryError, match="no promoted method of shop has item vectors"):
        export.choose_tower(without, "ease")


@pytest.fixture
def upload_hub(monkeypatch) -> Iterator[UploadHub]:
    hub = UploadHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield hub
    hub.close()


def test_the_promoted_checkpoint_is_pushed_with_its_card(folder: PromotedPaths, upload_hub: UploadHub) -> None:
    url = export.push_checkpoint(folder, "owner/tower", "text_only")
    assert url == f"{upload_hub.url}/owner/tower"
    checkpoint_folder = folder.copies(read_promotion(folder).number).variant("text_only").checkpoint
    expected = {
        f"owner/tower/{path.relative_to(checkpoint_folder).as_posix()}": path.read_bytes()
        for path in checkpoint_folder.rglob("*")
        if path.is_file()
    }
    assert upload_hub.files == expected
    assert upload_hub.created[0]["visibility"] == "private"
    assert upload_hub.tokens == {"Bearer hf_secret"}
    export.push_checkpoint(folder, "owner/tower", "text_only", private=False)
    assert upload_hub.created[1]["visibility"] == "public"


def test_a_refused_upload_says_what_to_do(folder: PromotedPaths, upload_hub: UploadHub) -> None:
    upload_hub.refusal = 403
    with pytest.raises(SettingsError, match=r"cannot push to owner/tower .*403 Forbidden.*hf auth login"):
        export.push_checkpoint(folder, "owner/tower")
    with pytest.raises(SettingsError, match=r"cannot push to a/b/c .*repo"):
        export.push_checkpoint(folder, "a/b/c")
    with pytest.raises(QueryError, match="has no item vectors"):
        export.push_checkpoint(folder, "owner/tower", "ease")


def test_a_hub_that_cannot_be_reached_is_a_settings_error(folder: PromotedPaths, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(SettingsError, match=r"cannot push to owner/tower .*ConnectError: .*Check the network"):
        export.push_checkpoint(folder, "owner/tower", "text_only")
