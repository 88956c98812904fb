"""Download an image: by https, up to a size, within a time. Nothing calls this unless a caller allows downloads."""

import re
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from glip.errors import ImageError

MAX_BYTES = 50_000_000
_SECONDS = 30.0  # for the whole download, and for each wait on the server
_HERE = ("localhost", "127.0.0.1", "::1")


def is_url(source: object) -> bool:
    """Whether a text is a URL, of any scheme."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def download(url: str, *, allowed: bool) -> bytes:
    """The bytes behind a URL: https, also where it redirects to, or http of this machine.

    Raises:
        ImageError: not allowed, another scheme, an answer that is no success, more than ``MAX_BYTES``, or too slow; the
            message is what follows the image's name.
    """
    if not allowed:
        raise ImageError(
            "is a URL, and glip downloads nothing by itself: pass --allow-download, or in Python "
            "load_image(url, allow_download=True)"
        )
    if urlsplit(url).hostname not in _HERE or not url.lower().startswith("http://"):
        _check_scheme(url)
    end, content, problem = time.monotonic() + _SECONDS, bytearray(), ""
    try:
        with build_opener(_Redirects).open(Request(url, headers={"User-Agent": "glip"}), timeout=_SECONDS) as answer:
            while len(content) <= MAX_BYTES and time.monotonic() < end and (part := answer.read1(1 << 16)):
                content += part
    except HTTPError as error:
        problem = f"cannot be downloaded: the server answers {error.code} {error.reason}: check the URL"
    except (OSError, HTTPException, UnicodeError) as error:
        problem = f"cannot be downloaded ({getattr(error, 'reason', error)}): check the URL and the network"
    if time.monotonic() >= end:
        problem = f"took more than {_SECONDS:g} s to download: download it yourself and give the file"
    elif len(content) > MAX_BYTES:
        problem = f"is larger than {MAX_BYTES / 1e6:g} MB: download it yourself and give the file"
    if problem:
        raise ImageError(problem)
    return bytes(content)


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if not url.lower().startswith("https://"):
        raise ImageError(f"leads to {url[:99]!r}: only https is downloaded")
