"""The client for code without an event loop: the asyncio client in a background thread.

::

    with BlockingClient("127.0.0.1:9092") as client:
        result = client.infer(task="digits", inputs={"pixels": array}, latency_ms_max=50)
        for result in client.map(({"pixels": image[None]} for image in images), task="digits"):
            ...
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar, Unpack

from numpy.typing import ArrayLike

from modelless.client import Ask, Client
from modelless.client_core import ClientStatistics, Result
from modelless.config import Config
from modelless.errors import UnavailableError

T = TypeVar("T")

MAP_OUTSTANDING = 256


class BlockingClient:
    """As :class:`modelless.client.Client`, blocking; may be used from several threads at once."""

    _loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, servers: str = "127.0.0.1:9092", **settings: Any) -> None:
        self._client = Client(servers, **settings)

    @classmethod
    def from_config(cls, config: Config, **settings: Any) -> Self:
        client = cls.__new__(cls)
        client._client = Client.from_config(config, **settings)
        return client

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Connect. Raises UnavailableError as :meth:`modelless.client.Client.start` does."""
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="modelless-client", daemon=True)
        self._thread.start()
        try:
            self._run(self._client.start())
        except BaseException:
            self._end()
            raise

    def stop(self) -> None:
        """Leave; what is still outstanding fails with UnavailableError."""
        try:
            self._run(self._client.stop())
        finally:
            self._end()

    def infer(self, inputs: Mapping[str, ArrayLike], **ask: Unpack[Ask]) -> Result:
        """Ask one query and wait for its answer. An interrupt (Ctrl-C) cancels it.

        Raises:
            ModellessError: as :meth:`modelless.client.Client.infer` does.
        """
        return self._run(self._client.infer(inputs, **ask))

    def map(
        self, inputs: Iterable[Mapping[str, ArrayLike]], *, outstanding: int = MAP_OUTSTANDING, **ask: Unpack[Ask]
    ) -> Iterator[Result]:
        """Ask one query for each of ``inputs``, ``outstanding`` at a time; results in the order of the inputs.

        Raises:
            ModellessError: the first query that fails ends it; the outstanding ones are cancelled.
        """
        window: deque[Future[Result]] = deque()
        try:
            for one in inputs:
                window.append(self._start(self._client.infer(one, **ask)))
                if len(window) >= outstanding:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()

    def feedback(self, result: Result, labels: ArrayLike) -> None:
        """Say which classes were right. Raises as :meth:`modelless.client.Client.feedback` does."""
        self._run(self._client.feedback(result, labels))

    def statistics(self) -> ClientStatistics:
        return self._client.statistics()

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop is None:
            call.close()
            raise UnavailableError("the client is not open: use it inside `with`")
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        future = self._start(call)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _end(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()
