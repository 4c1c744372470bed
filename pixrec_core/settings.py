"""All settings, frozen and typed; every description states the unit.

They come from `pixrec.toml` and from environment variables (`PIXREC_TRAINING__EPOCHS=3`), which take precedence.
Sections at the top level apply to every dataset; `[datasets.<name>.<section>]` overrides them for one.
`[joint.<name>]` is a training over several datasets, from which their own trainings may start.
"""

import difflib
import errno
import hashlib
import os
import re
import tomllib
import warnings
import zoneinfo
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args, get_origin

import pydantic_settings
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pixrec_core.errors import SettingsError, did_you_mean
from pixrec_core.printable import shown_url

CONFIG_FILE = "pixrec.toml"
ENV_PREFIX = "PIXREC_"
ENV_DELIMITER = "__"
CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
MAX_SHOWN = 100  # characters of a received value in a message

#: Variables that Kubernetes sets for a service whose name starts with `pixrec`.
_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$")

Variant = Literal["multimodal", "collaborative", "text_only", "image_only", "shuffled_images"]
GenerativeRanker = Literal["beams", "generate_bm25", "hybrid"]
TINY: Final = "tiny"  # the backbone that is built here

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
#: A host name or IP address in lower case (an international name in its DNS form, `xn--...`); `*` matches any part.
_HOSTS: Final = r"^[a-z0-9._:*-]+$"
_NAMES: Final = r"^[a-z0-9][a-z0-9_-]*$"
_ADDRESSES: Final = r"^[!-?A-~]+@[!-?A-~]+$"  # printable ASCII, so that it can end no header
HostPattern = Annotated[str, Field(pattern=_HOSTS)]
Name = Annotated[str, Field(pattern=_NAMES)]
#: What patterns of settings, also of sources, mean in words.
_PATTERNS: Final = {
    _HOSTS: "must be a host in lower case without `http://`, such as `*.example.com`",
    _NAMES: "must be a name of lower-case letters, digits, `_` and `-`",
    _ADDRESSES: "must be an address such as shop@example.com",
    r"^https?://[^\s/]": "must be a URL that begins with http:// or https://",
    "^[0-9a-fA-F]{64}$": "must be a SHA-256 of 64 hexadecimal digits",
    "^[.,]$": 'must be "." or ","',
    r'^[^"\r\n]$': "must be one character, and no quote or line end",
}
#: A name on the hub, or a local folder: then an absolute path, of which fingerprints and checkpoints have the last part
#: only, so that a project can be moved.
ModelName = Annotated[
    str,
    PlainSerializer(lambda name: Path(name).name if Path(name).is_absolute() else name, when_used="json"),
]


def _one_line(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isprintable():
        raise ValueError("a header must be one line without control characters")
    return value


@cache
def _slow_digest(secret: str) -> str:
    """Digest of a secret, hexadecimal.

    Others may read it, and a short secret can be guessed: each guess takes as long as this call, a fifth of a second.
    The salt is constant, so that a copied data folder stays current.
    """
    return hashlib.pbkdf2_hmac("sha256", secret.encode(), b"pixrec", 600_000).hex()


HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
#: In JSON, and so in fingerprints and journals, a digest: a mask such as `**********` would hide that a key was
#: corrected, and the photos that it gives access to would not be fetched.
HeaderValue = Annotated[
    SecretStr,
    AfterValidator(_one_line),
    PlainSerializer(lambda value: _slow_digest(value.get_secret_value()), when_used="json"),
]


def _known_zone(zone: str) -> str:
    try:
        return zoneinfo.ZoneInfo(zone).key
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError("unknown time zone; write it as Europe/Berlin or UTC") from None


#: Name of a zone, such as Europe/Berlin.
TimeZone = Annotated[str, AfterValidator(_known_zone)]


class Section(BaseModel):
    """A frozen group of settings; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    """Source of raw reviews and metadata. `kind` names a module of `data/sources`, which defines the other options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(description="a module of `pixrec_core.data.sources`")

    @property
    def options(self) -> dict[str, Any]:
        """The options that the source defines."""
        return dict(self.model_extra or {})


class IngestSettings(Section):
    """How raw files are read."""

    max_bad_share: Fraction = Field(0.01, description="share of rejected lines (0 to 1) above which a stage fails")
    max_expansion: float = Field(
        100.0, gt=1, description="maximum ratio of unpacked to packed size of a gzip file; checked above 64 MiB"
    )


class ImageSettings(Section):
    """Download and storage of product photos."""

    size: Positive = Field(
        256, le=65_500, description="longest edge of a stored photo in pixels; larger photos are scaled down"
    )
    threads: Positive = Field(16, description="simultaneous downloads, all hosts together")
    per_host: Positive = Field(8, description="simultaneous downloads from one host")
    attempts: Positive = Field(4, description="attempts per URL before it counts as failed")
    timeout_s: float = Field(20.0, gt=0, description="seconds to wait for a connection or for the next bytes")
    deadline_s: float = Field(60.0, gt=0, description="seconds for one whole photo, even if bytes keep arriving")
    max_bytes: Positive = Field(20_000_000, description="maximum size of a downloaded photo in bytes")
    max_pixels: Positive = Field(
        50_000_000, le=2**32, description="maximum size of a downloaded photo in pixels (width x height)"
    )
    allow_private_hosts: bool = Field(False, description="allow URLs with private or loopback addresses")
    allow_hosts: tuple[HostPattern, ...] = Field(
        (), description="allowed hosts, such as `*.example.com`; empty allows any"
    )
    deny_hosts: tuple[HostPattern, ...] = Field((), description="forbidden hosts; takes precedence over `allow_hosts`")
    headers: dict[HostPattern, dict[HeaderName, HeaderValue]] = Field(
        {},
        description="HTTP headers for the hosts that match a pattern, such as `User-Agent`; values are never printed",
    )
    decode_memory_mb: int = Field(
        2048,
        ge=256,
        description="memory for decoding all photos together in MiB; there is one process per 1,024 MiB and core",
    )


class SequenceSettings(Section):
    """From interactions to sequences.

    The time split takes its cuts from the two shares, or from the two dates if they are set. Shares follow growing
    data; dates keep the metrics of different days comparable.
    """

    renamed = MappingProxyType(
        {
            "unbought_items": "include_cold_items",
        }
    )

    split: Literal["leave_one_out", "time"] = Field(
        "leave_one_out",
        description="what is held out: the last two items of each user with three or more, or all interactions after "
        "two points in time",
    )
    validation_share: OpenFraction = Field(
        0.1, description="time split: minimum share of the interactions between the two cuts"
    )
    test_share: OpenFraction = Field(
        0.1, description="time split: minimum share of the interactions after the test cut"
    )
    validation_from: date | None = Field(
        None, description="time split: first day of validation (UTC), instead of the share"
    )
    test_from: date | None = Field(None, description="time split: first day of test (UTC), instead of the share")
    min_rating: float = Field(0.0, description="minimum rating of an interaction, in stars; others are left out")
    min_user_interactions: Positive = Field(
        1,
        description="k-core: minimum interactions per user (time split: before the first cut)",
    )
    min_item_interactions: Positive = Field(
        1, description="k-core: minimum interactions per item (time split: before the first cut)"
    )
    collapse_repeats: bool = Field(False, description="merge consecutive interactions with the same item")
    include_cold_items: bool = Field(
        False, description="recommend items without interactions too, such as new products"
    )
    test_users: int = Field(
        50_000,
        ge=0,
        description="test users who get rankings and are measured, drawn if there are more; 0 means all",
    )

    @model_validator(mode="after")
    def _check_cuts(self) -> Self:
        dates = (self.validation_from, self.test_from)
        if self.split == "leave_one_out" and any(dates):
            raise ValueError('validation_from and test_from need split = "time"')
        if any(dates) and not all(dates):
            raise ValueError("validation_from and test_from must be set together; one is missing")
        if self.validation_from and self.test_from and self.validation_from >= self.test_from:
            raise ValueError("validation_from must be before test_from")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must be less than 1, since training uses the rest")
        return self


class LoraSettings(Section):
    """Low-rank adapters of the language model."""

    rank: Positive = Field(16, description="rank r of an adapter")
    alpha: float = Field(32.0, gt=0, description="the output of an adapter is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout probability of an adapter's inputs")
    targets: tuple[str, ...] = Field((), description="names of the layers to adapt; empty adapts every linear layer")


class ModelSettings(Section):
    """The dual tower. Some defaults depend on `user_encoder` and `item_encoder`: see `OTHER_DEFAULTS`."""

    renamed = MappingProxyType(
        {
            "dimension": "embedding_dim",
            "residual_dropout": "item_id_dropout",
        }
    )

    user_encoder: Literal["items", "tokens"] = Field(
        "items",
        description="`items` encodes each item once and makes the user from item vectors; `tokens` reads the whole "
        "history with the backbone, as in the paper",
    )
    item_encoder: Literal["frozen", "backbone"] = Field(
        "frozen",
        description="items: source of item vectors: frozen features of text and photo, or the backbone, which is "
        "trained",
    )
    user_pooling: Literal["mean", "gru", "transformer"] = Field(
        "mean",
        description="items: the user is the weighted mean of the item vectors with learned weights; or that mean plus "
        "the output of a causal network",
    )
    backbone: ModelName = Field(
        TINY, description="`tiny`, or a hub name or local folder of an image-text-to-text model"
    )
    revision: str | None = Field(
        None, description="hub revision (commit, tag or branch); by default the default branch"
    )
    vision: Literal["trainable", "frozen"] = Field("trainable", description="train the vision tower, or freeze it")
    tune: Literal["full", "lora", "last_layers"] = Field(
        "full",
        description="trained part of the language model: all, adapters, or the last layers; heads are always trained",
    )
    lora: LoraSettings = LoraSettings()
    last_layers: Positive = Field(2, description="number of trained decoder layers with tune = last_layers")
    embedding_dim: Positive = Field(256, description="D, dimension of user and item vectors; 128 with a backbone")
    item_tokens: Positive = Field(
        32,
        description="maximum text tokens per item, for encoders and backbones that read tokens; longer texts are "
        "truncated; `lsa` reads whole texts",
    )
    text_encoder: ModelName = Field(
        "lsa",
        description="frozen encoder of item texts: `lsa`, `smollm2` (extra `gguf`), or a Hugging Face name or folder "
        "of an embedding model",
    )
    photo_encoder: ModelName = Field(
        "histogram",
        description="frozen encoder of photos: `histogram`, `cnn` (extra `photos`), or a Hugging Face name or folder",
    )
    photo_dropout: float = Field(
        0.3, ge=0, lt=1, description="probability that a feature of a photo is left out in a step (items, frozen)"
    )
    item_id_dropout: float = Field(
        0.5, ge=0, lt=1, description="probability that an item's id embedding is left out in a step (collaborative)"
    )


class TrainingSettings(Section):
    """The training objective and its optimiser."""

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

    epochs: Positive = Field(
        30,
        description="most passes over the training sequences; 3 with a backbone. items: a pass has at most 500 steps",
    )
    batch_size: Positive = Field(
        1024, description="targets per step; 512 with item_encoder = backbone; tokens: history windows, 16"
    )
    max_history_len: int = Field(
        50, ge=2, description="n, maximum items in a history window; the newest are kept; tokens: 10"
    )
    learning_rate: float = Field(
        1.5e-3, gt=0, description="peak learning rate; 5e-4 with a backbone, and 1e-4 or less for a pretrained one"
    )
    lr_scheduler_type: Literal["constant_with_warmup", "cosine"] = Field(
        "constant_with_warmup", description="learning rate after the warm-up; `cosine`, to 0, with a backbone"
    )
    warmup_ratio: float = Field(
        0.0, ge=0, lt=1, description="share of the steps in which the learning rate rises; 0.1 with a backbone"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    weight_item_item: Fraction = Field(
        0.0,
        description="a, weight of the item-item loss L_TT: the target as part of a history against all keys; tokens: "
        "0.125",
    )
    weight_user_item: Fraction = Field(1.0, description="b, weight of the user-item loss L_UT; tokens: 0.8")
    num_sampled_negatives: int = Field(
        8192,
        ge=0,
        description="training items sampled per step as negatives, besides the items of the batch; all of them if they "
        "are fewer; 0 turns this off; 64 with a backbone",
    )
    log_q_correction: bool = Field(False, description="apply the logQ correction to in-batch negatives")
    shuffle_ties: bool = Field(
        True,
        description="shuffle items of the same time in each epoch; items: a target's history has the rest of its "
        "basket too",
    )
    temperature: float = Field(0.1, gt=0, description="tau, temperature of both InfoNCE losses; tokens: 0.07")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of activations; weights stay float32. `auto` is bfloat16 on a GPU that supports it",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations for gradients: less memory, a third more time"
    )
    metric_for_best_model: Literal["ndcg@10", "recall@10"] = Field(
        "ndcg@10", description="validation metric that selects the epoch to keep"
    )
    patience: Positive = Field(
        3, description="epochs without improvement of `metric_for_best_model` before training stops"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of weights, shuffling and dropout")
    # Excluded from the fingerprint: results depend on it only through the order of floating-point sums.
    processes: Positive = Field(
        1,
        exclude=True,
        description="processes that share each batch, each with a GPU or a part of the CPU: on this machine, "
        "or Ray workers if engine.kind is `ray`",
    )
    fsdp: bool = Field(
        False,
        exclude=True,
        description="shard weights, gradients and optimiser state over the processes (PyTorch FSDP)",
    )


class IndexSettings(Section):
    """The index of item vectors. Separate from `RetrievalSettings`: another depth needs no new index."""

    kind: Literal["auto", "flat", "hnsw", "ivfpq"] = Field(
        "auto",
        description="`flat` is exact; `hnsw` is approximate and faster; `ivfpq` is approximate and stays on disk",
    )
    exact_items: Positive = Field(1_000_000, description="catalogue size in items above which `auto` uses `hnsw`")


class RetrievalSettings(Section):
    """Rankings."""

    depth: Positive = Field(
        100, description="items in the ranking of a user, 20 or more; metrics count lower ranks as misses"
    )
    baselines: tuple[str, ...] = Field((), description="baselines to fit; none: all but `semantic_ids`")


class BlendSettings(Section):
    """The learned blend of all methods."""

    enabled: bool = Field(True, description="whether a blend is trained")
    methods: tuple[str, ...] = Field((), description="methods that feed it: baselines and variants; none: all")
    candidates: Positive = Field(100, description="unseen items of each method's list that it orders")


class GenerativeSettings(Section):
    """Rankings by the language model, from texts generated after a history; several times slower than the index.

    They are evaluated separately from the dense ranking, over the same users.
    """

    rankers: tuple[GenerativeRanker, ...] = Field(
        (), description="modules of `pixrec_core.retrieval.rankers`; empty turns them off"
    )
    users: int = Field(500, ge=0, description="number of sampled test users; 0 means all")
    beams: Positive = Field(32, description="beam width, and number of generated texts that BM25 looks up")
    sample: bool = Field(False, description="generate_bm25: sample tokens instead of beam search")
    candidates: Positive = Field(100, description="hybrid: number of nearest items to rerank")
    likelihood_weight: Fraction = Field(
        0.25, description="hybrid: weight of the text likelihood; the cosine similarity has the rest"
    )


class PromotionSettings(Section):
    """Whether a new promotion replaces the one that serves, and what is fitted again before it serves."""

    tolerance: Fraction = Field(
        0.0,
        description="loss of NDCG@10 (0 to 1) above which a promotion is refused, if significant; 1 refuses none",
    )
    refit: bool = Field(
        True,
        description="stage `refit`: fit the method that serves, and those that the blend reads, on all interactions, "
        "with the settings and number of epochs that validation chose",
    )


class CandidateRules(Section):
    """Which items may be recommended. A query may add rules; it cannot lift those of the settings file.

    They hold before a list is cut to its length. An unknown price, category or brand satisfies no rule that asks for
    one.
    """

    allow: tuple[str, ...] = Field((), description="item ids; if set, no other item is recommended")
    deny: tuple[str, ...] = Field((), description="item ids that are never recommended")
    pin: tuple[str, ...] = Field((), description="item ids that come first, in this order, if other rules allow them")
    categories: tuple[str, ...] = Field((), description="if set, an item needs one of these categories")
    deny_categories: tuple[str, ...] = Field((), description="items with one of these categories are left out")
    min_price: float | None = Field(None, ge=0, description="lowest price, in the currency of the catalogue")
    max_price: float | None = Field(None, ge=0, description="highest price")
    in_stock: bool = Field(False, description="leave out items whose `in_stock` is false in the catalogue")
    max_per_category: Positive | None = Field(None, description="items of one (most specific) category in a list")
    max_per_brand: Positive | None = Field(None, description="items of one brand (`store`) in a list")
    filter_seen: bool = Field(False, description="leave out items of the history")
    bought_within_days: float = Field(
        0.0, ge=0, description="leave out items of the history that were bought within these days before the query"
    )


class TrackingSettings(Section):
    """Logging of trainings to MLflow; needs the extra `tracking`."""

    uri: str | None = Field(
        None, min_length=1, description="URI of a tracking server or its database; without it nothing is logged"
    )
    experiment: str = Field("pixrec", min_length=1, description="name of the experiment; created if it does not exist")


Address = Annotated[str, Field(pattern=_ADDRESSES)]


class EmailSettings(Section):
    """E-mail after a failed run."""

    to: tuple[Address, ...] = Field((), description="addresses that get a message after a failed run; empty: none")
    sender: Address | None = Field(None, description="address of the sender")
    host: str | None = Field(None, min_length=1, description="SMTP server")
    port: int | None = Field(
        None, ge=1, le=65_535, description="TCP port; by default 465 with `ssl`, 587 with `starttls`"
    )
    security: Literal["ssl", "starttls"] = Field("ssl", description="encryption of the connection")
    user: str | None = Field(None, description="name at the server; by default the sender's address")
    password: SecretStr | None = Field(
        None, description="password at the server; better set as PIXREC_DAGSTER__EMAIL__PASSWORD"
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        missing = [name for name in ("sender", "host", "password") if not getattr(self, name)]
        if self.to and missing:
            raise ValueError(f"`to` is set, but {' and '.join(missing)} must be set, too")
        return self


class DagsterSettings(Section):
    """What runs by itself in Dagster. Schedules and sensors are stopped until they are turned on in the UI."""

    time_zone: TimeZone = Field("UTC", description="zone of both schedules, such as Europe/Berlin")
    refresh: str = Field("0 4 * * *", min_length=1, description="cron schedule of `daily_refresh`")
    retrain: str = Field("0 3 * * 1", min_length=1, description="cron schedule of `weekly_data`")
    max_age_days: float | None = Field(
        None, gt=0, description="days after which the UI shows `promoted` as too old; without it never"
    )
    alert_url: SecretStr | None = Field(
        None, description='URL that gets `{"text": ...}` after a failed run, such as a Slack webhook'
    )
    email: EmailSettings = EmailSettings()
    keep_runs_days: float | None = Field(
        None,
        gt=0,
        description="days after which a finished run is deleted from Dagster's history; without it never",
    )

    @field_validator("alert_url")
    @classmethod
    def _is_http(cls, url: SecretStr | None) -> SecretStr | None:
        if url and not url.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("must begin with https:// or http://")
        return url


class ServerSettings(Section):
    """The HTTP server, `pixrec serve`; needs the extra `serve`."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; the default accepts this machine")
    port: int = Field(8000, ge=0, le=65_535, description="TCP port; 0 takes a free one")
    workers: Positive = Field(1, description="processes; each loads all methods")
    token: SecretStr | None = Field(
        None, min_length=8, description="required as `Authorization: Bearer ...`; better set as PIXREC_SERVER__TOKEN"
    )
    allowed_hosts: tuple[HostPattern, ...] = Field(
        (), description="accepted `Host` headers; empty: names of this machine if `host` is one, otherwise any"
    )
    threads: Positive = Field(4, description="requests that one process computes at the same time")
    max_waiting: Positive = Field(64, description="further requests that wait; more get status 503")
    timeout_s: float = Field(10.0, gt=0, description="seconds after which a request gets status 504")
    max_body_bytes: Positive = Field(20_000_000, description="largest body of a request; a larger one gets status 413")
    max_top: Positive = Field(1000, description="longest list that a request may ask for")
    max_batch: Positive = Field(1000, description="most histories of one batch request")
    reload_s: float = Field(2.0, gt=0, description="seconds between two looks for a new promotion")
    log_answers: bool = Field(False, description="write what is recommended to `data/<dataset>/online/`")
    attribution_days: float = Field(
        7.0, gt=0, description="asset `online_metrics`: days after a logged list in which a purchase counts for it"
    )


class EngineSettings(Section):
    """Where shards of heavy stages run. No artefact depends on it."""

    kind: Literal["local", "ray"] = Field(
        "local", description="`local` is this process; `ray` is Ray workers and needs the extra `ray`"
    )
    address: str | None = Field(
        None,
        description="ray: running cluster, `host:port` or `auto`; by default the command starts Ray on this machine",
    )
    workers: Positive = Field(2, description="ray: maximum number of simultaneous workers")
    cpus: float = Field(1.0, gt=0, description="ray: cores per worker")
    gpus: float = Field(0.0, ge=0, description="ray: GPUs per worker; with 0.5 two workers share one")


#: Defaults of `[model]` and `[training]` that differ from the declared ones, which are for frozen item features.
OTHER_DEFAULTS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "tokens": {
        "model": {"embedding_dim": 128},
        "training": {
            "epochs": 3,
            "batch_size": 16,
            "max_history_len": 10,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "weight_item_item": 0.125,
            "weight_user_item": 0.8,
            "num_sampled_negatives": 64,
            "temperature": 0.07,
        },
    },
    "backbone": {
        "model": {"embedding_dim": 128},
        "training": {
            "epochs": 3,
            "batch_size": 512,
            "learning_rate": 5e-4,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "num_sampled_negatives": 64,
        },
    },
}


def _complete_training(sections: "Sections | JointSettings") -> None:
    """Set the defaults that depend on the encoders, and reject what one of them cannot do."""
    model = sections.model
    kind = "tokens" if model.user_encoder == "tokens" else model.item_encoder
    for name, defaults in OTHER_DEFAULTS.get(kind, {}).items():
        section: Section = getattr(sections, name)
        missing = {key: value for key, value in defaults.items() if key not in section.model_fields_set}
        object.__setattr__(sections, name, section.model_copy(update=missing))
    training = sections.training
    if training.weight_item_item + training.weight_user_item > 1:
        raise ValueError(
            "training.weight_item_item + training.weight_user_item must not exceed 1, since the generation loss has "
            "the rest"
        )
    if training.processes > training.batch_size:
        raise ValueError(
            f"training.processes is {training.processes}, but a batch has only {training.batch_size} windows; lower "
            "processes"
        )
    if training.fsdp and training.processes == 1:
        raise ValueError(
            "training.fsdp shards weights over several processes, but processes is 1; raise it, or leave fsdp out"
        )
    if model.user_encoder == "items" and training.processes > 1:
        raise ValueError(
            f"training.processes is {training.processes}, but a training with model.user_encoder = `items` "
            "runs in one process; leave processes out, or set user_encoder to `tokens`"
        )


class Sections(BaseModel):
    """The sections that apply to all datasets at the top level, and to one dataset within it."""

    ingest: IngestSettings = IngestSettings()
    images: ImageSettings = ImageSettings()
    sequences: SequenceSettings = SequenceSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    index: IndexSettings = IndexSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    generative: GenerativeSettings = GenerativeSettings()
    blend: BlendSettings = BlendSettings()
    promotion: PromotionSettings = PromotionSettings()
    rules: CandidateRules = CandidateRules()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _complete_training(self)
        return self

    @model_validator(mode="after")
    def _check_rankers(self) -> Self:
        if self.generative.rankers and self.model.user_encoder == "items":
            raise ValueError(
                f"generative.rankers are {', '.join(self.generative.rankers)}, but with model.user_encoder = `items` "
                "no language model reads histories; leave rankers out, or set user_encoder to `tokens`"
            )
        return self


MIN_DEPTH: Final = 20  # of a ranking: the deepest metric is Recall@20


class DatasetSettings(Sections):
    """One dataset: its source, and every section merged with the shared values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: SourceSettings
    start_from: str | None = Field(
        None, description="joint training whose checkpoint and model settings this training starts from"
    )

    @model_validator(mode="after")
    def _check_depth(self) -> Self:
        if self.retrieval.depth < MIN_DEPTH:
            raise ValueError(f"retrieval.depth is {self.retrieval.depth}; Recall@20 needs {MIN_DEPTH} or more")
        return self


class JointSettings(Section):
    """One training over several datasets (first stage of CALRec), merged with the shared values."""

    datasets: tuple[str, ...] = Field(min_length=2, description="datasets to train on, each with its own catalogue")
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _complete_training(self)
        if self.model.user_encoder == "items":
            raise ValueError("model.user_encoder is `items`, but a joint training needs `tokens`")
        return self


TOKENS: Final = {"user_encoder": "tokens"}  # the model of joint trainings

#: The dataset without a pixrec.toml.
SAMPLE: Final = {"source": {"kind": "sample"}}


class _Environment(EnvSettingsSource):
    """Environment variables, with deprecated names replaced."""

    def __call__(self) -> dict[str, Any]:
        try:
            found = super().__call__()
        except pydantic_settings.SettingsError as error:
            field = re.search(r'field "(\w+)"', str(error))
            variable = f"{ENV_PREFIX}{field[1].upper() if field else '...'}"
            raise SettingsError(
                f'{variable} is not JSON. Write a list as \'["a", "b"]\' and a table as \'{{"a": 1}}\', '
                f"or set one value of a table: {variable}{ENV_DELIMITER}NAME=VALUE"
            ) from None
        return _layer(found | self._unknown())

    def _unknown(self) -> dict[str, Any]:
        """Variables that name no setting, which pydantic-settings ignores: validation reports them."""
        names = (name.upper() for name in self.env_vars)
        ours = (name for name in names if name.startswith(ENV_PREFIX) and not _SERVICE.search(name))
        settings = (name.removeprefix(ENV_PREFIX).lower() for name in ours if name != CONFIG_VARIABLE)
        parts = (name.partition(ENV_DELIMITER) for name in settings)
        return {name: {rest: ""} if rest else "" for name, _, rest in parts if name not in Settings.model_fields}


class _TomlFile(TomlConfigSettingsSource):
    """The settings file, with deprecated names replaced in each layer."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        """Read a file in UTF-8, with or without a byte order mark."""
        try:
            return tomllib.loads(file_path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError:
            raise SettingsError(f"{file_path} is not UTF-8; save it as UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{file_path} cannot be read as TOML: {error}") from None
        except OSError as error:
            raise SettingsError(f"{file_path} cannot be read: {error.strerror}") from None

    def __call__(self) -> dict[str, Any]:
        layers = _layer(super().__call__())
        for group in {"datasets", "joint"} & layers.keys():
            if isinstance(layers[group], dict):
                layers[group] = {name: _with_present_names(layer) for name, layer in layers[group].items()}
        return layers


def _layer(layer: dict[str, Any]) -> dict[str, Any]:
    """One source of settings with deprecated names replaced.

    Raises:
        SettingsError: it sets `root`, which is the folder of the settings file; or a setting under both its names.
    """
    if "root" in layer:
        raise SettingsError("`root` is no setting: relative paths start from the folder of pixrec.toml. Remove it")
    try:
        present: dict[str, Any] = _with_present_names(layer)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return present


class Settings(BaseSettings, Sections):
    """The whole of `pixrec.toml`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        toml_file=CONFIG_FILE,
    )

    root: Path = Field(default_factory=Path.cwd, description="base folder of relative paths")
    data_dir: Path = Field(Path("data"), description="folder of all artefacts")
    variants: tuple[Variant, ...] = Field(
        ("multimodal", "collaborative", "text_only"), description="variants to train for each dataset"
    )
    engine: EngineSettings = EngineSettings()
    datasets: dict[Name, DatasetSettings]
    joint: dict[Name, JointSettings] = Field({}, description="joint trainings by name")
    tracking: TrackingSettings = TrackingSettings()
    server: ServerSettings = ServerSettings()
    dagster: DagsterSettings = DagsterSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_sections(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Merge each dataset and joint training: shared sections, its own, then both of the environment.

        A dataset that starts from a joint training has the model settings of that training.
        """
        joint, datasets = values.get("joint", {}), values.get("datasets", {})
        if datasets == {}:
            datasets = {"sample": SAMPLE}
        if not isinstance(joint, dict) or not isinstance(datasets, dict):
            return values | {"datasets": datasets}  # the types of the fields report it
        environment = _Environment(cls)()

        def merge(given: Any, fields: Collection[str], model: Any, kind: str, name: str) -> Any:
            if not isinstance(given, dict):
                return given
            shared = _overlay({name: values[name] for name in fields if name in values}, {"model": model})
            variables = {name: value for name, value in environment.items() if name in fields}
            of_kind = environment.get(kind, {})
            own = of_kind.get(name, {}) if isinstance(of_kind, dict) else {}
            return _overlay(_overlay(_overlay(shared, given), variables), own if isinstance(own, dict) else {})

        def start_model(given: Any) -> Any:
            start = given.get("start_from") if isinstance(given, dict) else None
            training = joint.get(start) if isinstance(start, str) else None
            if not isinstance(training, dict):
                return {}
            model = training.get("model", {})
            return TOKENS | model if isinstance(model, dict) else model

        return values | {
            "datasets": {
                name: merge(given, Sections.model_fields, start_model(given), "datasets", name)
                for name, given in datasets.items()
            },
            "joint": {
                name: merge(given, ("model", "training"), TOKENS, "joint", name) for name, given in joint.items()
            },
        }

    @model_validator(mode="after")
    def _check_joint_trainings(self) -> Self:
        for name, joint in self.joint.items():
            _check_joint(name, joint, self.datasets)
        for name, dataset in self.datasets.items():
            if dataset.start_from is not None:
                _check_start(name, dataset, self.joint)
        return self

    @model_validator(mode="after")
    def _make_paths_absolute(self) -> Self:
        object.__setattr__(self, "data_dir", resolve_path(self.root, self.data_dir))
        if "\\" in str(self.data_dir):
            shown = shown_url(str(self.data_dir))
            raise ValueError(f"data_dir is {shown}, but DuckDB takes a backslash for `/`; name another folder")
        for folder in (self.root, self.data_dir):
            if str(folder).encode(errors="ignore").decode() != str(folder):
                raise ValueError(f"the name of the folder {str(folder)!r} is not UTF-8; rename it or name another one")
        trainings: list[DatasetSettings | JointSettings] = [*self.datasets.values(), *self.joint.values()]
        for trained in trainings:
            names = ("backbone", "text_encoder", "photo_encoder")
            folders = {name: resolve_path(self.root, getattr(trained.model, name)) for name in names}
            found = {name: str(folder) for name, folder in folders.items() if _has_model(folder)}
            if found:
                object.__setattr__(trained, "model", trained.model.model_copy(update=found))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # replaced by `_Environment`
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the names are pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file; no secrets folder and no .env file."""
        return init_settings, _Environment(settings_cls), _TomlFile(settings_cls, config_path())

    def dataset(self, name: str) -> DatasetSettings:
        """Return the settings of one dataset.

        Raises:
            SettingsError: the settings file has no such dataset.
        """
        if name not in self.datasets:
            path, end = config_path(), did_you_mean(name, self.datasets)
            if not path.is_file():
                stop = "" if end.endswith("?") else "."
                raise SettingsError(
                    f"unknown dataset {name!r}{end}{stop} There is no {path}; change to the folder of {CONFIG_FILE}, "
                    f"or set {CONFIG_VARIABLE} to its path"
                )
            raise SettingsError(f"{path}: unknown dataset {name!r}{end}")
        return self.datasets[name]

    def trained(self, name: str) -> DatasetSettings | JointSettings:
        """Return the settings of a training: of a joint training or one dataset.

        Raises:
            SettingsError: the settings file has neither.
        """
        return self.joint[name] if name in self.joint else self.dataset(name)


def _check_joint(name: str, joint: JointSettings, datasets: dict[str, DatasetSettings]) -> None:
    """Reject a joint training with unknown datasets, or with two datasets of the same source."""
    if name in datasets:
        raise ValueError(f"joint.{name}: a dataset has the same name, and both would use one folder; rename one")
    if unknown := set(joint.datasets) - set(datasets):
        first = min(unknown)
        raise ValueError(f"joint.{name}.datasets: unknown dataset `{first}`{did_you_mean(first, datasets)}")
    sources = [datasets[each].source for each in joint.datasets]
    if any(source in sources[:n] for n, source in enumerate(sources)):
        raise ValueError(
            f"joint.{name}.datasets: two of {', '.join(joint.datasets)} have the same source, "
            "so the training would contain held-out interactions; remove one"
        )


def _check_start(name: str, dataset: DatasetSettings, joint: dict[str, JointSettings]) -> None:
    """Reject a dataset that starts from an unknown joint training, or from one with another model."""
    if dataset.start_from not in joint:
        raise ValueError(
            f"datasets.{name}.start_from: unknown joint training `{dataset.start_from}`"
            f"{did_you_mean(dataset.start_from or '', joint)}"
        )
    model, start = dataset.model.model_dump(), joint[dataset.start_from].model.model_dump()
    if other := [f"{name} is {model[name]!r}, not {start[name]!r}" for name in model if model[name] != start[name]]:
        raise ValueError(
            f"datasets.{name}.model: {', '.join(other)}, but its training starts from joint.{dataset.start_from}; "
            f"set the model there, in [joint.{dataset.start_from}.model]"
        )


def _with_present_names(layer: Any) -> Any:
    """A layer of sections with deprecated names replaced, so that layers can be merged by name."""
    if not isinstance(layer, dict):
        return layer
    present = dict(layer)
    for name, field in Sections.model_fields.items():
        section = field.annotation
        if name in layer and isinstance(section, type) and issubclass(section, Section):
            present[name] = section.with_present_names(layer[name])
    return present


def _overlay(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge two tables key by key; values of `over` take precedence."""
    tables = (k for k in under.keys() & over.keys() if isinstance(under[k], dict) and isinstance(over[k], dict))
    return under | over | {k: _overlay(under[k], over[k]) for k in tables}


def resolve_path(root: Path, path: str | Path) -> Path:
    """Return the absolute path of a path in the settings: `~` is the home, a relative path starts from `root`.

    Raises:
        SettingsError: there is no home of that user, the working folder was deleted, or no file can have that path.
    """
    try:
        resolved = (root / Path(path).expanduser()).resolve()
    except FileNotFoundError:
        raise SettingsError("the working folder no longer exists; change to another folder") from None
    except (RuntimeError, ValueError) as error:
        raise SettingsError(f"the path {shown_url(str(path))[:MAX_SHOWN]!r} cannot be used: {error}") from None
    try:
        resolved.lstat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise SettingsError(
                f"the path {shown_url(str(path))[:MAX_SHOWN]!r} cannot be used: {error.strerror}"
            ) from None
    return resolved


def _has_model(folder: Path) -> bool:
    """Return whether a folder has the files of a model, with JSON or as one GGUF file; a name of the hub is none."""
    return any(folder.glob("*.json")) or any(folder.glob("*.gguf"))


def config_path() -> Path:
    """Return the settings file: `$PIXREC_CONFIG`, else `pixrec.toml` in the working folder. It may not exist."""
    return resolve_path(Path(), os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE)


def error_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one line per wrong setting: its path or environment variable, what is wrong, and the received value.

    Unknown names are compared with the names of `model`, the class that raised the error.
    """
    lines: dict[tuple[str, str], str] = {}
    reasons: set[str] = set()
    for each in error.errors():
        path = [str(part) for part in each["loc"]]
        variable = _variable(path) if model is Settings else None
        reason = _reason(each, model, _env_name if variable else ".".join)
        where = variable or ".".join(path)
        if path[:1] in (["datasets"], ["joint"]):  # a wrong shared section is reported again by each that it is part of
            if (".".join(path[2:]), each["type"]) in lines or (len(path) == 2 and reason in reasons):
                continue
            reasons.add(reason)
        lines[".".join(path), each["type"]] = f"{where}: {reason}" if where else reason
    return list(dict.fromkeys(lines.values()))


#: Secret settings: no message shows their values.
SECRETS: Final = frozenset({"headers", "token", "alert_url", "password"})


def _received(value: Any) -> str:
    """A received value as a message may show it: whole tables could hold anything, and URLs hold passwords."""
    if value and isinstance(value, list | dict):
        return f"received a {'list' if isinstance(value, list) else 'table'}"
    text = repr(shown_url(value)) if isinstance(value, str) and ("@" in value or "://" in value) else repr(value)
    return f"received {text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + '…'}"


def _env_name(path: Sequence[str]) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{ENV_DELIMITER.join(path)}".upper()


def _variable(path: Sequence[str]) -> str | None:
    """The environment variable that sets the setting at `path` or a part of it, if there is one."""
    name = _env_name(path)
    found = (variable for variable in os.environ if f"{variable.upper()}__".startswith(f"{name}__"))
    return min(found, default=None) if path else None


def _reason(error: ErrorDetails, model: type[BaseModel], spell: Callable[[Sequence[str]], str]) -> str:
    """What pydantic reports as wrong, without its class names; `spell` writes the path of another setting."""
    path, received = [str(part) for part in error["loc"]], error["input"]
    if error["type"] == "extra_forbidden":
        kind = "section" if isinstance(received, dict) else "setting"
        return f"unknown {kind} `{path[-1]}`{_nearest(path, model, spell)}"
    is_secret = not SECRETS.isdisjoint(path) or isinstance(received, dict)
    shown = "" if is_secret else f" ({_received(received)})"
    if error["type"] in ("dict_type", "model_type"):
        return f"must be a table, such as [{'.'.join(path)}]{shown}"
    if error["type"] == "tuple_type":
        return f'must be a list, such as {path[-1]} = ["..."]{shown}'
    reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    if error["type"] == "string_pattern_mismatch":
        reason = _PATTERNS.get(error["ctx"]["pattern"], reason)
    return f"{reason}{shown}"


def _nearest(path: Sequence[str], model: type[BaseModel], spell: Callable[[Sequence[str]], str]) -> str:
    """The end of a message about an unknown name: a setting of this name elsewhere, else the most similar neighbour."""
    name, section = path[-1], _names_in(model, path[:-1])
    everywhere = list(setting_paths()) if model is Settings else []
    same = [each for each in everywhere if name in (each[-1], "_".join(each))]
    similar = difflib.get_close_matches(name, section, n=1)
    if same:
        return f": did you mean `{spell(same[0])}`?"
    if similar:
        return f": did you mean `{spell([*path[:-1], *similar]) if spell is _env_name else similar[0]}`?"
    return did_you_mean(name, section)


def setting_paths(model: type[BaseModel] | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each setting in the sections of `model`, by default all: `("training", "epochs")`."""
    for name, field in (model or Settings).model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from setting_paths(section, (*path, name))
        elif path:
            yield (*path, name)


def _names_in(model: Any, path: Sequence[str]) -> list[str]:
    """Names of the settings in the section at `path`."""
    for part in path:  # a table such as `datasets` has sections by name
        model = get_args(model)[1] if get_origin(model) is dict else model.model_fields[part].annotation
    return list(model.model_fields)


def load_settings() -> Settings:
    """Read the settings file and the environment.

    Raises:
        SettingsError: the file of `$PIXREC_CONFIG` does not exist, the file is not TOML, or a setting is unknown or out
            of range.
    """
    path = config_path()
    if not path.is_file() and (os.environ.get(CONFIG_VARIABLE) or path.exists()):
        problem = "is no file" if path.exists() else "does not exist"
        raise SettingsError(f"the settings file {path} {problem}; it is {CONFIG_FILE} or the path of {CONFIG_VARIABLE}")
    try:
        return Settings(root=path.parent)
    except ValidationError as error:
        lines = "\n  ".join(error_lines(error, Settings))
        raise SettingsError(f"{path} or an environment variable {ENV_PREFIX}... is wrong:\n  {lines}") from None
