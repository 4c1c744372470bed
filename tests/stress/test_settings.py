"""Settings of any shape load or are a SettingsError, whatever values of TOML are where."""

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pixrec_core.errors import SettingsError
from pixrec_core.settings import CONFIG_VARIABLE, load_settings, setting_paths

PATHS = [*setting_paths(), ("datasets",), ("datasets", "shop"), ("datasets", "shop", "source"), ("joint",), ("root",)]
PATHS += [
    ("joint", "j", "datasets"),
    ("datasets", "shop", "source", "kind"),
    ("datasets", "shop", "model"),
    ("variants",),
]
SCALARS = [0, 1, -1, 3, 10**30, 0.5, 1e308, float("inf"), float("nan"), "", "sample", "a b", "\x1b[31m", "../x", "tiny"]
SCALARS += [True, False, "http://me:s3cret pass@h/x?k=s3cret", "multimodal", "\u202e"]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value)
    return str(value).lower()


def any_value(random: Random, depth: int = 2) -> Any:
    kind = random.randrange(6) if depth else 5
    if kind == 0:
        return [any_value(random, depth - 1) for _ in range(random.randrange(3))]
    if kind == 1:
        return {random.choice(random.choice(PATHS)): any_value(random, depth - 1) for _ in range(random.randrange(3))}
    return random.choice(SCALARS)


@pytest.mark.timeout(0)
def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds) -> None:
    path = tmp_path / "pixrec.toml"
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    for random in rounds():
        lines = {".".join(random.choice(PATHS)): any_value(random) for _ in range(random.randrange(1, 4))}
        path.write_text("\n".join(f"{name} = {toml(value)}" for name, value in lines.items()))
        error = ""
        try:
            load_settings()
        except SettingsError as found:
            error = str(found)
        assert "s3cret" not in error
