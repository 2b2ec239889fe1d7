"""The EC2 source against a metadata service that behaves, misbehaves, or is not there."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.notice import (
    EC2Source,
    InterruptionAdvisory,
    InterruptionNotice,
    SourceError,
    imds,
    local_http,
)
from unbroken.notice.ec2_maintenance import MaintenanceList
from unbroken.testing import EC2MetadataService, FakeClock

ACTION = "GET /latest/meta-data/spot/instance-action"
TOKEN = "PUT /latest/api/token"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> Iterator[EC2MetadataService]:
    with EC2MetadataService(clock=clock) as service:
        yield service


@pytest.fixture
def source(service: EC2MetadataService, clock: FakeClock) -> EC2Source:
    return EC2Source(service.endpoint, clock=clock)


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address at which connections are refused: bound by us, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_quiet_instance_gives_nothing(source: EC2Source) -> None:
    assert source.poll() == []
    assert source.answered


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_an_interruption_is_a_notice_with_the_documents_deadline(
    service: EC2MetadataService, source: EC2Source, action: str
) -> None:
    deadline = service.interrupt(action, seconds=90)
    (notice,) = source.poll()
    assert notice == InterruptionNotice("ec2", f"EC2 will {action} this spot instance", deadline)


def test_the_same_interruption_is_the_same_notice_at_every_poll(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock
) -> None:
    service.interrupt()
    first = source.poll()
    clock.advance(10)
    assert source.poll() == first


def test_a_deadline_that_has_passed_is_told_as_it_is(service: EC2MetadataService, source: EC2Source) -> None:
    deadline = service.interrupt(seconds=-30)
    (notice,) = source.poll()
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == deadline


def test_a_rebalance_recommendation_is_an_advisory_once(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock
) -> None:
    service.recommend_rebalance()
    (advisory,) = source.poll()
    assert isinstance(advisory, InterruptionAdvisory)
    clock.advance(5)
    service.recommend_rebalance()  # a stand-in whose document moves with each poll
    assert source.poll() == []


def test_both_may_come_together(service: EC2MetadataService, source: EC2Source) -> None:
    service.interrupt()
    service.recommend_rebalance()
    assert [type(event) for event in source.poll()] == [InterruptionNotice, InterruptionAdvisory]


def test_the_token_is_kept_and_renewed_before_it_expires(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock
) -> None:
    for _ in range(5):
        source.poll()
    assert service.requests[TOKEN] == 1
    clock.advance(21600 - 10)  # still valid, and not for long
    source.poll()
    assert service.requests[TOKEN] == 2


def test_a_revoked_token_costs_no_poll(service: EC2MetadataService, source: EC2Source) -> None:
    source.poll()
    service.expire_tokens()
    service.interrupt()
    assert len(source.poll()) == 1
    assert service.requests[TOKEN] == 2


def test_garbage_is_a_notice_with_two_minutes_that_do_not_move(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock
) -> None:
    service.misbehave("garbage")
    noticed_at = clock.now()
    first = source.poll()[0]
    clock.advance(30)
    again = source.poll()[0]
    assert isinstance(first, InterruptionNotice)
    assert first.deadline == noticed_at + 120
    assert "cannot be read" in first.reason
    assert "<html>" in first.reason
    assert again == first


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"null", b"7", b'{"action":"stop"}', b'{"action":"stop","time":5}', b'{"action":"stop","time":"soon"}',
     b'{"action":"stop","time":"2026-01-01T00:00:00"}', b'{"time":"2026-01-01T00:00:00Z"}', b"[" * 60_000],
)  # fmt: skip
def test_every_unreadable_document_is_a_notice(clock: FakeClock, document: bytes) -> None:
    with Scripted({"PUT": (200, b"token"), "GET": (200, document)}) as service:
        notice = EC2Source(service.endpoint, clock=clock).poll()[0]
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == clock.now() + 120


def test_where_nobody_answers_it_is_silent_and_soon_asks_rarely(nowhere: str, clock: FakeClock) -> None:
    source = EC2Source(nowhere, clock=clock)
    intervals = []
    for _ in range(6):
        assert source.poll() == []
        intervals.append(source.interval())
    assert intervals == [2.0, 2.0, 60.0, 60.0, 60.0, 60.0]
    assert not source.answered


@pytest.mark.parametrize(
    "token",
    [(404, b""), (403, b""), (405, b""), (200, b"<html>log in</html>"), (200, b""), (200, b"a\r\nb"), (200, b"\xff")],
)
def test_a_service_that_gives_no_tokens_is_not_ec2(clock: FakeClock, token: tuple[int, bytes]) -> None:
    with Scripted({"PUT": token, "GET": (200, b"anything")}) as service:
        source = EC2Source(service.endpoint, clock=clock)
        assert [source.poll() for _ in range(4)] == [[]] * 4
        assert source.interval() == 60.0


def test_a_service_that_comes_late_is_heard_and_then_asked_often(clock: FakeClock) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = EC2Source(f"http://127.0.0.1:{port}", clock=clock)
    for _ in range(5):
        assert source.poll() == []
    with EC2MetadataService(port=port, clock=clock) as service:
        service.interrupt()
        assert len(source.poll()) == 1
        assert source.interval() == 2.0


def test_an_outage_is_said_once_and_polling_stays_quick(service: EC2MetadataService, source: EC2Source) -> None:
    source.poll()
    service.misbehave("error500")
    assert source.poll() == source.poll() == []
    with pytest.raises(SourceError, match="status 500") as caught:
        source.poll()
    assert service.endpoint in str(caught.value)
    assert [source.poll() for _ in range(5)] == [[]] * 5
    assert source.interval() == 2.0


def test_a_second_outage_is_said_again(service: EC2MetadataService, source: EC2Source) -> None:
    for _ in range(2):
        service.misbehave("none")
        assert source.poll() == []
        service.misbehave("error500")
        source.poll()
        source.poll()
        with pytest.raises(SourceError):
            source.poll()


def test_a_notice_that_follows_an_outage_is_heard(service: EC2MetadataService, source: EC2Source) -> None:
    source.poll()
    service.misbehave("error500")
    source.poll()
    service.misbehave("none")
    service.interrupt()
    assert len(source.poll()) == 1


def test_a_service_that_hangs_holds_a_poll_for_its_timeout_alone(
    service: EC2MetadataService, source: EC2Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_http, "_READ_TIMEOUT", 0.05)
    source.poll()
    service.misbehave("hang")
    assert source.poll() == source.poll() == []
    with pytest.raises(SourceError, match="TimeoutError"):
        source.poll()


def test_no_proxy_is_asked(
    service: EC2MetadataService, source: EC2Source, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    service.interrupt()
    assert len(source.poll()) == 1


def test_the_endpoint_comes_from_the_environment(
    service: EC2MetadataService, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.endpoint + "/")
    service.interrupt()
    assert len(EC2Source(clock=clock).poll()) == 1


@pytest.mark.parametrize(("mode", "endpoint"), [("", "http://169.254.169.254"), ("IPv6", "http://[fd00:ec2::254]")])
def test_without_an_endpoint_it_is_ec2s_own(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, mode: str, endpoint: str
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", mode)
    assert imds.MetadataClient(None, clock).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["169.254.169.254", "https://169.254.169.254", "http://", "http://host:port", "http://host/path", "http://[x"],
)
def test_an_endpoint_that_is_none_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="AWS_EC2_METADATA_SERVICE_ENDPOINT") as caught:
        EC2Source(endpoint)
    assert endpoint in str(caught.value)


def test_the_time_between_polls_comes_from_the_caller_then_the_environment(
    nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNBROKEN_NOTICE_POLL", "0.5")
    assert EC2Source(nowhere).interval() == 0.5
    assert EC2Source(nowhere, poll_seconds=4).interval() == 4


@pytest.mark.parametrize("wrong", ["0", "-1", "61", "nan", "inf", "two", "2s"])
def test_a_time_between_polls_that_would_miss_notices_is_refused(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("UNBROKEN_NOTICE_POLL", wrong)
    with pytest.raises(ConfigError, match=f"UNBROKEN_NOTICE_POLL='{wrong}'"):
        EC2Source(nowhere)


def test_a_group_that_terminates_the_instance_is_a_notice_whose_deadline_stays(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock
) -> None:
    service.target_lifecycle_state("InService")
    assert source.poll() == []
    service.target_lifecycle_state("Terminated")
    first = source.poll()
    expected = InterruptionNotice("ec2", "the Auto Scaling group terminates this instance", clock.now() + 120)
    clock.advance(10)
    assert first == source.poll() == [expected]
    service.target_lifecycle_state("InService")
    assert source.poll() == []


@pytest.mark.parametrize("code", ["instance-stop", "instance-retirement", "instance-reboot", "system-reboot"])
def test_maintenance_that_stops_the_instance_is_a_notice_with_its_moment(
    service: EC2MetadataService, source: EC2Source, code: str
) -> None:
    begins = service.schedule_maintenance(code, 7200)  # type: ignore[arg-type]
    (notice,) = source.poll()
    assert isinstance(notice, InterruptionNotice)
    assert notice.deadline == begins
    assert f"instance-event-{code}" in notice.reason


def test_maintenance_that_stops_nothing_is_an_advisory(service: EC2MetadataService, source: EC2Source) -> None:
    service.schedule_maintenance("system-maintenance", 7200)
    (advisory,) = source.poll()
    assert isinstance(advisory, InterruptionAdvisory)
    assert "system-maintenance" in advisory.reason


@pytest.mark.parametrize("state", ["completed", "canceled"])
def test_maintenance_that_is_over_or_cancelled_is_nothing(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock, state: str
) -> None:
    service.schedule_maintenance("instance-stop", 7200)
    assert len(source.poll()) == 1
    service.schedule_maintenance("instance-stop", 7200, state=state)
    clock.advance(30)
    assert source.poll() == []


def test_maintenance_that_had_begun_before_it_was_heard_of_does_not_stop_each_new_start(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock
) -> None:
    service.schedule_maintenance("system-reboot", -60)
    for _ in range(3):
        (advisory,) = source.poll()
        assert isinstance(advisory, InterruptionAdvisory)
        clock.advance(60)


def test_maintenance_that_was_a_notice_stays_one_when_its_time_comes(
    service: EC2MetadataService, source: EC2Source, clock: FakeClock
) -> None:
    service.schedule_maintenance("system-reboot", 60)
    first = source.poll()
    clock.advance(90)
    assert source.poll() == first
    assert isinstance(first[0], InterruptionNotice)


def test_maintenance_is_asked_for_rarely(service: EC2MetadataService, source: EC2Source, clock: FakeClock) -> None:
    for _ in range(30):
        source.poll()
        clock.advance(2)
    assert service.requests["GET /latest/meta-data/events/maintenance/scheduled"] == 2


def test_an_outage_cancels_nothing(service: EC2MetadataService, source: EC2Source) -> None:
    service.interrupt()
    service.target_lifecycle_state("Terminated")
    before = source.poll()
    service.misbehave("error500")
    assert source.poll() == before
    assert len(before) == 2


def test_an_outage_between_two_documents_cancels_nothing(clock: FakeClock) -> None:
    answers = {"PUT": (200, b"token"), "GET": (404, b"")}
    with Scripted(answers) as service:
        source = EC2Source(service.endpoint, clock=clock)
        assert source.poll() == []
        source._rest = [expected := InterruptionNotice("ec2", "of the group", clock.now() + 60)]
        answers["GET"] = (500, b"")
        assert source.poll() == [expected]


def test_a_hop_limit_is_said_once_in_plain_words_and_advises_nothing_dangerous(
    service: EC2MetadataService, source: EC2Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_http, "_READ_TIMEOUT", 0.05)
    service.misbehave("hop-limit")
    assert source.poll() == source.poll() == []
    with pytest.raises(SourceError, match="hop limit is 1") as caught:
        source.poll()
    assert "SIGTERM" in caught.value.hint
    assert "credentials" in caught.value.hint
    assert [source.poll() for _ in range(3)] == [[]] * 3
    assert not source.reach().answers
    assert "hop limit" in source.reach().why


def test_a_service_that_hangs_for_every_request_is_no_hop_limit(
    service: EC2MetadataService, source: EC2Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_http, "_READ_TIMEOUT", 0.05)
    service.misbehave("hang")
    assert [source.poll() for _ in range(4)] == [[]] * 4


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["State", "Code", "EventId", "NotBefore"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_maintenance_list_breaks_its_reader(document: bytes) -> None:
    listed = MaintenanceList("ec2", FakeClock())
    listed.read(document)
    assert all(isinstance(event, InterruptionNotice | InterruptionAdvisory) for event in listed.events)


class Scripted:
    """A server with one fixed answer for each method."""

    def __init__(self, answers: dict[str, tuple[int, bytes]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                status, body = answers[self.command]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = answer  # noqa: N815 - http.server's names

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
