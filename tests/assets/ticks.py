"""A tick of the sensor that evaluates automation conditions."""

import warnings
from typing import Any

import dagster as dg


def evaluate(
    definitions: dg.Definitions, instance: dg.DagsterInstance, cursor: Any = None
) -> tuple[dict[str, set[str]], Any]:
    """Asset -> partitions that are asked for, and the cursor of the next tick."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # Dagster's own call in there
        result = dg.evaluate_automation_conditions(definitions, instance, cursor=cursor)
    assets = [asset.key for asset in definitions.resolve_asset_graph().asset_nodes]
    asked = {key.to_user_string(): result.get_requested_partitions(key) for key in assets}
    return {name: {str(key) for key in keys} for name, keys in asked.items() if keys}, result.cursor
