"""Files of a run: written whole or not at all, one writer per folder, and the same run recognized.

Everything that glip writes to disk goes through ``atomic_write``.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from glip.errors import DataError, GlipError

MANIFEST = "manifest.json"
_LOCK = ".lock"
_PARTIAL = re.compile(r"\..+\.(\w+)-(\d+)\.partial")  # a file that is being written, by machine and process
_SHOWN = 5  # differences that an error lists
_LONGEST = 100  # bytes of a file's name that is made of another name; systems take 255 with what is added
_RESERVED = re.compile(r"(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³])(\.|$)", re.IGNORECASE)  # device files of Windows


class LockedError(GlipError):
    """Another process writes to the folder."""


def file_name(text: str, taken: Collection[str] = ()) -> str:
    """A name that a file states (of a model, a dataset, a task, a phrase) as that of one file or folder on any system.

    Letters, digits, blanks and "-_.+" stay, anything else becomes "_". A name that changes, or that is one of those
    ``taken`` but for the case of its letters, gets a part of a hash: two names never become one.
    """
    plain = unicodedata.normalize("NFC", text)
    kept = (c if c.isalnum() or c in "-_.+ " or unicodedata.category(c)[0] == "M" else "_" for c in plain)
    name = "".join(kept).strip(" .").lstrip("-").encode()[:_LONGEST].decode(errors="ignore")
    name = f"_{name}" if not name or _RESERVED.match(name) else name
    if name == plain and name.casefold() not in {other.casefold() for other in taken}:
        return name
    return f"{name}-{fingerprint(text)[:8]}"


def is_special(path: str | Path) -> bool:
    """Whether a path is neither a file nor a folder: to open a pipe waits for its writer, and a device has no end."""
    return not os.path.isfile(path) and os.path.exists(path) and not os.path.isdir(path)


def refuse_special(path: str | Path) -> None:
    """Refuse to read a pipe or a device, with a DataError."""
    if is_special(path):
        raise DataError(f"{str(path)!r} is a pipe or a device: give a file")


class WriteError(OSError):
    """A file that cannot be written; the message names it, the free space and the next step."""


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", *, durable: bool = False) -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` when the block ends; after an error or a kill the old file is unchanged.

    Args:
        path: the file; its folder is made if missing.
        mode: "w" for UTF-8 text, "wb" for bytes.
        durable: wait until it is on the disk, so that it also survives a power failure.

    Raises:
        WriteError: it cannot be written.
    """
    with atomic_path(path) as partial, partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """The same for libraries that open files themselves: a path to write to, which replaces ``path`` at the end."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder: give the file to write")
    partial = path.with_name(f".{path.name[-50:]}.{_machine()}-{os.getpid()}.partial")  # no other process writes to it
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around code that writes a file: what fails is a WriteError."""
    try:
        yield
    except Exception as error:
        # A full disk is a RuntimeError of torch.save and an error of its own in safetensors.
        words = ("writ", "I/O error", "unexpected pos")
        full = any(word in str(error) for word in words) and not isinstance(error, GlipError)
        known = isinstance(error, FileNotFoundError | WriteError | BrokenPipeError)  # a pipe's reader has seen enough
        if known or not (isinstance(error, OSError) or full):
            raise
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free / 1e6
        raise WriteError(
            f"{str(path)!r} could not be written ({' '.join(str(error).split())[:120]}; {free:,.0f} MB free): make "
            "room or choose another folder, and run the same command again"
        ) from error


def _machine() -> str:
    return fingerprint(platform.node())[:6]


def remove_partials(folder: str | Path) -> None:
    """Delete what killed processes of this machine were writing in a folder, up to two levels below it."""
    for path in (path for below in ("", "*/", "*/*/") for path in Path(folder).glob(f"{below}.*.partial")):
        found = _PARTIAL.fullmatch(path.name)
        if found and found[1] == _machine() and not _is_running(int(found[2])):
            path.unlink(missing_ok=True)


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A folder for this process alone, deleted at its end; those that killed processes have left are deleted now."""
    begin = f"{prefix}-{_machine()}-"
    for path in Path(tempfile.gettempdir()).glob(f"{begin}*-*"):
        process = path.name.removeprefix(begin).partition("-")[0]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{begin}{os.getpid()}-")


def _is_running(process: int) -> bool:
    """Whether another process has this number; this one writes nothing when it clears a folder."""
    if process == os.getpid() or os.name != "posix":  # elsewhere signal 0 would end the process
        return process != os.getpid()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def read_json(path: str | Path, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value of a JSON file; ``object_hook`` (json's) gets each map as it closes, and gives what replaces it.

    Raises:
        FileNotFoundError: no such file.
        DataError: not JSON in UTF-8.
    """
    refuse_special(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({str(error)[:80]})") from None


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: str | Path) -> Iterator[Any]:
    """The rows of a file of JSON lines; a last line that a kill cut off is skipped, another broken one a DataError."""
    refuse_special(path)
    with Path(path).open("rb") as file:
        number, line = 0, b""
        try:
            for line in file:
                number += 1
                yield json.loads(line)
        except (ValueError, RecursionError) as error:
            if line.endswith(b"\n"):
                raise DataError(f"{path}, line {number}: not valid JSON ({str(error)[:80]})") from None


def append_jsonl(path: str | Path, row: Any) -> None:
    """Append one row to a file of JSON lines; it is on the disk afterwards, in place of a line that a kill cut off."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("ab+") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            before, newline, last = file.read().rpartition(b"\n")
            try:
                json.loads(last)
                file.write(b"\n")
            except ValueError:
                file.truncate(len(before) + len(newline))
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def begin_run(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Note what a folder's contents are made of and with; the same settings go on, others are refused.

    Raises:
        DataError: the folder holds the results of other settings, or its manifest cannot be read.
    """
    path, wanted = Path(folder) / MANIFEST, json.loads(json.dumps(settings))
    if path.is_file():
        refuse_other_run(folder, read_json(path), wanted)
    else:
        write_json(path, wanted)


def refuse_other_run(
    folder: str | Path, before: Mapping[str, Any], now: Mapping[str, Any], *, may_change: tuple[str, ...] = ()
) -> None:
    """Refuse to go on with other settings; keys that begin with one of ``may_change`` may differ.

    Raises:
        DataError: naming each key that differs and does not begin with one of ``may_change``.
    """
    old, new = flat(before), flat(now)
    changed = []
    for key in {**old, **new}:
        if old.get(key) != new.get(key) and not key.startswith(may_change):
            was, wanted = (json.dumps(tree.get(key), ensure_ascii=False)[:120] for tree in (old, new))
            changed.append(f"{key} {was}, not {wanted}")
    if changed:
        more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
        listed = "; ".join([*changed[:_SHOWN], *more])
        raise DataError(f"{str(folder)!r} holds results made with {listed}: give another folder, or delete it")


def flat(tree: Any, at: str = "") -> dict[str, Any]:
    """The values of nested maps, also in lists, by their path, such as ``train.lr`` or ``data.train[0].name``."""
    values: dict[str, Any] = {}
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            values |= flat(value, f"{at}.{key}" if at else str(key))
    elif isinstance(tree, list | tuple) and any(isinstance(value, Mapping) for value in tree):
        for place, value in enumerate(tree):
            values |= flat(value, f"{at}[{place}]")
    else:
        values[at] = tree
    return values


@contextmanager
def exclusive(
    path: str | Path,
    *,
    is_file: bool = False,
    wait: bool = False,
    main: bool = True,
    gather: Callable[[str], list[str]] = lambda problem: [problem],
) -> Iterator[None]:
    """Keep other runs out of a folder, made if missing; the lock ends with the process.

    What killed runs were writing there is deleted.

    Args:
        path: the folder where only one run may write.
        is_file: it is a single file instead, with those named after it.
        wait: until the other run is done, instead of the error.
        main: whether this is the process of the run that locks.
        gather: exchanges messages between the processes of the run, so that all of them end with the error.

    Raises:
        LockedError: another run is there.
        WriteError: the folder cannot be written to.
    """
    path = Path(path)
    lock = path.absolute().with_name(f".{path.name}{_LOCK}") if is_file else path / _LOCK
    with ExitStack() as stack:
        problem = f"another run writes to {str(path)!r}: wait for it, or give another {'file' if is_file else 'folder'}"
        with writing(lock), suppress(Timeout):
            if main:
                lock.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(lock, timeout=-1 if wait else 0))
            problem = ""
        if problem := "".join(gather(problem)):
            raise LockedError(problem)
        if main:
            remove_partials(lock.parent)
        yield


def fingerprint(*parts: Any) -> str:
    """A hash (hex) that tells values apart: texts, numbers, lists and maps by content, bytes as they are."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes | memoryview) else repr(part).encode("utf-8", "surrogatepass")
        digest.update(str(len(content)).encode() + b":")
        digest.update(content)
    return digest.hexdigest()
