"""Machine code that is kept on disk belongs to the text it was made from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core.codegen import get_host_cpu_features

from bithaul.compiled import sources_digest
from bithaul.model import kernels


def test_it_is_kept_by_the_text_of_all_compiled_files_of_a_room(tmp_path: Path) -> None:
    """numba alone would go on using machine code whose callee in another file has changed."""
    (tmp_path / "loops.py").write_text("from bithaul.compiled import compiled")
    (tmp_path / "other.py").write_text("import math")
    digest = sources_digest.__wrapped__
    before = digest(tmp_path)
    (tmp_path / "other.py").write_text("import cmath")
    assert digest(tmp_path) == before
    (tmp_path / "blocks.py").write_text("from numba.extending import intrinsic")
    assert digest(tmp_path) != before


def test_it_is_kept_by_what_all_rooms_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: other flags, or another loop that two folders call, and machine code of before."""
    room, shared = tmp_path / "room", tmp_path / "shared"
    for folder in (room, shared):
        folder.mkdir()
        (folder / "kernels.py").write_text("from bithaul.compiled import compiled")
    monkeypatch.setattr("bithaul.compiled._SHARED", shared)
    digest = sources_digest.__wrapped__
    before = digest(room)
    (shared / "kernels.py").write_text("from bithaul.compiled import compiled, STRICT")
    assert digest(room) != before


def test_the_kernels_lie_there_and_the_setting_of_others_is_put_back() -> None:
    assert not numba.config.CACHE_DIR
    kept = kernels.largest_size._cache.cache_path
    assert sources_digest(Path(kernels.__file__).parent) in kept


@pytest.mark.skipif("+avx512fp16" not in get_host_cpu_features().split(","), reason="not such a CPU")
@pytest.mark.parametrize(("own", "register"), [({}, "zmm"), ({"NUMBA_CPU_FEATURES": "+avx2"}, "ymm")])
def test_loops_use_whole_vectors_unless_told_otherwise(own: dict[str, str], register: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASSEMBLY], env=os.environ | own, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == register


ASSEMBLY = """
import numba, numpy as np
import bithaul.compiled

@numba.njit
def double(x):
    for i in range(len(x)):
        x[i] += x[i]

double(np.ones(64, np.float32))
text = "".join(double.inspect_asm().values())
print("zmm" if "zmm" in text else "ymm" if "ymm" in text else "xmm")
"""
