"""The manifests of deploy/ parse, refer to each other correctly, and agree with the rest of the project."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._cli.api import grpc_command

from pixrec_assets.cli import cli
from pixrec_core.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return manifests("dagster-values.yaml")[0]


@pytest.fixture(scope="module")
def code_location(values: dict[str, Any]) -> dict[str, Any]:
    (location,) = values["dagster-user-deployments"]["deployments"]
    return location


@pytest.fixture(scope="module")
def ray() -> dict[str, Any]:
    (cluster,) = manifests("ray-cluster.yaml")
    return cluster


@pytest.fixture(scope="module")
def ray_pods(ray: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod specs of the head and the workers."""
    (group,) = ray["spec"]["workerGroupSpecs"]
    return [each["template"]["spec"] for each in (ray["spec"]["headGroupSpec"], group)]


def snake(value: Any) -> Any:
    """Convert the chart's camelCase keys to Dagster's snake_case."""
    if isinstance(value, dict):
        return {re.sub(r"(?<=[a-z])[A-Z]", lambda c: f"_{c[0].lower()}", key): snake(v) for key, v in value.items()}
    return [snake(each) for each in value] if isinstance(value, list) else value


def test_the_chart_has_the_settings_of_dagster_yaml(values: dict[str, Any]) -> None:
    daemon, more, concurrency = values["dagsterDaemon"], values["additionalInstanceConfig"], values["concurrency"]
    runs = concurrency["runs"]
    expected = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    expected["run_monitoring"]["start_timeout_seconds"] = 600  # nodes download an image first
    assert expected == {
        "telemetry": values["telemetry"],
        "nux": more["nux"],
        "concurrency": {
            "pools": snake(concurrency["pools"]),
            "runs": {  # the chart copies these limits unchanged
                "max_concurrent_runs": runs["maxConcurrentRuns"],
                "tag_concurrency_limits": runs["tagConcurrencyLimits"],
            },
        },
        "run_retries": snake(daemon["runRetries"]),
        "run_monitoring": snake(daemon["runMonitoring"]),
        "python_logs": snake(values["pythonLogs"]),
        "retention": {name: days for name, days in snake(values["retention"]).items() if name != "enabled"},
    }


def test_runs_are_queued_with_the_memory_of_the_launcher(values: dict[str, Any], code_location: dict[str, Any]) -> None:
    """Without these values the chart would configure a coordinator that queues nothing."""
    assert values["dagsterDaemon"]["runCoordinator"] == {"enabled": True, "type": "QueuedRunCoordinator"}
    assert values["concurrency"]["enabled"]
    assert code_location["includeConfigInLaunchedRuns"]["enabled"]
    assert "resources" not in code_location, "they would override the launcher's resources"
    assert values["runLauncher"]["config"]["k8sRunLauncher"]["resources"]["limits"]["memory"]


def test_the_code_location_is_that_of_workspace_yaml(code_location: dict[str, Any]) -> None:
    (location,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    arguments = [*code_location["dagsterApiGrpcArgs"], "--port", str(code_location["port"])]
    given = grpc_command.make_context("grpc", arguments).params  # raises if Dagster does not know an option
    assert given["module_name"] == location["python_module"]["module_name"]
    assert code_location["name"] == location["python_module"]["location_name"]
    assert importlib.util.find_spec(location["python_module"]["module_name"])


def test_pods_share_the_image_the_volume_and_the_settings(
    code_location: dict[str, Any], ray_pods: list[dict[str, Any]]
) -> None:
    claim, settings = manifests("storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod, container in ((code_location, code_location), *((pod, pod["containers"][0]) for pod in ray_pods)):
        data, file = pod["volumes"]
        assert data["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert file["configMap"]["name"] == settings["metadata"]["name"]
        assert [each["name"] for each in container["volumeMounts"]] == [data["name"], file["name"]]
    image = "{repository}:{tag}".format(**code_location["image"])
    assert {pod["containers"][0]["image"] for pod in ray_pods} == {image}
    assert image in (DEPLOY / "Dockerfile").read_text()


def test_the_mounted_settings_load(
    code_location: dict[str, Any], ray_pods: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = manifests("storage.yaml")
    (name, text), = settings["data"].items()  # fmt: skip
    for container in (code_location, *(pod["containers"][0] for pod in ray_pods)):
        data, file = (each["mountPath"] for each in container["volumeMounts"])
        assert {"name": "PIXREC_CONFIG", "value": f"{file}/{name}"} in container["env"]
        assert "/data/artefacts".startswith(f"{data}/")
    (tmp_path / name).write_text(text)
    monkeypatch.setenv("PIXREC_CONFIG", str(tmp_path / name))
    loaded = load_settings()
    assert (str(loaded.data_dir), list(loaded.datasets)) == ("/data/artefacts", ["shop"])
    assert loaded.engine.kind == "local", "runs that Dagster launches use the local engine"
    for each in ray_pods[0]["containers"][0]["env"]:
        monkeypatch.setenv(each["name"], each["value"])
    monkeypatch.setenv("PIXREC_CONFIG", str(tmp_path / name))
    assert (load_settings().engine.kind, load_settings().engine.address) == ("ray", "auto")


def test_ray_requires_a_token_and_has_the_version_of_the_image(ray: dict[str, Any]) -> None:
    assert ray["spec"]["authOptions"] == {"mode": "token"}
    assert f"ray[client,default]=={ray['spec']['rayVersion']}" in (DEPLOY / "Dockerfile").read_text()


def test_the_chart_has_the_version_of_the_locked_dagster() -> None:
    (locked,) = re.findall(r"^dagster==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert f"--version {locked} " in (DEPLOY / "dagster-values.yaml").read_text()


@pytest.mark.parametrize("image", ["Dockerfile", "serve.Dockerfile"])
def test_images_copy_existing_files(image: str) -> None:
    text = (DEPLOY / image).read_text()
    copied = [path for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for path in line.split()]
    assert {"requirements.lock", "pixrec_core", "pixrec_assets"} <= set(copied)
    assert all((ROOT / path).exists() for path in copied)
    assert re.search(r"^USER 1000$", text, re.MULTILINE), "no process needs root"


def test_the_servers_image_starts_the_server() -> None:
    text = (DEPLOY / "serve.Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (\[.+\])$", text, re.MULTILINE)
    name, *arguments = json.loads(command)
    assert name == "pixrec"
    assert cli.commands[arguments[0]].make_context("serve", arguments[1:]).params["host"] == "0.0.0.0"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """With the command of this environment in place of the installed one, which the check wants to exist."""
    for path in DEPLOY.glob("pixrec*"):
        text = path.read_text().replace("/srv/pixrec/.venv/bin/pixrec", sys.executable)
        (tmp_path / path.name).write_text(text)
    units = ["pixrec-serve.service", "pixrec@refresh.timer", "pixrec@run.timer"]
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit) for unit in units)],
        capture_output=True, text=True, check=False, env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_units_run_commands_that_exist() -> None:
    for path in DEPLOY.glob("pixrec*.service"):
        (command,) = re.findall(r"^ExecStart=\S+/pixrec (\S+)$", path.read_text(), re.MULTILINE)
        assert command == "%i" or command in cli.commands
    timers = {path.name for path in DEPLOY.glob("*.timer")}
    assert timers == {"pixrec@refresh.timer", "pixrec@run.timer"}
    assert {"refresh", "run"} <= cli.commands.keys()
