"""A web server on this machine that has some files, and a hub of models that has the same."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping

COMMIT = "c" * 40


@contextlib.contextmanager
def served(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve files while the block runs; those of OWNER/NAME/ are a repository of the hub, too.

    Args:
      files: {path without the first slash: content}; what changes there is served changed.

    Yields:
      (the address without the last slash, the paths that were asked for).
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(True)

        def do_HEAD(self) -> None:
            self.answer(False)

        def answer(self, body: bool) -> None:
            path = self.path.lstrip("/").partition("?")[0]
            asked.append(path)
            owner_name = "/".join(path.removeprefix("api/models/").split("/")[:2])
            if path.startswith("api/models/") and any(n.startswith(owner_name) for n in files):
                content = json.dumps({"id": owner_name, "sha": COMMIT, "siblings": []}).encode()
            else:
                content = files.get(path.replace(f"resolve/{COMMIT}/", ""))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:040x}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if content is None:
                kind = "RepoNotFound" if path.startswith("api/") else "EntryNotFound"
                self.send_header("X-Error-Code", kind)
            self.end_headers()
            if body and content is not None:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
