"""Where hardware files are: the folders that are looked through, and the files in them.

Looked through in this order: the folders of ``$PERFMODEL_HARDWARE`` (separated as
in ``$PATH``), the files shipped with the package, the ``hardware_specs`` beside a
checkout. A description in an earlier folder hides one of the same name in a later one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from perfmodel.errors import FileError, UnknownNameError, UnsupportedError
from perfmodel.yamlfile import Node, parse_yaml, read_text

__all__ = [
    "KINDS",
    "SEARCH_VARIABLE",
    "Entry",
    "base_file",
    "file_of",
    "hardware_roots",
    "index",
    "is_path",
    "nodes_of",
    "write_text",
]

#: Environment variable that names folders with hardware files.
SEARCH_VARIABLE = "PERFMODEL_HARDWARE"

#: What a hardware file may describe, as its ``schema:`` says, and the folder for it.
KINDS = {"device": "devices", "node": "nodes", "fabric": "fabrics", "cluster": "clusters"}

_PACKAGE = Path(__file__).resolve().parent.parent
_parsed: dict[str, tuple[tuple[int, int], Node]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A description in the catalogue: its file, and the other names it goes by."""

    path: Path
    aliases: tuple[str, ...]


def hardware_roots() -> tuple[Path, ...]:
    """The folders with hardware files, in the order in which they are looked through.

    Raises
    ------
    FileError
        If ``$PERFMODEL_HARDWARE`` names what isn't a folder.
    """
    roots = []
    for text in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep):
        if not text:
            continue
        folder = Path(text)
        if not folder.is_dir():
            raise FileError(f"{text}: is not a folder; correct the environment variable {SEARCH_VARIABLE}")
        roots.append(folder)
    # A wheel carries the files inside the package; a checkout and an editable install have them beside it.
    roots += [root for root in (_PACKAGE / "_hardware_specs", _PACKAGE.parent / "hardware_specs") if root.is_dir()]
    return tuple(roots)


def nodes_of(path: str | Path) -> Node:
    """The nodes of a YAML file; read once a process unless the file changes."""
    text = str(path)
    try:
        status = Path(text).stat()
    except OSError:
        return parse_yaml(read_text(path), text)  # says what is wrong
    stamp = (status.st_mtime_ns, status.st_size)
    kept = _parsed.get(text)
    if kept is None or kept[0] != stamp:
        kept = _parsed[text] = (stamp, parse_yaml(read_text(path), text))
    return kept[1]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; missing folders are made.

    Raises
    ------
    FileError
        If it can't be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        reason = error.strerror or type(error).__name__
        raise FileError(f"{path}: can't be written: {reason}; choose a writable place") from None


def is_path(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a path was meant: it ends with ``.yaml`` or ``.yml``, or contains a separator."""
    text = str(name_or_path)
    separators = [os.sep] + ([os.altsep] if os.altsep else [])
    return (
        not isinstance(name_or_path, str)
        or text.endswith((".yaml", ".yml"))
        or any(separator in text for separator in separators)
    )


def file_of(kind: str, name: str) -> Path:
    """The file that describes ``name``, which may be an alias.

    Raises
    ------
    UnknownNameError
        If nothing of that kind has the name; names the nearest ones.
    UnsupportedError
        If two descriptions claim the alias.
    FileError
        If a file that mentions the name isn't YAML with a name.
    """
    entries = index(kind, mentioning=name)
    if name in entries:
        return entries[name].path
    claims = sorted(known for known, entry in entries.items() if name in entry.aliases)
    if len(claims) > 1:
        raise UnsupportedError(f"{kind} {name!r} may be {' or '.join(claims)}; write the full name")
    if not claims:
        entries = index(kind)
        aliases = [alias for entry in entries.values() for alias in entry.aliases]
        raise UnknownNameError(
            kind,
            name,
            [*entries, *aliases],
            f"`perfmodel hardware list --what {KINDS[kind]}` shows all {len(entries)}; or give a file's path",
        )
    return entries[claims[0]].path


def index(kind: str, *, mentioning: str | None = None) -> dict[str, Entry]:
    """The catalogue of one kind, by name.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    mentioning : str, optional
        Read only files whose text contains this: enough to find that name, and much faster.

    Raises
    ------
    FileError
        If a file isn't YAML with a name, or two files of a folder describe the same name.
    """
    found: dict[str, Entry] = {}
    for root in hardware_roots():
        here: dict[str, Entry] = {}
        for path in sorted([*root.glob(f"{KINDS[kind]}/*.yaml"), *root.glob("*.yaml")]):
            if mentioning is not None and mentioning not in read_text(path):
                continue
            entry = _entry(kind, path)
            if entry is None:
                continue
            name, value = entry
            if name in here:
                raise FileError(f"{path}: {kind} {name!r} is described in {here[name].path} too; rename one of them")
            here[name] = value
        for name, value in here.items():
            found.setdefault(name, value)
    return found


def base_file(kind: str, name: str, file: Path) -> Path | None:
    """The file that ``base: name`` means in ``file``: another one that is called ``name.yaml``.

    Looked for beside ``file`` and in ``bases/`` there, then so in the folders of the catalogue. A file
    may therefore be based on the one of the catalogue that it is named after.
    """
    folders = [file.parent]
    for root in hardware_roots():
        folders += [root / KINDS[kind], root]
    itself = None
    for folder in folders:
        for path in (folder / f"{name}.yaml", folder / "bases" / f"{name}.yaml"):
            if path.is_file():
                if file.stem != name or not path.samefile(file):
                    return path
                itself = path
    return itself


def _entry(kind: str, path: Path) -> tuple[str, Entry] | None:
    """Name and aliases of a file, without checking the rest; ``None`` for a file of another kind."""
    content = nodes_of(path).value
    schema = content["schema"].value if "schema" in content else None
    if path.parent.name != KINDS[kind] and not (isinstance(schema, str) and schema.startswith(f"{kind}/")):
        return None
    name = content["name"].value if "name" in content else None
    aliases = content["aliases"].plain() if "aliases" in content else []
    if not isinstance(name, str) or not isinstance(aliases or [], list):
        raise FileError(
            f"{path}:1:1: a {kind} file needs `name:`, and a list if it has `aliases:`; run the check on it"
        )
    return name, Entry(path=path, aliases=tuple(str(alias) for alias in aliases or []))
