"""What is deployed, as a test reads it: the Dockerfile, compose files, kustomize and the chart.

The chart is rendered by gotpl, an implementation of Go's templates and Helm's functions in Python;
kustomize by itself or as part of kubectl, where there is one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gotpl.exts.helm import HelmTemplateEngine

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "baton"
KUSTOMIZE = ROOT / "deploy" / "kustomize"
RELEASE = "baton"
#: What ``resourceFieldRef`` stands for in these tests.
CPUS = "2"

#: Values of the chart that switch on all that is off by itself.
EVERYTHING = {
    "gateway": {"apiKeysSecret": "baton-api-keys"},
    "tls": {"enabled": True},
    "monitoring": {"enabled": True},
    "autoscaling": {"enabled": True},
}

#: Those of workers that change their roles, with TLS.
ELASTIC = {
    "elasticRoles": True,
    "tls": {"enabled": True},
    "gateway": {"env": {"BATON_AUTO_ROLES": "true"}},
}

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Container:
    """One that runs a Baton process."""

    name: str  #: gateway, prefill or decode
    command: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def module(self) -> str:
        """As in ``python -m MODULE``."""
        assert self.command[:2] == ("python", "-m"), self.command
        return self.command[2]

    @property
    def flags(self) -> tuple[str, ...]:
        return self.command[3:]


def has_kustomize() -> bool:
    return _kustomize() is not None


def _kustomize() -> list[str] | None:
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    kustomize = shutil.which("kustomize")
    return [kustomize, "build"] if kustomize else None


def kustomized(overlay: str) -> list[Document]:
    command = _kustomize()
    assert command is not None
    done = subprocess.run(
        [*command, str(KUSTOMIZE / "overlays" / overlay)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def charted(*values: Mapping[str, Any]) -> list[Document]:
    """The chart with ``values`` over its own, the later over the earlier."""
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    merged: Mapping[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    for more in values:
        merged = _merged(merged, more)
    folder = f"{about['name']}/templates"
    sources = {
        f"{folder}/{file.name}": file.read_text() for file in (CHART / "templates").iterdir()
    }
    scope = {
        "Values": merged,
        "Chart": {name[0].upper() + name[1:]: value for name, value in about.items()},
        "Release": {"Name": RELEASE, "Namespace": "baton", "Service": "Helm"},
    }
    rendered = HelmTemplateEngine.from_sources(sources, strict=True).render(
        {
            name: {**scope, "Template": {"Name": name, "BasePath": folder}}
            for name in sources
            if not name.endswith(".tpl")
        }
    )
    return [made for text in rendered.values() for made in yaml.safe_load_all(text) if made]


def gpu_values() -> Document:
    values: Document = yaml.safe_load((CHART / "values-gpu.yaml").read_text())
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    both = {
        name: _merged(below[name], value) if isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return {**below, **both}


def composed(*files: str) -> Document:
    """Compose files with the defaults of their variables, as one; a later one adds or replaces."""
    made: Mapping[str, Any] = {}
    for file in files:
        text = (ROOT / file).read_text()
        plain = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        assert "${" not in plain, f"{file}: a variable without a default"
        made = _merged(made, yaml.safe_load(plain))
    return dict(made)


def stages() -> dict[str, list[str]]:
    """The Dockerfile's named stages, each with the instructions of those below it first."""
    made: dict[str, list[str]] = {}
    lines: list[str] = []
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text()))
    for line in filter(None, map(str.strip, text.splitlines())):
        if found := re.fullmatch(r"FROM (\S+) AS (\w[\w-]*)", line):
            lines = made[found[2]] = list(made.get(found[1], []))
        else:
            lines.append(" ".join(line.split()))
    return made


def image_environment(stage: str) -> dict[str, str]:
    """What ENV sets."""
    found = (line.removeprefix("ENV ").split() for line in stages()[stage] if line[:4] == "ENV ")
    return dict(pair.split("=", 1) for pairs in found for pair in pairs)


def image_of(name: str) -> str:
    """The Dockerfile's stage that a container is made from."""
    return "gateway" if name == "gateway" else "worker"


def compose_containers(services: Mapping[str, Document]) -> Iterator[Container]:
    for name in ("gateway", "prefill", "decode"):
        service = services[name]
        own = {each: str(value) for each, value in service["environment"].items()}
        environment = image_environment(image_of(name)) | own
        yield Container(name, tuple(service["command"]), environment)


def pods(documents: Sequence[Document]) -> dict[str, Document]:
    """The pod of each Deployment, by what it runs."""
    found = (made["spec"]["template"]["spec"] for made in documents if made["kind"] == "Deployment")
    return {pod["containers"][0]["name"]: pod for pod in found}


def pod_containers(documents: Sequence[Document]) -> Iterator[Container]:
    shared = next(made["data"] for made in documents if made["kind"] == "ConfigMap")
    for name, pod in pods(documents).items():
        (only,) = pod["containers"]
        own = {each["name"]: each.get("value", CPUS) for each in only["env"]}
        environment = image_environment(image_of(name)) | shared | own
        yield Container(name, tuple(only["args"]), environment)
