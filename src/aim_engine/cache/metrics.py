"""What a cache holds and did, as Prometheus reads it: `aim_cache_*`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aim_engine.cache import evict, layout, pack, writeback

if TYPE_CHECKING:
    from aim_engine.cache.manager import ModelCacheManager

_GAUGES = {
    "models": "Models in the cache.",
    "revisions": "Revisions in the cache.",
    "files": "Distinct files in the cache.",
    "content_bytes": "Bytes of distinct files.",
    "used_bytes": "Bytes that the store takes, downloads under way and trash included.",
    "limit_bytes": "Most bytes that the store may take.",
    "free_bytes": "Bytes free on the store's disk.",
    "packed_bytes": "Bytes that packed content takes.",
    "held_revisions": "Revisions that are pinned, leased, scheduled or open.",
    "write_back_pending": "Revisions that wait to be written to another place.",
    "oldest_proof_seconds": "Age of the oldest proof of any content; content that was not proved since the index was made is left out.",
}
_COUNTERS = {
    "hits": "Requests for a model that was there.",
    "misses": "Requests for a model that had to be fetched, wholly or in part.",
    "fetched_bytes": "Bytes that came over the network.",
    "resumed_bytes": "Bytes that earlier attempts had left.",
    "deduplicated_bytes": "Bytes of wanted files that were there already.",
    "adopted_bytes": "Bytes taken over from hub caches.",
    "saved_bytes": "Bytes saved by packing.",
    "repaired_files": "Files that arrived wrong and were fetched again.",
    "helped_pieces": "Pieces of which an idle connection took over a part.",
    "download_seconds": "Seconds that somebody waited for downloads.",
    "evicted_revisions": "Revisions that were removed.",
    "evicted_bytes": "Bytes that were removed.",
    "prefetched_bytes": "Bytes fetched ahead of need.",
    "scrubbed_bytes": "Bytes of stored files that were read against their checksums in the background.",
    "damaged_files": "Files that were found damaged by that.",
    "written_back_bytes": "Bytes written to the place that other nodes fetch from.",
}


def render(manager: ModelCacheManager) -> str:
    """The text format of Prometheus, version 0.0.4. Counters are those of this node."""
    lines: list[str] = []
    for name, value in gauges(manager).items():
        lines += [
            f"# HELP aim_cache_{name} {_GAUGES[name]}",
            f"# TYPE aim_cache_{name} gauge",
            f"aim_cache_{name} {value:.15g}",
        ]
    counted = manager.index.counters() if manager.store.exists else {}
    for name, words in _COUNTERS.items():
        lines += [
            f"# HELP aim_cache_{name}_total {words}",
            f"# TYPE aim_cache_{name}_total counter",
            f"aim_cache_{name}_total {counted.get(name, 0.0):.15g}",
        ]
    return "\n".join(lines) + "\n"


def gauges(manager: ModelCacheManager) -> dict[str, float]:
    """What the cache holds now."""
    store, index = manager.store, manager.index
    found: dict[str, float] = dict.fromkeys(("models", "revisions", "files", "content_bytes", "used_bytes"), 0.0)
    with contextlib.suppress(OSError):
        found["free_bytes"] = float(layout.free_bytes(store.root))
    if manager.limit_bytes is not None:
        found["limit_bytes"] = float(manager.limit_bytes)
    if not store.exists:
        return found
    index.refresh()
    names = ("models", "revisions", "files", "content_bytes")
    found |= dict(zip(names, map(float, index.totals()), strict=True))
    found["used_bytes"] = float(evict.used_bytes(store))
    found["packed_bytes"] = float(sum(pack.sizes(store).values()))
    found["held_revisions"] = float(sum(bool(each.held) for each in manager.candidates()))
    found["write_back_pending"] = float(len(writeback.pending(store)))
    proofs = [blob.verified_at for blob in index.blobs().values() if blob.verified_at is not None]
    if proofs:
        found["oldest_proof_seconds"] = max(0.0, store.now_s() - min(proofs))
    return found
