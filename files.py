"""Write a file whole or not at all; the one module that every room may import."""

import os
import re
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.([^.]+)\.(\d+)\.[0-9a-f]{8}\.tmp~")  # host and process of a writer


def write(path: str | os.PathLike, content: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file atomically: readers see the old content or all of the new one.

    The content goes to a temporary file beside `path`, which is then renamed. A link at `path` is
    replaced; what it points to is not touched. The permissions follow the umask. After an OSError
    the old file is intact.

    Args:
        content: the bytes or text of the file, or a function that fills the temporary file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file that can be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent)
    owner = f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.name}.{owner}.tmp~")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def remove_stale(folder: str | os.PathLike) -> None:
    """Remove temporary files left in a folder by a process of this machine that has ended."""
    for path in Path(folder).glob(".*.tmp~"):
        match = TEMPORARY.fullmatch(path.name)
        if match and match[1] == _host() and not _is_running(int(match[2])):
            path.unlink(missing_ok=True)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
