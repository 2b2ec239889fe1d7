"""Makes, watches and empties the Auto Scaling group of a job."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from unbroken.clock import SYSTEM_CLOCK, Clock, format_duration
from unbroken.engine.ec2.calls import asking, client
from unbroken.engine.face import Place, Standing, State
from unbroken.errors import ConfigError, NotFoundError, UnbrokenError
from unbroken.job import Job
from unbroken.render import DEFINITION_TAG, LINES_OF, REASON_TAG, STATE_TAG, Definition, define, group_of

_LOOK_SECONDS = 5.0
_EMPTY_SECONDS = 600.0
"""How long replacing waits for the machine that runs."""
_ACTIVITIES = 20
_OVER = {"finished": State.FINISHED, "failed": State.FAILED}
_ENDING = ("Terminat", "Detach")


class EC2Engine:
    """The face of :class:`unbroken.engine.face.Engine` over one region.

    Args:
        endpoint: of another server that speaks EC2's protocol.
    """

    def __init__(self, region: str, *, endpoint: str | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._region = region
        self._groups = client("autoscaling", region, endpoint)
        self._machines = client("ec2", region, endpoint)
        self._clock = clock

    def launch(self, job: Job, *, replace: bool = False) -> Standing:
        found = define(job)
        with asking(f"launching {job.name}"):
            group = self._group(found.name)
            if group is None:
                self._template(found)
                self._create(found)
                return self.status(job.name)
            tags = _tags(group)
            if tags.get(DEFINITION_TAG) != found.all_tags[DEFINITION_TAG]:
                self._replace(job.name, found, tags, replace=replace)
            elif tags.get(STATE_TAG) != "finished" and group["DesiredCapacity"] == 0:
                self._forget_end(found.name, tags)
                self._resize(found.name, found.group["DesiredCapacity"])
        return self.status(job.name)

    def status(self, name: str) -> Standing:
        with asking(f"looking at {name}"):
            group = self._group(group_of(name))
            if group is None:
                return Standing("ec2", name, self._region, State.ABSENT)
            places = [*self._ended(group), *self._living(group)]
        state, reason = _state(group)
        if state == State.WAITING:
            reason = next((place.reason for place in reversed(places) if place.state == "ended"), "")
        return Standing("ec2", name, self._region, state, reason, places)

    def logs(self, name: str, *, node: int = 0, follow: bool = False) -> Iterator[str]:
        """Lines of the console of the machine that runs: EC2 keeps 64 KB of it, and none of machines that are gone."""
        if self.status(name).state == State.ABSENT:
            raise self._unknown(name)
        if node > 0:
            raise NotFoundError(f"the job {name} has one node, and no node {node}", kind="logs")
        return self._lines(name, follow=follow)

    def stop(self, name: str, *, timeout: float) -> Standing:
        """Empty the group: systemd on the machine gives the agent its grace to save."""
        with asking(f"stopping {name}"):
            group = self._group(group_of(name))
            if group is None:
                raise self._unknown(name)
            if group["DesiredCapacity"] > 0:
                self._resize(group_of(name), 0)
        return self._wait_until_empty(name, timeout)

    def _group(self, name: str) -> dict[str, Any] | None:
        found = self._groups.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        living = [group for group in found if not str(group.get("Status", "")).startswith("Delete")]
        return living[0] if living else None

    def _template(self, found: Definition) -> None:
        """A new version of the launch template, which is made where there is none."""
        data = {**found.template, "UserData": base64.b64encode(found.template["UserData"].encode()).decode()}
        filters = [{"Name": "launch-template-name", "Values": [found.name]}]
        if self._machines.describe_launch_templates(Filters=filters)["LaunchTemplates"]:
            self._machines.create_launch_template_version(LaunchTemplateName=found.name, LaunchTemplateData=data)
        else:
            self._machines.create_launch_template(LaunchTemplateName=found.name, LaunchTemplateData=data)

    def _create(self, found: Definition) -> None:
        group = _with_template(found)
        self._groups.create_auto_scaling_group(AutoScalingGroupName=found.name, Tags=_tag_list(found), **group)

    def _replace(self, name: str, found: Definition, tags: dict[str, str], *, replace: bool) -> None:
        if not replace:
            raise ConfigError(
                f"the job {name} was launched otherwise (definition {tags.get(DEFINITION_TAG, 'unknown')}, now"
                f" {found.digest})",
                kind="changed", hint="Say --replace to stop it and go on with this, or give it another name",
            )  # fmt: skip
        self._resize(found.name, 0)
        self._wait_until_empty(name, _EMPTY_SECONDS)
        self._template(found)
        group = _with_template(found)
        hooks = group.pop("LifecycleHookSpecificationList")
        self._groups.update_auto_scaling_group(AutoScalingGroupName=found.name, **group)
        for hook in hooks:
            self._groups.put_lifecycle_hook(AutoScalingGroupName=found.name, **hook)
        self._groups.create_or_update_tags(Tags=_tag_list(found))
        self._forget_end(found.name, tags)

    def _forget_end(self, name: str, tags: dict[str, str]) -> None:
        old = [{"Key": key, "Value": tags[key]} for key in (STATE_TAG, REASON_TAG) if key in tags]
        if old:
            self._groups.delete_tags(Tags=[{**_OF_GROUP, "ResourceId": name, **each} for each in old])

    def _resize(self, name: str, count: int) -> None:
        self._groups.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=count)

    def _wait_until_empty(self, name: str, timeout: float) -> Standing:
        deadline = self._clock.monotonic() + timeout
        while True:
            standing = self.status(name)
            if all(place.state == "ended" for place in standing.places):
                return standing
            if self._clock.monotonic() > deadline:
                raise UnbrokenError(
                    f"the job {name} still runs after {format_duration(timeout)}; it was told to stop", kind="timeout",
                    hint="Wait longer with --timeout; the training saves first",
                )  # fmt: skip
            self._clock.sleep(_LOOK_SECONDS)

    def _living(self, group: dict[str, Any]) -> list[Place]:
        ids = [each["InstanceId"] for each in group["Instances"]]
        if not ids:
            return []
        answer = self._machines.describe_instances(Filters=[{"Name": "instance-id", "Values": ids}])
        found = [each for reservation in answer["Reservations"] for each in reservation["Instances"]]
        return [_place(each) for each in sorted(found, key=lambda one: one["LaunchTime"])]

    def _ended(self, group: dict[str, Any]) -> list[Place]:
        """Machines that left the group, by its activities: EC2 itself forgets them within an hour."""
        name = group["AutoScalingGroupName"]
        answer = self._groups.describe_scaling_activities(AutoScalingGroupName=name, MaxRecords=_ACTIVITIES)
        living = {each["InstanceId"] for each in group["Instances"]}
        found = [each for each in reversed(answer["Activities"]) if each["Description"].startswith(_ENDING)]
        return [
            Place(id_, "ended", ended_at=_moment(each.get("EndTime")), reason=each.get("Cause", ""))
            for each in found
            if (id_ := each["Description"].rsplit(" ", 1)[-1]) not in living
        ]

    def _lines(self, name: str, *, follow: bool) -> Iterator[str]:
        seen: dict[str, int] = {}
        while True:
            standing = self.status(name)
            for place in standing.places:
                if place.state != "ended":
                    lines = self._console(place.name)
                    yield from lines[seen.get(place.name, 0) :]
                    seen[place.name] = max(len(lines), seen.get(place.name, 0))
            if not follow or standing.state in (State.FINISHED, State.FAILED, State.STOPPED, State.ABSENT):
                return
            self._clock.sleep(_LOOK_SECONDS)

    def _console(self, machine: str) -> Sequence[str]:
        with asking(f"reading the console of {machine}"):
            text = self._machines.get_console_output(InstanceId=machine).get("Output", "")
        return console_lines(text)

    def _unknown(self, name: str) -> NotFoundError:
        return NotFoundError(f"there is no job {name} in {self._region}", kind="job", hint="Launch it first")


_OF_GROUP = {"ResourceType": "auto-scaling-group", "PropagateAtLaunch": False}


def console_lines(text: str) -> list[str]:
    """What the agent printed, of a machine's console: the kernel's and systemd's lines are left out."""
    marked = [line.partition(f"{LINES_OF}[") for line in text.splitlines()]
    return [rest.partition("]: ")[2].rstrip("\r") for _, mark, rest in marked if mark and "]: " in rest]


def _with_template(found: Definition) -> dict[str, Any]:
    """The group as the API takes it."""
    policy = found.group["MixedInstancesPolicy"]
    version = {"LaunchTemplateName": found.name, "Version": "$Latest"}
    template = {**policy["LaunchTemplate"], "LaunchTemplateSpecification": version}
    subnets = ",".join(found.group["VPCZoneIdentifier"])
    policy = {**policy, "LaunchTemplate": template}
    return {**found.group, "MixedInstancesPolicy": policy, "VPCZoneIdentifier": subnets}


def _tag_list(found: Definition) -> list[dict[str, Any]]:
    return [{**_OF_GROUP, "ResourceId": found.name, "Key": k, "Value": v} for k, v in found.all_tags.items()]


def _tags(group: dict[str, Any]) -> dict[str, str]:
    return {each["Key"]: each.get("Value", "") for each in group.get("Tags", [])}


def _state(group: dict[str, Any]) -> tuple[State, str]:
    """(state, reason)"""
    tags = _tags(group)
    over, machines = _OVER.get(tags.get(STATE_TAG, "")), group["Instances"]
    if over is not None and group["DesiredCapacity"] == 0:
        return over, tags.get(REASON_TAG, "")
    if group["DesiredCapacity"] == 0:
        return (State.STOPPING if machines else State.STOPPED), ""
    runs = any(each["LifecycleState"] == "InService" for each in machines)
    return (State.RUNNING if runs else State.WAITING), ""


def _place(machine: dict[str, Any]) -> Place:
    state = {"pending": "waiting", "running": "running", "terminated": "ended"}.get(machine["State"]["Name"], "running")
    market = machine.get("InstanceLifecycle", "on-demand")
    return Place(
        machine["InstanceId"], state, host=machine.get("PrivateDnsName", "").split(".")[0],
        pool=f"{machine['InstanceType']}/{machine['Placement']['AvailabilityZone']}/{market}",
        began_at=_moment(machine["LaunchTime"]), reason=machine.get("StateTransitionReason", ""),
    )  # fmt: skip


def _moment(at: Any) -> float | None:
    return None if at is None else float(at.timestamp())
