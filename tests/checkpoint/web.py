"""A web server on the loopback interface that interrupts transfers where a test asks for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Content of the server, and the requests it received.

    Attributes:
        files: Content by path.
        cuts: Number of bytes of each further answer before the connection ends; empty for whole answers.
        requests: Range header (or None) of each GET.
        tag: ETag of all files; None for no ETag.
        ranges: Whether the server sends parts of files.
        status: Error to answer all requests with, if set.
    """

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.cuts: list[int] = []
        self.requests: list[str | None] = []
        self.tag: str | None = '"1"'
        self.ranges = True
        self.status = 0
        self.url = ""


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            site.requests.append(asked)
            content = site.files.get(self.path.rsplit("/", 1)[-1].split("?")[0].split(".")[0])
            if site.status or content is None:
                self.send_error(site.status or 404)
                return
            start = 0
            if asked and site.ranges and self.headers.get("If-Range") == site.tag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            if site.tag:
                self.send_header("ETag", site.tag)
            self.end_headers()
            end = start + site.cuts.pop(0) if site.cuts else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
