"""Stages that write small real files in no time, in place of those that need a model or a download."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import duckdb
import polars as pl
from PIL import Image

from pixrec_core import files, pipeline
from pixrec_core.data import contract
from pixrec_core.data.contract import Artefact, CheckResult
from pixrec_core.errors import ContractError
from pixrec_core.schemas import CATALOGUE_SCHEMA, IMAGE_SCHEMA, INTERACTION_SCHEMA, ITEM_SCHEMA, QUARANTINE_SCHEMA
from pixrec_core.stages import Stage, StageInputs, Stats, Work

BROKEN = CheckResult("train_users", passed=False, observed=1, expected="at least 2", severity="error")
KEPT = CheckResult("items_without_id", passed=True, observed=0, expected="0", severity="error")
WARNED = CheckResult("share_tied_test", passed=False, observed=0.9, expected="0 to 0.5", severity="warn")


def raw(work: Work) -> Stats:
    entries = {}
    for name in ("reviews", "metadata"):
        path = work.paths.raw / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"of": "{name}"}}\n')
        entries[name] = {"path": str(path), "bytes": path.stat().st_size, "sha256": files.sha256_file(path)}
    files.write_json(work.paths.raw_manifest, entries | {"photos": None})
    return {"reviews_bytes": entries["reviews"]["bytes"]}


def raw_digest(work: Work) -> str:
    return hashlib.sha256(work.paths.raw_manifest.read_bytes()).hexdigest()


def items(work: Work) -> Stats:
    titles = {"item": ["a", "b"], "title": ["Red shirt", "Blue | <b>hat</b>"]}
    pl.DataFrame(titles).cast({"item": pl.String}).write_parquet(work.paths.items)
    assert set(titles) <= set(ITEM_SCHEMA)
    bad = {"file": ["meta.jsonl"], "line": [7], "reason": ["no title"], "raw": ["{}"]}
    pl.DataFrame(bad, schema=QUARANTINE_SCHEMA).write_parquet(work.paths.items_quarantine)
    contract.write_results("items", [KEPT], work.paths)
    return {"items": 2, "bad": {"lines": 1, "share": 0.33}, "nothing": None}


def interactions(work: Work) -> Stats:
    pl.DataFrame([("u", "a", 1, 5.0, 1)], schema=INTERACTION_SCHEMA, orient="row").write_parquet(
        work.paths.interactions
    )
    pl.DataFrame(schema=QUARANTINE_SCHEMA).write_parquet(work.paths.interactions_quarantine)
    contract.write_results("interactions", [KEPT], work.paths)
    return {"interactions": 1}


def images(work: Work) -> Stats:
    photo = work.paths.image("a")
    photo.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), "red").save(photo)
    rows = [
        ("a", "http://127.0.0.1/a.jpg", "ok", None, "0", 40, 20, 100, 1, ["http://127.0.0.1/a.jpg"]),
        ("b", "http://127.0.0.1/b.jpg", "failed", "HTTP 404", None, None, None, None, 4, ["http://127.0.0.1/b.jpg"]),
    ]
    pl.DataFrame(rows, schema=IMAGE_SCHEMA, orient="row").write_parquet(work.paths.images_manifest)
    contract.write_results("images", [KEPT], work.paths)
    return {"ok": 1, "failed": 1}


def sequences(work: Work) -> Stats:
    assert CATALOGUE_SCHEMA
    work.paths.sequences.unlink(missing_ok=True)
    with duckdb.connect(str(work.paths.sequences)) as database:
        database.execute('create table sequences (split varchar, "user" varchar, items varchar[])')
        database.execute("insert into sequences values ('train', 'u', ['a', 'b']), ('test', 'u', ['a'])")
    contract.write_results("sequences", [KEPT, WARNED], work.paths)
    return {"users": 1}


def item_features(work: Work) -> Stats:
    work.paths.item_features.mkdir(exist_ok=True)
    return {"items": 2}


def broken(artefact: Artefact) -> Callable[[Work], Stats]:
    """A stage whose artefact breaks its contract."""

    def run(work: Work) -> Stats:
        contract.write_results(artefact, [KEPT, BROKEN], work.paths)
        raise ContractError(str(BROKEN))

    return run


def checkpoint(work: Work, inputs: StageInputs, on_epoch: Callable[[dict[str, Any]], None]) -> Stats:
    assert inputs.fingerprint
    work.variant_paths.checkpoint.mkdir(parents=True, exist_ok=True)
    for epoch, loss in enumerate((2.0, 1.5), start=1):
        on_epoch({"epoch": epoch, "loss": loss, "validation": {"NDCG@10": epoch / 10}})
    return {"epochs": 2, "loss": 1.5}


joint_checkpoint = checkpoint


def item_vectors(work: Work) -> Stats:
    work.variant_paths.item_vectors.mkdir(exist_ok=True)
    return {"seen": 1}


def item_index(work: Work) -> Stats:
    work.variant_paths.item_index.mkdir(exist_ok=True)
    return {"seen": 1}


def ranking(work: Work) -> Stats:
    pl.DataFrame({"user": ["u"], "rank": [1], "item": ["a"], "score": [0.5]}).write_parquet(work.variant_paths.ranking)
    return {"users": 1}


def promoted(work: Work) -> Stats:
    files.write_json(work.paths.promoted.manifest, {"number": 1, "method": "multimodal"})
    return {
        "promoted": True, "serves": "multimodal", "verdict": "promoted: the first one", "warnings": [], "ndcg@10": 0.25,
    }  # fmt: skip


def refused(work: Work) -> Stats:
    """Another method serves already, and a better one."""
    files.write_json(work.paths.promoted.manifest, {"number": 1, "method": "text_only"})
    return {
        "promoted": False, "serves": "text_only", "verdict": "refused, as it is worse: NDCG@10 [0.1]",
        "warnings": ["warning: ease is ahead [of it]"], "ndcg@10": 0.1, "high": -0.02,
    }  # fmt: skip


def refit(work: Work, inputs: StageInputs) -> Stats:
    return {"refitted": False, "summary": "off"}


def baselines(work: Work) -> Stats:
    ranking = work.paths.baseline("popularity").ranking
    ranking.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"user": ["u"]}).write_parquet(ranking)
    return {"methods": 1}


def blend(work: Work) -> Stats:
    work.paths.blend.root.mkdir(exist_ok=True)
    return {"summary": "2 methods"}


def evaluation(work: Work) -> Stats:
    def measured(value: float) -> dict[str, dict[str, float]]:
        return {
            name: {"value": value, "low": value, "high": value} for name in ("Recall@1", "Recall@10", "NDCG@10", "MRR")
        }

    methods = {"multimodal": measured(0.25), "popularity": measured(0.125)}
    protocols = {"seen_allowed": {"users": 1, "methods": methods}}
    files.write_json(work.paths.metrics, {"users": 1, "items": 2, "depth": 100, "protocols": protocols})
    return {"methods": 2}


def report(work: Work) -> Stats:
    work.paths.report.mkdir(exist_ok=True)
    (work.paths.report / "index.html").write_text("<h1>report</h1>")
    (work.paths.report / "report.md").write_text("# report")
    return {"figures": 0}


def fakes() -> Iterator[Stage]:
    """Every stage of the pipeline with the fake of its name, reading fakes."""
    built: dict[str, Stage] = {}
    for stage in pipeline.STAGES:
        digest = raw_digest if stage.name == "raw" else None
        inputs = tuple(built[source.name] for source in stage.inputs)
        run = globals()[stage.name]
        run.__doc__ = stage.run.__doc__  # which describes the asset
        built[stage.name] = replace(stage, run=run, external_inputs=None, digest=digest, inputs=inputs)
        yield built[stage.name]


def install(setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """Put the fakes where the pipeline's stages stand."""
    stages = tuple(fakes())
    for stage in stages:
        setattr_(pipeline, stage.name.upper(), stage)
    setattr_(pipeline, "STAGES", stages)
