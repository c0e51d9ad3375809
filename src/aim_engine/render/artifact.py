"""A rendered file, and the contract of a render target."""

from __future__ import annotations

from typing import Protocol

import msgspec

from aim_engine.backend.base import Backend
from aim_engine.planner.plan import Plan
from aim_engine.render.alert_rules import Rule

GATEWAY = "inference-gateway"
PROMETHEUS_URL = "http://prometheus-operated.monitoring.svc:9090"
"""The Service that the Prometheus operator makes, in namespace monitoring."""


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a rendered deployment, not yet written."""

    path: str
    """Relative, POSIX style, inside the output folder."""
    content: str
    executable: bool = False
    secret: bool = False
    """Written with mode 0600 because it is where a token goes."""

    @property
    def is_yaml(self) -> bool:
        """Read as YAML by whoever gets it; a chart's templates become YAML only later."""
        return self.path.endswith((".yaml", ".yml")) and "templates/" not in self.path


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Choices of the deployment that are not part of the plan."""

    name: str
    """DNS label for services, containers, pods."""
    port: int = 8000
    """Where clients connect; with several replicas on one host, the first of consecutive ports."""
    host: str = "127.0.0.1"
    """Address a process or a published container port listens on."""
    cache_dir: str = "~/.cache/huggingface"
    """The hub's folder on the host (`HF_HOME`): absolute, or below `~/`. Kubernetes uses a volume claim instead."""
    namespace: str = "default"
    storage_class: str | None = None
    model_path: str | None = None
    """A local folder that holds the checkpoint, absolute; None serves by hub id."""
    image: str | None = None
    """A container image to use instead of the release's own, such as a mirror's; the engine's command is given in full."""
    digests: dict[str, str] = {}
    """Image as it would be written otherwise -> digest to write behind it, for images that have none yet."""
    api_key_secret: bool = False
    """Require an API key taken from a Secret or env file."""
    offline: bool = False
    """The weights are in the cache already (target `job` puts them there), so the engine gets no network to the outside."""
    create_namespace: bool = False
    """Write the Namespace too, with the pod security level that the pods keep."""
    read_bytes_s: int | None = None
    """Rate at which the weights are read where it runs, such as a network share's; None is as predicted, a local disk's. Probes
    wait accordingly."""
    dra: bool = False
    """Claim GPUs through dynamic resource allocation instead of AMD's device plugin."""
    render_gid: int | None = None
    """Group that owns /dev/kfd on the nodes: the engine then runs as an ordinary user. None runs it as the image's user."""
    gateway: str = GATEWAY
    """Name of the Gateway that routes from outside, in the same namespace."""
    prometheus_url: str = PROMETHEUS_URL
    """Where autoscaling asks."""
    rules: tuple[Rule, ...] | None = None
    """Alert rules of the catalogue, with those of the user's own folder; None is the bundled ones."""
    service_monitor: bool = False
    """Prometheus finds the pods through their Service, which must be one of ours; else by their labels, whoever made them."""
    priority_class: str | None = None
    """Name of an existing Kubernetes PriorityClass."""
    cache_per_replica: bool = False
    """A StatefulSet, each replica with its own volume, where no storage class offers ReadWriteMany."""
    fetch_image: str | None = None
    """An image with aim-engine in it: target `job` then fills the volume through its cache, and engines read that cache's view."""
    fetch_sources: str = ""
    """Where that cache fetches from, as the setting `cache_sources` says it; empty is the hub."""
    labels: dict[str, str] = {}
    """Beside our own, on every object and container."""
    annotations: dict[str, str] = {}
    """On every Kubernetes object and its pods."""
    env: dict[str, str] = {}
    """Variables of the engine, over those of the recipe."""
    args: tuple[str, ...] = ()
    """Arguments of the engine, after those of the recipe."""
    files: dict[str, str] = {}
    """Small text files to put into the container, such as a chat template: absolute path there -> content."""
    volumes: tuple[str, ...] = ()
    """Further mounts as `SOURCE:TARGET[:ro]`: a folder of the host, or `claim/NAME` in Kubernetes."""


class Target(Protocol):
    """A place a plan can be written for."""

    @property
    def name(self) -> str:
        """As `--target` says it."""
        ...

    def render(self, plan: Plan, options: Options, backend: Backend) -> tuple[Artifact, ...]:
        """The files that serve `plan` on this target. Pure: same arguments, same bytes."""
        ...
