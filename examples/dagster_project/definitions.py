"""A Dagster project that has PixRec's assets beside its own.

`dagster dev -f examples/dagster_project/definitions.py`, in the folder of pixrec.toml. The export of orders runs first;
PixRec reads the file, and the mail of the week asks what serves.
"""

from pathlib import Path

import dagster as dg
import polars as pl

from pixrec_assets import build_definitions
from pixrec_core.serving import Recommender
from pixrec_core.settings import load_settings

SETTINGS = load_settings()
DATASETS = dg.StaticPartitionsDefinition(list(SETTINGS.datasets))


USERS = 1_000  # who get the mail: the first ones by id


@dg.asset(partitions_def=DATASETS, deps=["promoted"], description=f"Five items for {USERS:,} users, for a weekly mail.")
def weekly_mail(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Write `mail.parquet` next to the artefacts of the dataset: user, items."""
    folder: Path = SETTINGS.data_dir / context.partition_key
    shop = Recommender.load(folder / "promoted")
    users = shop.find_users("", USERS)
    histories, times = zip(*map(shop.history_with_times, users), strict=True)
    lists = shop.for_histories(histories, 5, times=times, filter_seen=True)
    mail = pl.DataFrame({"user": users, "items": [[each.item for each in items] for items in lists]})
    mail.write_parquet(folder / "mail.parquet")
    return dg.MaterializeResult(metadata={"users": len(users)})


defs = dg.Definitions.merge(build_definitions(SETTINGS), dg.Definitions(assets=[weekly_mail]))
