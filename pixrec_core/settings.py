"""All settings, frozen and typed; every field says its unit.

They come from `pixrec.toml` and from environment variables (`PIXREC_TRAINING__EPOCHS=3`), which
win. Sections at the top level hold for every dataset; `[datasets.<name>.<section>]` overrides
them for one.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pixrec_core.errors import SettingsError

CONFIG_FILE = "pixrec.toml"
CONFIG_VARIABLE = "PIXREC_CONFIG"

Variant = Literal["multimodal", "text_only", "image_only", "shuffled_images"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of settings; an unknown name is an error rather than silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSettings(BaseModel):
    """Where raw reviews and metadata come from. `kind` names a module of `data/sources`; the rest is its own."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(description="a module of pixrec_core.data.sources")

    @property
    def options(self) -> dict[str, Any]:
        """The fields that belong to the source alone."""
        return dict(self.model_extra or {})


class IngestSettings(Section):
    """Reading of raw files."""

    max_bad_share: Share = Field(0.01, description="share of bad lines (0 to 1) past which a stage stops")


class ImageSettings(Section):
    """Download and storage of product photos."""

    size: Positive = Field(256, description="longest edge of a stored photo, pixels; larger ones are shrunk")
    threads: Positive = Field(16, description="downloads at a time, all hosts together")
    per_host: Positive = Field(8, description="downloads at a time from one host")
    attempts: Positive = Field(4, description="tries of one URL before it counts as failed")
    timeout_s: float = Field(20.0, gt=0, description="seconds to wait for a connection or for the next bytes")
    deadline_s: float = Field(60.0, gt=0, description="seconds for one whole photo, whatever trickles in")
    max_bytes: Positive = Field(20_000_000, description="bytes of one photo as sent")
    max_pixels: Positive = Field(50_000_000, description="pixels of one photo as sent (width x height)")
    allow_private_hosts: bool = Field(False, description="whether URLs may point to private or loopback addresses")


class SequenceSettings(Section):
    """From interactions to examples."""

    min_rating: float = Field(0.0, description="interactions rated lower are left out (stars)")
    min_user_interactions: int = Field(3, ge=3, description="k-core: interactions a user needs; a split needs 3")
    min_item_interactions: Positive = Field(1, description="k-core: interactions an item needs")
    collapse_repeats: bool = Field(False, description="whether consecutive interactions with one item become one")


class ModelSettings(Section):
    """The dual tower."""

    backbone: str = Field("tiny", description="`tiny`, a hub name or a local folder of an image-text-to-text model")
    revision: str | None = Field(None, description="hub revision (commit, tag or branch); none is the default branch")
    vision: Literal["trainable", "frozen"] = Field("trainable", description="whether the vision tower learns")
    dimension: Positive = Field(128, description="D, numbers in a user or item vector")
    item_tokens: Positive = Field(32, description="text tokens of one item; longer texts are cut")


class TrainingSettings(Section):
    """The mixed objective and its optimiser."""

    epochs: Positive = Field(3, description="passes over the training sequences")
    batch_users: Positive = Field(16, description="user windows in a step")
    window: int = Field(10, ge=2, description="n, items in a history window, the newest ones")
    learning_rate: float = Field(3e-3, gt=0, description="peak; 1e-4 or less where the backbone has learnt already")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps that the learning rate climbs")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, per step")
    weight_item_item: Share = Field(0.125, description="a, weight of L_TT")
    weight_user_item: Share = Field(0.3, description="b, weight of L_UT")
    temperature: float = Field(0.07, gt=0, description="tau of both InfoNCE terms")
    patience: Positive = Field(3, description="epochs without a better validation NDCG@10 before training stops")
    seed: int = Field(0, description="of weights, shuffling and dropout")

    @model_validator(mode="after")
    def _weights_leave_room(self) -> Self:
        if self.weight_item_item + self.weight_user_item > 1:
            raise ValueError("weight_item_item + weight_user_item is over 1; the generation loss weighs the rest")
        return self


class IndexSettings(Section):
    """The index over item vectors. Apart from `RetrievalSettings`: another depth needs no other index."""

    kind: Literal["auto", "flat", "hnsw"] = Field("auto", description="`flat` is exact, `hnsw` approximate and faster")
    exact_items: Positive = Field(1_000_000, description="items of a catalogue past which `auto` takes `hnsw`")


class RetrievalSettings(Section):
    """Rankings."""

    depth: Positive = Field(100, description="items in one user's ranking; metrics count ranks past it as misses")


class Sections(BaseModel):
    """The sections that stand at the top level for all datasets and within one dataset for it alone."""

    ingest: IngestSettings = IngestSettings()
    images: ImageSettings = ImageSettings()
    sequences: SequenceSettings = SequenceSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    index: IndexSettings = IndexSettings()
    retrieval: RetrievalSettings = RetrievalSettings()


class DatasetSettings(Sections):
    """One dataset: its source, and every section with the shared values filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceSettings


#: What there is without any pixrec.toml. Its items' texts are short; cutting them there halves the work.
SAMPLE: Final = {"source": {"kind": "sample"}, "model": {"item_tokens": 16}}


class Settings(BaseSettings, Sections):
    """The whole of `pixrec.toml`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="PIXREC_", env_nested_delimiter="__", toml_file=CONFIG_FILE
    )

    root: Path = Field(default_factory=Path.cwd, description="folder that relative paths start from")
    data_dir: Path = Field(Path("data"), description="folder of all artefacts")
    variants: tuple[Variant, ...] = Field(("multimodal", "text_only"), description="what is trained for each dataset")
    datasets: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], DatasetSettings]

    @model_validator(mode="before")
    @classmethod
    def _fill_datasets(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Lay the top-level sections under each dataset's own, and the environment over both."""
        shared = {name: values[name] for name in Sections.model_fields if name in values}
        datasets = values.get("datasets") or {"sample": SAMPLE}
        environment = {name: own for name, own in EnvSettingsSource(cls)().items() if name in Sections.model_fields}
        laid = {name: _overlay(_overlay(shared, own), environment) for name, own in datasets.items()}
        return values | {"datasets": laid}

    @model_validator(mode="after")
    def _absolute_data_dir(self) -> Self:
        object.__setattr__(self, "data_dir", (self.root / self.data_dir).resolve())
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the names are pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over file; no secrets folder and no .env."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_path())

    def dataset(self, name: str) -> DatasetSettings:
        """Settings of one dataset.

        Raises:
            SettingsError: `pixrec.toml` names no such dataset.
        """
        if name not in self.datasets:
            raise SettingsError(f"unknown dataset {name!r}; {config_path()} names: {', '.join(self.datasets)}")
        return self.datasets[name]


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, tables merged key by key."""
    both = {k: _overlay(under[k], over[k]) for k in under.keys() & over.keys() if isinstance(over[k], dict)}
    return under | over | both


def config_path() -> Path:
    """The settings file: `$PIXREC_CONFIG`, else `pixrec.toml` in the working folder. It need not exist."""
    return Path(os.environ.get(CONFIG_VARIABLE, CONFIG_FILE)).resolve()


def load_settings() -> Settings:
    """Read the settings file and the environment.

    Raises:
        SettingsError: `$PIXREC_CONFIG` names no file, the file is no TOML, or a value is unknown or out of range.
    """
    path = config_path()
    if CONFIG_VARIABLE in os.environ and not path.is_file():
        raise SettingsError(f"{CONFIG_VARIABLE} names {path}, and no such file is there")
    try:
        return Settings(root=path.parent)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (received {e['input']!r})" for e in error.errors()]
        raise SettingsError("\n".join([f"{path} (or a PIXREC_ variable) is wrong:", *lines])) from None
    except ValueError as error:  # tomllib's and pydantic-settings' own
        raise SettingsError(f"{path} cannot be read: {error}") from error
