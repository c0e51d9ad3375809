"""The errors AIM Engine raises, and the exit code each becomes.

    AimError
    |- InvalidInput    2   the user can fix it: a name, a value, a file
    |  |- MissingFigure    a catalogue lacks a figure; says which file to fill
    |  `- MissingExtra     an optional dependency is not installed; says which
    |- Unreachable     3   something outside failed: hub, cluster, driver, endpoint
    |  `- EngineFailed     the serving engine died or never became ready
    `- Corrupt         3   a file we rely on is damaged: cache, state, checkpoint

An expected "no" (no plan fits, validation failed) is a value with reasons and exit code 1, not an exception.
"""

from __future__ import annotations


class AimError(Exception):
    """What went wrong, why, and what to do next, in the user's own values."""

    exit_code = 70

    def __init__(self, what: str, *, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.why is None else f"{self.what}: {self.why}"


class InvalidInput(AimError):
    """A value the user gave cannot be used."""

    exit_code = 2


class MissingFigure(InvalidInput):
    """A catalogue file lacks a figure that the question needs."""

    def __init__(self, figure: str, *, file: str) -> None:
        super().__init__(
            f"the figure {figure} is not known",
            why="it is missing from the catalogue, and it is never guessed",
            hint=f"add it with its source to {file}",
        )
        self.figure = figure
        self.file = file


class MissingExtra(InvalidInput):
    """An optional dependency is needed for this command."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed",
            hint=f"pip install 'aim-engine[{extra}]'",
        )
        self.extra = extra


class Unreachable(AimError):
    """Something outside this process did not answer or refused."""

    exit_code = 3


class EngineFailed(Unreachable):
    """The serving engine died or did not become ready; `log_tail` holds its last lines."""

    def __init__(
        self, what: str, *, why: str | None = None, hint: str | None = None, log_tail: tuple[str, ...] = ()
    ) -> None:
        super().__init__(what, why=why, hint=hint)
        self.log_tail = log_tail


class Corrupt(AimError):
    """A file that should be trustworthy is not."""

    exit_code = 3
