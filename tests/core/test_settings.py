"""Sources of settings, and the messages about wrong ones."""

import json
import warnings
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pixrec_core.data import raw_files
from pixrec_core.errors import SettingsError
from pixrec_core.settings import CONFIG_VARIABLE, TrainingSettings, load_settings, setting_paths

TOML = """
[training]
epochs = 7
seed = 3

[datasets.books.source]
kind = "sample"

[datasets.books.training]
epochs = 2

[datasets.toys.source]
kind = "sample"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def of(text: str) -> Path:
        path = tmp_path / "pixrec.toml"
        path.write_text(text)
        monkeypatch.setenv(CONFIG_VARIABLE, str(path))
        return path

    return of


def test_a_dataset_overrides_shared_values(write) -> None:
    write(TOML)
    settings = load_settings()
    assert (settings.dataset("books").training.epochs, settings.dataset("books").training.seed) == (2, 3)
    assert (settings.dataset("toys").training.epochs, settings.dataset("toys").training.seed) == (7, 3)


def test_the_environment_overrides_both(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(TOML)
    monkeypatch.setenv("PIXREC_TRAINING__EPOCHS", "5")
    settings = load_settings()
    assert settings.dataset("books").training.epochs == settings.dataset("toys").training.epochs == 5
    assert settings.dataset("books").training.seed == 3


def test_a_variable_of_a_dataset_overrides_that_of_all(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(TOML)
    monkeypatch.setenv("PIXREC_TRAINING__SEED", "1")
    monkeypatch.setenv("PIXREC_DATASETS__BOOKS__TRAINING__SEED", "7")
    settings = load_settings()
    assert (settings.dataset("books").training.seed, settings.dataset("toys").training.seed) == (7, 1)


def test_rankings_are_long_enough_for_the_metrics(write) -> None:
    write(f"[retrieval]\ndepth = 19\n{TOML}")
    with pytest.raises(SettingsError, match=r"retrieval\.depth is 19; Recall@20 needs 20 or more"):
        load_settings()


def test_dates_of_the_time_split_are_plain_toml_and_plain_variables(write, monkeypatch: pytest.MonkeyPatch) -> None:
    dates = "[sequences]\nsplit = 'time'\nvalidation_from = 2020-01-02\ntest_from = 2020-03-04"
    write(f"{dates}\n{TOML}")
    own = load_settings().dataset("books").sequences
    assert (own.validation_from, own.test_from) == (date(2020, 1, 2), date(2020, 3, 4))
    monkeypatch.setenv("PIXREC_SEQUENCES__TEST_FROM", "2020-05-06")
    assert load_settings().dataset("books").sequences.test_from == date(2020, 5, 6)


def test_without_a_file_the_only_dataset_is_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert list(settings.datasets) == ["sample"]
    assert settings.data_dir == tmp_path.resolve() / "data"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"data_dir = '{'x' * 5000}'", "File name too long"),
        ('data_dir = "a\\u0000b"', "embedded null byte"),
        (f"[model]\nbackbone = '{'x' * 5000}'\n[datasets.a.source]\nkind = 'sample'", "File name too long"),
    ],
    ids=["long", "NUL", "long backbone"],
)
def test_a_path_that_no_file_can_have_is_reported(write, text: str, reason: str) -> None:
    write(text)
    with pytest.raises(SettingsError, match=f"the path .* cannot be used: {reason}") as error:
        load_settings()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nepochs = 0", r"training\.epochs: .*received 0"),
        ("[training]\nepoch = 3", r"training\.epoch: unknown setting `epoch`: did you mean `epochs`\?"),
        ("[trainig]\nepochs = 3", r"trainig: unknown section `trainig`: did you mean `training`\?"),
        ("[model.lora]\nrnk = 3", r"model\.lora\.rnk: unknown setting `rnk`: did you mean `rank`\?"),
        (
            "[training]\nweight_item_item = 0.8\nweight_user_item = 0.8",
            "training.weight_item_item .* must not exceed 1",
        ),
        # `weight_item_item` is 0.125 with tokens.
        ("[model]\nuser_encoder = 'tokens'\n[training]\nweight_user_item = 0.9", "must not exceed 1"),
        ("[model]\nuser_encoder = 'tokens'\n[training]\nprocesses = 32", "but a batch has only 16 windows"),
        ("[training]\nseed = -1", r"training\.seed: .*received -1"),
        ("[training]\nseed = 4294967296", r"training\.seed: .*received 4294967296"),
        ("[sequences]\nmin_user_interactions = 0", r"sequences\.min_user_interactions: .*received 0"),
        ("[sequences]\ntest_from = 2020-01-02", 'need split = "time"'),
        ("[sequences]\nsplit = 'time'\ntest_from = 2020-01-02", "must be set together"),
        ("[sequences]\nsplit = 'time'\nvalidation_from = 2020-01-02\ntest_from = 2020-01-02", "must be before"),
        ("[sequences]\nsplit = 'time'\nvalidation_share = 0.5\ntest_share = 0.5", "training uses the rest"),
        ("[sequences]\nsplit = 'time'\ntest_share = 0", r"sequences\.test_share: .*received 0"),
        ("[sequences]\nsplit = 'random'", r"sequences\.split: .*received 'random'"),
        ("[datasets.'../x'.source]\nkind = 'sample'", "must be a name of lower-case letters"),
        ('variants = "text_only"\n', r'variants: must be a list, such as variants = \["..."\] \(received'),
        ('[images]\nallow_hosts = ["X.com"]\n', r"allow_hosts\.0: must be a host in lower case .*received 'X.com'"),
        ('[datasets."My shop".source]\nkind = "sample"\n', "must be a name of lower-case letters, digits"),
        (f"[images]\nmax_pixels = {10**20}\n", r"images\.max_pixels: .*less than or equal to 4294967296"),
        ("[datasets.x]\n", r"datasets\.x\.source: Field required"),
        ("no toml", "cannot be read as TOML"),
    ],
)
def test_a_wrong_setting_is_reported(write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(SettingsError, match=message) as error:
        load_settings()
    assert str(path) in str(error.value)


def test_a_missing_settings_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "gone.toml"))
    with pytest.raises(SettingsError, match=r"gone\.toml does not exist"):
        load_settings()


def test_an_unknown_dataset_is_reported_with_the_known_ones(write) -> None:
    write(TOML)
    with pytest.raises(SettingsError, match=r"unknown dataset 'cars'; known: books, toys"):
        load_settings().dataset("cars")
    with pytest.raises(SettingsError, match=r"unknown dataset 'book': did you mean `books`\?"):
        load_settings().dataset("book")


def test_without_a_settings_file_an_unknown_dataset_is_reported_with_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as error:
        load_settings().dataset("shop")
    message = str(error.value)
    assert message.startswith(f"unknown dataset 'shop'; known: sample. There is no {tmp_path}/pixrec.toml; change to")
    with pytest.raises(SettingsError, match=r"unknown dataset 'sampel': did you mean `sample`\? There is no "):
        load_settings().dataset("sampel")


@pytest.mark.parametrize("line", ["epoch = 3", "epochs = 0", "weight_item_item = 1"])
def test_a_wrong_shared_setting_is_reported_once(write, line: str) -> None:
    write(f"[training]\n{line}\n[datasets.a.source]\nkind = 'sample'\n[datasets.b.source]\nkind = 'sample'")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert len(str(error.value).splitlines()) == 2, "one line for the file and one for the setting"


def test_messages_contain_no_passwords(write):
    write("[datasets.shop]\nsource = 'https://me:s3cret@h/x?key=k3y'")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "https://h/x" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "k3y" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "tracking = 'postgres://me:s3cret@h/db'",
        "tracking = 'me:s3cret@h'",
        "[tracking]\npassword = 's3cret'",
        "[tracking]\nuri = ['http://me:s3cret@h']",
        "[tracking]\nuri = {password = 's3cret'}",
        "[[datasets]]\nname = 'shop'\nurl = 'http://me:s3 cret@h'\npassword = 's3cret'",
        "[training]\nepochs = 'http://me:x\"s3cret/@h?k=s3cret'",
        "s3 = [{x = 's3cret'}]",
        "[dagster]\ntime_zone = 'http://me:s3cret@h'",
        f"data_dir = 'http://me:s3cret@h/{'x' * 300}'",
        "[datasets.shop.source]\nkind = 'amazon_2023'\nreviews_url = 'ftp://me:s3cret@h/x'\nmetadata_url = 's3cret@h'",
    ],
)
def test_a_wrong_value_is_not_echoed_with_its_secrets(write, text: str) -> None:
    write(text)
    with pytest.raises(SettingsError) as caught:
        raw_files.urls(load_settings().dataset("shop").source)
    assert "s3cret" not in str(caught.value)


JOINT = """
[model]
embedding_dim = 32

[training]
epochs = 7

[joint.media]
datasets = ["books", "films"]
training = { epochs = 2 }

[joint.media.model]
backbone = "some/model"

[datasets.books]
source = { kind = "sample", seed = 1 }
start_from = "media"

[datasets.films]
source = { kind = "sample", seed = 2 }
"""


def test_a_joint_training_has_shared_values_and_passes_its_model_on(write) -> None:
    write(JOINT)
    settings = load_settings()
    joint = settings.trained("media")
    assert joint == settings.joint["media"]
    assert (joint.training.epochs, joint.model.embedding_dim, joint.model.backbone) == (2, 32, "some/model")
    assert settings.trained("books") == settings.dataset("books")
    assert settings.dataset("books").model == joint.model
    assert settings.dataset("books").training.epochs == 7
    assert settings.dataset("films").model.backbone == "tiny"


def test_the_environment_overrides_a_joint_training_too(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(JOINT)
    monkeypatch.setenv("PIXREC_TRAINING__EPOCHS", "5")
    monkeypatch.setenv("PIXREC_MODEL__EMBEDDING_DIM", "8")
    settings = load_settings()
    assert settings.joint["media"].training.epochs == 5
    assert settings.joint["media"].model.embedding_dim == settings.dataset("books").model.embedding_dim == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"films"]', '"cars"]', r"joint\.media\.datasets: unknown dataset `cars`; known: books, films"),
        (', "films"]', "]", r"joint\.media\.datasets: .*at least 2"),
        ("seed = 2", "seed = 1", "two of books, films have the same source"),
        ("joint.media", "joint.films", r"joint\.films: a dataset has the same name"),
        (
            '= "media"',
            '= "arts"',
            r"pixrec.toml.*\n.*datasets\.books\.start_from: unknown joint training `arts`; known: media",
        ),
        (
            '= "media"',
            '= "media"\nmodel = { embedding_dim = 9 }',
            r"datasets\.books\.model: embedding_dim is 9, not 32",
        ),
        (
            "[joint.media.model]",
            "[joint.media.images]\nsize = 9\n[joint.media.model]",
            "joint.media.images: unknown section `images`",
        ),
    ],
)
def test_a_wrong_joint_training_is_reported(write, old: str, new: str, message: str) -> None:
    write(JOINT.replace(old, new))
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_deprecated_names_are_accepted_in_every_layer_with_a_warning(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("""
[training]
batch_users = 8
metric_for_best_model = "recall@10"

[datasets.books]
source = { kind = "sample" }
training = { batch_size = 4 }
model = { dimension = 32 }
""")
    monkeypatch.setenv("PIXREC_TRAINING__WINDOW", "5")
    monkeypatch.setenv("PIXREC_TRAINING__BEST_BY", "ndcg@10")
    with pytest.warns(FutureWarning, match="deprecated; rename it to"):
        books = load_settings().dataset("books")
    assert (books.training.batch_size, books.training.max_history_len, books.model.embedding_dim) == (4, 5, 32)
    assert books.training.metric_for_best_model == "ndcg@10", "the environment wins, under whichever name"


def test_a_setting_under_both_names_is_rejected() -> None:
    with pytest.raises(ValidationError, match="window is the deprecated name of max_history_len, and both are set"):
        TrainingSettings(window=3, max_history_len=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets = 3", r"datasets: must be a table.*received 3"),
        ("datasets = []", r"datasets: must be a table.*received \[\]"),
        ("[[datasets]]\nkind = 'sample'", "datasets: must be a table"),
        ("[datasets]\nshop = 3", r"datasets\.shop: must be a table, such as \[datasets\.shop\] \(received 3\)"),
        ("[datasets.shop]\nsource = 3", r"datasets\.shop\.source: must be a table.*received 3"),
        ("[datasets.shop]\nsource = {kind = 'sample'}\nstart_from = ['x']", r"datasets\.shop\.start_from: "),
        ("[datasets.shop]\nsource = {kind = 'sample'}\ntraining = 3", r"datasets\.shop\.training: must be a table"),
        ("joint = 3", "joint: must be a table"),
        ("[joint]\nj = []", r"joint\.j: must be a table"),
        ("[joint]\nj = {model = 3, datasets = ['a', 'b']}", r"joint\.j\.model: must be a table"),
        ("training = 3", r"training: must be a table, such as \[training\] \(received 3\)"),
        ("[model]\nlora = 3\n[datasets.shop]\nsource = {kind = 'sample'}\nmodel = {lora = {rank = 2}}", r"model\.lora"),
        ("[training]\nlearning_rate = nan", r"training\.learning_rate: .*finite"),
        ("[images]\ntimeout_s = inf", r"images\.timeout_s: .*finite"),
        ("root = '/tmp'", "`root` is no setting"),
        ("epochs = 3", r"unknown setting `epochs`: did you mean `training\.epochs`\?"),
        ("[model]\nepochs = 3", r"model\.epochs: unknown setting `epochs`: did you mean `training\.epochs`\?"),
        ("training = {window = 3, max_history_len = 4}", "window is the deprecated name of max_history_len"),
        ("a = " + "[" * 100_000, "cannot be read as TOML"),
        ("data_dir = '~nobody-of-this-name/x'", "cannot be used"),
    ],
)
def test_a_setting_of_the_wrong_shape_is_reported(write, text: str, message: str) -> None:
    write(text)
    with pytest.raises(SettingsError, match=message) as error:
        load_settings()
    assert len(str(error.value).splitlines()) <= 2, "one line for the file and one for the setting"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PIXREC_DATASETS", "1", "PIXREC_DATASETS: must be a table"),
        ("PIXREC_DATASETS", "shop", "PIXREC_DATASETS is not JSON"),
        ("PIXREC_VARIANTS", "text_only", r"PIXREC_VARIANTS is not JSON. Write a list as '\[\"a\", \"b\"\]'"),
        ("PIXREC_TRAINING", "1", "PIXREC_TRAINING: must be a table"),
        ("PIXREC_TRAINING__EPOCHS__X", "1", "PIXREC_TRAINING__EPOCHS__X: .*integer"),
        ("PIXREC_TRAINING__EPOCHS", "many", "PIXREC_TRAINING__EPOCHS: .*received 'many'"),
        ("PIXREC_TRAINING__EPOCH", "1", "did you mean `PIXREC_TRAINING__EPOCHS`"),
        ("PIXREC_TRAINIG__EPOCHS", "1", "PIXREC_TRAINIG__EPOCHS: unknown section `trainig`: did you mean"),
        ("PIXREC_TRAINING_EPOCHS", "1", "did you mean `PIXREC_TRAINING__EPOCHS`"),
        ("PIXREC_EPOCHS", "1", "did you mean `PIXREC_TRAINING__EPOCHS`"),
        ("PIXREC_DATADIR", "x", "did you mean `PIXREC_DATA_DIR`"),
        ("PIXREC_ROOT", "/tmp", "`root` is no setting"),
    ],
)
def test_a_wrong_environment_variable_is_named(
    write, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    write(TOML)
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=message) as error:
        load_settings()
    assert len(str(error.value).splitlines()) <= 2


def test_variables_that_kubernetes_sets_for_services_are_no_settings(write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(TOML)
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR"):
        monkeypatch.setenv(f"PIXREC_DAGSTER_WEBSERVER_{name}", "10.0.0.1")
    assert load_settings().datasets


#: Every value that TOML has. Keys are those of settings and others.
NAMES = sorted({part for path in setting_paths() for part in path} | {"datasets", "joint", "source", "kind", "shop"})
SCALARS = (
    st.integers()
    | st.floats()
    | st.booleans()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["sample", "tables", "tiny", "shop", "text_only", "~", "~/x"])
    | st.datetimes()
    | st.dates()
    | st.times()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)


def as_toml(value: object) -> str:
    """One value in TOML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(name)} = {as_toml(each)}' for name, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'
    return str(value).lower() if isinstance(value, bool | float) else str(value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_settings_of_any_shape_load_or_are_reported(write, tables: dict[str, object]) -> None:
    write("".join(f"{json.dumps(name)} = {as_toml(value)}\n" for name, value in tables.items()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated names
        try:
            loaded = load_settings()
        except SettingsError:
            return
    assert loaded.datasets


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_files_of_windows_editors_are_read(write, encoding: str, line_end: str) -> None:
    write("").write_bytes(TOML.replace("\n", line_end).encode(encoding))
    assert list(load_settings().datasets) == ["books", "toys"]


def test_a_file_in_another_encoding_is_reported(write) -> None:
    path = write("")
    path.write_bytes(TOML.encode("utf-16"))
    with pytest.raises(SettingsError, match=r"pixrec\.toml is not UTF-8"):
        load_settings()


def test_a_folder_as_settings_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pixrec.toml").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with pytest.raises(SettingsError, match=r"pixrec\.toml is no file"):
        load_settings()


def test_paths_start_from_the_settings_file_or_the_home(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever the working folder is: for the data folder, the settings file, and the folder of a backbone."""
    (tmp_path / "smol").mkdir()
    (tmp_path / "smol" / "config.json").write_text("{}")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder, backbone in (("out", "smol"), ("~/out", "~/smol"), (tmp_path / "out", tmp_path / "smol")):
        write(
            f"data_dir = '{folder}'\n[model]\nbackbone = '{backbone}'\ntext_encoder = '{backbone}'\n"
            f"photo_encoder = 'gguf'\n{TOML}"
        )
        monkeypatch.setenv(CONFIG_VARIABLE, "~/pixrec.toml")
        loaded = load_settings()
        assert loaded.data_dir == (tmp_path / "out").resolve()
        model = loaded.dataset("books").model
        assert model.backbone == model.text_encoder == str((tmp_path / "smol").resolve())
        assert model.photo_encoder == str((tmp_path / "gguf").resolve())
        assert model.model_dump(mode="json")["backbone"] == "smol", "a moved project stays current"


def test_a_backbone_that_is_no_folder_stays_a_name(write) -> None:
    write(f"[model]\nbackbone = 'org/model'\n{TOML}")
    assert load_settings().dataset("books").model.backbone == "org/model"


def test_defaults_follow_the_encoders_and_never_replace_a_setting(write) -> None:
    write("""
[datasets.items]
source = { kind = "sample" }

[datasets.tokens]
source = { kind = "sample" }
model = { user_encoder = "tokens" }
training = { learning_rate = 0.003 }

[datasets.backbone]
source = { kind = "sample" }
model = { item_encoder = "backbone" }
training = { epochs = 30 }
""")
    loaded = load_settings()
    found = {
        name: (each.model.embedding_dim, each.training.batch_size, each.training.learning_rate, each.training.epochs)
        for name, each in loaded.datasets.items()
    }
    assert found == {
        "items": (256, 1024, 1.5e-3, 30),
        "tokens": (128, 16, 3e-3, 3),
        "backbone": (128, 512, 5e-4, 30),
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "training = { processes = 2 }",
            "processes is 2, but a training with model.user_encoder = `items` runs in one",
        ),
        (
            'generative = { rankers = ["beams"] }',
            "rankers are beams, but with model.user_encoder = `items` no language",
        ),
    ],
)
def test_what_items_cannot_do_is_rejected(write, setting: str, message: str) -> None:
    write(f'[datasets.books]\nsource = {{ kind = "sample" }}\n{setting}\n')
    with pytest.raises(SettingsError, match=message):
        load_settings()
    write(f'[datasets.books]\nsource = {{ kind = "sample" }}\nmodel = {{ user_encoder = "tokens" }}\n{setting}\n')
    load_settings()


def test_a_joint_training_reads_tokens(write) -> None:
    write(JOINT)
    loaded = load_settings()
    assert loaded.joint["media"].model.user_encoder == loaded.datasets["books"].model.user_encoder == "tokens"
    write(JOINT.replace("[joint.media.model]", '[joint.media.model]\nuser_encoder = "items"'))
    with pytest.raises(SettingsError, match="is `items`, but a joint training needs `tokens`"):
        load_settings()
