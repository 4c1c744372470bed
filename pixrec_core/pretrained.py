"""Models in folders of others: their files are checked before anything large is allocated, and their weights are whole.

transformers fills tensors that a file lacks with random values, opens whatever file an index names (pickles too), and
follows a config.json to adapters, kernels and weights elsewhere. Here, a folder has a plain config.json and safetensors
files that hold exactly the tensors of the model, or it is an error that names what is wrong.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Final

from pixrec_core.errors import CheckpointError

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
CONFIG: Final = "config.json"

#: Arguments of every `from_pretrained` of a model: code in its folder is never run, and pickles are never read.
SAFE: Final[dict[str, Any]] = {"trust_remote_code": False}

MAX_JSON_BYTES: Final = 10_000_000  # a config.json has some kilobytes, an index of 100,000 tensors 10 MB
MAX_DEPTH: Final = 30
#: Largest values of a config.json by the end of their name. transformers creates Python objects by them, before it
#: looks at the weights. Models may have more layers if their files hold as many tensors.
MAX_COUNTS: Final = (
    (re.compile(r"(layers|depths?|blocks|experts)$"), 1_000),
    (re.compile(r"labels$"), 100_000),
    (re.compile(r"^(image_size|height|width)$"), 4_096),
)
#: Settings that may name a repository on the hub with code of a kernel.
IMPLEMENTATION: Final = re.compile(r"(attn|attention|experts)_implementation")
#: Names of an index's files: in the same folder, and safetensors.
SHARD: Final = re.compile(r"[\w-][\w.-]*\.safetensors")
#: Files with which transformers would load more than the model's own weights.
FOREIGN: Final = re.compile(r"adapter_config\.json|shard-\d+-model-\d+-of-\d+\.safetensors")
MAX_SHOWN: Final = 5
#: transformers changes global state of PyTorch while it loads: of two threads, one would miss tied weights.
_LOADING: Final = RLock()


def load_pretrained(
    load: Callable[..., tuple[Any, dict[str, Any]]], folder: Path, *arguments: Any, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the model of a folder, with all its weights and no others, and transformers' record of the loading.

    The model is first loaded on PyTorch's meta device, where tensors have shapes and no values, so that wrong files are
    found before memory is allocated. transformers' rules for renamed and tied tensors apply.

    `load` is `from_pretrained` of a model or auto class of transformers, and gets the other arguments.

    Raises:
        CheckpointError: the folder's files are damaged, unsafe or do not fit each other; see `check_folder`.
        Exception: what transformers raises for a configuration that it cannot use.
    """
    check_folder(folder)
    options = {"use_safetensors": True, "ignore_mismatched_sizes": True, **options, "output_loading_info": True}
    with _LOADING, _quiet():
        _require_exact(folder, load(folder, *arguments, **options | {"device_map": {"": "meta"}})[1])
        model, info = load(folder, *arguments, **options)
    _require_exact(folder, info)
    return model, info


def check_folder(folder: Path) -> None:
    """Check a folder's configuration and the headers of its weights, without a look at their values.

    Raises:
        CheckpointError: config.json or an index is no plain JSON of moderate size, names code or files outside the
            folder, or has absurd numbers; weights are missing, damaged or no safetensors.
    """
    if foreign := sorted(each.name for each in _files(folder) if FOREIGN.fullmatch(each.name)):
        raise CheckpointError(
            f"{folder} holds {', '.join(foreign[:MAX_SHOWN])}, which would load weights besides those of the model. "
            f"Merge adapters or shards into one {WEIGHTS} with `save_pretrained`, and remove these files"
        )
    tensors = sum(map(_count_tensors, weight_files(folder)))
    check_config(folder / CONFIG, tensors)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, as transformers finds them.

    Raises:
        CheckpointError: there are none, or an index names other files.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder} has no {WEIGHTS} and no {INDEX}; PixRec does not read pickled weights (convert a "
            "pytorch_model.bin with `save_pretrained`)"
        )
    shards = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{folder / INDEX} is damaged: it has no weight_map; restore the folder")
    for shard in dict.fromkeys(shards.values()):
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise CheckpointError(
                f"{folder / INDEX} names {str(shard)[:100]!r}; only safetensors files in the same folder are read. "
                "Convert the model with `save_pretrained`"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard} is missing, though {INDEX} names it; restore the folder")
    return [folder / shard for shard in sorted(set(shards.values()))]


def check_config(path: Path, tensors: int = 0) -> None:
    """Check the values of a config.json that transformers would act on before it looks at the weights.

    `tensors` is the number of tensors in the model's files.

    Raises:
        CheckpointError: see `check_folder`.
    """
    for name, value, depth in _values(_read_json(path)):
        key = name.rpartition(".")[2]
        if depth > MAX_DEPTH:
            raise CheckpointError(f"{path} is nested more than {MAX_DEPTH} levels deep; restore the folder")
        if key == "transformers_weights":
            raise CheckpointError(f"{path}: {name} names other weights than {WEIGHTS}; remove it")
        if IMPLEMENTATION.search(name) and isinstance(value, str) and not value.replace("_", "").isalnum():
            raise CheckpointError(
                f"{path}: {name} names code on the hub, which PixRec does not run; remove it, or write eager or sdpa"
            )
        limit = next((limit for pattern, limit in MAX_COUNTS if pattern.search(key)), None)
        if limit and isinstance(value, int | float) and not value <= (allowed := max(limit, tensors)):
            raise CheckpointError(
                f"{path}: {name} is {value:,}, and {allowed:,} is the most that PixRec accepts for weights of "
                f"{tensors:,} tensors; restore the folder"
            )


def _values(value: Any) -> Iterator[tuple[str, Any, int]]:
    """Yield the dotted name, value and depth of every value in JSON, without recursion.

    Elements of a list have the name of the list.
    """
    rest = [("", value, 0)]
    while rest:
        name, value, depth = rest.pop()
        yield name, value, depth
        if depth > MAX_DEPTH:
            continue
        if isinstance(value, dict):
            rest += [(f"{name}.{key}" if name else key, each, depth + 1) for key, each in value.items()]
        elif isinstance(value, list):
            rest += [(name, each, depth + 1) for each in value]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes; more than {MAX_JSON_BYTES:,} are not read")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}); restore the folder") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; restore the folder")
    return content


def _count_tensors(path: Path) -> int:
    """Number of tensors in a safetensors file whose header fits its length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return len(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); restore the folder") from error


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror}); name the folder of a model") from error


def _require_exact(folder: Path, info: dict[str, Any]) -> None:
    """Raise an error that names the tensors that a model lacks, has besides its own, or has in another shape."""
    problems = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    problems += [f"{name} is unexpected" for name in sorted(info["unexpected_keys"])]
    problems += [
        f"{name} has shape {tuple(found)} in place of {tuple(expected)}"
        for name, found, expected in sorted(info["mismatched_keys"])
    ]
    problems += info["error_msgs"]
    if problems:
        more = f"; and {len(problems) - MAX_SHOWN:,} more" if len(problems) > MAX_SHOWN else ""
        raise CheckpointError(
            f"the weights in {folder} do not fit its {CONFIG}: {'; '.join(problems[:MAX_SHOWN])}{more}. "
            "Restore the folder"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging its report of wrong tensors, since an error names them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
