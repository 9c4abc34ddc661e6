"""Files to deploy a server with: they parse, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any

import pytest
import yaml

from max_zimage.cli.main import _parser
from max_zimage.serving.http import routes_service
from max_zimage.serving.http.middleware import _OPEN_PATHS
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.settings import ServerLimits, ServerSettings
from tests.house.rules import read_toml
from tests.paths import ROOT

FOLDER = ROOT / "docs" / "deploy"
ROUTES = {getattr(route, "path", "") for route in routes_service.router.routes}
CONTAINERFILE = (FOLDER / "Containerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))
FLEET = yaml.safe_load((FOLDER / "serve.yaml").read_text(encoding="utf-8"))
NGINX = (FOLDER / "nginx.conf").read_text(encoding="utf-8")
FACTS = ("version", "model_name", "device", "dtype", "quantize")
BELIEVED = ("For", "Proto", "Host", "Port")
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text(encoding="utf-8"))


def kind(name: str) -> dict[str, Any]:
    (found,) = (each for each in KUBERNETES if each["kind"] == name)
    return found


def served(words: list[str]) -> Any:
    arguments = _parser().parse_args(words)
    assert arguments.command == "serve"
    return arguments


def metric_names() -> set[str]:
    """Every series of the page, those that have no labels yet too."""
    metrics = Metrics()
    metrics.worker_pid = os.getpid()
    text = metrics.text().decode()
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    endings = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
    return {f"{name}{end}" for name, type in families for end in endings[type]}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_names_metrics_that_are_there() -> None:
    there = metric_names()
    named = set(re.findall(r"\b(?:zimage|process)_\w+", " ".join(expressions())))
    named |= set(re.findall(r"\bzimage_\w+", json.dumps(DASHBOARD["templating"])))
    assert named - there == set()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in there if not name.endswith("_created")}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    # Its own; of what prometheus_client knows of processes a dashboard shows a part.
    own = {name for name in families if name.startswith("zimage_") and "_process_" not in name}
    assert own - shown == set()
    assert len(own) > 14


def test_the_dashboards_labels_are_those_of_the_metrics() -> None:
    metrics = Metrics()
    labels = {name for each in vars(metrics).values() for name in getattr(each, "_labelnames", ())} | set(FACTS)
    used = set(re.findall(r"by \(([\w, ]+)\)", " ".join(expressions())))
    assert {name for each in used for name in each.split(", ")} <= labels | {"le"}
    legends = [target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert set(re.findall(r"{{(\w+)}}", " ".join(legends))) <= labels | {"instance"}
    places = [tuple(panel["gridPos"][side] for side in "xy") for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)


def test_the_containers_command_is_one() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", CONTAINERFILE, re.MULTILINE)
    assert served(json.loads(command)).host == "0.0.0.0"
    assert f"EXPOSE {ServerSettings.port}" in CONTAINERFILE
    compiles = re.search(r"max-zimage (compile .*?);", CONTAINERFILE)
    assert compiles is not None
    assert _parser().parse_args(shlex.split(compiles[1])).keep
    (probed,) = re.findall(rf"127\.0\.0\.1:{ServerSettings.port}(/\w+)", CONTAINERFILE)
    assert probed in ROUTES
    copied = {name for line in re.findall(r"^COPY (.*)$", CONTAINERFILE, re.MULTILINE) for name in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    targets = read_toml(ROOT / "pyproject.toml")["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert copied >= {*targets["only-include"], "graphs", "constraints.txt"}
    assert re.search(r"^USER \d+$", CONTAINERFILE, re.MULTILINE)


def test_compose_starts_a_server() -> None:
    service = COMPOSE["services"]["zimage"]
    arguments = served(service["command"])
    assert arguments.allow_host == ["zimage"]
    assert service["deploy"]["replicas"] == 2
    (network,) = COMPOSE["networks"]["default"]["ipam"]["config"]
    assert arguments.trusted_proxy == [network["subnet"]]
    assert_shared(arguments.state_store, [each.partition(":")[2] for each in service["volumes"]])
    assert (FOLDER / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert int(service["stop_grace_period"].removesuffix("s")) > arguments.shutdown_seconds
    assert service["read_only"]
    assert arguments.api_key_file == f"/run/secrets/{service['secrets'][0]}"
    assert {each.partition(":")[0] for each in service["volumes"]} == set(COMPOSE["volumes"])


def assert_shared(store: str, mounted: list[str]) -> None:
    """What replicas keep lies on a volume, in a folder that the image gives to its user."""
    assert store.removeprefix("file://") in mounted
    made = re.search(r"mkdir -p (.*?) \\", CONTAINERFILE)
    given = re.search(r"chown -R zimage (.*?) \\", CONTAINERFILE)
    assert made is not None
    assert given is not None
    assert store.removeprefix("file://") in made[1].split()
    assert made[1].split() == given[1].split()


def test_the_proxy_passes_on_what_servers_take() -> None:
    service, words = COMPOSE["services"]["proxy"], NGINX.replace(";", " ").split()
    assert [each.partition(":")[0] for each in service["volumes"]] == ["./nginx.conf"]
    (upstream,) = re.findall(r"^    server (\w+):(\d+) ", NGINX, re.MULTILINE)
    assert upstream == (next(iter(COMPOSE["services"])), str(ServerSettings.port))
    assert int(words[words.index("client_max_body_size") + 1].removesuffix("m")) * 2**20 == ServerLimits.body_bytes
    assert float(words[words.index("proxy_read_timeout") + 1].removesuffix("s")) >= ServerLimits.seconds
    assert "proxy_buffering off" in NGINX
    told = dict(re.findall(r"proxy_set_header (\S+) (\S+);", NGINX))
    assert told["Host"] == told["X-Forwarded-Host"] == "$http_host"
    # Every one that servers believe is set here: none of a client's own comes through.
    assert {name for name in told if name.startswith("X-")} == {f"X-Forwarded-{each}" for each in BELIEVED}
    published = [each.partition(":")[2] for each in service["ports"]]
    assert published == re.findall(r"listen (\d+);", NGINX)


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_ask_routes_that_are_there(probe: str) -> None:
    (container,) = kind("Deployment")["spec"]["template"]["spec"]["containers"]
    asked = container[probe]["httpGet"]
    assert asked["path"] in ROUTES
    assert asked["port"] in {port["name"] for port in container["ports"]}
    assert asked["path"] == ("/livez" if probe == "livenessProbe" else "/readyz")
    assert asked["path"] in _OPEN_PATHS  # a cluster has no key


def test_kubernetes_starts_a_server() -> None:
    pod = kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = served(container["args"])
    assert pod["terminationGracePeriodSeconds"] > arguments.shutdown_seconds
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert container["ports"][0]["containerPort"] == ServerSettings.port
    assert kind("Service")["spec"]["selector"] == kind("Deployment")["spec"]["selector"]["matchLabels"]
    assert kind("Service")["metadata"]["name"] in arguments.allow_host
    claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
    made = [each for each in KUBERNETES if each["kind"] == "PersistentVolumeClaim"]
    assert claims == [each["metadata"]["name"] for each in made]
    assert kind("Deployment")["spec"]["replicas"] == 2
    assert {mode for each in made for mode in each["spec"]["accessModes"]} == {"ReadWriteMany"}
    assert_shared(arguments.state_store, [each["mountPath"] for each in container["volumeMounts"]])
    assert kind("PodDisruptionBudget")["spec"]["selector"] == kind("Deployment")["spec"]["selector"]


def test_ray_serve_reads_its_file_and_finds_what_it_names() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    from max_zimage.cli import fleet
    from max_zimage.serving.ray_serve import deployment, gateway

    (found,) = schema.ServeDeploySchema.model_validate(FLEET).applications
    module, name = found.import_path.split(":")
    assert (module, getattr(fleet, name)) == (fleet.__name__, fleet.app)
    arguments = served(["serve", "--ray", "auto", *found.args["flags"]])
    assert arguments.model == "Tongyi-MAI/Z-Image-Turbo"
    assert {each.name for each in found.deployments} == {deployment.GATEWAY, deployment.PICTURES, deployment.ENCODERS}
    assert FLEET["http_options"]["host"] == arguments.host
    assert FLEET["http_options"]["request_timeout_s"] > ServerLimits.seconds + gateway.GRACE
    scaling = {each.name: each.autoscaling_config for each in found.deployments}
    counts = {
        deployment.PICTURES: (arguments.replicas, arguments.max_replicas),
        deployment.ENCODERS: (arguments.encoders, arguments.max_encoders),
    }
    for name, (fewest, most) in counts.items():
        assert (scaling[name]["min_replicas"], scaling[name]["max_replicas"]) == (fewest, most)
