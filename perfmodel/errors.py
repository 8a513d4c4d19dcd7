"""Every error that perfmodel raises on purpose.

::

    PerfModelError                what a user can mend; the command line prints it and exits with 2
    ├── FileError                 a file that is missing, unreadable or not what it should be (path:line:column)
    ├── UnitError                 a quantity whose text has no meaning
    ├── UnknownNameError          a model, device, runtime, op … that isn't known; names the nearest ones
    ├── CaptureError              a module that can't be captured as a training step
    ├── ShapeError                a batch or sequence that the model doesn't take
    ├── CoverageError             strict mode, and an op has no rule
    ├── UnsupportedError          a combination that the library refuses instead of guessing
    └── MissingDependencyError    an optional package that isn't installed; says what to install

A message is one line that says where, what, and the cure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CaptureError",
    "CoverageError",
    "FileError",
    "MissingDependencyError",
    "PerfModelError",
    "ShapeError",
    "UnitError",
    "UnknownNameError",
    "UnsupportedError",
    "suggestion",
]


class PerfModelError(Exception):
    """Base of all errors that a user can mend."""


class FileError(PerfModelError):
    """A file is missing, unreadable, or its content is wrong; the message starts with ``path:line:column``."""


class UnitError(PerfModelError):
    """The text of a quantity has no meaning, or a unit of the wrong kind."""


class UnknownNameError(PerfModelError):
    """A name isn't in the catalogue.

    Parameters
    ----------
    kind : str
        What was looked for, e.g. ``"device"``.
    name : str
        What the user wrote.
    known : iterable of str
        The names that exist.
    cure : str
        What to do when no name is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], cure: str = "") -> None:
        names = sorted(known)
        hint = suggestion(name, names)
        cures = [text for text in (hint, cure) if text]
        super().__init__(f"unknown {kind} {name!r}" + "".join(f"; {text}" for text in cures))
        self.kind = kind
        self.name = name
        self.known = names


class CaptureError(PerfModelError):
    """The module can't be captured as a training step."""


class ShapeError(PerfModelError):
    """The model doesn't take a batch or sequence of this size."""


class CoverageError(PerfModelError):
    """Strict mode was asked for and the graph has ops without a rule."""


class UnsupportedError(PerfModelError):
    """A combination that is refused instead of guessed."""


class MissingDependencyError(PerfModelError):
    """An optional package isn't installed."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        install = f"pip install 'perfmodel[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs {package}, which isn't installed; run: {install}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say which known names are nearest to ``name``; empty where none is near.

    >>> suggestion("bandwith", ["bandwidth", "capacity"])
    "did you mean 'bandwidth'?"
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    if not near:
        return ""
    return "did you mean " + " or ".join(repr(match) for match in near) + "?"
