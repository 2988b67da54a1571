"""A bucket on this machine, for tests: the emulator of gcp-storage-emulator, with what it lacks of Google's service.

The emulator keeps objects and speaks the JSON API. It says nothing of an object's generation where it is read, and asks
for none where it is written. TensorStore, which writes the arrays of a checkpoint, rests on both (its driver is
tensorstore/kvstore/gcs_http/ of github.com/google/tensorstore): it takes the missing one for a 0, and refuses that with
"Malformed StorageGeneration" as soon as it writes what it has read. The service does this, and so does `Service`:

- A download has x-goog-generation and x-goog-metageneration among its headers:
  https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooggeneration
- ifGenerationMatch and ifGenerationNotMatch are kept: with 412, or with 304 for what is read. 0 is that of an object
  which is not there. https://cloud.google.com/storage/docs/request-preconditions
- A list begins at startOffset and ends before endOffset: https://cloud.google.com/storage/docs/json_api/v1/objects/list
- Many requests are answered at once, here one after the other for as long as they touch the objects.
"""

import contextlib
import io
import re
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from urllib.parse import unquote

from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import Request, RequestHandler, Response, Router
from gcp_storage_emulator.storage import Storage

_OBJECTS = re.compile(r"(?:/upload|/download)?(?:/storage/v1)?/b/([^/]+)/o(?:/([^/]+))?")


class Service(RequestHandler):
    """One connection."""

    timeout = 10  # seconds, for a client that connects and says nothing
    lock = threading.Lock()

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        if "Content-Length" in self.headers:  # before the lock, and also where it is refused
            self.rfile = io.BytesIO(self.rfile.read(int(self.headers["Content-Length"])))
        request, self.generation = Request(self, method), None
        of_objects = _OBJECTS.fullmatch(request.path)
        with self.lock:
            if of_objects is None:
                return Router(self).handle(method)
            bucket, named = map(unquote, of_objects.groups(default=""))
            name = named or _only(request, "name")
            if method == "GET" and not name:
                return self._list(request, bucket)
            found = self.storage.objects[bucket].get(name) if bucket in self.storage.objects else None
            refusal = _refusal(request, method, int(found["generation"]) if found else 0)
            if refusal is not None:
                return _close(self, HTTPStatus.NOT_IMPLEMENTED if name is None else refusal)
            if method == "GET" and found:
                self.generation = found["generation"], found["metageneration"]
            return Router(self).handle(method)

    def _list(self, request: Request, bucket: str) -> None:
        if bucket not in self.storage.buckets:
            return _close(self, HTTPStatus.NOT_FOUND)
        begin, end = _only(request, "startOffset") or "", _only(request, "endOffset")
        wanted = [_only(request, key) for key in ("prefix", "delimiter", "matchGlob")]
        items, prefixes = self.storage.get_file_list(bucket, *wanted)
        within = lambda name: begin <= name and (end is None or name < end)  # noqa: E731
        response = Response(self)
        response.json(
            {
                "kind": "storage#objects",
                "items": [item for item in items if within(item["name"])],
                "prefixes": [prefix for prefix in prefixes if within(prefix)],
            }
        )
        response.close()

    def end_headers(self) -> None:
        if self.generation is not None:
            self.send_header("x-goog-generation", self.generation[0])
            self.send_header("x-goog-metageneration", self.generation[1])
        super().end_headers()


def _only(request: Request, key: str) -> str | None:
    return request.query[key][0] if key in request.query else None


def _refusal(request: Request, method: str, generation: int) -> HTTPStatus | None:
    """What a request is refused with, if the object's generation (0: there is none) is not one that it asks for."""
    match, other = _only(request, "ifGenerationMatch"), _only(request, "ifGenerationNotMatch")
    if match is not None and int(match) != generation:
        return HTTPStatus.PRECONDITION_FAILED
    if other is not None and int(other) == generation:
        return HTTPStatus.NOT_MODIFIED if method == "GET" else HTTPStatus.PRECONDITION_FAILED
    return None


def _close(handler: RequestHandler, status: HTTPStatus) -> None:
    response = Response(handler)
    response.status = status
    response.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256  # TensorStore connects often at once
    daemon_threads = True

    def handle_error(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # as of a process that is killed
            super().handle_error(request, client_address)


class _InMemory(Storage):
    """Without what is for a later start: a list of all objects, written anew with each of them."""

    def _write_config_to_file(self) -> None:
        pass


@contextlib.contextmanager
def serve(name: str) -> Iterator[str]:
    """An empty bucket of this name, in memory -> the service's address."""
    storage = _InMemory(use_memory_fs=True)
    buckets.create_bucket(name, storage)
    with _Server(("localhost", 0), partial(Service, storage)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
