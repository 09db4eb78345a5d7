"""The cluster files: taken by Ray's own schema, with commands and options that exist, and no open door."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from pipeline.cli import main
from pipeline.running.pins import read_pins
from pipeline.submission.on_cluster import SKIP_VERSION_CHECK

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "cluster"
FOR_RAY_UP = (ROOT / "cluster.yaml", FOLDER / "aws.yaml")
RAYJOB = FOLDER / "rayjob.yaml"
PAGE = ROOT / "docs" / "cluster.md"


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` fills it out and checks it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole = prepare_config(config)
    validate_config(whole)
    return whole


@pytest.mark.parametrize("path", FOR_RAY_UP, ids=lambda path: path.name)
def test_ray_up_takes_the_file(path: Path) -> None:
    config = read(path)
    whole = prepared(config)
    workers = [each for name, each in whole["available_node_types"].items() if name != "head"]
    assert [(each["min_workers"], each["max_workers"]) for each in workers] == [(2, 2)]
    with pytest.raises(jsonschema.ValidationError, match="setup_command"):
        prepared({**config, "setup_command": ["true"]})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own command line
@pytest.mark.parametrize("path", FOR_RAY_UP, ids=lambda path: path.name)
def test_nodes_start_with_token_authentication_and_options_that_ray_has(path: Path) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    config = read(path)
    heads, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    starts = [line for line in (*heads, *workers) if "ray start" in line]
    assert len(starts) == 2
    for line in starts:
        assert "RAY_AUTH_MODE=token" in line.partition("ray start")[0]
        assert set(re.findall(r"(--[a-z-]+)", line.partition("ray start")[2])) <= known
    assert "TINY_ONN_OUTPUT=/" in next(line for line in heads if "ray start" in line)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def commands_in(text: str) -> list[list[str]]:
    """The `tiny-onn ...` lines of a file: examples in comments and code blocks, with continued lines joined."""
    joined = re.sub(r"\\\n\s*#?", " ", text)
    lines = re.findall(r"^[ #-]*(?:nohup \S*/)?(tiny-onn [a-z].*)$", joined, re.MULTILINE)
    lines = [re.split(r" > ", line)[0] for line in lines]
    return [shlex.split(re.split(r"\s{3,}", line)[0])[1:] for line in lines]


@pytest.mark.parametrize("path", [*FOR_RAY_UP, PAGE], ids=lambda path: path.name)
def test_the_commands_that_are_shown_exist(path: Path) -> None:
    shown = commands_in(path.read_text())
    assert shown
    for words in shown:
        command: click.Command = main
        context = click.Context(main)
        while isinstance(command, click.Group):
            subcommand = command.get_command(context, words[0])
            assert subcommand is not None, words
            command, words = subcommand, words[1:]
        command.make_context(command.name, list(words))  # raises for an option that is not there


def test_the_kubernetes_job() -> None:
    """The fields that KubeRay's RayJob (ray.io/v1) has and that this file uses; a misspelt one is not in the list."""
    fields = {
        "": {"apiVersion", "kind", "metadata", "spec"},
        "spec": {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"},
        "spec.rayClusterSpec": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
        "spec.rayClusterSpec.authOptions": {"mode", "secretName"},
        "spec.rayClusterSpec.headGroupSpec": {"rayStartParams", "template"},
    }
    job = read(RAYJOB)
    for path, expected in fields.items():
        place: Any = job
        for name in path.split(".") if path else ():
            place = place[name]
        assert set(place) == expected, path
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["rayVersion"] == read_pins(ROOT / "constraints.txt")["ray"]
    (group,) = cluster["workerGroupSpecs"]
    assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    pods = [each["template"]["spec"] for each in (cluster["headGroupSpec"], group)]
    for pod in pods:
        (container,) = pod["containers"]
        assert set(container) <= {"name", "image", "env", "ports", "resources", "volumeMounts"}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    shared = [pod["containers"][0]["volumeMounts"][0]["mountPath"] for pod in pods]
    assert shared == [pods[0]["containers"][0]["env"][0]["value"]] * 2  # TINY_ONN_OUTPUT, seen by all


def test_the_kubernetes_job_runs_a_command_that_exists() -> None:
    words = read(RAYJOB)["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "pipeline.submission.on_cluster", SKIP_VERSION_CHECK]
    command = main.get_command(click.Context(main), words[4])
    assert command is not None
    assert command.make_context("ablate", words[5:]).params["resume"]
    assert (ROOT / Path(words[5]).relative_to("/app")).is_file()  # the image's folder


def test_the_image_installs_what_is_pinned() -> None:
    lines = (FOLDER / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (.*) \S+$", lines, re.MULTILINE):
        assert all((ROOT / path).exists() for path in source.split()), source
    assert "--constraint constraints.txt '.[cluster]'" in lines
