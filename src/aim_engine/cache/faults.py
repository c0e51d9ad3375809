"""What can go wrong between a model's name and its weights on disk, one class per remedy.

InvalidInput   NoSuchModel, NoSuchRevision, NoSuchFile, Gated, AccessRefused, Unsafe
Unreachable    RateLimited, Unavailable, NoSpace
Corrupt        Damaged, ForeignStore
"""

from __future__ import annotations

from aim_engine.errors import Corrupt, InvalidInput, Unreachable


class NoSuchModel(InvalidInput):
    """The source has no repository of this name, or hides it from this token."""


class NoSuchRevision(InvalidInput):
    """The repository has no such branch, tag or commit."""


class NoSuchFile(InvalidInput):
    """The revision lists a file that its source does not have."""


class Gated(InvalidInput):
    """The owner grants access per account, and this account has none."""


class AccessRefused(InvalidInput):
    """The source refuses these credentials."""


class Unsafe(InvalidInput):
    """A file or name could harm the machine that uses it, and nobody approved it."""


class RateLimited(Unreachable):
    """The source asked to wait longer than we are willing to."""


class Unavailable(Unreachable):
    """No answer, or no usable one, after every retry."""


class NoSpace(Unreachable):
    """What is to be stored does not fit, and nothing may go for it."""


class Damaged(Corrupt):
    """Content has another checksum than it must have."""


class ForeignStore(Corrupt):
    """The store's folder is of another version, owner or shape than this version accepts."""
