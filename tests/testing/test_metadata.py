"""The fake metadata service behaves as EC2 documents the real one."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from unbroken.clock import parse_time
from unbroken.errors import ConfigError
from unbroken.testing import EC2MetadataService, FakeClock

TOKEN = "/latest/api/token"
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
INSTANCE = "/latest/meta-data/instance-id"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(now=1_767_225_600.75)


@pytest.fixture
def service(clock: FakeClock) -> Iterator[EC2MetadataService]:
    with EC2MetadataService(clock=clock) as service:
        yield service


def ask(service: EC2MetadataService, method: str, path: str, timeout: float = 10, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(service.endpoint.removeprefix("http://"), timeout=timeout)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        with connection.getresponse() as response:
            return response.status, response.read()
    finally:
        connection.close()


def token(service: EC2MetadataService, ttl: int = 60) -> str:
    status, body = ask(service, "PUT", TOKEN, **{TTL_HEADER: str(ttl)})
    assert status == 200
    return body.decode()


def get(service: EC2MetadataService, path: str, *, with_token: str | None = None) -> tuple[int, bytes]:
    return ask(service, "GET", path, **{TOKEN_HEADER: with_token or token(service)})


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "soon"])
def test_a_token_needs_a_sound_lifetime(service: EC2MetadataService, ttl: str) -> None:
    assert ask(service, "PUT", TOKEN, **{TTL_HEADER: ttl})[0] == 400


def test_a_token_needs_the_lifetime_header_at_all(service: EC2MetadataService) -> None:
    assert ask(service, "PUT", TOKEN)[0] == 400


def test_a_token_is_refused_to_a_proxy(service: EC2MetadataService) -> None:
    assert ask(service, "PUT", TOKEN, **{TTL_HEADER: "60", "X-Forwarded-For": "10.0.0.1"})[0] == 403


@pytest.mark.parametrize("path", [ACTION, REBALANCE, INSTANCE, "/"])
def test_nothing_is_told_without_a_token(service: EC2MetadataService, path: str) -> None:
    assert ask(service, "GET", path)[0] == 401
    assert ask(service, "GET", path, **{TOKEN_HEADER: "made-up"})[0] == 401


def test_a_token_expires_after_its_lifetime(service: EC2MetadataService, clock: FakeClock) -> None:
    mine = token(service, ttl=60)
    clock.advance(59)
    assert get(service, INSTANCE, with_token=mine)[0] == 200
    clock.advance(1)
    assert get(service, INSTANCE, with_token=mine)[0] == 401


def test_expire_tokens_refuses_old_tokens_and_gives_new_ones(service: EC2MetadataService) -> None:
    old = token(service)
    service.expire_tokens()
    assert get(service, INSTANCE, with_token=old)[0] == 401
    assert get(service, INSTANCE)[0] == 200


def test_a_quiet_instance_has_an_id_and_announces_nothing(service: EC2MetadataService) -> None:
    assert get(service, INSTANCE) == (200, service.instance_id.encode())
    assert len(service.instance_id) == len("i-1234567890abcdef0")
    assert get(service, ACTION)[0] == get(service, REBALANCE)[0] == get(service, "/latest/nothing")[0] == 404


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_an_interruption_keeps_its_moment_however_often_it_is_read(
    service: EC2MetadataService, clock: FakeClock, action: str
) -> None:
    deadline = service.interrupt(action, seconds=120)
    first = get(service, ACTION)
    clock.advance(30)
    assert get(service, ACTION) == first
    document = json.loads(first[1])
    assert document == {"action": action, "time": "2026-01-01T00:02:00Z"}
    assert parse_time(document["time"]) == deadline


def test_an_action_that_ec2_does_not_have_is_refused(service: EC2MetadataService) -> None:
    with pytest.raises(ConfigError, match="explode"):
        service.interrupt("explode")  # type: ignore[arg-type]


def test_a_rebalance_recommendation_says_since_when(service: EC2MetadataService) -> None:
    service.recommend_rebalance()
    assert json.loads(get(service, REBALANCE)[1]) == {"noticeTime": "2026-01-01T00:00:00Z"}


def test_clear_is_a_new_instance(service: EC2MetadataService) -> None:
    old, old_id = token(service), service.instance_id
    service.interrupt()
    service.recommend_rebalance()
    service.clear()
    assert service.instance_id != old_id
    assert get(service, INSTANCE, with_token=old)[0] == 401
    assert get(service, ACTION)[0] == get(service, REBALANCE)[0] == 404


def test_requests_are_counted_by_method_and_path(service: EC2MetadataService) -> None:
    get(service, ACTION)
    get(service, ACTION)
    assert service.requests == {f"PUT {TOKEN}": 2, f"GET {ACTION}": 2}


def test_garbage_spoils_documents_and_not_tokens(service: EC2MetadataService) -> None:
    service.misbehave("garbage")
    status, body = get(service, ACTION)
    assert status == 200
    with pytest.raises(UnicodeDecodeError):
        json.loads(body)


def test_error500_fails_everything_until_it_ends(service: EC2MetadataService) -> None:
    service.misbehave("error500")
    assert ask(service, "PUT", TOKEN, **{TTL_HEADER: "60"})[0] == 500
    service.misbehave("none")
    assert get(service, INSTANCE)[0] == 200


def test_a_hang_lets_the_client_time_out(service: EC2MetadataService) -> None:
    service.misbehave("hang")
    with pytest.raises(TimeoutError):
        ask(service, "PUT", TOKEN, timeout=0.1, **{TTL_HEADER: "60"})
    service.misbehave("none")
    assert get(service, INSTANCE)[0] == 200


def test_a_mode_that_does_not_exist_is_refused(service: EC2MetadataService) -> None:
    with pytest.raises(ConfigError, match="sulk"):
        service.misbehave("sulk")  # type: ignore[arg-type]


def test_close_ends_every_thread_even_in_a_hang() -> None:
    before = set(threading.enumerate())
    service = EC2MetadataService()
    service.misbehave("hang")
    with pytest.raises(TimeoutError):
        ask(service, "PUT", TOKEN, timeout=0.1, **{TTL_HEADER: "60"})
    host, port = service.endpoint.removeprefix("http://").split(":")
    service.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
