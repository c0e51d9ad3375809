"""The fixtures of `caches`, for every test of the cache."""

from caches import make, manager, server

__all__ = ["make", "manager", "server"]
