"""Dagster's history in a real PostgreSQL, by the very block that docs/operations.md gives."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest

from pixrec_assets import doctor
from pixrec_assets.definitions import defs
from pixrec_core.settings import load_settings
from tests.assets.dev_server import free_port

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```yaml\n(storage:\n.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL server of its own on a loopback port: its URL, without a scheme."""
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("no PostgreSQL binaries (initdb, postgres) on the path")
    pytest.importorskip("dagster_postgres", reason="install .[postgres]")
    import psycopg2

    folder, port = Path(tempfile.mkdtemp(prefix="pixrec-postgres-")), free_port()
    user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    if user:
        shutil.chown(folder, **user)
    subprocess.run(
        ["initdb", "-D", folder / "db", "-U", "dagster", "--auth=trust", "--no-sync"],
        cwd=folder, check=True, capture_output=True, **user,
    )  # fmt: skip
    command = ["postgres", "-D", folder / "db", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **user)
    url = f"dagster@127.0.0.1:{port}/postgres"
    try:
        while True:
            try:
                psycopg2.connect(f"postgresql://{url}").close()
                break
            except psycopg2.OperationalError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture
def home(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the repository's dagster.yaml and the page's storage."""
    (block,) = BLOCK.findall((ROOT / "docs" / "operations.md").read_text())
    (project / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text() + block)
    monkeypatch.setenv("DAGSTER_HOME", str(project))
    return project


@pytest.mark.slow
def test_runs_materialisations_and_pools_live_in_postgres(server, home, monkeypatch):
    import psycopg2

    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql+psycopg2://{server}")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        job = defs.resolve_job_def("prepare_data")
        assert job.execute_in_process(
            partition_key="sample", instance=instance, resources={"settings": load_settings()}
        ).success
    with dg.DagsterInstance.from_config(str(home)) as another:
        assert another.get_materialized_partitions(dg.AssetKey("sequences")) == {"sample"}
        assert [(pool.name, pool.limit) for pool in another.event_log_storage.get_pool_limits()] == [("downloads", 1)]
    with closing(psycopg2.connect(f"postgresql://{server}")) as connection, connection.cursor() as cursor:
        cursor.execute("select partition, status from runs")
        assert cursor.fetchall() == [("sample", "SUCCESS")]
    assert not list(home.rglob("*.db")), "nothing of it is in SQLite"
    finding = doctor._instance(home)
    assert (finding.level, finding.text) == (doctor.Level.OK, f"the instance in {home} has 1 runs")
