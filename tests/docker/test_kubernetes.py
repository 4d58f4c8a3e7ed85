"""Check that the Kubernetes manifest follows the schemas and refers only to things that exist."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from service.cluster.dispatcher import PLACE
from service.core.settings import PREFIX, Settings
from tests.support.dockerfile import read_dockerfile

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker" / "kubernetes.yaml"
KUBERNETES = "1.30"
"""The oldest version of Kubernetes that the manifest supports."""
IMAGE = "vitfit-server"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Group(Strict):
    """The fields of a group of nodes in KubeRay's schema (ray.io/v1) that the manifest uses."""

    rayStartParams: dict[str, str]
    template: dict[str, Any]


class Head(Group):
    serviceType: str


class Workers(Group):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class Cluster(Strict):
    rayVersion: str
    headGroupSpec: Head
    workerGroupSpecs: list[Workers]


@pytest.fixture
def manifest() -> dict[str, dict[str, Any]]:
    """The documents of the manifest by their kind."""
    return {found["kind"]: found for found in yaml.safe_load_all(FILE.read_text())}


def cluster_of(manifest: dict[str, dict[str, Any]]) -> Cluster:
    return Cluster.model_validate(manifest["RayCluster"]["spec"])


def pod_templates(manifest: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    cluster = cluster_of(manifest)
    groups = {"head": cluster.headGroupSpec, **{group.groupName: group for group in cluster.workerGroupSpecs}}
    return {"server": manifest["StatefulSet"]["spec"]["template"], **{n: g.template for n, g in groups.items()}}


def test_it_follows_the_schemas(manifest: dict[str, dict[str, Any]]) -> None:
    for kind, found in manifest.items():
        if kind != "RayCluster":
            kubernetes_validate.validate(found, KUBERNETES, strict=True)
    for name, template in pod_templates(manifest).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_schemas_would_notice(manifest: dict[str, dict[str, Any]]) -> None:
    manifest["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest["StatefulSet"], KUBERNETES, strict=True)
    manifest["RayCluster"]["spec"]["workerGroupSpecs"][0]["rayStartParams"]["num-cpus"] = 4
    with pytest.raises(ValidationError, match="num-cpus"):
        cluster_of(manifest)


def test_servers_and_nodes_are_of_one_image_and_of_the_pinned_ray(manifest: dict[str, dict[str, Any]]) -> None:
    version = (ROOT / "client" / "vitfit" / "VERSION").read_text().strip()
    images = {c["image"] for t in pod_templates(manifest).values() for c in t["spec"]["containers"]}
    assert images == {f"{IMAGE}:{version}"}
    assert f"ray=={cluster_of(manifest).rayVersion}\n" in (ROOT / "requirements.txt").read_text()


def test_nothing_runs_as_root_or_with_rights_of_its_own(manifest: dict[str, dict[str, Any]]) -> None:
    (user,) = (
        i.text for i in read_dockerfile(ROOT / "docker" / "Dockerfile") if i.name == "RUN" and "useradd" in i.text
    )
    for name, template in pod_templates(manifest).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"], name
        assert f"--uid {pod['securityContext']['runAsUser']} " in user
        for container in pod["containers"]:
            inside = container["securityContext"]
            assert not inside["allowPrivilegeEscalation"] and inside["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"] == container["resources"]["limits"], "guaranteed"


def test_the_server_is_told_settings_that_exist_and_secrets_come_from_the_secret(
    manifest: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = manifest["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    plain = {entry["name"]: entry["value"] for entry in server["env"]}
    (line,) = re.findall(r"create secret generic \S+((?:.|\n)*?)\n#     kubectl", FILE.read_text())
    secret = dict(re.findall(r"--from-literal=(\w+)=(\S+)", line))
    assert server["envFrom"] == [{"secretRef": {"name": manifest["StatefulSet"]["metadata"]["name"]}}]
    for name, value in (plain | secret).items():
        if name.startswith(PREFIX):
            assert name.removeprefix(PREFIX).lower() in Settings.model_fields
            monkeypatch.setenv(name, value)
    settings = Settings()
    assert (
        settings.ray == "auto"
        and settings.ray_jobs
        and settings.storage_url == "s3://vitfit"
        and settings.log_format == "json"
    )
    assert not secret.keys() & plain.keys() and "AWS_SECRET_ACCESS_KEY" in secret


def test_the_server_joins_the_cluster_that_the_manifest_makes(manifest: dict[str, dict[str, Any]]) -> None:
    pod = manifest["StatefulSet"]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in server["env"]}
    assert environment["RAY_HEAD"] == f"{manifest['RayCluster']['metadata']['name']}-head-svc:6379"
    join, serve = (shlex.split(part) for part in server["args"][0].split("&&"))
    assert join[:2] == ["ray", "start"] and "--num-cpus=0" in join, "trials of others are not run beside the server"
    assert f"--node-manager-port={server['livenessProbe']['tcpSocket']['port']}" in join
    assert serve[:3] == ["exec", "vitfit", "serve"] and serve[serve.index("--host") + 1] == "0.0.0.0"
    assert serve[serve.index("--port") + 1] == str(server["ports"][0]["containerPort"])
    assert serve[serve.index("--data") + 1] in {mount["mountPath"] for mount in server["volumeMounts"]}
    assert pod["shareProcessNamespace"], "something has to collect the dead"
    mounts = {mount["name"] for mount in server["volumeMounts"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in manifest["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    assert mounts == volumes | claims


def test_nodes_take_jobs_and_their_probes_ask_ports_that_are_open(manifest: dict[str, dict[str, Any]]) -> None:
    cluster = cluster_of(manifest)
    assert any(json.loads(json.loads(g.rayStartParams["resources"])).get(PLACE) for g in cluster.workerGroupSpecs)
    for group in cluster.workerGroupSpecs:
        (node,) = group.template["spec"]["containers"]
        for probe in ("readinessProbe", "livenessProbe"):
            assert str(node[probe]["tcpSocket"]["port"]) == group.rayStartParams["node-manager-port"]
    assert cluster.headGroupSpec.rayStartParams["num-cpus"] == "0"


def test_only_servers_and_nodes_reach_the_cluster(manifest: dict[str, dict[str, Any]]) -> None:
    policy, pods = manifest["NetworkPolicy"]["spec"], manifest["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    ours = {"ray.io/cluster": manifest["RayCluster"]["metadata"]["name"]}  # KubeRay gives this label to its pods
    assert policy["podSelector"]["matchLabels"] == ours
    (rule,) = policy["ingress"]
    assert [entry["podSelector"]["matchLabels"] for entry in rule["from"]] == [ours, pods]


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget"])
def test_what_selects_pods_selects_the_servers(manifest: dict[str, dict[str, Any]], kind: str) -> None:
    selector = manifest[kind]["spec"]["selector"]
    labels = manifest["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert selector.get("matchLabels", selector) == labels
