"""Files of torch, as torch.save writes them, without torch."""

from __future__ import annotations

import io
import zipfile

import numpy as np

from tests.pretrained.test_extractors import Global, Storage, pickled

KINDS = {np.float32: "FloatStorage", np.float16: "HalfStorage", np.int64: "LongStorage"}


def written(value) -> bytes:
    """A file of nested dictionaries and lists of arrays, and of whatever else is in them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:

        def of(value):
            if isinstance(value, dict):
                return {key: of(one) for key, one in value.items()}
            if isinstance(value, list):
                return [of(one) for one in value]
            return tensor(value) if isinstance(value, np.ndarray) else value

        def tensor(array):
            key = str(len(archive.namelist()))
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
            kind = Global("torch", KINDS[array.dtype.type], None)
            stored = Storage(("storage", kind, key, "cpu", array.size))
            strides = np.ascontiguousarray(array).strides
            steps = tuple(step // array.itemsize for step in strides)
            args = (stored, 0, array.shape, steps[: array.ndim], False, {})
            return Global("torch._utils", "_rebuild_tensor_v2", args)

        archive.writestr("archive/data.pkl", pickled(of(value)))
    return stream.getvalue()
