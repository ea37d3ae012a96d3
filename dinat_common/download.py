"""Weights from the web: the only module of the packages that opens a connection, and only for a URL given to it."""

import hashlib
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from iopath.common.file_io import file_lock
from tqdm import tqdm

from dinat_common.files import WriteError, atomic_write, make_folder, sha256_of, user_path, write_json, writing
from dinat_common.weights import CheckpointError

_ATTEMPTS = 4
PAUSE = 2.0  # seconds before the second attempt, doubled before each further one
_TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20
_EXTENSIONS = (".pth", ".pt", ".bin", ".safetensors", ".pkl")

_logger = logging.getLogger(__name__)


class DownloadError(CheckpointError):
    """A file can't be downloaded. The message names the URL."""


class _BrokenOffError(Exception):
    """A transfer ended early; another attempt may continue it."""


def is_url(path: str) -> bool:
    """Whether `path` is a URL and not the path of a file."""
    return "://" in path


def cache_folder() -> Path:
    """Folder of downloads: DINAT_CACHE, or `dinat` in the user's cache folder."""
    if folder := os.environ.get("DINAT_CACHE"):
        return user_path(folder)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dinat"


def fetch(url: str) -> Path:
    """Return the local copy of a URL, and download it first if necessary.

    One process of a machine downloads while the others wait. An interrupted download is continued. The SHA-256 of the
    file is logged and stored beside it; a copy that has changed since is downloaded again.

    Args:
        url: Address with http or https. It may end in `#sha256=<64 hexadecimal digits>`, which the file then must have.

    Returns:
        Path under `cache_folder` of the complete and verified file.

    Raises:
        DownloadError: The URL is not valid, the server does not deliver the file, or its checksum is wrong.
        WriteError: The file can't be written; what has arrived is kept.
    """
    address, expected = _parse(url)
    name = unquote(urlsplit(address).path).rsplit("/", 1)[-1]
    if not name.endswith(_EXTENSIONS) or name.startswith("."):
        raise DownloadError(
            f"{address}: expected a URL that ends in the name of a weight file ({', '.join(_EXTENSIONS)})"
        )
    # One folder per address keeps apart files of the same name.
    path = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16] / name
    make_folder(path.parent)
    with file_lock(str(path)):
        checksum = _intact(path)
        if checksum is None:
            checksum = _download(address, path, expected)
    if expected is not None and checksum != expected:
        raise DownloadError(
            f"{address}: {path} has sha256 {checksum}, expected {expected}; delete the file or correct the URL"
        )
    _logger.info("%s\n  is %s\n  sha256 %s%s", address, path, checksum, " as expected" if expected else "")
    return path


def _parse(url: str) -> tuple[str, str | None]:
    address, fragment = urldefrag(url)
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{url}: expected the path of a file, or a URL that begins with http:// or https://")
    if not fragment:
        return address, None
    checksum = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if checksum is None:
        raise DownloadError(f"{url}: expected #sha256= and 64 hexadecimal digits after the address, found #{fragment}")
    return address, checksum[1].lower()


def _beside(path: Path, extension: str) -> Path:
    return path.with_name(path.name + extension)


def _intact(path: Path) -> str | None:
    """Checksum of a complete copy; None if the copy is missing or has changed since it was downloaded."""
    noted = _beside(path, ".sha256")
    if not path.is_file() or not noted.is_file():
        return None
    checksum = sha256_of(path)
    if noted.read_text(encoding="utf-8").split()[:1] == [checksum]:
        return checksum
    _logger.warning("%s has changed since it was downloaded: downloading it again", path)
    return None


def _download(address: str, path: Path, expected: str | None) -> str:
    partial = _beside(path, ".part")
    for attempt in range(_ATTEMPTS):
        if attempt:
            _logger.warning("%s broke off: attempt %d of %d", address, attempt + 1, _ATTEMPTS)
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _transfer(address, partial)
            break
        except WriteError:
            raise
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(f"{address}: the server answered {error.code} {error.reason}") from error
            failure: Exception = error
        except urllib.error.URLError as error:
            if not attempt:
                raise DownloadError(f"{address}: no connection: {error.reason}") from error
            failure = error
        except (_BrokenOffError, HTTPException, OSError) as error:
            failure = error
    else:
        kept = f"; {partial} is kept, and the next call continues from there" if partial.exists() else ""
        raise DownloadError(f"{address}: {failure}{kept}") from failure
    checksum = sha256_of(partial)
    if expected is not None and checksum != expected:
        partial.unlink()
        raise DownloadError(f"{address}: the file has sha256 {checksum}, expected {expected}")
    with atomic_write(_beside(path, ".sha256")) as file:
        file.write(f"{checksum}  {path.name}\n")
    os.replace(partial, path)
    _beside(path, ".state").unlink(missing_ok=True)
    return checksum


def _transfer(address: str, partial: Path) -> None:
    """Complete `partial`, from its end if the server still has the same file."""
    state_file = _beside(partial.with_suffix(""), ".state")
    state = _read_state(state_file, partial)
    headers = {"User-Agent": "dinat-mask2former", "Accept-Encoding": "identity"}
    if state:
        # Servers answer a request that starts at the very end with an error.
        state["arrived"] = min(partial.stat().st_size, state["bytes"] - 1)
        headers |= {"Range": f"bytes={state['arrived']}-", "If-Range": state["validator"]}
    request = urllib.request.Request(address, headers=headers)  # `_parse` accepts only http and https
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.status == 206:
            total, start = state["bytes"], state["arrived"]
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                partial.unlink()
                raise _BrokenOffError("the server sent another part of the file than requested")
        else:
            length = response.headers.get("Content-Length") or ""
            total, start = int(length) if length.isdigit() else None, 0
            # A weak ETag does not tell whether the server's file is still the same.
            tag = response.headers.get("ETag")
            validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
            write_json(state_file, {"validator": validator, "bytes": total})
        _write(response, partial, total, start)
    arrived = partial.stat().st_size
    if total is not None and arrived != total:
        raise _BrokenOffError(f"received {arrived} of {total} bytes")


def _read_state(state_file: Path, partial: Path) -> dict[str, Any]:
    """Facts about a partial download; empty if it can't be continued."""
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(state, dict) and state.get("validator") and isinstance(state.get("bytes"), int)
    return state if usable and partial.is_file() and 0 < partial.stat().st_size <= state["bytes"] else {}


def _write(response: HTTPResponse, partial: Path, total: int | None, start: int) -> None:
    progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024, desc=partial.stem)
    with writing(partial):
        opened = open(partial, "r+b" if start else "wb", buffering=0)  # noqa: SIM115 - closed below
    with progress, opened as file:
        file.seek(start)
        while block := response.read(BLOCK):
            with writing(partial):
                rest = memoryview(block)
                while rest:
                    rest = rest[file.write(rest) :]
            progress.update(len(block))
