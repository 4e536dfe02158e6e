"""Work on pieces of the data by a few threads, results in order."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


_WORKERS = max(1, min(4, os.cpu_count() or 1))


def in_order(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map(work, items)` by threads, a few items ahead of the one that is wanted; a single item needs none."""
    items = iter(items)
    first = list(itertools.islice(items, 2))
    if len(first) < 2:
        yield from map(work, first)
        return
    items = itertools.chain(first, items)
    with ThreadPoolExecutor(_WORKERS) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _WORKERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
