"""Weights from the web: the only module of the packages that opens a connection, and only for a URL it is given."""

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

from mask2former.checkpoint.reading import CheckpointError
from mask2former.utils.files import atomic_write, sha256_of, write_json

_CACHE_VARIABLE = "DINAT_CACHE"
_ATTEMPTS = 4
_PAUSE = 2.0  # seconds before the second attempt; twice as long before each further one
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 20
_ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".pkl")

_logger = logging.getLogger(__name__)


class DownloadError(CheckpointError):
    """A file that can't be had from where it should be; the message names the URL."""


class _BrokenOffError(Exception):
    """A transfer that ended early, and that another attempt may continue."""


def is_url(path: str) -> bool:
    """Whether `path` is a URL and not the path of a file."""
    return "://" in path


def cache_folder() -> Path:
    """Where downloads are kept: DINAT_CACHE, or `dinat` in the user's cache folder."""
    if os.environ.get(_CACHE_VARIABLE):
        return Path(os.environ[_CACHE_VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dinat"


def fetch(url: str) -> Path:
    """The local copy of a URL, downloaded where there is none yet.

    The first of a machine's processes downloads, the others wait for it. What an interrupted download left is
    continued. The SHA-256 of the file is logged, and kept beside it: a copy that has changed since is downloaded again.

    Args:
        url: http or https; it may end in `#sha256=<64 hexadecimal digits>`, which the file then has to have.

    Returns:
        A path under `cache_folder`, complete and checked.

    Raises:
        DownloadError: no such URL, no connection, or another checksum.
    """
    address, expected = _parse(url)
    path = _place(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(path)):
        checksum = _intact(path)
        if checksum is None:
            checksum = _download(address, path, expected)
    if expected is not None and checksum != expected:
        raise DownloadError(f"{address}: {path} has sha256 {checksum}, expected {expected}; delete it or mend the URL")
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


def _place(address: str) -> Path:
    """A folder per address, so that files of one name from different places stay apart."""
    name = unquote(urlsplit(address).path).rsplit("/", 1)[-1]
    if not name.endswith(_ENDINGS) or name.startswith("."):
        raise DownloadError(f"{address}: expected the name of a file of weights ({', '.join(_ENDINGS)})")
    return cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16] / name


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _intact(path: Path) -> str | None:
    """The checksum of a complete copy; None where there is none or it has changed since it was downloaded."""
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
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        try:
            _transfer(address, partial)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(f"{address}: the server answers {error.code} {error.reason}") from error
            failure: Exception = error
        except urllib.error.URLError as error:
            if not attempt:
                raise DownloadError(f"{address}: no connection: {error.reason}") from error
            failure = error
        except (_BrokenOffError, HTTPException, OSError) as error:
            failure = error
    else:
        kept = f"; what arrived is kept in {partial}, the next call goes on there" if partial.exists() else ""
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
    """Bring `partial` to its full length, from where it ends if the server still has the same file."""
    state_file = _beside(partial.with_suffix(""), ".state")
    state = _read_state(state_file, partial)
    headers = {"User-Agent": "dinat-mask2former", "Accept-Encoding": "identity"}
    if state:
        # Not from the very end: a server has nothing to answer to that.
        state["arrived"] = min(partial.stat().st_size, state["bytes"] - 1)
        headers |= {"Range": f"bytes={state['arrived']}-", "If-Range": state["validator"]}
    request = urllib.request.Request(address, headers=headers)  # `_parse` lets http and https through
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        continued = response.status == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {state['arrived']}-"):
            partial.unlink()
            raise _BrokenOffError("the server sent another part of the file than was asked for")
        total = state["bytes"] if continued else _length(response)
        if not continued:
            write_json(state_file, {"validator": _validator(response), "bytes": total})
        _write(response, partial, total, start=state["arrived"] if continued else 0)
    arrived = partial.stat().st_size
    if total is not None and arrived != total:
        raise _BrokenOffError(f"{arrived} of {total} bytes arrived")


def _read_state(state_file: Path, partial: Path) -> dict[str, Any]:
    """What is known of a partial download; empty where it can't be continued."""
    try:
        state = json.loads(state_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(state, dict) and state.get("validator") and isinstance(state.get("bytes"), int)
    return state if usable and partial.is_file() and 0 < partial.stat().st_size <= state["bytes"] else {}


def _length(response: HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def _validator(response: HTTPResponse) -> str | None:
    """What tells whether the server's file is still the same; a weak ETag does not."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _write(response: HTTPResponse, partial: Path, total: int | None, *, start: int) -> None:
    progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024, desc=partial.stem)
    with progress, open(partial, "r+b" if start else "wb") as file:
        file.seek(start)
        while block := response.read(_BLOCK):
            file.write(block)
            progress.update(len(block))
