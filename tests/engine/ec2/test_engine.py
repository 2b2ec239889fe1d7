"""A job in an Auto Scaling group, on a server that speaks EC2's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from unbroken.engine.ec2 import EC2Engine, open_engine
from unbroken.engine.ec2.calls import asking
from unbroken.engine.ec2.engine import console_lines
from unbroken.engine.face import State
from unbroken.errors import AccessError, ConfigError, NotFoundError, UnbrokenError
from unbroken.job import Job
from unbroken.render import REASON_TAG, STATE_TAG, group_of
from unbroken.testing import FakeClock


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.core.types import Base64EncodedString
    from moto.ec2.models.launch_templates import LaunchTemplateVersion
    from moto.server import ThreadedMotoServer

    # The server demands of the user data of a second version that they are marked as encoded, and does not mark them.
    def encoded(version: Any) -> Any:
        data = version.data["UserData"]
        return Base64EncodedString.from_encoded_bytes(data.encode()) if isinstance(data, str) else data

    before, LaunchTemplateVersion.user_data = LaunchTemplateVersion.user_data, property(encoded)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()
    LaunchTemplateVersion.user_data = before


@pytest.fixture
def aws(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty account: clients by service, and what a machine needs to stand in."""
    import urllib.request

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"), timeout=30).close()
    return Account(server)


class Account:
    def __init__(self, server: str) -> None:
        from unbroken.engine.ec2.calls import client

        self.server = server
        self.ec2, self.groups = client("ec2", "us-east-1", server), client("autoscaling", "us-east-1", server)
        network = self.ec2.describe_subnets()["Subnets"]
        self.subnets = [each["SubnetId"] for each in network[:2]]
        self.security = self.ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]
        self.image = self.ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        self.engine = EC2Engine("us-east-1", endpoint=server, clock=FakeClock())

    def job(self, **changes: Any) -> Job:
        ec2 = {
            "region": "us-east-1", "ami": self.image, "instance_profile": "training", "subnets": self.subnets,
            "security_groups": [self.security],
        }  # fmt: skip
        base = {"name": "gpt", "run": "s3://bucket/gpt", "command": ["python", "train.py"], "ec2": ec2}
        return Job.model_validate({**base, "pools": [{"instance_type": "m5.large"}], **changes})

    def ends(self, state: str, reason: str) -> None:
        """What a machine does whose training is over."""
        name = group_of("gpt")
        tags = {STATE_TAG: state, REASON_TAG: reason}
        self.groups.create_or_update_tags(Tags=[
            {"ResourceId": name, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": False, "Key": k, "Value": v}
            for k, v in tags.items()
        ])  # fmt: skip
        self.groups.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=0)

    def versions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ec2.describe_launch_template_versions(LaunchTemplateName=group_of("gpt"))[
            "LaunchTemplateVersions"
        ]
        return found


def test_a_job_that_nobody_launched_is_absent(aws: Account) -> None:
    assert aws.engine.status("gpt").state == State.ABSENT
    with pytest.raises(NotFoundError, match="no job gpt in us-east-1"):
        aws.engine.stop("gpt", timeout=1.0)
    with pytest.raises(NotFoundError, match="no job gpt"):
        list(aws.engine.logs("gpt"))


def test_a_launched_job_has_a_machine_of_its_pool(aws: Account) -> None:
    standing = aws.engine.launch(aws.job())
    assert standing.state == State.RUNNING
    (place,) = standing.places
    assert place.pool.startswith(("m5.large/us-east-1", "/us-east-1"))  # the server forgets the type of an override
    assert (place.state, place.host[:3]) == ("running", "ip-")
    (version,) = aws.versions()
    assert version["LaunchTemplateData"]["MetadataOptions"]["HttpTokens"] == "required"
    assert version["LaunchTemplateData"]["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_launching_again_changes_nothing_and_another_definition_is_refused(aws: Account) -> None:
    first = aws.engine.launch(aws.job())
    again = aws.engine.launch(aws.job())
    assert [place.name for place in again.places] == [place.name for place in first.places]
    with pytest.raises(ConfigError, match="launched otherwise") as caught:
        aws.engine.launch(aws.job(every="5min"))
    assert caught.value.kind == "changed"
    assert len(aws.versions()) == 1


def test_a_replaced_job_runs_with_the_new_definition_on_another_machine(aws: Account) -> None:
    (before,) = aws.engine.launch(aws.job()).places
    aws.engine.launch(aws.job(every="5min"), replace=True)
    standing = aws.engine.launch(aws.job(every="5min"))
    (after,) = [place for place in standing.places if place.state != "ended"]
    assert (standing.state, after.name != before.name) == (State.RUNNING, True)
    assert len(aws.versions()) == 2


def test_a_stopped_job_goes_on_when_it_is_launched_again(aws: Account) -> None:
    aws.engine.launch(aws.job())
    assert aws.engine.stop("gpt", timeout=60.0).state == State.STOPPED
    assert aws.engine.stop("gpt", timeout=60.0).state == State.STOPPED
    assert aws.engine.launch(aws.job()).state == State.RUNNING


@pytest.mark.parametrize(
    ("tag", "reason", "state", "then"),
    [
        ("finished", "", State.FINISHED, State.FINISHED),
        ("failed", "the agent left with 78", State.FAILED, State.RUNNING),
    ],
)
def test_a_training_that_is_over_says_so_and_only_a_failed_one_is_tried_again(
    aws: Account, tag: str, reason: str, state: State, then: State
) -> None:
    aws.engine.launch(aws.job())
    aws.ends(tag, reason)
    standing = aws.engine.status("gpt")
    assert (standing.state, standing.reason) == (state, reason)
    assert aws.engine.launch(aws.job()).state == then


def test_what_does_not_leave_in_time_is_said(aws: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.engine.launch(aws.job())
    monkeypatch.setattr(aws.engine, "_resize", lambda *_: None)  # a machine that takes its time
    with pytest.raises(UnbrokenError, match="still runs after") as caught:
        aws.engine.stop("gpt", timeout=30.0)
    assert caught.value.kind == "timeout"


def test_the_console_is_read_for_the_agents_lines_alone(aws: Account) -> None:
    text = "[  1.0] kernel\r\n[  9.1] unbroken-agent[812]: step 10 is durable\r\nunbroken-agent[812]: a]: b\nother\n"
    assert console_lines(text) == ["step 10 is durable", "a]: b"]
    aws.engine.launch(aws.job())
    assert list(aws.engine.logs("gpt")) == []
    with pytest.raises(NotFoundError, match="no node 1"):
        aws.engine.logs("gpt", node=1)


def _refused(code: str, status: int) -> Exception:
    from botocore.exceptions import ClientError

    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "CreateAutoScalingGroup")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDenied", 403, AccessError),
        ("ValidationError", 400, ConfigError),
        ("ServiceUnavailable", 503, UnbrokenError),
    ],
)
def test_a_refusal_names_the_call(code: str, status: int, kind: type[UnbrokenError]) -> None:
    with pytest.raises(kind, match="launching gpt: CreateAutoScalingGroup") as caught, asking("launching gpt"):
        raise _refused(code, status)
    assert type(caught.value) is kind


def test_a_job_without_ec2_is_refused_by_the_engine() -> None:
    job = Job.model_validate({"name": "gpt", "run": "s3://bucket/gpt", "command": ["python", "train.py"]})
    with pytest.raises(ConfigError, match="says nothing of EC2"):
        open_engine(job)
