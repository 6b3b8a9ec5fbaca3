"""Reading ahead: the same items in the same order, one of them early, and errors where they belong."""

import threading

import pytest

from simvlm_jax.infer.prefetch import prefetched


def test_one_item_is_made_ahead_and_no_more():
    made = []
    second = threading.Event()

    def items():
        for i in range(5):
            made.append(i)
            if i == 1:
                second.set()
            yield i

    found = prefetched(items())
    assert next(found) == 0
    assert second.wait(10) and made == [0, 1]  # while the caller has the first
    assert list(found) == [1, 2, 3, 4]


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("a bad one")

    found = prefetched(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="a bad one"):
        next(found)
    assert list(prefetched(iter([]))) == []


def test_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    for item in prefetched(iter(range(100))):
        if item == 3:
            break
    del item
    assert threading.active_count() == before
