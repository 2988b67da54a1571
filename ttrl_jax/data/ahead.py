"""Read ahead, in a thread, as far as a queue is long: whoever writes a stream waits for whoever uses it."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """What the queue holds last."""

    def __init__(self, error: BaseException | None):
        self.error = error


class Ahead(Generic[T]):
    """The items of an iterator, of which at most `most`, and one more, have been read and not yet been taken."""

    def __init__(self, items: Iterator[T], *, most: int):
        self._queue: queue.Queue[T | _End] = queue.Queue(most)
        self._end: _End | None = None
        threading.Thread(target=self._read, args=(items,), daemon=True).start()

    def _read(self, items: Iterator[T]) -> None:
        error = None
        try:
            for item in items:
                self._queue.put(item)
        except BaseException as raised:  # raised again by `take`, in the thread that uses the items
            error = raised
        self._queue.put(_End(error))

    def take(self, count: int, *, whole: bool) -> list[T]:
        """The next `count` items: fewer at the end, and none after it. It waits for the first of them, and for the
        others only if `whole`. Raises what reading has raised, once all before that has been taken."""
        found: list[T] = []
        while len(found) < count and self._end is None:
            try:
                item = self._queue.get(block=whole or not found)
            except queue.Empty:
                break
            if isinstance(item, _End):
                self._end = item
            else:
                found.append(item)
        if not found and self._end is not None and self._end.error is not None:
            raise self._end.error
        return found
