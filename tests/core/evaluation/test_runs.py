"""Rows of an evaluation, and several evaluations compared."""

import numpy as np
import polars as pl
import pytest

from pixrec_core.errors import ArtefactError, MissingArtefactError, QueryError
from pixrec_core.evaluation.runs import ROW_SCHEMA, Run, compare_runs, metric_rows
from pixrec_core.schemas import OUTCOME_SCHEMA

USERS = [f"u{number:02}" for number in range(40)]
METRICS = ("Recall@1", "MRR")


def run(tmp_path, name, users=USERS, **ranks):
    """Write the outcomes of a run as stage `evaluation` does; ranks of a method by user, None for a miss."""
    rows = [(method, user, f"of {user}", rank) for method, all_ranks in ranks.items()
            for user, rank in zip(users, all_ranks, strict=True)]  # fmt: skip
    path = tmp_path / name / "evaluation" / "outcomes.parquet"
    path.parent.mkdir(parents=True)
    pl.DataFrame(rows, OUTCOME_SCHEMA, orient="row").write_parquet(path)
    return Run.read(tmp_path / name)


@pytest.fixture
def seeds(tmp_path):
    """Recall@1 of `tower` is 1 and .5 in the two runs, that of `ease` .25 in both."""
    half, quarter = [1, 2] * 20, [1, 3, None, 4] * 10
    return [run(tmp_path, "0", tower=[1] * 40, ease=quarter), run(tmp_path, "1", tower=half, ease=quarter)]


def by_method(table, metric="Recall@1"):
    return {row["method"]: row for row in table.filter(pl.col("metric") == metric).iter_rows(named=True)}


def test_means_and_deviations_over_runs(seeds):
    table = compare_runs(seeds, METRICS)
    assert table["method"].to_list() == ["tower", "tower", "ease", "ease"]
    assert table["metric"].to_list() == [*METRICS, *METRICS]
    rows = by_method(table)
    assert (rows["tower"]["mean"], rows["tower"]["deviation"]) == (0.75, pytest.approx(np.std([1, 0.5], ddof=1)))
    assert (rows["ease"]["mean"], rows["ease"]["deviation"], rows["ease"]["users"]) == (0.25, None, 40)
    assert by_method(table, "MRR")["ease"]["mean"] == pytest.approx((1 + 1 / 3 + 1 / 4) / 4)


def test_equal_values_of_different_rankings_have_a_deviation(tmp_path):
    others = [run(tmp_path, name, a=ranks) for name, ranks in {"0": [1, 2] * 20, "1": [1, 3] * 20}.items()]
    assert by_method(compare_runs(others, METRICS))["a"]["deviation"] == 0


def test_differences_are_paired_over_users(seeds):
    """Each is to the best other method; a constant difference has no width, whatever the values of the users are."""
    rows = by_method(compare_runs(seeds, METRICS))
    assert (rows["tower"]["minus"], rows["tower"]["difference"]) == ("ease", 0.5)
    assert (rows["ease"]["minus"], rows["ease"]["difference"]) == ("tower", -0.5)
    assert 0 < rows["tower"]["low"] < 0.5 < rows["tower"]["high"] < 1
    assert (rows["ease"]["low"], rows["ease"]["high"]) == (-rows["tower"]["high"], -rows["tower"]["low"])
    rows = by_method(compare_runs(seeds[:1], METRICS, versus=seeds[1:]))
    assert (rows["tower"]["minus"], rows["tower"]["difference"], rows["tower"]["deviation"]) == ("tower", 0.5, None)
    assert (rows["ease"]["low"], rows["ease"]["difference"], rows["ease"]["high"]) == (0, 0, 0)


def test_a_reference_is_subtracted_from_all_others(seeds):
    rows = by_method(compare_runs(seeds, METRICS, reference="ease"))
    assert rows["ease"]["difference"] is None
    assert rows["tower"]["minus"] == "ease"


def test_only_users_with_the_same_target_count(tmp_path, seeds):
    fewer = run(tmp_path, "2", USERS[:10], tower=[1] * 10, ease=[1] * 10, new=[1] * 10)
    table = compare_runs([*seeds, fewer], METRICS)
    assert table["users"].to_list() == [10] * 4
    assert set(table["method"]) == {"tower", "ease"}
    other = run(tmp_path, "3", [f"x{user}" for user in USERS], tower=[1] * 40)
    with pytest.raises(ArtefactError, match="no test user with the same target in common"):
        compare_runs([*seeds, other], METRICS)


def test_a_method_that_ranked_for_a_sample_of_the_users_is_left_out(tmp_path):
    """As a generative ranker does: its misses would be all users outside of the sample."""
    whole = run(tmp_path, "0", tower=[1] * 40, ease=[2] * 40)
    few = run(tmp_path, "1", USERS[:4], **{"tower/beams": [1] * 4})
    both = Run(tmp_path, pl.concat([whole.outcomes, few.outcomes]))
    assert set(compare_runs([both], METRICS)["method"]) == {"tower", "ease"}
    with pytest.raises(QueryError, match="unknown method 'tower/beams'; methods of all runs: ease, tower"):
        compare_runs([both], METRICS, reference="tower/beams")
    of_sample = Run(tmp_path, both.outcomes.join(few.outcomes, "user", "semi"))
    assert by_method(compare_runs([of_sample], METRICS))["tower/beams"]["mean"] == 1


def test_damaged_outcomes_are_named(tmp_path):
    (tmp_path / "outcomes.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtefactError, match=r"outcomes\.parquet is damaged .*the stage `evaluation` with --force"):
        Run.read(tmp_path)


def test_wrong_names_are_errors_with_the_known_ones(tmp_path, seeds):
    with pytest.raises(QueryError, match=r"unknown metric 'Recall@3'; known: Recall@1, Recall@5"):
        compare_runs(seeds, ["Recall@3"])
    with pytest.raises(QueryError, match="unknown method 'eas'; methods of all runs: ease, tower"):
        compare_runs(seeds, METRICS, reference="eas")


@pytest.mark.parametrize("folder", ["two", "two/evaluation"])
def test_a_run_without_an_evaluation_is_an_error_with_the_command(tmp_path, folder):
    (tmp_path / "two").mkdir()
    message = r"two/evaluation/outcomes\.parquet does not exist\. .*`pixrec run two --up-to evaluation`"
    with pytest.raises(MissingArtefactError, match=message):
        Run.read(tmp_path / folder)


def test_a_run_may_be_the_folder_of_its_evaluation(tmp_path):
    outcomes = run(tmp_path, "two", ease=[1] * 40).outcomes
    assert Run.read(tmp_path / "two" / "evaluation").outcomes.equals(outcomes)


def test_rows_of_an_evaluation():
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    protocols = {name: {"users": users, "methods": {"ease": {"MRR": estimate, "Recall@1": estimate}}}
                 for name, users in (("seen_allowed", 9), ("seen_filtered", 7))}  # fmt: skip
    rows = metric_rows({"protocols": protocols})
    assert rows.schema == ROW_SCHEMA
    assert rows.rows() == [
        (protocol, "ease", metric, 0.5, 0.4, 0.6, users)
        for protocol, users in (("seen_allowed", 9), ("seen_filtered", 7))
        for metric in ("MRR", "Recall@1")
    ]
