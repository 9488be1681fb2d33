"""Memory that is used again: it stays writable, belongs to one holder, and goes when it is released."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from bithaul.model import scratch as memory
from bithaul.model.autograd import array_of
from bithaul.model.scratch import lasting, release, scratch


def test_memory_made_in_inference_mode_can_be_written_after_it() -> None:
    release()
    with torch.inference_mode():
        scratch("a", (2, 3)).fill_(1.0)
        scratch("a", (3,)).fill_(2.0)
    for shape in ((2, 3), (3,), (6, 1)):
        scratch("a", shape).fill_(3.0)
    assert (scratch("a", (2, 3)) == 3.0).all()


def test_the_same_name_is_the_same_memory_until_it_is_released() -> None:
    release()
    first = scratch("a", (4,))
    first.fill_(7.0)
    assert scratch("a", (2, 2)).data_ptr() == first.data_ptr()
    assert scratch("b", (4,)).data_ptr() != first.data_ptr()
    release()
    scratch("a", (4,)).fill_(0.0)
    assert (first == 7.0).all(), "a view that is held stays valid"


LARGE = (64, 1024)


def _kept_by_view():
    return lasting(LARGE)[3:5, ::2]


def _kept_by_array():
    return array_of(lasting(LARGE))[7:]


def _kept_by_storage():
    return lasting(LARGE).untyped_storage()


def _kept_by_graph():
    weight = lasting(LARGE).fill_(1.0).requires_grad_()
    return (weight * weight).sum()


@pytest.mark.parametrize("holder", [_kept_by_view, _kept_by_array, _kept_by_storage, _kept_by_graph])
def test_lasting_memory_is_used_again_only_when_nobody_holds_it(holder) -> None:
    release()
    held = holder()
    second = lasting(LARGE)
    first_at = _places()[0]
    assert second.data_ptr() != first_at
    del held
    gc.collect()
    assert lasting(LARGE).data_ptr() == first_at


def test_lasting_memory_begins_at_a_cache_line_and_serves_tensors_of_about_its_size() -> None:
    release()
    where = set()
    for rows, dtype in ((64, torch.float32), (127, torch.bfloat16), (140, torch.int8), (63, torch.float32)):
        tensor = lasting((rows, 1024), dtype)
        assert (tensor.shape, tensor.dtype) == ((rows, 1024), dtype)
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        where.add(tensor.data_ptr())
        del tensor
    assert len(where) == 1, "one of 256 KiB serves 140 too"


def test_what_another_thread_lets_go_of_is_used_again() -> None:
    release()
    given = [lasting(LARGE)]
    first_at = given[0].data_ptr()
    other = threading.Thread(target=given.clear)
    other.start()
    other.join()
    assert lasting(LARGE).data_ptr() == first_at


def test_lasting_memory_nobody_asked_for_again_goes_back_to_the_system(monkeypatch) -> None:
    """Batches of many sizes over the days must not each keep memory of their own."""
    release()
    monkeypatch.setattr(memory, "_UNUSED", 10)
    lasting((64, 2048))
    held = lasting((64, 4096))
    idle, used = (weakref.ref(block.memory) for block in memory._pool.blocks)
    for _ in range(9):
        lasting(LARGE)
        assert idle() is not None
    for _ in range(12):
        lasting(LARGE)
    assert idle() is None
    assert used() is not None
    held.fill_(1.0)


def test_released_memory_stays_valid_where_it_is_held() -> None:
    release()
    held = lasting(LARGE).fill_(7.0)
    release()
    lasting(LARGE).fill_(0.0)
    assert (held == 7.0).all()


def _places() -> list[int]:
    starts = [block.memory.ctypes.data for block in memory._pool.blocks]
    return [start + -start % 64 for start in starts]
