"""Several first runs at once in a new folder: each opens Dagster's history, which one of them creates."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from pixrec_assets import execution
from pixrec_assets.home import dagster_home
from pixrec_core.settings import Settings

RUNS = 6


def test_all_first_runs_open_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads collide in SQLite as processes do, and start sooner."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    settings, barrier = Settings(root=tmp_path, datasets={"sample": {"source": {"kind": "sample"}}}), Barrier(RUNS)

    def open_history(_: int) -> int:
        barrier.wait()
        monkeypatch.setenv("DAGSTER_HOME", "")
        return execution.open_instance.__wrapped__(dagster_home(settings)).get_runs_count()

    with ThreadPoolExecutor(RUNS) as pool:
        assert list(pool.map(open_history, range(RUNS))) == [0] * RUNS
    left = {path.name for path in (tmp_path / "data" / ".dagster").iterdir()}
    assert not [name for name in left if name.startswith("tmp")], "no temporary file is left"
