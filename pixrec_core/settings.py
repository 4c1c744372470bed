"""All settings, frozen and typed; every field says its unit.

They come from `pixrec.toml` and from environment variables (`PIXREC_TRAINING__EPOCHS=3`), which
win. Sections at the top level hold for every dataset; `[datasets.<name>.<section>]` overrides
them for one. `[joint.<name>]` is a training over several datasets, which others may start from.
"""

import difflib
import os
import re
import warnings
from collections.abc import Collection, Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, Self

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

_URL = re.compile(r"""(\w+://)(?:[^\s'"]*@)?([^\s'"?#]*)(?:[?#][^\s'"]*)?""")

Variant = Literal["multimodal", "collaborative", "text_only", "image_only", "shuffled_images"]
GenerativeRanker = Literal["beams", "generate_bm25", "hybrid"]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
#: A host name or IP address in lower case (a name of other letters as in DNS, `xn--...`); `*` is any part of it.
HostPattern = Annotated[str, Field(pattern=r"^[a-z0-9._:*-]+$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    """A frozen group of settings; an unknown name is an error rather than silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Deprecated name -> present name. Deprecated names are accepted for one release.
    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_deprecated_names(cls, values: Any) -> Any:
        return cls.with_present_names(values)

    @classmethod
    def with_present_names(cls, values: Any) -> Any:
        """Return `values` with each deprecated name replaced; warn about each.

        Raises:
            ValueError: a setting is given under both its names.
        """
        if not isinstance(values, dict) or not cls.renamed.keys() & values.keys():
            return values
        present = dict(values)
        for old in cls.renamed.keys() & values.keys():
            new = cls.renamed[old]
            if new in values:
                raise ValueError(f"{old} is the deprecated name of {new}, and both are set; remove {old}")
            warnings.warn(f"the setting {old} is deprecated; rename it to {new}", FutureWarning, stacklevel=2)
            present[new] = present.pop(old)
        return present


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

    max_bad_share: Fraction = Field(0.01, description="share of bad lines (0 to 1) past which a stage stops")
    max_expansion: float = Field(
        100.0, gt=1, description="times its own size that a gzip file may unpack to; past 64 MiB, more stops a stage"
    )


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
    allow_hosts: tuple[HostPattern, ...] = Field((), description="hosts to ask, `*.example.com`; none means any")
    deny_hosts: tuple[HostPattern, ...] = Field((), description="hosts never to ask, whatever `allow_hosts` says")


class SequenceSettings(Section):
    """From interactions to examples.

    The time split takes its cuts from the two shares, or from the two dates where they are set:
    a share follows the data as they grow, a date keeps figures of different days comparable.
    """

    renamed = MappingProxyType(
        {
            "unbought_items": "include_cold_items",
        }
    )

    split: Literal["leave_one_out", "time"] = Field(
        "leave_one_out", description="what is held out: each user's last two items, or all users' from two instants on"
    )
    validation_share: OpenFraction = Field(
        0.1, description="time: least share of the interactions between the two cuts"
    )
    test_share: OpenFraction = Field(0.1, description="time: least share of the interactions from the test cut on")
    validation_from: date | None = Field(None, description="time: first day of validation (UTC), instead of its share")
    test_from: date | None = Field(None, description="time: first day of test (UTC), instead of its share")
    min_rating: float = Field(0.0, description="interactions rated lower are left out (stars)")
    min_user_interactions: Positive = Field(
        3,
        description="k-core: interactions a user needs (leave-one-out: 3 or more; time: before its first cut)",
    )
    min_item_interactions: Positive = Field(
        1, description="k-core: interactions an item needs (time: before its first cut)"
    )
    collapse_repeats: bool = Field(False, description="whether consecutive interactions with one item become one")
    include_cold_items: bool = Field(
        False, description="whether items that nobody bought are candidates too, as new products are"
    )

    @model_validator(mode="after")
    def _cuts_belong_to_the_split(self) -> Self:
        dates = (self.validation_from, self.test_from)
        if self.split == "leave_one_out":
            if any(dates):
                raise ValueError('validation_from and test_from need split = "time"')
            if self.min_user_interactions < 3:
                raise ValueError("leave-one-out takes 3 interactions of a user; min_user_interactions is less")
        if any(dates) and not all(dates):
            raise ValueError("validation_from and test_from come together; one of them is missing")
        if self.validation_from and self.test_from and self.validation_from >= self.test_from:
            raise ValueError("validation_from must lie before test_from")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share is 1 or more; training has the rest")
        return self


class LoraSettings(Section):
    """Low-rank adapters of the language model."""

    rank: Positive = Field(16, description="r, rows of an adapter")
    alpha: float = Field(32.0, gt=0, description="an adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of an adapter's inputs that are dropped in training")
    targets: tuple[str, ...] = Field((), description="names of the layers to adapt; none adapts every linear layer")


class ModelSettings(Section):
    """The dual tower."""

    renamed = MappingProxyType(
        {
            "dimension": "embedding_dim",
            "residual_dropout": "item_id_dropout",
        }
    )

    backbone: str = Field("tiny", description="`tiny`, a hub name or a local folder of an image-text-to-text model")
    revision: str | None = Field(None, description="hub revision (commit, tag or branch); none is the default branch")
    vision: Literal["trainable", "frozen"] = Field("trainable", description="whether the vision tower learns")
    tune: Literal["full", "lora", "last_layers"] = Field(
        "full", description="what learns of the language model: all, adapters, or its last layers; heads always learn"
    )
    lora: LoraSettings = LoraSettings()
    last_layers: Positive = Field(2, description="decoder layers that learn under tune = last_layers")
    embedding_dim: Positive = Field(128, description="D, numbers in a user or item vector")
    item_tokens: Positive = Field(32, description="text tokens of one item; longer texts are cut")
    item_id_dropout: float = Field(
        0.5, ge=0, lt=1, description="share of the items that go without their learned vector in a step (collaborative)"
    )


class TrainingSettings(Section):
    """The mixed objective and its optimiser."""

    renamed = MappingProxyType(
        {
            "batch_users": "batch_size",
            "window": "max_history_len",
            "warmup_share": "warmup_ratio",
            "catalogue_negatives": "num_sampled_negatives",
            "popularity_correction": "log_q_correction",
            "exchange_ties": "shuffle_ties",
            "best_by": "metric_for_best_model",
        }
    )

    epochs: Positive = Field(3, description="passes over the training sequences")
    batch_size: Positive = Field(16, description="user windows in a step")
    max_history_len: int = Field(10, ge=2, description="n, items in a history window, the newest ones")
    learning_rate: float = Field(5e-4, gt=0, description="peak; 1e-4 or less where the backbone has learnt already")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps that the learning rate climbs")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, per step")
    weight_item_item: Fraction = Field(0.125, description="a, weight of L_TT")
    weight_user_item: Fraction = Field(0.8, description="b, weight of L_UT")
    num_sampled_negatives: int = Field(
        64, ge=0, description="items of training drawn for each step, for targets to be told apart from; 0: none"
    )
    log_q_correction: bool = Field(
        False, description="whether the batch's items count the less as negatives the oftener they occur"
    )
    shuffle_ties: bool = Field(True, description="whether items of one instant get a new order each epoch")
    temperature: float = Field(0.07, gt=0, description="tau of both InfoNCE terms")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of activations; weights stay float32. auto is bfloat16 on a GPU that has it"
    )
    gradient_checkpointing: bool = Field(
        False, description="whether activations are computed again for gradients: less memory, a third more time"
    )
    metric_for_best_model: Literal["ndcg@10", "recall@10"] = Field(
        "ndcg@10", description="validation metric of the epoch to keep"
    )
    patience: Positive = Field(3, description="epochs without a better `metric_for_best_model` before training stops")
    seed: int = Field(0, description="of weights, shuffling and dropout")
    # Never dumped, so in no fingerprint: what is learnt depends on it in the order of sums alone.
    processes: Positive = Field(
        1,
        exclude=True,
        description="processes that share each batch, each with a GPU or its part of the CPU: of this machine, "
        "or workers of Ray where engine.kind is `ray`",
    )
    fsdp: bool = Field(
        False,
        exclude=True,
        description="whether each of several processes holds only its part of weights, gradients and optimiser state",
    )

    @model_validator(mode="after")
    def _weights_leave_room(self) -> Self:
        if self.weight_item_item + self.weight_user_item > 1:
            raise ValueError("weight_item_item + weight_user_item is over 1; the generation loss weighs the rest")
        return self

    @model_validator(mode="after")
    def _every_process_has_a_window(self) -> Self:
        if self.processes > self.batch_size:
            raise ValueError(f"processes is {self.processes}, but a batch has {self.batch_size} windows to share")
        return self

    @model_validator(mode="after")
    def _parts_go_to_several(self) -> Self:
        if self.fsdp and self.processes == 1:
            raise ValueError(
                "fsdp deals weights out to several processes, but processes is 1; raise it, or leave fsdp out"
            )
        return self


class IndexSettings(Section):
    """The index over item vectors. Apart from `RetrievalSettings`: another depth needs no other index."""

    kind: Literal["auto", "flat", "hnsw", "ivfpq"] = Field(
        "auto", description="`flat` is exact; `hnsw` approximate and faster; `ivfpq` approximate, and stays on disk"
    )
    exact_items: Positive = Field(1_000_000, description="items of a catalogue past which `auto` takes `hnsw`")


class RetrievalSettings(Section):
    """Rankings."""

    depth: Positive = Field(100, description="items in one user's ranking; metrics count ranks past it as misses")


class GenerativeSettings(Section):
    """Rankings by the language model, of texts that follow a history; several times slower than by the index.

    They stand beside the dense ranking and have metrics of their own, over the same users.
    """

    rankers: tuple[GenerativeRanker, ...] = Field((), description="modules of pixrec_core.retrieval.rankers; none: off")
    users: int = Field(500, ge=0, description="test users that are drawn for them; 0: all")
    beams: Positive = Field(32, description="texts kept while searching, and looked up by BM25")
    sample: bool = Field(
        False, description="generate_bm25: whether tokens are drawn by their probability, not searched"
    )
    candidates: Positive = Field(100, description="hybrid: nearest items that are put in order anew")
    likelihood_weight: Fraction = Field(
        0.25, description="hybrid: weight of the texts' likelihood; cosines have the rest"
    )


class PromotionSettings(Section):
    """Whether a new checkpoint takes the place of the one that serves."""

    tolerance: Fraction = Field(
        0.0,
        description="NDCG@10 (0 to 1) that a new checkpoint may lose; one that surely loses more is refused; 1: none",
    )


class TrackingSettings(Section):
    """Where trainings are told to MLflow, which the extra `tracking` brings."""

    uri: str | None = Field(None, min_length=1, description="of a tracking server or its database; none: off")
    experiment: str = Field("pixrec", min_length=1, description="that the runs belong to; made where there is none")


class EngineSettings(Section):
    """What the shards of heavy stages are worked on by. No artefact depends on it."""

    kind: Literal["local", "ray"] = Field(
        "local", description="`local`: this process; `ray`: workers of Ray, which the extra `ray` brings"
    )
    address: str | None = Field(
        None, description="ray: a running cluster, `host:port` or `auto`; none starts Ray here until the command ends"
    )
    workers: Positive = Field(2, description="ray: worker processes at a time, as far as there is room for them")
    cpus: float = Field(1.0, gt=0, description="ray: cores that it sets aside for a worker")
    gpus: float = Field(0.0, ge=0, description="ray: GPUs that it sets aside for a worker; 0.5 lets two share one")


class Sections(BaseModel):
    """The sections that stand at the top level for all datasets and within one dataset for it alone."""

    ingest: IngestSettings = IngestSettings()
    images: ImageSettings = ImageSettings()
    sequences: SequenceSettings = SequenceSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    index: IndexSettings = IndexSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    generative: GenerativeSettings = GenerativeSettings()
    promotion: PromotionSettings = PromotionSettings()


class DatasetSettings(Sections):
    """One dataset: its source, and every section with the shared values filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceSettings
    start_from: str | None = Field(None, description="a joint training whose checkpoint is trained on, with its model")


class JointSettings(Section):
    """One training over several datasets (CALRec's first stage), with the shared values filled in."""

    datasets: tuple[str, ...] = Field(min_length=2, description="what it is trained on, each with its own catalogue")
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()


#: What there is without any pixrec.toml. Its items' texts are short; cutting them there halves the work.
SAMPLE: Final = {"source": {"kind": "sample"}, "model": {"item_tokens": 16}, "training": {"epochs": 2}}


class _Environment(EnvSettingsSource):
    """Environment variables, without deprecated names."""

    def __call__(self) -> dict[str, Any]:
        variables: dict[str, Any] = _with_present_names(super().__call__())
        return variables


class _TomlFile(TomlConfigSettingsSource):
    """The settings file, without deprecated names in any of its layers."""

    def __call__(self) -> dict[str, Any]:
        layers: dict[str, Any] = _with_present_names(super().__call__())
        for group in {"datasets", "joint"} & layers.keys():
            if isinstance(layers[group], dict):
                layers[group] = {name: _with_present_names(layer) for name, layer in layers[group].items()}
        return layers


class Settings(BaseSettings, Sections):
    """The whole of `pixrec.toml`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="PIXREC_", env_nested_delimiter="__", toml_file=CONFIG_FILE
    )

    root: Path = Field(default_factory=Path.cwd, description="folder that relative paths start from")
    data_dir: Path = Field(Path("data"), description="folder of all artefacts")
    variants: tuple[Variant, ...] = Field(
        ("multimodal", "collaborative", "text_only"), description="what is trained for each dataset"
    )
    engine: EngineSettings = EngineSettings()
    datasets: dict[Name, DatasetSettings]
    joint: dict[Name, JointSettings] = Field({}, description="trainings over several datasets, by name")
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_sections(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Lay the top-level sections under each dataset's and joint training's own, and the environment over both.

        A dataset that starts from a joint training has that one's model.
        """
        joint, datasets = values.get("joint") or {}, values.get("datasets") or {"sample": SAMPLE}
        environment = _Environment(cls)()

        def lay(own: dict[str, Any], fields: Collection[str], model: dict[str, Any]) -> dict[str, Any]:
            shared = _overlay({name: values[name] for name in fields if name in values}, {"model": model})
            given = {name: value for name, value in environment.items() if name in fields}
            return _overlay(_overlay(shared, own), given)

        def model_of(own: dict[str, Any]) -> dict[str, Any]:
            return (joint.get(own.get("start_from")) or {}).get("model") or {}

        return values | {
            "datasets": {name: lay(own, Sections.model_fields, model_of(own)) for name, own in datasets.items()},
            "joint": {name: lay(own, ("model", "training"), {}) for name, own in joint.items()},
        }

    @model_validator(mode="after")
    def _joint_trainings_fit(self) -> Self:
        for name, joint in self.joint.items():
            _check_joint(name, joint, self.datasets)
        for name, dataset in self.datasets.items():
            if dataset.start_from is not None:
                _check_start(name, dataset, self.joint)
        return self

    @model_validator(mode="after")
    def _absolute_data_dir(self) -> Self:
        object.__setattr__(self, "data_dir", (self.root / self.data_dir).resolve())
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # `_Environment` takes its place
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the names are pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over file; no secrets folder and no .env."""
        return init_settings, _Environment(settings_cls), _TomlFile(settings_cls, config_path())

    def dataset(self, name: str) -> DatasetSettings:
        """Settings of one dataset.

        Raises:
            SettingsError: `pixrec.toml` names no such dataset.
        """
        if name not in self.datasets:
            raise SettingsError(f"unknown dataset {name!r}; {config_path()} names: {', '.join(self.datasets)}")
        return self.datasets[name]

    def trained(self, name: str) -> DatasetSettings | JointSettings:
        """Settings of what is trained under a name: a joint training or one dataset.

        Raises:
            SettingsError: `pixrec.toml` names neither.
        """
        return self.joint[name] if name in self.joint else self.dataset(name)


def _check_joint(name: str, joint: JointSettings, datasets: dict[str, DatasetSettings]) -> None:
    """Refuse a joint training whose datasets are not there, or share what one of them holds out."""
    if name in datasets:
        raise SettingsError(f"joint.{name}: a dataset has this name too; artefacts of both would lie in one folder")
    if unknown := set(joint.datasets) - set(datasets):
        raise SettingsError(
            f"joint.{name}.datasets: unknown {', '.join(sorted(unknown))}; there are: {', '.join(datasets)}"
        )
    sources = [datasets[each].source for each in joint.datasets]
    if any(source in sources[:n] for n, source in enumerate(sources)):
        raise SettingsError(
            f"joint.{name}.datasets: two of {', '.join(joint.datasets)} have one source; "
            "what one holds out for its test the other would be trained on"
        )


def _check_start(name: str, dataset: DatasetSettings, joint: dict[str, JointSettings]) -> None:
    """Refuse a dataset that starts from no joint training, or from one of another model."""
    if dataset.start_from not in joint:
        raise SettingsError(
            f"datasets.{name}.start_from is {dataset.start_from!r}; joint trainings: {', '.join(joint) or 'none'}"
        )
    own, start = dataset.model.model_dump(), joint[dataset.start_from].model.model_dump()
    if other := [f"{field} is {own[field]!r}, not {start[field]!r}" for field in own if own[field] != start[field]]:
        raise SettingsError(
            f"datasets.{name}.model: {', '.join(other)}, but it is trained from joint.{dataset.start_from}; "
            f"set the model there, in [joint.{dataset.start_from}.model]"
        )


def _with_present_names(layer: Any) -> Any:
    """A layer of sections without deprecated names, so that layers can be merged by name."""
    if not isinstance(layer, dict):
        return layer
    present = dict(layer)
    for name, field in Sections.model_fields.items():
        section = field.annotation
        if name in layer and isinstance(section, type) and issubclass(section, Section):
            present[name] = section.with_present_names(layer[name])
    return present


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, tables merged key by key."""
    both = {k: _overlay(under[k], over[k]) for k in under.keys() & over.keys() if isinstance(over[k], dict)}
    return under | over | both


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the most similar known one, else all of them."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f": did you mean `{similar[0]}`?" if similar else f"; known: {', '.join(known)}"


def config_path() -> Path:
    """The settings file: `$PIXREC_CONFIG`, else `pixrec.toml` in the working folder. It need not exist."""
    return Path(os.environ.get(CONFIG_VARIABLE, CONFIG_FILE)).resolve()


def without_secrets(text: str) -> str:
    """`text` with its URLs cut down to what a log may show: no user, no password, no query (signed URLs have keys)."""
    return _URL.sub(r"\1\2", text)


def faults_of(error: ValidationError) -> list[str]:
    """What pydantic found wrong, one line a field: its place, the fault, the value received."""
    faults = [(".".join(map(str, e["loc"])), f"{e['msg']} (received {e['input']!r})") for e in error.errors()]
    return [without_secrets(f"{place}: {fault}" if place else fault) for place, fault in faults]


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
        lines = "\n  ".join(faults_of(error))
        raise SettingsError(f"{path} (or a PIXREC_ variable) is wrong:\n  {lines}") from None
    except ValueError as error:  # tomllib's and pydantic-settings' own
        raise SettingsError(f"{path} cannot be read: {error}") from error
