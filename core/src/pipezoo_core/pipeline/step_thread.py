"""The thread that runs the steps which tasks wait for, so that their event loops go on."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from pipezoo_core.pipeline.call import Call
from pipezoo_core.pipeline.engine import Engine

__all__ = ["StepThread"]


class StepThread:
    """Runs a step at a time, the next one for whoever asks first; the others that ask meanwhile wait for the same.

    Args:
        engine: runs the step itself.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pipezoo-steps")
        self._step: Future[Exception | None] | None = None
        self._lock = threading.Lock()

    async def advance(self, call: Call) -> None:
        """Waits for the step that runs, which is begun for this call where there is none.

        Raises:
            Exception: the step's, where it left no output for the call.
            InvalidRequestError: this thread is in the middle of a step.
        """
        self._engine.check_outside()
        error = await _result(self._next(call))
        if error is not None and not call.has_outputs:
            raise error

    async def settle(self) -> None:
        """Waits for the end of the step that runs, if any; then the pages of calls that are closed are back."""
        step = self._step
        if step is not None and not step.done() and self._engine.is_here:
            await _result(step)

    def close(self) -> None:
        """Ends the thread, after its step. The engine is closed by now."""
        self._executor.shutdown()

    def _next(self, call: Call) -> Future[Exception | None]:
        def advance() -> Exception | None:
            try:
                self._engine.advance(call)
            except Exception as error:  # for all who wait for the step; what fails a request is in its output
                return error
            return None

        with self._lock:
            if self._step is None or self._step.done():
                try:
                    self._step = self._executor.submit(advance)
                except RuntimeError:  # the thread has ended
                    if not self._engine.is_closed:
                        raise
                    self._step = Future()
                    self._step.set_result(advance())  # takes no time: nothing is computed any more
            return self._step


async def _result(step: Future[Exception | None]) -> Exception | None:
    """Waits for what runs in a thread. A task that is cancelled meanwhile leaves it as it is, for the other tasks."""
    loop = asyncio.get_running_loop()
    end = loop.create_future()

    def set_end() -> None:
        if not end.done():
            end.set_result(None)

    def wake(_: Future[Exception | None]) -> None:
        with suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(set_end)

    step.add_done_callback(wake)
    await end
    return step.result()
