"""What every store promises, on a folder and on a real S3 server; and what a bucket's refusals become."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
from obstore.store import S3Store
from tests.conftest import S3Server

from unbroken.errors import AccessError, DamagedError, NotFoundError, StoreError, UnbrokenError
from unbroken.store import Store, open_store
from unbroken.store.objects import ObjectStore
from unbroken.store.store import PIECE
from unbroken.testing import Crash

MiB = 1 << 20
SECRET = "wJalrXUtnFEMI-not-a-real-secret"


@pytest.fixture
def store(store_uri: str) -> Store:
    return open_store(store_uri, create=True)


def every_call(store: Store) -> dict[str, UnbrokenError]:
    """The error of each operation, by its name."""
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: store.create("a", b"1"),
        "put": lambda: store.put("a", [b"1"]),
        "put-large": lambda: store.put("a", [bytes(9 * MiB)]),
        "get": lambda: store.get("a"),
        "get-range": lambda: store.get_range("a", 0, 1),
        "list": lambda: list(store.list("a")),
        "delete": lambda: store.delete(["a"]),
    }
    errors = {}
    for name, call in calls.items():
        with pytest.raises(UnbrokenError) as caught:
            call()
        errors[name] = caught.value
    return errors


def pattern(size: int) -> bytes:
    return bytes(itertools.islice(itertools.cycle(range(251)), size))


class TestCreate:
    def test_second_create_is_refused_and_changes_nothing(self, store: Store) -> None:
        assert store.create("journal/1.json", b"first") is True
        assert store.create("journal/1.json", b"second") is False
        assert store.get("journal/1.json") == b"first"

    def test_of_sixteen_racing_writers_one_wins(self, store_uri: str) -> None:
        stores = [open_store(store_uri, create=True) for _ in range(16)]
        barrier = threading.Barrier(16, timeout=60)

        def race(number: int) -> bool:
            barrier.wait()
            return stores[number].create("contended", str(number).encode())

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(race, range(16)))
        assert won.count(True) == 1
        assert stores[0].get("contended") == str(won.index(True)).encode()

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        assert store.create("empty", b"")
        assert not store.create("empty", b"x")
        assert store.get("empty") == b""


class TestPut:
    @pytest.mark.parametrize("size", [0, 1, 8 * MiB, 8 * MiB + 1, 20 * MiB])
    def test_whole_object_comes_back(self, store: Store, size: int) -> None:
        data = pattern(size)
        store.put("packs/1/a.safetensors", [data])
        assert store.get("packs/1/a.safetensors") == data
        assert [(info.key, info.size) for info in store.list("")] == [("packs/1/a.safetensors", size)]

    def test_parts_are_concatenated_whatever_their_sizes_and_types(self, store: Store) -> None:
        data = pattern(18 * MiB)
        cuts = [0, 1, 1, 3 * MiB, 3 * MiB + 7, 17 * MiB, 18 * MiB]
        parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
        store.put("p", [parts[0], bytearray(parts[1]), memoryview(parts[2]), *parts[3:]])
        assert store.get("p") == data

    def test_no_parts_make_an_empty_object(self, store: Store) -> None:
        store.put("p", [])
        assert store.get("p") == b""

    def test_an_object_already_there_is_replaced(self, store: Store) -> None:
        store.put("p", [b"long and old"])
        store.put("p", [b"new"])
        assert store.get("p") == b"new"
        assert [info.key for info in store.list("")] == ["p"]

    @pytest.mark.parametrize("key", ["../escape", "a/../../escape", "/etc/passwd", "", "a//b", "a/./b", "a/"])
    def test_a_key_that_leads_out_of_the_store_is_refused(self, store: Store, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(key, [b"x"]),
            lambda: store.create(key, b"x"),
            lambda: store.get(key),
            lambda: store.get_range(key, 0, 1),
            lambda: store.delete([key]),
        ]
        for call in calls:
            with pytest.raises(StoreError) as caught:
                call()
            assert caught.value.kind == "key"


class StopError(Exception):
    """What a listener raises."""


STOPS: list[BaseException] = [StopError("enough"), OSError(5, "not the store's"), ValueError("odd"), Crash("gone")]


class TestPieces:
    @pytest.mark.parametrize("sizes", [[1], [8 * MiB], [5, 20 * MiB], [40 * MiB + 1, 3, 16 * MiB, 0, 2 * MiB]])
    def test_every_byte_is_announced_once_in_pieces_of_at_most_16_mib(self, store: Store, sizes: list[int]) -> None:
        told: list[tuple[int, str]] = []
        caller = threading.current_thread().name
        store.put(
            "p",
            [pattern(size) for size in sizes],
            on_piece=lambda size: told.append((size, threading.current_thread().name)),
        )
        assert sum(size for size, _ in told) == sum(sizes)
        assert max(size for size, _ in told) <= PIECE == 16 * MiB
        assert {thread for _, thread in told} == {caller}
        assert [(info.key, info.size) for info in store.list("")] == [("p", sum(sizes))]

    @pytest.mark.parametrize("error", STOPS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize(("size", "piece"), [(9, 1), (2 * MiB, 1), (17 * MiB, 2), (33 * MiB, 1), (33 * MiB, 3)])
    def test_a_listener_that_raises_ends_the_put_and_its_own_exception_comes_out(
        self, store: Store, error: BaseException, size: int, piece: int
    ) -> None:
        told: list[int] = []

        def stop(length: int) -> None:
            told.append(length)
            if len(told) == piece:
                raise error

        data = pattern(size)
        store.put("old", [b"old"])
        for key in ("new", "old"):
            told.clear()
            with pytest.raises(type(error)) as caught:
                store.put(key, [data], on_piece=stop)
            assert caught.value is error
            assert len(told) == piece
        assert [info.key for info in store.list("")] == ["old"]
        assert store.get("old") == b"old"
        store.put("new", [data], on_piece=told.append)  # the store goes on
        assert store.get("new") == data

    def test_an_upload_that_was_stopped_leaves_no_parts_in_the_bucket(self, s3_environment: S3Server) -> None:
        store = open_store("s3://unbroken-tests/stopped/run")
        with contextlib.closing(s3_environment.client()) as client:
            bucket = {"Bucket": s3_environment.bucket}
            control = client.create_multipart_upload(**bucket, Key="stopped/run/control")["UploadId"]
            told: list[int] = []

            def stop(length: int) -> None:
                told.append(length)
                if len(told) == 3:
                    raise StopError

            with pytest.raises(StopError):
                store.put("p", [bytes(80 * MiB)], on_piece=stop)
            left = client.list_multipart_uploads(**bucket, Prefix="stopped/").get("Uploads", [])
            assert [upload["Key"] for upload in left] == ["stopped/run/control"]
            client.abort_multipart_upload(**bucket, Key="stopped/run/control", UploadId=control)


class TestGet:
    def test_range_gives_exactly_what_was_asked(self, store: Store) -> None:
        data = pattern(9 * MiB)
        store.put("p", [data])
        assert bytes(store.get_range("p", 0, 10)) == data[:10]
        assert bytes(store.get_range("p", 8 * MiB - 3, 7)) == data[8 * MiB - 3 : 8 * MiB + 4]
        assert bytes(store.get_range("p", 9 * MiB - 1, 1)) == data[-1:]
        assert bytes(store.get_range("p", 5, 0)) == b""

    @pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (1000, 1)])
    def test_range_over_the_end_is_damage(self, store: Store, start: int, length: int) -> None:
        store.put("p", [b"0123456789"])
        with pytest.raises(DamagedError) as caught:
            store.get_range("p", start, length)
        assert caught.value.kind == "truncated"
        assert "p in" in str(caught.value)

    def test_missing_object_is_not_found(self, store: Store) -> None:
        store.put("folder/below", [b"x"])
        for key in ("nothing", "folder", "folder/below/further"):
            with pytest.raises(NotFoundError) as caught:
                store.get(key)
            assert caught.value.kind == "object", key
            with pytest.raises(NotFoundError):
                store.get_range(key, 0, 1)


class TestList:
    def test_more_than_a_page_of_keys_is_complete_and_in_order(self, store: Store) -> None:
        keys = [f"journal/{n:011d}.json" for n in range(1, 1151)]
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda key: store.create(key, b"{}"), keys))
        assert [info.key for info in store.list("journal")] == keys
        assert [info.key for info in store.list("journal", after=keys[1099])] == keys[1100:]
        assert list(store.list("journal", after=keys[-1])) == []

    def test_prefix_is_a_whole_path_component(self, store: Store) -> None:
        for key in ("packs/1/a", "packs/10/b", "packs-old/c", "run.json", "packs/1.json"):
            store.create(key, b"x")
        assert [info.key for info in store.list("packs")] == ["packs/1.json", "packs/1/a", "packs/10/b"]
        assert [info.key for info in store.list("packs/1")] == ["packs/1/a"]
        assert list(store.list("manifests")) == []

    def test_neighbouring_runs_are_not_seen(self, store_uri: str) -> None:
        open_store(store_uri + "-2", create=True).create("x", b"")
        assert list(open_store(store_uri, create=True).list("")) == []


def test_an_endpoint_for_s3_alone_is_used(s3_environment: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    for other in ("", "http://127.0.0.1:1"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", other)
        if not other:
            monkeypatch.delenv("AWS_ENDPOINT_URL")
        assert list(open_store("s3://unbroken-tests/endpoint/run").list("")) == []


def test_delete_takes_away_what_is_there_and_minds_nothing_else(store: Store) -> None:
    for key in ("a", "b/c", "b/d"):
        store.put(key, [b"x"])
    store.delete(["a", "never-was", "b/c"])
    store.delete([])
    assert [info.key for info in store.list("")] == ["b/d"]
    assert store.create("a", b"again")


class TestBucketErrors:
    @pytest.fixture
    def s3_uri(self, s3_environment: object) -> str:
        return "s3://unbroken-tests/errors/run"

    def test_missing_bucket_is_said(self, s3_environment: object) -> None:
        for name, error in every_call(open_store("s3://no-such-bucket/run")).items():
            assert isinstance(error, NotFoundError), name
            assert error.kind == "bucket", name
            assert "s3://no-such-bucket/run" in error.message

    @pytest.mark.parametrize(
        ("variable", "code"),
        [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")],
    )
    def test_wrong_keys_are_denied_without_repeating_them(
        self, s3_uri: str, monkeypatch: pytest.MonkeyPatch, variable: str, code: str
    ) -> None:
        monkeypatch.setenv(variable, SECRET)
        store = open_store(s3_uri)
        for name, error in every_call(store).items():
            assert isinstance(error, AccessError), name
            assert (error.kind, error.exit_code) == ("denied", 77), name
            assert code in error.message, name
            assert SECRET not in str(error) + repr(error.__cause__), name
        assert SECRET not in store.uri

    def test_a_security_token_echoed_by_the_server_is_not_repeated(
        self, s3_uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", SECRET)
        body = f"<Error><Code>InvalidToken</Code><Message>No good.</Message><Token-0>{SECRET}</Token-0></Error>"
        with answering(400, body) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            with pytest.raises(AccessError) as caught:
                open_store(s3_uri).get("a")
        assert "InvalidToken: No good." in caught.value.message
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__

    def test_a_full_bucket_is_said(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        body = "<Error><Code>QuotaExceeded</Code><Message>Bucket quota exceeded.</Message></Error>"
        with answering(425, body) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            with pytest.raises(StoreError) as caught:
                open_store(s3_uri).put("a", [b"x"])
        assert caught.value.kind == "full"

    def test_nobody_listening_ends_in_an_error(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with answering(200, "") as endpoint:
            pass  # a port that was just given back
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        begin = time.monotonic()
        with pytest.raises(StoreError) as caught:
            open_store(s3_uri).get("a")
        assert time.monotonic() - begin < 30
        assert caught.value.kind == "unavailable"
        assert not isinstance(caught.value, AccessError)


class TestPanics:
    @pytest.fixture
    def panicking(self) -> Store:
        """A bucket whose client panics inside obstore at each request, as that of an endpoint that is no URL does."""
        backend = S3Store(
            "bucket", prefix="run", endpoint="localhost:9000", access_key_id="x", secret_access_key="x"
        )  # fmt: skip
        return ObjectStore(backend, "s3://bucket/run")

    def test_every_call_becomes_an_error_of_the_store(self, clean_aws: object, panicking: Store) -> None:
        for name, error in every_call(panicking).items():
            assert isinstance(error, StoreError), name
            assert error.kind == "unavailable", name
            assert "s3://bucket/run" in error.message, name

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Crash])
    def test_what_ends_the_process_goes_on(self, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(obstore, "get", interrupted)
        with pytest.raises(error):
            ObjectStore(None, "s3://bucket/run").get("a")


class answering:  # noqa: N801 - reads as a phrase
    """A server that gives one answer to everything; the value of the ``with`` is its endpoint."""

    def __init__(self, status: int, body: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
