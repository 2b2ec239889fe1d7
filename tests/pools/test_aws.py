"""Asking EC2: a server that speaks its protocol, and a stub for what that server lacks."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import ConfigError
from unbroken.pools import aws
from unbroken.pools.facts import Advice, Offerings, Score, SpotPrice, ZoneName
from unbroken.testing import FakeClock

CLOCK = FakeClock(1_790_000_000.0)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def ec2() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_region_says_zones_offerings_and_prices_and_what_it_would_not_say(keys: None, ec2: str) -> None:
    reading = aws.read_region("us-east-1", ["m5.large"], 1, CLOCK, ec2)
    kinds = {type(fact) for fact in reading.facts}
    assert {ZoneName, Offerings, SpotPrice} <= kinds
    assert all(fact.instance_type == "m5.large" for fact in reading.facts if isinstance(fact, SpotPrice))
    assert reading.at == CLOCK.now()
    assert any(problem.startswith("ec2:GetSpotPlacementScores failed") for problem in reading.problems)


def stubbed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of EC2 whose answers are given, and nothing else that answers."""
    import boto3
    from botocore.stub import Stubber

    client = boto3.client("ec2", region_name="us-east-1")
    stub = Stubber(client)
    stub.activate()
    return client, stub


def test_scores_are_asked_for_one_type_at_a_time(keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    client, stub = stubbed(monkeypatch)
    stub.add_response(
        "get_spot_placement_scores",
        {"SpotPlacementScores": [{"Region": "us-east-1", "AvailabilityZoneId": "use1-az1", "Score": 7}]},
        {"InstanceTypes": ["p4d.24xlarge"], "TargetCapacity": 4, "RegionNames": ["us-east-1"],
         "SingleAvailabilityZone": True},
    )  # fmt: skip
    found, problem = aws._facts("ec2:GetSpotPlacementScores", aws._scores(client, "us-east-1", "p4d.24xlarge", 4))
    assert (found, problem) == ([Score("us-east-1", 7, "use1-az1", "p4d.24xlarge")], "")


def test_what_is_denied_is_said_with_the_action_that_lacks(keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    client, stub = stubbed(monkeypatch)
    stub.add_client_error("get_spot_placement_scores", "UnauthorizedOperation", "You are not authorized")
    found, problem = aws._facts("ec2:GetSpotPlacementScores", aws._scores(client, "us-east-1", "p4d.24xlarge", 4))
    assert (found, problem) == ([], "ec2:GetSpotPlacementScores is not allowed to these credentials")


def test_without_credentials_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ec2: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no AWS credentials") as caught:
        aws.read_region("us-east-1", ["m5.large"], 1, CLOCK, ec2)
    assert caught.value.kind == "credentials"


FEED = {
    "ranges": [{"index": 0, "label": "<5%"}],
    "spot_advisor": {"us-east-1": {"Linux": {"p4d.24xlarge": {"r": 0, "s": 60}}}},
}


@pytest.fixture
def web() -> Iterator[str]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.path == "/feed.json"
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write(json.dumps(FEED).encode() if good else b"")

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_advisors_feed_is_read_and_its_lack_is_no_error(web: str) -> None:
    assert aws.read_feed(CLOCK, f"{web}/feed.json").facts == (Advice("p4d.24xlarge", "us-east-1", 0, "<5%", 60),)
    lacking = aws.read_feed(CLOCK, f"{web}/other.json")
    assert (lacking.facts, len(lacking.problems)) == ((), 1)
    assert "404" in lacking.problems[0]
