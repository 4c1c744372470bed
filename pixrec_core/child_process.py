"""For processes that must not outlive the one that started them."""

import multiprocessing
import os
import signal
from threading import Thread


def end_with_parent(number: signal.Signals) -> None:
    """Send this process a signal when its parent ends, even if the parent was killed.

    Call it in a process of `multiprocessing`.
    """
    parent = multiprocessing.parent_process()
    assert parent, "called in a child process"

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), number)

    Thread(target=wait, daemon=True).start()
