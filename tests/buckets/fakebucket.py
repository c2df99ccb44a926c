"""An object store in a folder, as a plugin of fsspec: fakebucket://BUCKET/NAME.

It has what object stores have, and nothing else: an object appears whole or not at all, a listing
shows every object at once, a PUT may demand that there is none of that name. There is no renaming,
appending or folder. `python` finds it where this folder is on PYTHONPATH.

FAKEBUCKET_ROOT is the folder: BUCKET/NAME is the object. FAKEBUCKET_DELAY are seconds that each PUT
takes before the object appears. While the file ROOT/down exists, the network is gone; while
ROOT/forbidden exists, nothing may be written.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path

import fsspec


class FakeBucket(fsspec.AbstractFileSystem):
    protocol = "fakebucket"
    cachable = False

    def _root(self, writes=False):
        root = Path(os.environ["FAKEBUCKET_ROOT"])
        if (root / "down").exists():
            raise ConnectionError("the network is gone")
        if writes and (root / "forbidden").exists():
            raise PermissionError("access denied")
        return root

    def _object(self, path, writes=False):
        return self._root(writes) / self._strip_protocol(path)

    def _put(self, source, path, exclusive=False):
        """The object appears at once, when all of it has arrived."""
        target = self._object(path, writes=True)
        bucket = self._root() / self._strip_protocol(path).partition("/")[0]
        if not bucket.is_dir():
            raise FileNotFoundError(bucket)
        incoming = self._root() / ".incoming" / uuid.uuid4().hex
        incoming.parent.mkdir(exist_ok=True)
        if isinstance(source, bytes):
            incoming.write_bytes(source)
        else:
            shutil.copyfile(source, incoming)
        time.sleep(float(os.environ.get("FAKEBUCKET_DELAY", 0)))
        target.parent.mkdir(parents=True, exist_ok=True)
        if exclusive:
            os.link(incoming, target)  # FileExistsError if there is one
            incoming.unlink()
        else:
            os.replace(incoming, target)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._put(value, path, exclusive=mode == "create")

    def put_file(self, lpath, rpath, **kwargs):
        self._put(lpath, rpath)

    def cat_file(self, path, **kwargs):
        return self._object(path).read_bytes()

    def get_file(self, rpath, lpath, **kwargs):
        shutil.copyfile(self._object(rpath), lpath)

    def rm_file(self, path):
        self._object(path, writes=True).unlink()

    def isfile(self, path):
        return self._object(path).is_file()

    def info(self, path, **kwargs):
        found = self._object(path).stat()
        about = {"size": found.st_size, "generation": f"{found.st_ino}.{found.st_mtime_ns}"}
        return {"name": self._strip_protocol(path), "type": "file", **about}

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **kwargs):
        """All objects whose names begin with this folder, or are it."""
        top = self._object(path)
        root = self._root()
        files = [top] if top.is_file() else [each for each in top.rglob("*") if each.is_file()]
        names = [each.relative_to(root).as_posix() for each in files]
        return {name: self.info(name) for name in sorted(names)}
