"""`aim-engine render`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from aim_engine import settings as all_settings
from aim_engine import units
from aim_engine.backend.base import Backend
from aim_engine.cli import files, output
from aim_engine.errors import InvalidInput
from aim_engine.hardware.cluster import Finding
from aim_engine.planner.plan import Plan
from aim_engine.render import compare, patch, review, text
from aim_engine.render.alert_rules import Rule
from aim_engine.render.artifact import GATEWAY, PROMETHEUS_URL, Artifact, Options
from aim_engine.render.targets import TARGETS, images
from aim_engine.render.targets import render as render_plan

_START = {
    "env": "set -a; . ./{first}; set +a",
    "shell": "./{first}",
    "systemd": "sudo cp {first} /etc/systemd/system/ && sudo systemctl enable --now $(basename {first})",
    "slurm": "sbatch {first}",
    "docker": "./{first}",
    "compose": "docker compose -f {first} up -d",
    "podman": "cp {folder}/* ~/.config/containers/systemd/ && systemctl --user daemon-reload",
    "kubernetes": "kubectl apply -f {folder}",
    "kustomize": "kubectl apply -k {folder}/base",
    "helm": "helm upgrade --install {name} {folder} --namespace {namespace}",
    "lws": "kubectl apply -f {folder}",
    "kuberay": "kubectl apply -f {folder}",
    "kserve": "kubectl apply -f {folder}",
    "kserve-llm": "kubectl apply -f {folder}",
    "gateway": "kubectl apply -f {folder}",
    "job": "kubectl apply -f {folder}",
    "monitoring": "kubectl apply -f {folder}",
    "keda": "kubectl apply -f {folder}",
    "hpa": "kubectl apply -f {folder}",
}


@click.command(
    epilog="Example: aim-engine plan Qwen/Qwen3-32B --gpus 8xMI300X --json | aim-engine render - --target kubernetes"
)
@click.argument("plan", metavar="PLAN")
@click.option("--target", "-t", type=click.Choice(list(TARGETS)), required=True, help="Where it will run.")
@click.option("--name", help="Name of the service, container and pods. Default: made of the model's name.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port that clients use.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that clients use, outside Kubernetes.")
@click.option("--namespace", default="default", show_default=True, help="Kubernetes namespace.")
@click.option("--storage-class", help="Kubernetes storage class of the cache. Default: the cluster's.")
@click.option("--cache-dir", metavar="DIR", help="The hub's cache on the host. Default: ~/.cache/huggingface.")
@click.option("--model-path", metavar="DIR", help="Folder with the checkpoint, instead of fetching it from the hub.")
@click.option("--image", help="Container image to use instead of the release's own.")
@click.option(
    "--pin-digests",
    is_flag=True,
    help="Write images with the digest that their registry says; its answers are kept and used from then on.",
)
@click.option("--refresh-digests", is_flag=True, help="The same, but ask again, and tell which tags have moved.")
@click.option("--api-key", is_flag=True, help="Clients must send a key, which is read from a secret.")
@click.option(
    "--create-namespace", is_flag=True, help="Write the Kubernetes namespace too, with its pod security level."
)
@click.option("--offline", is_flag=True, help="The weights are in the cache already: the engine gets no way out.")
@click.option(
    "--read-speed",
    metavar="BYTES/s",
    help="How fast weights are read there, such as 200MB/s from a share. Default: a local disk's.",
)
@click.option("--dra", is_flag=True, help="Claim GPUs by dynamic resource allocation, not AMD's device plugin.")
@click.option(
    "--render-gid",
    type=int,
    metavar="GID",
    help="Group of /dev/kfd on the nodes: pods then run without root, restricted.",
)
@click.option(
    "--prometheus-url",
    metavar="URL",
    default=PROMETHEUS_URL,
    show_default=True,
    help="The Prometheus that autoscaling asks.",
)
@click.option(
    "--service-monitor", is_flag=True, help="Target monitoring finds pods by their Service instead of their labels."
)
@click.option("--gateway", default=GATEWAY, show_default=True, help="Gateway that target gateway routes from.")
@click.option("--priority-class", help="Kubernetes PriorityClass of the pods.")
@click.option("--cache-per-replica", is_flag=True, help="A StatefulSet whose replicas have a volume each.")
@click.option(
    "--fetch-image", metavar="IMAGE", help="Image with aim-engine: target job then fetches through its cache."
)
@click.option("--fetch-from", metavar="SOURCES", help="Where that cache fetches from, such as s3://bucket/models.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="Label of every object and container.")
@click.option("--annotation", "annotations", metavar="KEY=VALUE", multiple=True, help="Annotation of every object.")
@click.option("--env", "env", metavar="NAME=VALUE", multiple=True, help="Variable of the engine.")
@click.option("--arg", "args", metavar="ARG", multiple=True, help="Argument of the engine, such as --arg=--seed=1.")
@click.option(
    "--file",
    "texts",
    metavar="FILE:TARGET",
    multiple=True,
    help="Small text file to put into the container, such as a chat template.",
)
@click.option(
    "--volume",
    "volumes",
    metavar="SOURCE:TARGET[:ro]",
    multiple=True,
    help="Folder of the host, or claim/NAME, to mount.",
)
@click.option(
    "--set", "values", metavar="PATH=VALUE", multiple=True, help="Set a value of the YAML: deployment.spec.replicas=3."
)
@click.option("--patch", "patches", metavar="FILE", multiple=True, help="Merge or JSON patch for the written YAML.")
@click.option(
    "--diff", metavar="DIR|cluster", help="Show what would change there, and write nothing; 1 when something would."
)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    help="Folder to write into, or an archive: NAME.tar, NAME.tar.gz.",
)
@click.option("--stdout", is_flag=True, help="Print instead of writing; the default without -o.")
@click.option("--force", is_flag=True, help="Overwrite files that differ; files with tokens are always kept.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def render(
    plan: str,
    target: str,
    name: str | None,
    port: int,
    host: str,
    namespace: str,
    storage_class: str | None,
    cache_dir: str | None,
    model_path: str | None,
    image: str | None,
    pin_digests: bool,
    refresh_digests: bool,
    api_key: bool,
    create_namespace: bool,
    offline: bool,
    read_speed: str | None,
    dra: bool,
    render_gid: int | None,
    prometheus_url: str,
    service_monitor: bool,
    gateway: str,
    priority_class: str | None,
    cache_per_replica: bool,
    fetch_image: str | None,
    fetch_from: str | None,
    labels: tuple[str, ...],
    annotations: tuple[str, ...],
    env: tuple[str, ...],
    args: tuple[str, ...],
    texts: tuple[str, ...],
    volumes: tuple[str, ...],
    values: tuple[str, ...],
    patches: tuple[str, ...],
    diff: str | None,
    folder: Path | None,
    stdout: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Write PLAN, a file or - for stdin, out for a target.

    Prints the files, or writes them with -o. Nothing is started, and only --pin-digests and --diff cluster ask over the network.
    """
    if sum((stdout, folder is not None, diff is not None)) > 1:
        raise InvalidInput("-o, --stdout and --diff exclude each other", hint="give one of them")
    document = files.read_plan(plan)
    if document.chosen is None:
        return _refuse(document)
    options = Options(
        name=name if name is not None else text.suggest_name(document.inputs.model.model_id),
        port=port,
        host=host,
        cache_dir=_absolute(cache_dir) if cache_dir else "~/.cache/huggingface",
        namespace=namespace,
        storage_class=storage_class,
        model_path=_absolute(model_path) if model_path else None,
        image=image,
        api_key_secret=api_key,
        create_namespace=create_namespace,
        offline=offline,
        read_bytes_s=_rate(read_speed) if read_speed else None,
        dra=dra,
        render_gid=render_gid,
        prometheus_url=prometheus_url,
        gateway=gateway,
        rules=_rules(),
        service_monitor=service_monitor,
        priority_class=priority_class,
        cache_per_replica=cache_per_replica,
        fetch_image=fetch_image,
        fetch_sources=fetch_from or "",
        labels=_pairs(labels, "label"),
        annotations=_pairs(annotations, "annotation"),
        env=_pairs(env, "env"),
        args=args,
        files=_files(texts),
        volumes=volumes,
    )
    backend = _backend(document)
    if pin_digests or refresh_digests:
        digests = _digests(images(document, target, options, backend), target, again=refresh_digests)
        options = msgspec.structs.replace(options, digests=digests)
    artifacts = render_plan(document, target, options, backend)
    read = [each for name in patches for each in patch.read(files.read_text(name), name)]
    artifacts = patch.apply(artifacts, values, read)
    if values or read or labels or annotations or env or args or texts or volumes:
        found = review.check(artifacts, backend, document.inputs.engine_version)
        if _refused(found):
            return 1
    if diff is not None:
        return _diff(diff, artifacts, options, as_json)
    if folder is not None and folder.name.endswith((".tar", ".tar.gz", ".tgz")):
        files.write_archive(folder, artifacts)
        written_as = {"schema": "aim-engine/rendered/v1", "target": target, "archive": str(folder)}
        if as_json:
            output.data(written_as)
        else:
            output.text(str(folder))
        return 0
    if folder is None:
        _print(target, artifacts, as_json)
        return 0
    written = files.write_artifacts(folder, artifacts, force=force)
    if as_json:
        output.data({"schema": "aim-engine/rendered/v1", "target": target, "folder": str(folder), "files": written})
    else:
        for file in written:
            output.text(file.path if file.outcome == "written" else f"{file.path} ({file.outcome})")
    _warn_of_strangers(folder, artifacts, target)
    names = {"first": folder / artifacts[0].path, "folder": folder, "name": options.name, "namespace": namespace}
    output.next_step(_START[target].format(**names))
    return 0


def _rules() -> tuple[Rule, ...]:
    """The alert rules, with the user's own."""
    from aim_engine import workflow
    from aim_engine.render import alert_rules

    return alert_rules.load(workflow.overlay_dir(all_settings.load()))


def _backend(plan: Plan) -> Backend:
    from aim_engine import backend, workflow

    return backend.get(plan.inputs.engine, workflow.overlay_dir(all_settings.load()))


def _rate(text: str) -> int:
    """`200MB/s` as bytes a second. Raises: InvalidInput."""
    try:
        return units.parse_bytes(text.removesuffix("/s"))
    except InvalidInput as err:
        raise InvalidInput(f"--read-speed '{text}' is no rate", why=str(err), hint="--read-speed 200MB/s") from err


def _warn_of_strangers(folder: Path, artifacts: tuple[Artifact, ...], target: str) -> None:
    """Say what else would be applied with the folder, such as a Deployment where a StatefulSet is written now."""
    if not _START[target].endswith("apply -f {folder}"):
        return
    if others := files.strangers(folder, artifacts):
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        output.note(f"warning: {folder} holds other files, which `kubectl apply -f {folder}` applies too: {shown}")


def _digests(references: tuple[str, ...], target: str, *, again: bool) -> dict[str, str]:
    """Image -> digest, as kept or as its registry says now. Raises: InvalidInput, Unreachable, Corrupt."""
    from aim_engine.deploy import digests
    from aim_engine.deploy.local import now

    settings = all_settings.load()
    if not references:
        output.note(f"no image to pin: target {target} names none without a digest")
    found = digests.resolve(
        Path(settings.state_dir).expanduser() / "digests.json",
        references,
        now=now(),
        again=again,
        **({"ask": digests.refuse} if settings.offline else {}),
    )
    for each in found:
        moved = f", which was {each.was} before: the tag has moved" if each.was is not None else ""
        output.note(f"{each.reference} is {each.digest}, asked {each.asked}{moved}")
    return {each.reference: each.digest for each in found}


def _refused(found: tuple[Finding, ...]) -> bool:
    """Tell what the changes made wrong; True when it must not be written."""
    wrong = [finding for finding in found if finding.severity == "error"]
    same: dict[tuple[str, ...], list[str]] = {}
    for finding in found:
        if finding.severity != "info":
            remedy = f" ({finding.remedy})" if finding.remedy else ""
            same.setdefault((finding.severity, finding.id, finding.message + remedy), []).append(finding.evidence)
    for (severity, rule, message), places in same.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        output.note(f"{severity}: {rule} {places[0]}{more}: {message}")
    if wrong:
        output.note("nothing was written: the files would not work with these changes")
    return bool(wrong)


def _diff(place: str, artifacts: tuple[Artifact, ...], options: Options, as_json: bool) -> int:
    """Show what would change at `place`, the word `cluster` or a folder; 1 when something would."""
    if place == "cluster":
        changes = "\n".join(_cluster_changes(artifacts, options))
    else:
        if not Path(place).is_dir():
            raise InvalidInput(f"there is no folder {place}", hint="-o writes one")
        changes = compare.files(files.read_folder(Path(place), artifacts), artifacts)
    if as_json:
        output.data({"schema": "aim-engine/diff/v1", "place": place, "changes": changes.splitlines()})
    elif changes:
        output.text(changes.removesuffix("\n"))
    else:
        output.note("nothing would change")
    return 1 if changes else 0


def _cluster_changes(artifacts: tuple[Artifact, ...], options: Options) -> list[str]:
    from aim_engine.deploy import kubernetes as cluster
    from aim_engine.render import document

    wanted = [
        entry
        for artifact in artifacts
        if artifact.is_yaml
        for entry in document.read(artifact.content, artifact.path)[0]
        if not review.is_about_files(artifact, entry)
    ]
    if not all("apiVersion" in entry for entry in wanted) or not wanted:
        raise InvalidInput("only Kubernetes manifests can be compared with a cluster", hint="--target kubernetes")
    found = cluster.live(options.namespace, wanted)
    return [line for entry, present in zip(wanted, found, strict=True) for line in compare.live(entry, present)]


def _pairs(given: tuple[str, ...], option: str) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping. Raises: InvalidInput."""
    for word in given:
        if "=" not in word:
            raise InvalidInput(f"--{option} '{word}' has no value", hint=f"--{option} KEY=VALUE")
    return {key: value for key, _, value in (word.partition("=") for word in given)}


def _files(given: tuple[str, ...]) -> dict[str, str]:
    """`FILE:TARGET` words as target -> content. Raises: InvalidInput."""
    found = {}
    for word in given:
        name, colon, target = word.rpartition(":")
        if not colon or not name:
            raise InvalidInput(f"--file '{word}' says no place", hint="--file chat.jinja:/templates/chat.jinja")
        found[target] = files.read_text(name)
    return found


def _absolute(path: str) -> str:
    """`path` as rendered files need it: the shell that runs them may stand anywhere. `~/` is left to that shell."""
    return path if path.startswith("~/") else str(Path(path).absolute())


def _refuse(plan: Plan) -> int:
    output.note(f"error: the plan for {plan.inputs.model.model_id} chose nothing, so there is nothing to write out")
    for rejection in plan.rejected[:3]:
        output.note(f"  why: {rejection.recipe}: {rejection.reason}")
    if plan.hint:
        output.note(f"\nhint: {plan.hint}")
    return 1


def _print(target: str, artifacts: tuple[Artifact, ...], as_json: bool) -> None:
    if as_json:
        output.data({"schema": "aim-engine/rendered/v1", "target": target, "files": artifacts})
        return
    shown = [artifact for artifact in artifacts if not artifact.secret]
    if len(shown) > 1 and not all(artifact.is_yaml and "/" not in artifact.path for artifact in shown):
        paths = ", ".join(artifact.path for artifact in shown)
        raise InvalidInput(
            f"there are {len(shown)} files, which cannot be printed as one", why=paths, hint="-o DIR writes them"
        )
    for index, artifact in enumerate(shown):
        if index:
            output.text("---")
        output.text(artifact.content.removesuffix("\n"))
    for artifact in artifacts:
        if artifact.secret:
            output.note(f"{artifact.path} is not printed; -o DIR writes it")
