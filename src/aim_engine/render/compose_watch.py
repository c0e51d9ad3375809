"""The monitoring profile of a Compose file: Prometheus, Grafana and, for the cards it knows, AMD's exporter, on loopback only.

The rules and the dashboard are those of a cluster; what they select series by is given to the scraped targets as labels.
"""

from __future__ import annotations

import json
from typing import Any

from aim_engine.planner.plan import Plan
from aim_engine.render import serving, signals, text, watch
from aim_engine.render.artifact import Options
from aim_engine.render.docker import Container

PROFILE = "monitoring"
PROMETHEUS = "prom/prometheus:v3.5.4"
"""A release with long support. Source: prometheus.io/download."""
GRAFANA = "grafana/grafana:12.1.1"
EXPORTER = "rocm/device-metrics-exporter:v1.4.1"
EXPORTER_PORT = 5000
"""Source: ROCm/device-metrics-exporter docs/installation/docker.md."""
PROMETHEUS_PORT = 9090
GRAFANA_PORT = 3000


def sections(plan: Plan, options: Options, containers: tuple[Container, ...]) -> dict[str, dict[str, Any]]:
    """`services`, `volumes` and `configs` to add to those of the engine."""
    name = text.dns_label(options.name)
    services = {f"{name}-prometheus": _prometheus(name), f"{name}-grafana": _grafana(name)}
    if signals.has_card_series(plan):
        services[f"{name}-exporter"] = _exporter(containers)
    for service in services.values():
        service["image"] = serving.pinned(service["image"], options)
    contents = {
        f"{name}-prometheus": text.yaml_document(_scraping(plan, options, containers)),
        f"{name}-rules": text.yaml_document(watch.rules(plan, options)),
        f"{name}-datasource": text.yaml_document(_datasource(name)),
        f"{name}-dashboards": text.yaml_document(_provider()),
        f"{name}-dashboard": json.dumps(watch.dashboard(plan, options), indent=1) + "\n",
    }
    return {
        "services": services,
        "volumes": {f"{name}-prometheus": {}, f"{name}-grafana": {}},
        "configs": {key: {"content": text.no_expansion(content)} for key, content in contents.items()},
    }


def images(plan: Plan) -> tuple[str, ...]:
    """The images of the profile, without digests."""
    return (PROMETHEUS, GRAFANA, *((EXPORTER,) if signals.has_card_series(plan) else ()))


def _scraping(plan: Plan, options: Options, containers: tuple[Container, ...]) -> dict[str, Any]:
    def target(address: str, pod: str, **labels: str) -> dict[str, Any]:
        return {"targets": [address], "labels": {"namespace": options.namespace, "pod": pod, **labels}}

    own = {signals.INSTANCE_LABEL: options.name}
    jobs = [
        {
            "job_name": "engine",
            "static_configs": [
                target(f"{container.name}:{serving.CONTAINER_PORT}", container.name, **own) for container in containers
            ],
        }
    ]
    if signals.has_card_series(plan):
        address = f"{options.name}-exporter:{EXPORTER_PORT}"
        jobs.append({"job_name": "gpus", "static_configs": [target(address, f"{options.name}-host")]})
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["/etc/prometheus/rules.yml"],
        "scrape_configs": jobs,
    }


def _datasource(name: str) -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": f"http://{name}-prometheus:{PROMETHEUS_PORT}",
        "isDefault": True,
    }
    return {"apiVersion": 1, "datasources": [source]}


def _provider() -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "providers": [{"name": "aim-engine", "type": "file", "options": {"path": "/var/lib/grafana/dashboards"}}],
    }


def _service(image: str, name: str, port: int, files: dict[str, str], data: str) -> dict[str, Any]:
    """A server without privileges whose files are in the Compose file itself."""
    return {
        "image": image,
        "profiles": [PROFILE],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ports": [{"target": port, "published": str(port), "host_ip": "127.0.0.1", "protocol": "tcp"}],
        "volumes": [{"type": "volume", "source": name, "target": data}],
        "configs": [{"source": source, "target": target} for source, target in files.items()],
        "restart": "unless-stopped",
    }


def _prometheus(name: str) -> dict[str, Any]:
    files = {
        f"{name}-prometheus": "/etc/prometheus/prometheus.yml",
        f"{name}-rules": "/etc/prometheus/rules.yml",
    }
    return _service(PROMETHEUS, f"{name}-prometheus", PROMETHEUS_PORT, files, "/prometheus")


def _grafana(name: str) -> dict[str, Any]:
    files = {
        f"{name}-datasource": "/etc/grafana/provisioning/datasources/aim-engine.yaml",
        f"{name}-dashboards": "/etc/grafana/provisioning/dashboards/aim-engine.yaml",
        f"{name}-dashboard": f"/var/lib/grafana/dashboards/{name}.json",
    }
    made = _service(GRAFANA, f"{name}-grafana", GRAFANA_PORT, files, "/var/lib/grafana")
    # No account and so no password: whoever reaches loopback may look, nobody may change.
    made["environment"] = {
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION": "true",
    }
    return made


def _exporter(containers: tuple[Container, ...]) -> dict[str, Any]:
    devices = sorted({device for container in containers for device in container.devices})
    return {
        "image": EXPORTER,
        "profiles": [PROFILE],
        "devices": [f"{device}:{device}" for device in devices],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    }
