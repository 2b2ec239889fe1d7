"""A stream of messages in the ranks' store: numbered keys, written by anybody, read in order by one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from unbroken.errors import StoreError
from unbroken.training.rank_store import RankStore

_LONG = timedelta(days=20)  # torch gives poll() milliseconds in 32 bits; each wait that ends in vain writes to stderr
_LONG_SECONDS = _LONG.total_seconds() + 60.0
_GIVEN_UP = b"-"


def stream_key(stream: str, number: int) -> str:
    """Where message ``number``, counted from 1, stands."""
    return f"{stream}/{number}"


def write(store: RankStore, stream: str, message: bytes, seconds: float) -> None:
    """Add a message to a stream that has many writers.

    Raises:
        StoreError: kind ``"ranks"``.
    """
    while True:
        key = stream_key(stream, store.count(f"{stream}/count", 1, seconds))
        if store.claim(key, message, seconds) == message:
            return


def skip(store: RankStore, stream: str, number: int, seconds: float) -> None:
    """Give up message ``number``, whose writer took the number and did not come back; it takes a new one if it does."""
    store.claim(stream_key(stream, number), _GIVEN_UP, seconds)


class Reader:
    """Reads a stream in a thread of its own, which blocks until there is something, and removes what it has read.

    Args:
        store: where the stream is.
        stream: its name.
        counted: its writers use :func:`write`: read what there is at once, in few requests.
        on_message: called with each message, in order; returns False to read no more.
        on_error: called once, when the connection broke or ``on_message`` raised; then the reader has ended.

    Raises:
        StoreError: kind ``"ranks"``: the store does not answer.
    """

    def __init__(
        self,
        store: RankStore,
        stream: str,
        *,
        counted: bool,
        on_message: Callable[[bytes], bool],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._stream, self._counted = stream, counted
        self._on_message, self._on_error = on_message, on_error
        self.next = 1
        """The number of the message that is waited for."""
        self._connection = store.connect()
        self._thread = threading.Thread(target=self._run, name=f"unbroken-{stream}", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, which it does by ``on_message``; after ``seconds`` it is left to itself."""
        self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        try:
            more = True
            while more:
                for message in self._connection.call(self._read, _LONG_SECONDS, "listening"):
                    more = self._on_message(message)
        except Exception as error:  # noqa: BLE001 - it belongs to the owner of this thread
            self._on_error(error)
        finally:
            self._connection.close()
            self._connection.join(1.0)

    def _read(self, store: TCPStore) -> list[bytes]:
        store.wait([stream_key(self._stream, self.next)], _LONG)
        keys = [stream_key(self._stream, number) for number in range(self.next, self.next + self._ready(store))]
        messages = [bytes(value) for value in store.multi_get(keys)]
        for key in keys:
            store.delete_key(key)
        self.next += len(keys)
        return [message for message in messages if message != _GIVEN_UP]

    def _ready(self, store: TCPStore) -> int:
        """How many messages are there in a row; the first is."""
        if not self._counted:
            return 1
        many = max(1, int(store.add(f"{self._stream}/count", 0)) - self.next + 1)
        # The last numbers may be taken and their messages still on the way.
        while many > 1 and not store.check([stream_key(self._stream, self.next + each) for each in range(1, many)]):
            many //= 2
        return many


def unexpected(error: Exception) -> StoreError:
    """The error as one of the ranks' store."""
    if isinstance(error, StoreError):
        return error
    return StoreError(f"the agreement between the ranks failed: {error!r}", kind="ranks")
