"""A server in a thread of the tests' process, with its engine in a process of its own, as always."""

import asyncio
import threading

import httpx

from pipezoo.serve.run import bound, new_server
from pipezoo.serve.settings import ServeSettings

TINY = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB"}
_SECONDS_TO_START = 300  # on a machine that does much else


class RunningServer:
    """Serves a model until it is closed; `client` asks it."""

    def __init__(self, model, load_settings=None, **serve_settings):
        self.settings = ServeSettings(port=0, **serve_settings)
        self._listener = bound(self.settings)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ready, self._created = threading.Event(), threading.Event()
        self.error = None
        self.progress = []
        self._thread = threading.Thread(target=self._run, args=(model, {**TINY, **(load_settings or {})}), daemon=True)
        self._thread.start()
        assert self._created.wait(_SECONDS_TO_START)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def _run(self, model, load_settings):
        async def run():
            self.server = new_server(
                model,
                load_settings,
                self.settings,
                on_progress=lambda *counts: self.progress.append(counts),
                on_ready=lambda _: self._ready.set(),
            )
            self.loop = asyncio.get_running_loop()
            self._created.set()
            await self.server.run(self._listener, handles_signals=False)

        try:
            asyncio.run(run())
        except Exception as error:
            self.error = error
        finally:
            self._created.set()
            self._ready.set()

    @property
    def engine(self):
        return self.server.service.engine

    def wait(self):
        """Waits until requests are taken, or never will be."""
        assert self._ready.wait(_SECONDS_TO_START)
        if self.error is not None:
            self.close()
            raise self.error
        return self

    def await_restart(self):
        self._ready.clear()
        return self.wait

    def ask(self, coroutine):
        """Awaits something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def assert_all_free(self):
        """Nothing is left of any request."""
        counts = self.ask(self.engine.inspect())
        assert counts.num_free_pages == counts.num_pages
        assert counts.num_running == counts.num_waiting == self.engine.num_answers == 0

    def end(self):
        self.loop.call_soon_threadsafe(self.server.end)

    def join(self, seconds=60):
        self._thread.join(seconds)
        assert not self._thread.is_alive()

    def close(self):
        self.client.close()
        if self._thread.is_alive():
            self.end()
        self.join()
        self._listener.close()
