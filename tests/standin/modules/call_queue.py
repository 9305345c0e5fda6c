"""One job at a time. The WebUI's lock is not reentrant: taking it twice in a thread hangs it for good."""

import functools
import html
import threading

from modules import errors, shared


class Deadlock(BaseException):
    """The WebUI would hang here. No Exception, so that nothing that forgives errors can hide it."""


deadlocks = []


class FIFOLock:
    """Hands itself on in the order of asking. `acquire` takes no timeout, as the WebUI's does not."""

    def __init__(self):
        self._lock = threading.Lock()
        self._owner = None

    def acquire(self, blocking=True):
        if blocking and self._owner == threading.get_ident():
            deadlocks.append(threading.current_thread().name)
            raise Deadlock("this thread holds the queue's lock already")
        got = self._lock.acquire(blocking)
        if got:
            self._owner = threading.get_ident()
        return got

    def release(self):
        self._owner = None
        self._lock.release()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()


queue_lock = FIFOLock()


def wrap_queued_call(func):
    def call(*args, **kwargs):
        with queue_lock:
            return func(*args, **kwargs)

    return call


def wrap_gradio_gpu_call(func, extra_outputs=None):
    """A job of the page: under the lock; its result is made a list; an error becomes its last output."""

    @functools.wraps(func)
    def call(*args, **kwargs):
        try:
            with queue_lock:
                shared.state.begin()
                try:
                    result = list(func(*args, **kwargs))
                finally:
                    shared.state.end()
        except Exception as error:
            errors.report("Error completing request", exc_info=True)
            said = html.escape(f"{type(error).__name__}: {error}")
            result = [*(extra_outputs or [None, ""]), f"<div class='error'>{said}</div>"]
        result[-1] = f"{result[-1]}<div class='performance'>Time taken</div>"
        return tuple(result)

    return call
