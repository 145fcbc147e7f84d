"""Files that others wrote, at the point where they come in: opened only if they can end, read within bounds, named for
what they are.

Every loader opens its file and parses its JSON here, and states in an `InputKind` how it refuses. What the content
means does not belong here. Standard library only; a GPU host needs it too.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

LONGEST_LINE_BYTES = 64 << 20
"""A line, or one item of a JSON array, beyond this is refused: whole, it would have to be held in memory."""
DEEPEST_JSON = 100
"""Objects and arrays within each other. Python's own bound depends on how deep the caller is."""

_GIT_LFS = b"version https://git-lfs.github.com/spec/"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_LOOKED_AT = 512


@dataclass(frozen=True)
class InputKind:
    """A kind of input: how it is called, and refused.

    `error`: the class raised, one of `errors` but where a caller says more; `missing`: said of a path where nothing is;
    `expected`: what it should be, in words; `remedy`: what to do where something else is there; `most_bytes`: beyond
    this it is refused unread (None: it is not held in memory whole).
    """

    error: type[Exception]
    missing: str
    expected: str
    remedy: str
    most_bytes: int | None = None


def usable_path(path: Path, error: type[Exception]) -> Path:
    """`path`, if a file can be there: asking whether it exists would be an error of the system's otherwise.

    Raises:
        error: a name that is too long, or characters that no name can have.
    """
    try:
        str(path).encode("utf-8")
        path.lstat()
    except UnicodeEncodeError:
        raise error(f"{str(path)!r}: not UTF-8. Rename the file, or correct the path.") from None
    except ValueError:
        raise error(f"{str(path)!r}: no path can hold a NUL character. Correct the path.") from None
    except OSError as problem:
        # Missing is for the caller to say; names too long, and links that lead round, are no place at all.
        if problem.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise error(f"{path!s:.80}...: no such path ({problem.strerror}). Correct it.") from None
    return path


def open_input(path: Path, kind: InputKind) -> BinaryIO:
    """The file at `path`, opened for reading. Never waits: a named pipe, a device or a directory is refused, and so is
    what is too large.

    Raises:
        kind.error: names the path, what it is, what was expected, and the remedy.
    """
    try:
        # Without NONBLOCK a named pipe without a writer would be waited for.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise kind.error(f"{path}: {kind.missing}") from None
    except OSError as error:
        raise kind.error(
            f"{path}: cannot be read ({error.strerror}), expected {kind.expected}. {kind.remedy}"
        ) from None
    except ValueError:
        raise kind.error(f"{str(path)!r}: no path can hold a NUL character. {kind.remedy}") from None
    found = os.fstat(number)
    problem = None
    if not stat.S_ISREG(found.st_mode):
        problem = f"is {_what(found.st_mode)}, expected {kind.expected}"
    elif kind.most_bytes is not None and found.st_size > kind.most_bytes:
        problem = f"has {found.st_size} bytes, expected {kind.expected} of at most {kind.most_bytes}"
    if problem:
        os.close(number)
        raise kind.error(f"{path}: {problem}. {kind.remedy}")
    return os.fdopen(number, "rb")


def _what(mode: int) -> str:
    kinds: dict[Callable[[int], bool], str] = {
        stat.S_ISDIR: "a directory",
        stat.S_ISFIFO: "a named pipe",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISSOCK: "a socket",
    }
    return next((words for test, words in kinds.items() if test(mode)), "no regular file")


def read_bytes(path: Path, kind: InputKind) -> bytes:
    """All of the file at `path`.

    Raises:
        kind.error: as `open_input`, or while reading.
    """
    with open_input(path, kind) as handle:
        return read_from(handle, path, kind)


def read_from(handle: BinaryIO, path: Path, kind: InputKind, size: int = -1) -> bytes:
    """The next `size` bytes of an opened file, or all that is left.

    Raises:
        kind.error: the disk fails, or the file grows meanwhile.
    """
    try:
        if size < 0:
            # Not `read()`, which follows a file that grows, nor the bound itself, which would be allocated at once.
            size = os.fstat(handle.fileno()).st_size + 1
            data = handle.read(size)
            if len(data) == size:
                raise kind.error(
                    f"{path}: was written to while it was read, expected {kind.expected}. Try again when it is"
                    " complete."
                )
            return data
        return handle.read(size)
    except OSError as error:
        raise kind.error(f"{path}: cannot be read ({error.strerror}). Check the disk.") from None


def read_text(path: Path, kind: InputKind) -> str:
    """All of the file at `path` as text.

    Raises:
        kind.error: as `read_bytes`; what the file is instead of text (see `foreign`); the line that is not UTF-8.
    """
    data = read_bytes(path, kind)
    refuse_foreign(data[:_LOOKED_AT], path, kind)
    return decoded(data, path, kind)


def decoded(data: bytes, path: Path, kind: InputKind, first_line: int = 1) -> str:
    """`data`, which begins on line `first_line` of `path`, as text.

    Raises:
        kind.error: names the line that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise kind.error(f"{path}: line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def lines(handle: BinaryIO, path: Path, kind: InputKind) -> Iterator[tuple[int, bytes]]:
    """Each line of an opened file with its number from 1. Only `\\n` ends one; the last may lack it.

    Raises:
        kind.error: a line that is too long, or what the file is instead of text.
    """
    number = 0
    while True:
        try:
            line = handle.readline(LONGEST_LINE_BYTES + 1)
        except OSError as error:
            raise kind.error(f"{path}: cannot be read ({error.strerror}). Check the disk.") from None
        if not line:
            return
        number += 1
        if number == 1:
            refuse_foreign(line[:_LOOKED_AT], path, kind)
        if len(line) > LONGEST_LINE_BYTES:
            raise line_too_long(path, number, kind)
        yield number, line


def line_too_long(path: Path, line: int, kind: InputKind) -> Exception:
    """The error for a line or item that is beyond `LONGEST_LINE_BYTES`."""
    return kind.error(
        f"{path}: line {line}: more than {LONGEST_LINE_BYTES >> 20} MiB without an end, expected {kind.expected}."
        f" {kind.remedy}"
    )


def foreign(head: bytes) -> str | None:
    """What a file is that begins with `head` and is no UTF-8 text, with the remedy, in words; None where nothing speaks
    against text."""
    if head.startswith(_GIT_LFS):
        return (
            "is a Git LFS pointer, which stands for a file that was not fetched. Run `git lfs pull` in its repository,"
            " or download the file itself"
        )
    for begin, name in _COMPRESSED.items():
        if head.startswith(begin):
            return f"is compressed ({name}). Unpack it"
    if head.startswith(b"PAR1"):
        return "is a Parquet file. Write its rows as text first"
    if head.startswith(_UTF8_MARK):
        return "begins with a byte order mark. Save it as UTF-8 without one (of an editor's choices, plain UTF-8)"
    zeros = [head[first::2].count(0) for first in (0, 1)]
    if head.startswith(_UTF16_MARKS) or 2 * max(zeros) > len(head[::2]) > 3:
        return "is UTF-16 text. Save it as UTF-8"
    begin = head.lstrip()[:20].lower()
    if begin.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, such as a login or an error page. Download the file itself"
    if begin.startswith(b"<?xml"):
        return "is an XML document, such as a server's error. Download the file itself"
    return None


def refuse_foreign(head: bytes, path: Path, kind: InputKind) -> None:
    """Refuse a file that begins with `head` and is something other than text.

    Raises:
        kind.error: says what it is, and the remedy.
    """
    found = foreign(head[:_LOOKED_AT])
    if found:
        raise kind.error(f"{path}: {found}.")


# --- JSON -------------------------------------------------------------------------------------------------------------


class JsonProblem(ValueError):
    """A text is not JSON as it is accepted here. `reason` says why; `line` is that of the text, from 1, where it is
    known."""

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.line, self.column = reason, line, column


def parse_json(text: str, *, keys_once: bool = False, exact: Callable[[str], Any] | None = None) -> Any:
    """The value that `text` is. `keys_once`: a key that stands twice in one object is an error; else the last counts.
    `exact` makes what it likes of a number that is no integer, by default a finite float.

    Raises:
        JsonProblem: not valid JSON; `NaN` and its like; a number that Python cannot hold; nested deeper than
        `DEEPEST_JSON`.
    """
    decoder = json_decoder(keys_once=keys_once, exact=exact)
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise json_problem(error) from None
    refuse_deep(text, value)
    return value


def json_decoder(*, keys_once: bool = False, exact: Callable[[str], Any] | None = None) -> json.JSONDecoder:
    """A decoder with the rules of `parse_json` but that of depth; `json_problem` explains what it raises."""
    return json.JSONDecoder(
        parse_constant=_refuse_constant,
        parse_float=exact or _finite,
        object_pairs_hook=_once_each if keys_once else None,
    )


def json_problem(error: ValueError | RecursionError) -> JsonProblem:
    """What a decoder raised, in words."""
    if isinstance(error, JsonProblem):
        return error
    if isinstance(error, json.JSONDecodeError):
        return JsonProblem(error.msg, error.lineno, error.colno)
    if isinstance(error, RecursionError):
        return JsonProblem(f"nested deeper than {DEEPEST_JSON} levels")
    # Python refuses to convert an integer of thousands of digits: the time grows with their square.
    return JsonProblem("an integer of more digits than any number here has")


def refuse_deep(text: str, value: Any) -> None:
    """Refuse what is nested deeper than `DEEPEST_JSON`; `value` is what `text` was parsed to.

    Raises:
        JsonProblem
    """
    if text.count("[") + text.count("{") <= DEEPEST_JSON:
        return
    level = [one for one in [value] if isinstance(one, dict | list)]
    for _ in range(DEEPEST_JSON):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise JsonProblem(f"nested deeper than {DEEPEST_JSON} levels")


def _refuse_constant(name: str) -> NoReturn:
    raise JsonProblem(f"{name} is no JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise JsonProblem(f"the number {digits:.40} is too large")
    return number


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        left = dict.fromkeys(found, 0)
        for name, _ in pairs:
            left[name] += 1
        twice = next(name for name, times in left.items() if times > 1)
        raise JsonProblem(
            f"the key {twice!r:.80} is written twice in one object, and JSON would take the last; remove one of them"
        )
    return found
