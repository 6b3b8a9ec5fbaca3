"""Reading ahead: the host makes the next batch ready while the device works on this one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items in the same order; while the caller works with one, a thread makes the next, and no more.

    What `items` raises is raised where its item would have come.
    """
    end: Any = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item
