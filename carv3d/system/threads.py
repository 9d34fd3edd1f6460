"""The CPU threads that torch uses."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def cores() -> int:
    """The CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """Let torch use this many threads; 0: one for each core."""
    torch.set_num_threads(threads or cores())


def each_on_a_core(function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """The function's results in the parts' order, computed in as many threads as torch has, a part on one core.

    For parts that are too small for torch to divide. A part is computed by one thread, so that results do not depend on
    the number of threads. At most one part more than there are threads is computed ahead.
    """
    threads = torch.get_num_threads()
    waiting, remaining = deque[Future[Result]](), iter(parts)
    pool = ThreadPoolExecutor(threads, "carv3d-part", initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting.extend(pool.submit(function, part) for part in islice(remaining, threads + 1))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, part) for part in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # for threads that begin later
