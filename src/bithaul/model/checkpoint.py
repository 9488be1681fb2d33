"""A model on disk: one safetensors file with Hugging Face names, fp32, bit-exact both ways.

The config and the caller's metadata are in the file's header. Files are written aside, synced and renamed, so
a crash leaves the old file or the new one. Weights are always the latent ones, never ternary times scale.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bithaul.errors import CorruptFile, LayoutMismatch, NotFound, writing
from bithaul.model.config import ModelConfig
from bithaul.model.layout import FloatVector, layout_of

_CONFIG_KEY, _SHA256_KEY = "bithaul.config", "bithaul.sha256"


@dataclass(frozen=True)
class Checkpoint:
    config: ModelConfig
    vector: FloatVector
    metadata: dict[str, str]


def save_checkpoint(
    path: Path, vector: FloatVector, config: ModelConfig, *, metadata: dict[str, str]
) -> None:
    """Write `vector` (float32 [P]) to `path`, replacing it in one step.

    Raises `OutOfDisk`, `InvalidInput` for a place that cannot be written; the old file stays then.
    """
    tensors = {
        tensor.name: view
        for tensor, view in layout_of(config).views(np.ascontiguousarray(vector, np.float32))
    }
    header = {**metadata, _CONFIG_KEY: config.model_dump_json(), _SHA256_KEY: _digest(vector)}
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    data = save(tensors, metadata=header)
    with writing(path):
        try:
            with aside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a file of `save_checkpoint`.

    Raises `NotFound`, `CorruptFile` for a damaged file, `LayoutMismatch` for tensors not of the config.
    """
    if not path.is_file():
        raise NotFound(f"There is no checkpoint {path}; name a model.safetensors file.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            if _CONFIG_KEY not in metadata:
                raise CorruptFile(f"{path} carries no bithaul config; it was not written by bithaul.")
            config = ModelConfig(**json.loads(metadata.pop(_CONFIG_KEY)))
            layout = layout_of(config)
            if set(file.keys()) != {tensor.name for tensor in layout.tensors}:
                raise LayoutMismatch(f"The tensors in {path} are not those of its config.")
            vector = np.empty(layout.size, dtype=np.float32)
            for tensor, view in layout.views(vector):
                stored = file.get_tensor(tensor.name)
                if stored.shape != tensor.shape or stored.dtype != np.float32:
                    raise LayoutMismatch(f"{tensor.name} in {path} is {stored.dtype} {stored.shape}.")
                view[...] = stored
    except (SafetensorError, ValidationError, json.JSONDecodeError) as error:
        raise CorruptFile(
            f"{path} is damaged ({str(error).splitlines()[0]}); fetch or save it again."
        ) from error
    if metadata.pop(_SHA256_KEY, _digest(vector)) != _digest(vector):
        raise CorruptFile(f"{path} is damaged (its weights are not those that were saved); save it again.")
    return Checkpoint(config, vector, metadata)


def _digest(vector: FloatVector) -> str:
    """SHA-256 (hex) of the weights in layout order, little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()
