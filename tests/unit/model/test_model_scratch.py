"""Memory that is used again: it stays writable, and goes when it is released."""

from __future__ import annotations

import torch

from bithaul.model.scratch import release, scratch


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
