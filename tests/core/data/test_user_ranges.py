import duckdb
import pytest

from pixrec_core.data import sequences, user_shards
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import SequenceSettings
from tests.core.data.sequence_inputs import write_inputs

WALKS = {"u1": "abcdeabc", "u2": "bcaeda", "u3": "cabcabed", "u4": "abcd"}
ROWS = [("a", 3), ("b'", 1), ("c", 5), (None, 2), ("é", 1), ("", 1)]


@pytest.fixture
def connection():
    with duckdb.connect() as opened:
        opened.execute('CREATE TABLE bought ("user" VARCHAR)')
        for user, n in ROWS:
            opened.executemany("INSERT INTO bought VALUES (?)", [[user]] * n)
        yield opened


def members(connection, some_users, table="bought"):
    return [u for (u,) in connection.execute(f'SELECT DISTINCT "user" FROM {table} WHERE {some_users}').fetchall()]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (100, [{"", "a", "b'", "c", "é", None}]),
        (5, [{"", "a", "b'", None}, {"c"}, {"é"}]),  # rows up to each user: 1, 4, 5, 10, 11
        (1, [{"", None}, {"a"}, {"b'"}, {"c"}, {"é"}, set()]),
    ],
)
def test_every_user_meets_one_range(connection, monkeypatch, rows, parts):
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", rows)
    found = [members(connection, some_users) for some_users in user_shards.user_ranges(connection, "bought")]
    assert [set(part) for part in found] == parts


def test_users_of_another_table_meet_one_range_too(connection, monkeypatch):
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", 1)
    connection.execute("""CREATE TABLE others AS FROM (VALUES ('A'), ('b'), ('zz'), ('日')) AS names ("user")""")
    ranges = list(user_shards.user_ranges(connection, "bought"))
    assert sorted(u for each in ranges for u in members(connection, each, "others")) == ["A", "b", "zz", "日"]


def test_an_empty_table_is_one_range(connection):
    connection.execute("DELETE FROM bought")
    assert len(list(user_shards.user_ranges(connection, "bought"))) == 1


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_sequences_do_not_depend_on_the_ranges(tmp_path, monkeypatch, split):
    wanted = SequenceSettings(split=split, validation_share=0.1, test_share=0.1)
    bought = [(user, item, 1 + t, 5.0) for user, walk in WALKS.items() for t, item in enumerate(walk)]
    whole, parted = (write_inputs(DatasetPaths(tmp_path / name), bought, "abcde", {}) for name in ("whole", "parted"))
    told = sequences.build_sequences(wanted, whole)
    monkeypatch.setattr(user_shards, "ROWS_PER_RANGE", 1)
    assert sequences.build_sequences(wanted, parted) == told
    for table in ("interactions", "items", "sequences"):
        query = f"FROM {table} ORDER BY ALL"
        one, other = (
            duckdb.connect(paths.sequences, read_only=True).sql(query).fetchall() for paths in (whole, parted)
        )
        assert one == other
