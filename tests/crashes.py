"""Ends what runs at a chosen change of the disk, as kill -9 does."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

MOMENTS = ("link", "replace", "rename", "unlink", "fsync")


class Killed(BaseException):
    """The process is gone here."""


class Dying:
    """Ends whatever runs at its n-th change of the disk, as kill -9 does: nothing after it happens, not even cleaning up."""

    def __init__(self, after: int) -> None:
        self._after, self._patch = after, pytest.MonkeyPatch()
        self.died = False

    def __enter__(self) -> Dying:
        for name in MOMENTS:
            self._patch.setattr(os, name, self._counting(getattr(os, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _counting(self, real: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **options: object) -> object:
            if self.died or self._after <= 0:
                self.died = True
                raise Killed
            self._after -= 1
            return real(*args, **options)

        return counted
