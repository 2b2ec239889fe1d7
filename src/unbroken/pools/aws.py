"""What EC2 says of pools, by boto3: zones, offerings, prices of the last week, placement scores; and the price list.

Each call is read with deadlines and few retries. One that is denied or fails is a problem of the reading, with the
action that the caller lacks; the others go on.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from unbroken.clock import Clock
from unbroken.errors import ConfigError
from unbroken.pools.answers import facts_of
from unbroken.pools.facts import Fact, Reading

ADVISOR = "https://spot-bid-advisor.s3.amazonaws.com/spot-advisor-data.json"
"""The feed behind the provider's page on interruptions."""
_SECONDS = 20.0
_MOST_BYTES = 50_000_000
_HISTORY = timedelta(days=7)
_DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")


def read_region(region: str, types: Sequence[str], nodes: int, clock: Clock, endpoint: str | None = None) -> Reading:
    """All that one region says about these types.

    Raises:
        ConfigError: boto3 is not installed (kind ``extra``), or there are no credentials (kind ``credentials``).
    """
    ec2, pricing = _client("ec2", region, endpoint), _client("pricing", "us-east-1", endpoint)
    now = clock.now()
    started = datetime.fromtimestamp(now, UTC) - _HISTORY
    filters = [{"Name": "instance-type", "Values": list(types)}]
    asked: list[tuple[str, Callable[[], Iterator[Any]]]] = [
        ("ec2:DescribeAvailabilityZones", lambda: iter([ec2.describe_availability_zones()])),
        (
            "ec2:DescribeInstanceTypeOfferings",
            lambda: _pages(
                ec2, "describe_instance_type_offerings", LocationType="availability-zone", Filters=filters
            ),
        ),
        (
            "ec2:DescribeSpotPriceHistory",
            lambda: _pages(
                ec2, "describe_spot_price_history", InstanceTypes=list(types), StartTime=started,
                ProductDescriptions=["Linux/UNIX"],
            ),
        ),
        *[("ec2:GetSpotPlacementScores", _scores(ec2, region, each, nodes)) for each in types],
        *[("pricing:GetProducts", _products(pricing, region, each)) for each in types],
    ]  # fmt: skip
    facts: list[Fact] = []
    problems: list[str] = []
    for action, ask in asked:
        found, problem = _facts(action, ask)
        facts += found
        problems += [problem] if problem and problem not in problems else []
    return Reading(f"EC2 {region}", now, tuple(facts), tuple(problems))


def read_feed(clock: Clock, url: str = ADVISOR) -> Reading:
    """The advisor's feed, from the network. That it cannot be had is a problem, no error."""
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310 - the caller's own address
            data = answer.read(_MOST_BYTES)
        return Reading("advisor", clock.now(), tuple(facts_of(json.loads(data))))
    except (OSError, ValueError, urllib.error.URLError, ConfigError) as error:
        return Reading("advisor", clock.now(), (), (f"the advisor's feed could not be read: {error}",))


def _client(service: str, region: str, endpoint: str | None) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ConfigError(
            "asking EC2 needs boto3, which is not installed", kind="extra", hint="pip install 'unbroken[aws]'"
        ) from error
    settings = Config(connect_timeout=5, read_timeout=_SECONDS, retries={"max_attempts": 3, "mode": "standard"})
    # A session of its own: the module's keeps the credentials that it once found.
    session = boto3.session.Session()
    return session.client(service, region_name=region, endpoint_url=endpoint, config=settings)


def _pages(client: Any, call: str, **options: Any) -> Iterator[Any]:
    yield from client.get_paginator(call).paginate(**options)


def _scores(ec2: Any, region: str, type_: str, nodes: int) -> Callable[[], Iterator[Any]]:
    def ask() -> Iterator[Any]:
        """One type at a time, so that the score is of that type."""
        for page in _pages(
            ec2, "get_spot_placement_scores", InstanceTypes=[type_], TargetCapacity=nodes, RegionNames=[region],
            SingleAvailabilityZone=True,
        ):  # fmt: skip
            scores = [{**each, "InstanceType": type_} for each in page["SpotPlacementScores"]]
            yield {"SpotPlacementScores": scores}

    return ask


def _products(pricing: Any, region: str, type_: str) -> Callable[[], Iterator[Any]]:
    wanted = {
        "instanceType": type_, "regionCode": region, "operatingSystem": "Linux", "tenancy": "Shared",
        "preInstalledSw": "NA", "capacitystatus": "Used",
    }  # fmt: skip
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    return lambda: _pages(pricing, "get_products", ServiceCode="AmazonEC2", Filters=filters)


def _facts(action: str, ask: Callable[[], Iterator[Any]]) -> tuple[list[Fact], str]:
    """(facts, what went wrong)"""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from botocore.parsers import ResponseParserError

    facts: list[Fact] = []
    try:
        for answer in ask():
            facts += facts_of(answer)
    except NoCredentialsError as error:
        hint = "Set up a profile, an instance role, or AWS_ACCESS_KEY_ID; or work from files with --from"
        raise ConfigError("there are no AWS credentials here", kind="credentials", hint=hint) from error
    except ClientError as error:
        said = error.response.get("Error", {})
        if said.get("Code") in _DENIED:
            return facts, f"{action} is not allowed to these credentials"
        return facts, f"{action} failed: {said.get('Code')} {said.get('Message', '')}".rstrip()
    except (BotoCoreError, ResponseParserError, ConfigError) as error:
        return facts, f"{action} failed: {str(error).splitlines()[0]}"
    return facts, ""
