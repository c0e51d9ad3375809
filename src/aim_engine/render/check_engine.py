"""The engine inside a container: image, entry point, arguments, environment and secrets, whoever wrote them down."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

import msgspec

from aim_engine.backend import lint
from aim_engine.backend import release as releases
from aim_engine.backend.base import Backend
from aim_engine.hardware.cluster import Finding
from aim_engine.render import script

OFFICIAL = "vllm/vllm-openai-rocm"
OLD_ROCM = ("rocm/vllm", "rocm/vllm-dev")
CUDA = "vllm/vllm-openai"
SGLANG = ("lmsysorg/sglang", "lmsysorg/sglang-rocm")
DOCKERFILE = "vllm-project/vllm:docker/Dockerfile.rocm@v0.33.0"
_RELEASE = re.compile(r"^v?(\d+\.\d+(?:\.\d+)?)$|vllm[_-]v?(\d+\.\d+(?:\.\d+)?)|^v?(\d+\.\d+\.\d+(?:\.post\d+)?)-rocm")
_SERVES_BY_TAG = re.compile(r"^(?!lmcache/)(?:.*/)?(?:[\w.-]*(?:vllm|sglang|sgl)[\w.-]*)$")
"""Images whose tag is the engine's release, as far as it names one; LMCache numbers its own."""
_FLOATING = re.compile(r"latest|nightly|main|master|dev|base|instinct_main", re.IGNORECASE)
_PINNED_NIGHTLY = re.compile(r"nightly-[0-9a-f]{40}")
_SECRET_NAME = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD|CREDENTIALS?)$")
_NOT_SECRET = ("HF_TOKEN_PATH",)
_SECRET_FLAGS = ("--api-key", "--hf-token")
_SHELLS = ("sh", "bash", "dash", "ash")


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to start, in the words that Docker, Compose and Kubernetes share."""

    where: str
    """How to find it: a path in a document, or a service's name."""
    image: str
    entrypoint: tuple[str, ...] | None = None
    """What replaces the image's own; None keeps it."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    """Values that are written down; those from secrets are left out."""


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's command that a container runs."""

    name: str

    args: tuple[str, ...]
    version: str
    """The release its arguments were checked against."""
    gpus: int | None
    """Devices it spreads over; None where only its caller knows."""


def check(container: Container, backend: Backend, version: str | None) -> tuple[Engine | None, tuple[Finding, ...]]:
    """The engine in `container`, None when it is another program, and what is wrong. `version` overrides the image's tag."""
    repository, tag, digest = split_image(container.image)
    container = _out_of_shell(container, repository)
    name = engine_of(container, repository, backend.name)
    backend = backend if name == backend.name else backend.sibling(name)
    found: list[Finding] = [*_image(container, repository, tag, digest), *_secrets(container)]
    args, entry_findings = engine_args(container, repository)
    found += [*entry_findings, *_secret_arguments(container, container.args if args is None else args)]
    if args is None:
        return None, tuple(found)
    tag = tag if _SERVES_BY_TAG.search(repository) else None
    release, note = _release(tag, backend, version)
    found += [_at(container, "args", note)] if note is not None else []
    exact = named_release(tag) if version is None else None
    found += [
        _at(container, "args", finding)
        for finding in backend.check(
            args,
            dict(container.env),
            release,
            exact=exact if exact != release else None,
            about=_image_names(repository, tag),
        )
    ]
    found += _risks(container, args)
    if args and not _names_model(args):
        found.append(
            _at(
                container,
                "args",
                _finding("MOD006", "warning", "no model is named", "give the model first, or --model"),
            )
        )
    return Engine(name=backend.name, args=args, version=release, gpus=spread(args)), tuple(found)


def engine_of(container: Container, repository: str, otherwise: str) -> str:
    """The engine that a container runs, by its image or its command; `otherwise` where neither says."""
    words = " ".join((*(container.entrypoint or ()), *container.args))
    if repository.endswith(SGLANG) or "sglang.launch_server" in words or "sglang serve" in words:
        return "sglang"
    if repository.endswith((OFFICIAL, CUDA, *OLD_ROCM)) or "vllm serve" in words or "vllm.entrypoints" in words:
        return "vllm"
    return otherwise


def _image_names(repository: str, tag: str | None) -> dict[str, object]:
    """What rules may know of the image."""
    found: dict[str, object] = {"official_image": repository.endswith((OFFICIAL, *SGLANG))}
    return found | ({"image_tag": tag} if tag is not None else {})


def _risks(container: Container, args: tuple[str, ...]) -> Iterator[Finding]:
    """What the engine accepts and somebody may regret."""
    if any(word.replace("_", "-") == "--trust-remote-code" for word in args) and option(args, "--revision") is None:
        yield _at(
            container,
            "args",
            _finding(
                "SEC003",
                "warning",
                "code from the model's repository runs here, whatever it is on that day",
                "leave --trust-remote-code out, or pin --revision",
            ),
        )
    if container.env.get("HSA_OVERRIDE_GFX_VERSION"):
        yield _at(
            container,
            "env HSA_OVERRIDE_GFX_VERSION",
            _finding(
                "ENV005",
                "warning",
                "kernels for another card are forced on this one, which faults on supported cards",
                "unset it",
            ),
        )
    for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if container.env.get(name) == "":
            yield _at(
                container, f"env {name}", _finding("ENV004", "error", f"an empty {name} hides every GPU", "unset it")
            )


def spread(args: tuple[str, ...]) -> int | None:
    """Devices that the arguments ask for: tensor x pipeline x data parallel, the last not where it divides the first.

    None where one of them is a variable that nobody has set.
    """
    total = 1
    inside = "--enable-dp-attention" in args
    for names in (
        ("--tensor-parallel-size", "-tp", "--tp-size", "--tp"),
        ("--pipeline-parallel-size", "-pp", "--pp-size"),
        () if inside else ("--data-parallel-size", "-dp", "--dp-size", "--dp"),
    ):
        value = option(args, *names)
        if value is not None and lint.is_open(value):
            return None
        total *= int(value) if value is not None and value.isdecimal() and int(value) > 0 else 1
    return total


def option(args: tuple[str, ...], *names: str) -> str | None:
    """The value given for one of `names`, `--a b`, `--a=b` and `--a_b c` alike; None when it is not given."""
    found = None
    for index, word in enumerate(args):
        name, equals, value = word.partition("=")
        plain = name.replace("_", "-") if name.startswith("--") else name
        if plain in names:
            found = value if equals else args[index + 1] if index + 1 < len(args) else None
    return found


def split_image(reference: str) -> tuple[str, str | None, str | None]:
    """Repository, tag and digest of an image reference; the default registry's name is left out."""
    rest, _, digest = reference.partition("@")
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        head, tag = rest, ""
    for prefix in ("docker.io/", "index.docker.io/"):
        head = head.removeprefix(prefix)
    return head, tag or None, digest or None


def _image(container: Container, repository: str, tag: str | None, digest: str | None) -> Iterator[Finding]:
    name = container.image
    if lint.is_open(repository):
        return
    if repository in OLD_ROCM:
        yield _at(
            container,
            "image",
            _finding(
                "VER007",
                "warning",
                f"{name} is deprecated by vLLM",
                f"{OFFICIAL}:vX.Y.Z, the engine's own image",
                DOCKERFILE,
            ),
        )
        if tag == "instinct_main":
            yield _at(container, "image", _finding("VER017", "error", f"{name} does not exist", "name a release"))
    elif repository.endswith(SGLANG) and tag is not None and "rocm" not in tag:
        yield _at(
            container,
            "image",
            _finding(
                "VER008",
                "error",
                f"{name} is built for CUDA and does not run on AMD GPUs",
                "lmsysorg/sglang:vX.Y.Z-rocm720-mi30x, or -mi35x for MI350X and MI355X",
            ),
        )
    elif repository.endswith(CUDA):
        yield _at(
            container,
            "image",
            _finding("VER008", "error", f"{name} is built for CUDA and does not run on AMD GPUs", f"{OFFICIAL}:vX.Y.Z"),
        )
    if digest is None and (tag is None or (_FLOATING.match(tag) and not _PINNED_NIGHTLY.fullmatch(tag))):
        shown = f"the tag of {name} moves" if tag else f"{name} has no tag, which means latest"
        yield _at(container, "image", _finding("VER009", "warning", shown, "pin a release such as v0.32.0"))


def _secrets(container: Container) -> Iterator[Finding]:
    for name in sorted(container.env):
        value = container.env[name]
        if value and not lint.is_open(value) and _SECRET_NAME.search(name.upper()) and name not in _NOT_SECRET:
            yield _at(
                container,
                f"env {name}",
                _finding(
                    "K8S021", "warning", f"{name} is written down in the clear", "take it from a Secret or an env file"
                ),
            )


def _secret_arguments(container: Container, args: tuple[str, ...]) -> Iterator[Finding]:
    for flag in _SECRET_FLAGS:
        given = option(args, flag)
        if given and not lint.is_open(given):
            yield _at(
                container,
                "args",
                _finding(
                    "SEC004", "error", f"{flag} shows a secret to everyone who lists processes", "use an env file"
                ),
            )


def engine_args(container: Container, repository: str) -> tuple[tuple[str, ...] | None, list[Finding]]:
    """The engine's own arguments; None when the container runs something else."""
    if container.entrypoint is None and repository.endswith((OFFICIAL, CUDA)):
        return _after_entrypoint(container)
    return _program_args(container, (*(container.entrypoint or ()), *container.args))


def _out_of_shell(container: Container, repository: str) -> Container:
    """`sh -c "..."` as the engine that the script starts, with the variables that it sets; as it is when it starts none."""
    words = (*(container.entrypoint or ()), *container.args)
    if (container.entrypoint is None and repository.endswith((OFFICIAL, CUDA))) or not words:
        return container
    place = next((n for n, word in enumerate(words) if n > 0 and not word.startswith("-")), 0)
    if words[0].rsplit("/", 1)[-1] not in _SHELLS or not any("c" in word for word in words[1:place]):
        return container

    def starts(inner: tuple[str, ...]) -> bool:
        return lint.command_of(inner, {}) is not None

    lines = script.commands(words[place], starts, container.env)
    line = next((line for line in lines if starts(line.words)), None)
    if line is None:
        return container
    return msgspec.structs.replace(container, entrypoint=line.words, args=(), env={**container.env, **line.env})


def _after_entrypoint(container: Container) -> tuple[tuple[str, ...] | None, list[Finding]]:
    """Arguments of an image that runs `vllm serve` by itself."""
    args = container.args
    if args[:2] == ("vllm", "serve") or args[:1] == ("serve",):
        skip = 2 if args[0] == "vllm" else 1
        finding = _finding(
            "VER010",
            "error",
            f"the image already runs `vllm serve`, so '{' '.join(args[:skip])}' would be taken for the model",
            "give only the model and its arguments",
            DOCKERFILE,
        )
        return args[skip:], [_at(container, "args", finding)]
    if args and args[0].rsplit("/", 1)[-1].startswith("python"):
        return _program_args(container, args)
    return args, []


def _program_args(container: Container, words: tuple[str, ...]) -> tuple[tuple[str, ...] | None, list[Finding]]:
    programs = ("vllm.entrypoints", "sglang.launch_server")
    if not any(word.rsplit("/", 1)[-1] in ("vllm", "sglang") or word.startswith(programs) for word in words):
        return None, []
    line = lint.command_of(words, {})
    if line is None:
        return None, []
    return line.args, [_at(container, "command", finding) for finding in line.findings]


def named_release(tag: str | None) -> str | None:
    """The release that an image's tag names, such as v0.32.0 or rocm7.2_vllm_0.27.0."""
    match = _RELEASE.search(tag) if tag is not None else None
    return next(filter(None, match.groups())) if match is not None else None


def _release(tag: str | None, backend: Backend, version: str | None) -> tuple[str, Finding | None]:
    """The release whose tables are used, and a note when it is not the one in the image."""
    known = backend.versions()
    if version is not None and version in known:
        return backend.release(version).version, None
    wanted = named_release(tag)
    if wanted is None:
        return known[0], _finding(
            "VER030",
            "info",
            f"the release is not known from the image; checked as {backend.title} {known[0]}",
            "--engine-version names it",
        )
    if wanted in known:
        return wanted, None
    nearest = releases.nearest(wanted, known)
    return nearest, _finding(
        "VER030",
        "info",
        f"{backend.title} {wanted} is not in the catalogue; checked as {nearest}, the nearest",
        "",
    )


def _names_model(args: tuple[str, ...]) -> bool:
    return (
        not args[0].startswith("-")
        or option(args, "--model", "--model-path", "--config") is not None
        or _has_late_positional(args)
    )


def _has_late_positional(args: tuple[str, ...]) -> bool:
    """Whether some word follows another word that is no option: only then can a model come after the options."""
    return any(not word.startswith("-") and not before.startswith("-") for before, word in itertools.pairwise(args))


def _at(container: Container, part: str, finding: Finding) -> Finding:
    return msgspec.structs.replace(finding, evidence=f"{container.where}: {part}")


def _finding(identity: str, severity: str, message: str, remedy: str, source: str = "") -> Finding:
    return Finding(id=identity, severity=severity, message=message, remedy=remedy, source=source)  # type: ignore[arg-type]
