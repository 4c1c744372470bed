"""The command line: only what is stale is made, and a failure is reported in the user's words."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from pixrec_assets import cli, headline
from pixrec_assets.commands.status import format_age
from pixrec_assets.home import dagster_home
from pixrec_assets.plan import plan_dataset
from pixrec_core import files, pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work
from tests.assets import fake_stages

ROOT = Path(__file__).resolve().parents[2]
DATA = ["raw", "items", "interactions", "images", "sequences", "item_features"]
TRAINED = ["checkpoint", "item_vectors", "item_index", "ranking"]


def built(out: str) -> list[str]:
    return [line.split(" ")[0] for line in out.splitlines() if line.endswith("building ...")]


def read_states(out: str) -> dict[str, str]:
    """The state of each artefact in the output of `pixrec status`; of the last variant where there are several."""
    header = next(line for line in out.splitlines() if line.startswith("artefact"))
    begin, end = header.index("state"), header.index("figure")
    names = {stage.name for stage in pipeline.STAGES}
    rows = (line for line in out.splitlines() if line.split(" ")[0] in names)
    return {line.split(" ")[0]: line[begin:end].strip() for line in rows}


def replace_stage(monkeypatch, name: str, **changes) -> None:
    stages = tuple(replace(s, **changes) if s.name == name else s for s in pipeline.STAGES)
    monkeypatch.setattr(pipeline, "STAGES", stages)
    monkeypatch.setattr(pipeline, name.upper(), next(s for s in stages if s.name == name))


def build_all(settings: Settings) -> None:
    """Build every artefact, without Dagster."""
    for run in plan_dataset(settings, "sample"):
        run.stage.materialise(run.work, **({"on_epoch": lambda _: None} if run.stage.name == "checkpoint" else {}))


def test_the_demo_builds_every_artefact_once_and_shows_metrics(pixrec, settings):
    code, out, _ = pixrec("demo")
    assert code == 0
    assert built(out) == [
        *DATA,
        "baselines",
        *TRAINED,
        *TRAINED,
        *TRAINED,
        "blend",
        "promoted",
        "evaluation",
        "report",
        "refit",
    ]
    assert "multimodal (serves) │ 0.2500" in out
    assert out.strip().endswith(f"report: {settings.data_dir / 'sample' / 'report' / 'index.html'}")
    code, out, _ = pixrec("demo")
    assert (code, built(out)) == (0, [])
    assert out.count("up to date (built 20") == 24


def test_a_changed_setting_rebuilds_only_what_depends_on_it(pixrec, settings, monkeypatch):
    build_all(settings)
    monkeypatch.setenv("PIXREC_TRAINING__EPOCHS", "9")
    assert built(pixrec("run", "sample", "--variant", "text_only")[1]) == TRAINED
    assert built(pixrec("run", "sample")[1]) == [
        *TRAINED,
        *TRAINED,
        "blend",
        "promoted",
        "evaluation",
        "report",
        "refit",
    ]


def test_a_rebuild_with_the_same_bytes_makes_no_other_stage_stale(pixrec):
    assert pixrec("run", "sample", "--stage", "raw", "--stage", "items")[0] == 0
    assert built(pixrec("run", "sample", "--stage", "raw", "--force")[1]) == ["raw"]
    assert built(pixrec("run", "sample", "--stage", "items")[1]) == []


def test_status_shows_current_stale_and_missing_artefacts(pixrec, monkeypatch):
    pixrec("run", "sample", "--stage", "raw", "--stage", "items")
    monkeypatch.setenv("PIXREC_INGEST__MAX_BAD_SHARE", "0.5")
    code, out, _ = pixrec("status")
    assert code == 0
    states = read_states(out)
    assert (states["raw"], states["items"], states["report"]) == ("current", "stale", "not built")
    assert "To make everything current: pixrec run sample" in out


def test_all_that_depends_on_changed_raw_files_is_behind_them(pixrec, settings, monkeypatch):
    """Until `raw` has run nobody knows what changed; and nobody may take what comes after for up to date."""
    build_all(settings)
    _, out, _ = pixrec("status")
    assert set(read_states(out).values()) == {"current"}
    assert "pixrec run" not in out
    replace_stage(monkeypatch, "raw", external_inputs=lambda _: "another size and time")
    _, out, _ = pixrec("status")
    states = read_states(out)
    assert states.pop("raw") == "stale"
    assert set(states.values()) == {"behind raw"}
    assert out.strip().endswith("To make everything current: pixrec run sample")
    _, out, err = pixrec("run", "--stage", "report")
    assert built(out) == []
    assert "warning: report of sample is behind raw. To make everything current: pixrec run sample" in err


def test_figures_are_shown_only_if_the_evaluation_is_current(pixrec, settings, monkeypatch):
    build_all(settings)
    complete = pixrec("run", "sample")[1]
    assert "last item hidden" in complete
    assert "report: " in complete
    monkeypatch.setenv("PIXREC_SEQUENCES__MIN_RATING", "2")
    for options in (["--up-to", "sequences"], ["--stage", "sequences"], ["--variant", "text_only"]):
        code, out, _ = pixrec("run", "sample", *options)
        assert code == 0
        assert "last item hidden" not in out
        assert "report: " not in out
        shown = " ".join(out.split())
        assert re.search(
            r"The evaluation of sample is behind \w+, so its figures are not shown\. "
            "To make everything current: pixrec run sample$",
            shown,
        )
    out = pixrec("run", "sample", "--up-to", "evaluation")[1]
    assert "last item hidden" in out
    assert "report: " not in out
    assert "report: " in pixrec("run", "sample")[1]


def test_status_shows_how_old_what_serves_is(pixrec, settings):
    build_all(settings)
    assert "serving:" not in pixrec("status")[1]
    times = {"number": 3, "promoted_at": "2026-03-02T04:00:00Z", "trained_at": "2026-03-01T04:00:00Z"}
    path = Work(settings, "sample").paths.promoted.manifest
    files.write_json(path, times)
    line = "serving: promotion 3, data of 2026-03-02T04:00:00Z, trained at 2026-03-01T04:00:00Z, "
    assert line + "no method fitted on all interactions" in " ".join(pixrec("status")[1].split())
    files.write_json(path, times | {"refitted_at": {"ease": "2026-03-02T04:00:00Z", "blend": "2026-03-01T05:00:00Z"}})
    expected = line + "2 methods fitted on all interactions, the last at 2026-03-02T04:00:00Z"
    assert expected in " ".join(pixrec("status")[1].split())


def test_a_served_method_that_is_as_good_as_the_best_is_the_best(pixrec, settings):
    build_all(settings)
    path = Work(settings, "sample").paths.metrics
    metrics = files.read_json(path)
    methods = metrics["protocols"]["seen_allowed"]["methods"]
    methods["ease"] = methods["multimodal"]  # before the served method by name
    files.write_json(path, metrics)
    assert "multimodal serves: NDCG@10 0.2500 on test users, the best\n" in pixrec("status")[1]


def test_status_has_one_line_per_row_at_80_columns(pixrec, settings, monkeypatch):
    build_all(settings)
    stamp = pipeline.RAW.stamp(Work(settings, "sample"))
    long = {"blend": "{summary}" + "long " * 50, "item_vectors": "{seen:,}" + "0" * 99}
    monkeypatch.setattr(headline, "FIGURES", headline.FIGURES | long)
    monkeypatch.setenv("COLUMNS", "80")
    replace_stage(monkeypatch, "raw", external_inputs=lambda _: "changed")
    assert stamp
    _, out, _ = pixrec("status")
    lines = out.splitlines()
    rows = [line for line in lines if line.startswith(tuple(stage.name for stage in pipeline.STAGES))]
    assert len(rows) == len(list(plan_dataset(settings, "sample")))
    assert max(len(line) for line in lines) <= 80


def test_a_refused_promotion_is_reported_in_every_run_and_fails_none(pixrec, monkeypatch):
    replace_stage(monkeypatch, "promoted", run=fake_stages.refused)
    for _ in range(2):
        code, out, _ = pixrec("run", "sample")
        assert code == 0
        assert "refused, as it is worse: NDCG@10 [0.1]" in out
        assert "warning: ease is ahead [of it]" in out
    assert built(out) == []
    out = pixrec("status")[1]
    (row,) = [line for line in out.splitlines() if "promoted" in line]
    assert row.split("  ")[-1].strip() == "text_only serves"
    assert " refused " in row
    assert "warning: ease is ahead [of it]" in out


@pytest.mark.parametrize(
    ("passed", "reported"),
    [
        ({"seconds": 59}, "0 min"),
        ({"minutes": 119}, "1 h"),
        ({"hours": 23}, "23 h"),
        ({"days": 8, "hours": 9}, "8 d"),
        ({"days": -3}, "0 min"),
    ],
)
def test_an_age_is_formatted_in_its_largest_unit(passed, reported):
    assert format_age(timedelta(**passed)) == f"{reported} ago"


def test_status_of_one_dataset_and_of_an_unknown_one(pixrec):
    assert "report" in pixrec("status", "sample")[1]
    assert "unknown dataset 'nope'" in pixrec("status", "nope")[2]


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_command_explains_itself(pixrec, command):
    code, out, _ = pixrec(command, "--help")
    assert code == 0
    assert len(cli.cli.commands[command].help or "") > 50
    assert f"pixrec {command}" in out or command == "settings"


class TestPhotos:
    @pytest.fixture(autouse=True)
    def photos(self, settings):
        pipeline.IMAGES.run(Work(settings, "sample"))

    def test_counts_by_status_and_reason_and_the_next_command(self, pixrec):
        code, out, _ = pixrec("photos", "sample")
        rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in out.splitlines() if "│" in line]
        assert code == 0
        assert rows == [["ok", "-", "1"], ["failed", "HTTP 404", "1"]]
        assert "pixrec run sample --stage images --force" in out

    def test_failed_photos_are_listed(self, pixrec):
        code, out, _ = pixrec("photos", "sample", "--failed")
        assert code == 0
        assert [cell.strip() for cell in out.splitlines()[3].split("│")[1:5]] == [
            "b",
            "http://127.0.0.1/b.jpg",
            "HTTP 404",
            "4",
        ]
        assert "a.jpg" not in out

    def test_as_json(self, pixrec):
        _, counted, _ = pixrec("photos", "sample", "--json")
        _, failed, _ = pixrec("photos", "sample", "--failed", "--json")
        assert json.loads(counted) == [
            {"status": "ok", "reason": None, "photos": 1},
            {"status": "failed", "reason": "HTTP 404", "photos": 1},
        ]
        url = "http://127.0.0.1/b.jpg"
        assert json.loads(failed) == [{"item": "b", "url": url, "reason": "HTTP 404", "attempts": 4}]

    def test_without_failures_no_retry_is_suggested(self, pixrec, settings):
        path = Work(settings, "sample").paths.images_manifest
        pl.read_parquet(path).filter(status="ok").write_parquet(path)
        assert "--force" not in pixrec("photos", "sample")[1]
        assert json.loads(pixrec("photos", "sample", "--failed", "--json")[1]) == []

    def test_before_a_download_the_error_names_the_stage_to_run(self, pixrec, settings):
        Work(settings, "sample").paths.images_manifest.unlink()
        code, _, err = pixrec("photos", "sample")
        assert code == 1
        assert "images.parquet does not exist; run the stage" in err


def test_a_known_error_is_one_message_and_the_next_command(pixrec, monkeypatch):
    def broken(_):
        raise SettingsError("the folder [x] is not there")

    replace_stage(monkeypatch, "items", run=broken)
    code, out, err = pixrec("run", "sample")
    assert code == 1
    assert built(out) == ["raw", "items"]
    assert "SettingsError: the folder [x] is not there" in err
    assert "pixrec run sample" in err
    assert "Traceback" not in err
    assert "Stack Trace" not in err


def test_an_unexpected_error_shows_its_traceback_and_the_log(pixrec, settings, monkeypatch):
    replace_stage(monkeypatch, "items", run=lambda _: 1 // 0)
    code, _, err = pixrec("run", "sample")
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "test_cli.py" in err
    assert str(settings.data_dir / ".dagster") in err


@pytest.mark.parametrize(
    ("arguments", "code", "reported"),
    [
        (["run", "nope"], 1, "unknown dataset 'nope'"),
        (["photos", "nope"], 1, "unknown dataset 'nope'"),
        (
            ["run", "sample", "--variant", "nope"],
            1,
            "unknown variant 'nope'; known: multimodal, collaborative, text_only",
        ),
        (["run", "sample", "--stage", "nope"], 2, "'nope' is not one of raw, items"),
        (["--config", "nope.toml", "status"], 2, "nope.toml"),
    ],
)
def test_wrong_arguments_are_named(pixrec, arguments, code, reported):
    got, _, err = pixrec(*arguments)
    assert got == code
    assert reported in err


def test_a_wrong_settings_file_is_named_without_a_traceback(pixrec, tmp_path):
    (tmp_path / "other.toml").write_text("[training]\nepochs = 0\n")
    code, _, err = pixrec("--config", "other.toml", "status")
    assert code == 1
    assert "other.toml" in err
    assert "training.epochs" in err


def test_dagster_home_must_be_a_folder(settings, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "somewhere")
    with pytest.raises(SettingsError, match="DAGSTER_HOME is 'somewhere'"):
        dagster_home(settings)


def test_dagster_home_is_the_project_where_it_has_an_instance_file(settings, tmp_path):
    (tmp_path / "dagster.yaml").touch()
    assert dagster_home(settings) == tmp_path
    assert os.environ["DAGSTER_HOME"] == str(tmp_path)


def test_variants_run_in_turn_and_comparisons_last(settings):
    order = [(run.stage.name, run.work.variant) for run in plan_dataset(settings, "sample")]
    variants = [(name, variant) for variant in ("multimodal", "collaborative", "text_only") for name in TRAINED]
    assert order[7:] == [*variants, *((name, None) for name in ("blend", "promoted", "evaluation", "report", "refit"))]


INTERRUPTED = """
import signal
from tests.assets import fake_stages
def checkpoint(work, inputs, on_epoch):
    print("TRAINING", flush=True)
    signal.pause()
fake_stages.checkpoint = checkpoint
fake_stages.install()
from pixrec_assets.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_and_keeps_finished_artefacts(settings, tmp_path, number, code):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", INTERRUPTED, "run", "sample"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        while "TRAINING" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code
    assert "interrupted; finished artefacts are kept" in err
    assert "Traceback" not in err
    work = Work(load_settings(), "sample", "multimodal")
    assert pipeline.SEQUENCES.is_current(work)
    assert pipeline.CHECKPOINT.stamp(work) is None


def test_a_run_without_stale_stages_does_not_import_dagster(settings):
    build_all(settings)
    code = "from tests.assets import fake_stages; fake_stages.install(); import sys\n"
    code += "from pixrec_assets.cli import cli; cli(['demo'], standalone_mode=False)\n"
    code += "import json; print(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "building" not in done.stdout
    assert not {"dagster", "torch", "faiss"} & set(json.loads(done.stdout.splitlines()[-1]))
