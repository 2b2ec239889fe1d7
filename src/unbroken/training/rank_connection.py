"""One connection to the ranks' store, with a bound in time for each request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from unbroken.errors import StoreError

T = TypeVar("T")

LOST_HINT = "Its process or its machine is gone, or the network between is"


class Connection:
    """A client of the store in a thread of its own, because torch bounds its waits but not its requests.

    A host that vanishes without a word (its machine loses power, the network is cut) leaves a request in C++ where
    nothing ends it for as long as TCP keeps trying. The caller waits here, with a deadline, and then abandons
    connection and thread: the thread is a daemon and goes when the kernel gives up.

    Args:
        host, port: where the store listens.
        seconds: how long connecting may take.

    Raises:
        StoreError: kind ``"ranks"``: nobody answered there in time.
    """

    def __init__(self, host: str, port: int, *, seconds: float) -> None:
        self._where = f"{host}:{port}"
        self._work: queue.SimpleQueue[tuple[Callable[[TCPStore], Any], Future[Any]] | None] = queue.SimpleQueue()
        connected: Future[None] = Future()
        self.usable = True
        """False after a request that failed or was not answered in time: the connection is then of no more use."""
        self._thread = threading.Thread(
            target=self._run, args=(host, port, seconds, connected), name="unbroken-rank-connection", daemon=True
        )
        self._thread.start()
        self._result(connected, seconds + 1.0, "connecting")

    def call(self, work: Callable[[TCPStore], T], seconds: float, what: str) -> T:
        """Do ``work`` with the client, and wait ``seconds`` for it at most.

        Args:
            what: what is waited for, as it stands in the error.

        Raises:
            StoreError: kind ``"ranks"``: no answer in time, or the connection broke.
        """
        answer: Future[T] = Future()
        self._work.put((work, answer))
        return self._result(answer, seconds, what)

    def close(self) -> None:
        """Let the thread end when it has done what it was asked; does not wait for it."""
        self.usable = False
        self._work.put(None)

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, ``seconds`` at most."""
        self._thread.join(seconds)

    def _result(self, answer: Future[T], seconds: float, what: str) -> T:
        try:
            return answer.result(seconds)
        except TimeoutError:
            self.close()
            message = f"the ranks' store at {self._where} gave no answer within {seconds:g} s to {what}"
            raise StoreError(message, kind="ranks", hint=LOST_HINT) from None
        except DistError as error:
            self.close()
            message = f"{what} failed at the ranks' store at {self._where}: {_first_line(error)}"
            raise StoreError(message, kind="ranks", hint=LOST_HINT) from error

    def _run(self, host: str, port: int, seconds: float, connected: Future[None]) -> None:
        try:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))
        except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the answer
            connected.set_exception(error)
            return
        connected.set_result(None)
        while (item := self._work.get()) is not None:
            work, answer = item
            try:
                answer.set_result(work(store))
            except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the answer
                answer.set_exception(error)
            del item, work, answer  # while it waits for more it must hold on to nothing


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
