"""What a machine of EC2 does when it boots: start the agent as a service, and act by the code with which it leaves."""

from __future__ import annotations

import math
from typing import Any

import yaml

from unbroken.errors import ConfigError
from unbroken.job import EC2, Job

GRACE = 100.0
"""Seconds from SIGTERM to the kill; of a notice of 120 s more is not left once it was heard."""
STATE_TAG = "unbroken:state"
REASON_TAG = "unbroken:reason"
LINES_OF = "unbroken-agent"
"""What the agent's lines on the console begin with."""
_LARGEST = 16 * 1024

_SCRIPT = """\
#!/bin/bash
set -eu
mkdir -p /etc/unbroken
cat >/etc/unbroken/job.yaml <<'END-OF-JOB'
{job}END-OF-JOB
cat >/etc/unbroken/start <<'END-OF-START'
{start}END-OF-START
cat >/etc/unbroken/ended <<'END-OF-ENDED'
{ended}END-OF-ENDED
cat >/etc/systemd/system/unbroken.service <<'END-OF-UNIT'
{unit}END-OF-UNIT
systemctl daemon-reload
systemctl start --no-block unbroken.service
"""

_START = """\
#!/bin/bash
# Says to the journal which pool this machine comes from; a training that could not say it still runs.
set -eu
at="${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest"
ask() { curl -sf --retry 3 --max-time 5 "$@"; }
pool=
if token=$(ask -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$at/api/token"); then
  tell() { ask -H "X-aws-ec2-metadata-token: $token" "$at/meta-data/$1"; }
  kind=$(tell instance-type) && zone=$(tell placement/availability-zone) && market=$(tell instance-life-cycle) &&
    pool="$kind/$zone/$market" || true
fi
exec unbroken run --job /etc/unbroken/job.yaml ${pool:+--pool "$pool"}
"""

_ENDED = """\
#!/bin/bash
# By the agent's exit code: 0 is finished; 75 (interrupted), 11 (another attempt owns the run) and a kill make place
# for another machine; with anything else no machine would do better. The machine ends in each case.
set -eu
trap 'shutdown -h now' EXIT
export AWS_DEFAULT_REGION={region} AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=8
group={group}
case "${{EXIT_CODE:-none}}/${{EXIT_STATUS:-none}}" in
  exited/75 | exited/11 | killed/* | dumped/*) exit 0 ;;
  exited/0) state=finished reason= ;;
  *) state=failed reason="the agent left with ${{EXIT_STATUS:-no code}} (${{SERVICE_RESULT:-unknown}})" ;;
esac
say() {{ echo "ResourceId=$group,ResourceType=auto-scaling-group,PropagateAtLaunch=false,Key=$1,Value=$2"; }}
# A group that is not told why still has to be emptied.
aws autoscaling create-or-update-tags --tags "$(say {state_tag} "$state")" "$(say {reason_tag} "$reason")" || true
aws autoscaling set-desired-capacity --auto-scaling-group-name "$group" --desired-capacity 0
"""

_UNIT = """\
[Unit]
Description=Unbroken, training {name}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
User={user}
WorkingDirectory={folder}
Environment=PATH={path}
ExecStart=/bin/bash /etc/unbroken/start
ExecStopPost=+/bin/bash /etc/unbroken/ended
# The agent alone gets SIGTERM: it has the trainers save.
KillMode=mixed
TimeoutStopSec={seconds}
SyslogIdentifier={lines_of}
StandardOutput=journal+console
StandardError=journal+console
"""


def group_of(name: str) -> str:
    """What the job's group and launch template are called."""
    return f"unbroken-{name}"


def grace_of(job: Job) -> int:
    """Whole seconds between SIGTERM and the kill."""
    return math.ceil(job.grace if job.grace is not None else GRACE)


def job_text(job: Job) -> str:
    """The job file of one machine: what ``unbroken run --job`` reads of it, and no more."""
    notices = {"off": list(job.notices.off)} if job.notices.off else {}
    if job.notices.poll is not None:
        notices["poll"] = _seconds(job.notices.poll)  # type: ignore[assignment]
    limits = {name: value for name, value in job.limits.model_dump().items() if value is not None}
    data: dict[str, Any] = {
        "run": job.run, "command": job.argv, "every": job.every, "keep": job.keep, "grace": f"{grace_of(job)}s",
        "ranks": {"per_node": job.ranks.per_node}, "notices": notices, "limits": limits, "env": dict(job.env),
        **_price(job),
    }  # fmt: skip
    said = {name: value for name, value in data.items() if value not in (None, {})}
    # Quoted, because 1e3 is a name.
    return f'name: "{job.name}"\n' + yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=10_000)


def _price(job: Job) -> dict[str, Any]:
    """Of the one pool that there is; of several the machine does not know its own."""
    if len(job.pools) != 1:
        return {}
    pool = job.pools[0].model_dump(exclude_none=True)
    return {"pools": [pool]} | ({"prices": job.prices.model_dump()} if job.prices else {})


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") + "s"


def user_data(job: Job, ec2: EC2) -> str:
    """The script that cloud-init runs once, as root.

    Raises:
        ConfigError: it is larger than EC2 takes.
    """
    unit = _UNIT.format(
        name=job.name, user=ec2.user, folder=_literal(ec2.folder), path=_literal(ec2.path), seconds=grace_of(job),
        lines_of=LINES_OF,
    )  # fmt: skip
    ended = _ENDED.format(region=ec2.region, group=group_of(job.name), state_tag=STATE_TAG, reason_tag=REASON_TAG)
    text = _SCRIPT.format(job=job_text(job), start=_START, ended=ended, unit=unit)
    if len(text.encode()) > _LARGEST:
        raise ConfigError(
            f"the user data has {len(text.encode())} bytes, and EC2 takes {_LARGEST}", kind="user-data",
            hint="Make env or the command smaller: put it in a script in the machine image",
        )  # fmt: skip
    return text


def _literal(text: str) -> str:
    """As systemd hands it on unchanged: it replaces ``%`` and a letter."""
    return text.replace("%", "%%")
