"""Some work for each of many items, in threads; the first error ends it all."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")


def in_parallel(jobs: int, work: Callable[[T], object], items: Iterable[T]) -> None:
    """Call `work` for each item, `jobs` at a time, in their order as far as threads keep it.

    After an error nothing more is begun; what is under way ends first, then the error is raised."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
