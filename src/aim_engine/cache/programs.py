"""Shows which programs a model brings, and lets a person approve them or take that back.

Approving reads the file once more from its source, proves it against the listing, and puts it into the view of the revision if that is
stored. What was approved by checksum alone is looked for when its model is fetched.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from aim_engine.cache import acquire, approval, evict, hub, layout, names, safety, space, views
from aim_engine.cache.approval import Approval, Program
from aim_engine.cache.faults import Damaged, Unavailable
from aim_engine.cache.manifest import StoredFile
from aim_engine.errors import InvalidInput

if TYPE_CHECKING:
    from aim_engine.cache.manager import ModelCacheManager


def of(manager: ModelCacheManager, model_id: str, revision: str = "main") -> tuple[Program, ...]:
    """The programs of a model: its code, and the pickles an engine would load. Asks its source.

    Raises: InvalidInput, Unreachable, Damaged.
    """
    return tuple(program for program, _, _ in _read(manager, model_id, revision)[1])


def approve(
    manager: ModelCacheManager, model_id: str, which: Collection[str], revision: str = "main"
) -> tuple[Approval, ...]:
    """Approve programs by path, or any content by its sha256, which asks nobody; gives what is approved now.

    Raises: InvalidInput for a path that is no program of the model, Unreachable, Damaged.
    """
    names.require_model_id(model_id)
    manager.store.ensure()
    now_s = manager.store.now_s()
    new = [Approval(sha256=each, at=now_s) for each in which if names.is_sha256(each)]
    paths = [each for each in which if not names.is_sha256(each)]
    if paths:
        commit, found = _read(manager, model_id, revision)
        by_path = {program.path: (program, oid, content) for program, oid, content in found}
        unknown = [path for path in paths if path not in by_path]
        if unknown:
            raise InvalidInput(
                f"{unknown[0]} is no program of {model_id}",
                why=f"its programs at {commit[:12]}: {', '.join(by_path) or 'none'}",
                hint=f"aim-engine cache approve {model_id}",
            )
        chosen = [by_path[path] for path in paths]
        new += [Approval(sha256=each.sha256, path=each.path, git_oid=oid, at=now_s) for each, oid, _ in chosen]
        approval.approve(manager.store, model_id, new)
        _add(
            manager, model_id, commit, {program.path: content for program, _, content in chosen if content is not None}
        )
    else:
        approval.approve(manager.store, model_id, new)
    return approval.of(manager.store, model_id)


def revoke(manager: ModelCacheManager, model_id: str, which: Collection[str] = ()) -> tuple[Approval, ...]:
    """Take approvals back and the programs out of every view; a revision whose weights they were goes. Gives what was revoked.

    Raises: InvalidInput, Unreachable.
    """
    names.require_model_id(model_id)
    gone = approval.revoke(manager.store, model_id, which)
    for known in manager.revisions():
        revision = known.revision
        if revision.model_id != model_id:
            continue
        refused = set(approval.unapproved(manager.store, revision))
        left = tuple(file for file in revision.files if file.path not in refused)
        if len(left) == len(revision.files):
            continue
        if any(hub.is_weight(file.path) for file in left):
            rest = msgspec.structs.replace(revision, files=left)
            acquire.show(manager.store, manager.index, rest, revision.commit)
        else:
            manager.index.withdraw(model_id, revision.commit)
            views.remove(manager.store, model_id, revision.commit)
    loose = evict.orphans(manager.store, manager.index)
    for each in gone:
        if each.sha256 in loose and manager.store.blob(each.sha256).exists():
            space.discard(manager.store, manager.index, each.sha256)
    return gone


def _read(
    manager: ModelCacheManager, model_id: str, revision: str
) -> tuple[str, list[tuple[Program, str | None, bytes | None]]]:
    """The commit, and each program with git's name for it and, where it had to be read to know its checksum, its content."""
    if hub.is_offline():
        raise hub.offline_error(model_id)
    client = manager.client()
    place, listing = acquire.listing(client, manager.sources, names.require_model_id(model_id), revision)
    allowed = {each.sha256 for each in approval.of(manager.store, model_id)}
    wanted = {file.path for file in hub.choose_files(listing.files) if safety.is_pickle(file.path)}
    programs = [file for file in listing.files if safety.is_code(file.path) or file.path in wanted]
    names.require_paths(file.path for file in programs)
    found = []
    for file in sorted(programs, key=lambda file: file.path):
        address, content, digest = place.address(listing, file.path), None, file.sha256
        if digest is None:
            status, _, content = client.document(address)
            if status != 200:
                raise Unavailable(f"{file.path} of {model_id} cannot be read", why=f"status {status}")
            digest = hashlib.sha256(content).hexdigest()
            git_name = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            if file.git_oid not in (None, git_name):
                raise Damaged(
                    f"{file.path} of {model_id} arrives with a wrong checksum",
                    why=f"git calls it {git_name[:12]}, its source promises {(file.git_oid or '')[:12]}",
                    hint="a proxy or mirror may alter it: set HF_ENDPOINT to another place",
                )
        size = len(content) if content is not None else file.size_bytes or 0
        program = Program(path=file.path, size_bytes=size, sha256=digest, address=address, approved=digest in allowed)
        found.append((program, file.git_oid, content))
    return listing.commit, found


def _add(manager: ModelCacheManager, model_id: str, commit: str, contents: dict[str, bytes]) -> None:
    """Put programs into a stored revision, so that nothing need be fetched again."""
    manager.index.refresh()
    revision = manager.index.revision(model_id, commit)
    if revision is None or not contents:
        return
    files = {file.path: file for file in revision.files}
    for path, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if not manager.store.blob(digest).exists():
            partial = manager.store.path("parts", f"{digest}.{os.getpid()}.{secrets.token_hex(4)}.small")
            with layout.typed(partial):
                layout.write(partial, content)
            manager.store.publish(partial, digest)
            manager.index.verified(digest, manager.store.now_s())
        files[path] = StoredFile(path=path, sha256=digest, size_bytes=len(content))
    whole = msgspec.structs.replace(revision, files=tuple(sorted(files.values(), key=lambda file: file.path)))
    acquire.show(manager.store, manager.index, whole, commit)
