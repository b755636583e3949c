"""The window after the one in use is read while that is used, by one thread in the background.

One thread and mapped memory: worker processes would copy each batch once more (0.3 against 3.6
million rows/s). Planning and starting are two steps, because a run that resumes goes through the
order of the batches it skips, and nothing should be read for those.
"""

import threading
from collections.abc import Callable, Iterator

from ..format.rows import Rows


class ReadAhead:
    """Announces windows of rows, each once, one ahead of its use."""

    def __init__(self, will_need: Callable[[Rows], None]) -> None:
        """`will_need` begins to read rows, like `FeatureArray.will_need`."""
        self._will_need = will_need
        self._planned: list[Rows] = []
        self._last: Rows | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def planned(self, windows: Iterator[Rows]) -> Iterator[Rows]:
        """The same windows; each is planned, with the next one, as it is handed out."""
        window = next(windows, None)
        while window is not None:
            following = next(windows, None)
            self._planned = [window] if following is None else [window, following]
            yield window
            window = following

    def start(self) -> None:
        """Before rows of the current window are used: begin to read what was planned and is not
        being read. Raises what reading the window before ran into."""
        windows = [window for window in self._planned if window is not self._last]
        if not windows:
            return
        self._planned, self._last = [], windows[-1]
        self.wait()
        # A daemon, so that a download in progress does not keep a process that was told to stop.
        self._thread = threading.Thread(target=self._announce, args=(windows,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all that was started is being read."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _announce(self, windows: list[Rows]) -> None:
        try:
            for window in windows:
                self._will_need(window)
        except Exception as error:
            self._error = error
