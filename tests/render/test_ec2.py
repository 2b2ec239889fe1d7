"""A job as a launch template and an Auto Scaling group: checked by cfn-lint, and its scripts by running them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.job import Job, load_job, read_job
from unbroken.render import define, render_ec2
from unbroken.render.user_data import job_text

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "ec2" / "job.yaml"
GOLDEN = ROOT / "manifests" / "training-group-spot.yaml"
BASE: dict[str, Any] = {
    "name": "gpt",
    "run": "s3://bucket/gpt",
    "command": ["python", "train.py", "--note", "it's $HOME 100% `x`"],
    "pools": [{"instance_type": "g5.xlarge"}],
    "ec2": {
        "region": "us-east-1", "ami": "ami-0123456789abcdef0", "instance_profile": "training",
        "subnets": ["subnet-0123456789abcdef0"], "security_groups": ["sg-0123456789abcdef0"],
    },
}  # fmt: skip


def job(**changes: Any) -> Job:
    return Job.model_validate({**BASE, **changes})


def template(of: Job) -> Any:
    (document,) = render_ec2(of)
    return yaml.safe_load(document.text)


def test_the_golden_template_is_what_is_rendered() -> None:
    """Made anew by: unbroken render ec2 examples/ec2/job.yaml > manifests/training-group-spot.yaml."""
    (document,) = render_ec2(load_job(EXAMPLE))
    assert document.text == GOLDEN.read_text()


def test_cfn_lint_has_nothing_to_say() -> None:
    from cfnlint.api import lint_file

    assert [str(found) for found in lint_file(GOLDEN)] == []


def test_what_an_interruption_needs_is_in_the_template() -> None:
    found = template(job(pools=[{"instance_type": "g5.xlarge"}, {"instance_type": "g6.xlarge", "zone": "us-east-1b"}]))
    machine = found["Resources"]["Machine"]["Properties"]["LaunchTemplateData"]
    assert machine["MetadataOptions"] == {
        "HttpTokens": "required", "HttpPutResponseHopLimit": 1, "HttpEndpoint": "enabled",
    }  # fmt: skip
    assert machine["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert machine["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    group = found["Resources"]["Group"]["Properties"]
    policy = group["MixedInstancesPolicy"]
    assert policy["InstancesDistribution"]["SpotAllocationStrategy"] == "price-capacity-optimized"
    assert policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 0
    assert [each["InstanceType"] for each in policy["LaunchTemplate"]["Overrides"]] == ["g5.xlarge", "g6.xlarge"]
    assert (group["MinSize"], group["MaxSize"], group["CapacityRebalance"]) == ("0", "1", False)


def test_on_demand_alone_is_a_group_without_spot() -> None:
    found = template(job(pools=[{"instance_type": "g5.xlarge", "market": "on-demand"}]))
    policy = found["Resources"]["Group"]["Properties"]["MixedInstancesPolicy"]
    assert policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 100


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"ec2": None}, "says nothing of EC2"),
        ({"ranks": {"nodes": 2}}, "2 nodes, and the engine ec2 runs one"),
        ({"pools": []}, "no instance type"),
        ({"run": "/home/me/run"}, "gone with the machine"),
        ({"pools": [{"instance_type": f"t{n}.large"} for n in range(41)]}, "a group takes 40"),
        ({"env": {"LONG": "x" * 20_000}}, "EC2 takes 16384"),
    ],
)
def test_a_job_that_ec2_cannot_run_is_refused(change: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        define(job(**change))


def test_the_digest_changes_with_the_definition_alone() -> None:
    assert define(job()).digest == define(job()).digest
    assert define(job()).digest != define(job(every="5min")).digest


def test_the_policy_allows_the_prefix_and_the_own_group_alone() -> None:
    _, document = render_ec2(job(), ["iam-policy"])
    statements = json.loads(document.text)["Statement"]
    assert statements[-1]["Resource"].endswith("autoScalingGroupName/unbroken-gpt")
    assert all("bucket" in json.dumps(each["Resource"]) for each in statements[:-1])


_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)


@given(st.lists(_texts, min_size=1, max_size=4), st.dictionaries(st.sampled_from(["A", "B_C"]), _texts))
def test_the_machine_reads_the_same_command_and_environment(words: list[str], env: dict[str, str]) -> None:
    given_job = job(command=["python", "train.py", *words], env=env)
    text = job_text(given_job)
    if "END-OF-JOB" not in text:
        read = read_job(text)
        assert (read.argv, read.env, read.run) == (given_job.argv, given_job.env, given_job.run)


class Machine:
    """The files that the user data writes, run with stand-ins for what a machine has."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, folder / "said"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in ("aws", "shutdown", "systemctl", "unbroken", "curl"):
            code = 22 if name == "curl" else 0
            self.stand_in(name, code)
        text = define(job()).template["UserData"].replace("/etc/", f"{folder}/etc/")
        (folder / "etc" / "systemd" / "system").mkdir(parents=True)
        self.run(text)

    def stand_in(self, name: str, code: int) -> None:
        path = self._bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{self.said}"\nexit {code}\n')
        path.chmod(0o755)

    def run(self, text: str, **environment: str) -> list[str]:
        """The commands that were given, of those that a machine has."""
        self.said.unlink(missing_ok=True)
        path = {"PATH": f"{self._bin}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
        done = subprocess.run(
            ["bash", "-c", text], env={**path, **environment}, capture_output=True, text=True, timeout=60, check=False
        )
        self.stderr, self.code = done.stderr, done.returncode
        return self.said.read_text().splitlines() if self.said.exists() else []

    def ended(self, **environment: str) -> list[str]:
        return self.run((self.folder / "etc" / "unbroken" / "ended").read_text(), **environment)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_starts_the_agent_with_the_job(machine: Machine) -> None:
    assert (machine.code, machine.stderr) == (0, "")
    assert machine.said.read_text().splitlines() == [
        "systemctl daemon-reload", "systemctl start --no-block unbroken.service",
    ]  # fmt: skip
    assert read_job((machine.folder / "etc" / "unbroken" / "job.yaml").read_text()).argv == job().argv
    start = (machine.folder / "etc" / "unbroken" / "start").read_text()
    assert machine.run(start)[-1].startswith(
        "unbroken run --job /etc/unbroken/job.yaml".replace("/etc", f"{machine.folder}/etc")
    )
    unit = (machine.folder / "etc" / "systemd" / "system" / "unbroken.service").read_text()
    assert "TimeoutStopSec=100\n" in unit
    assert "KillMode=mixed\n" in unit


@pytest.mark.parametrize(
    ("code", "status"), [("exited", "75"), ("exited", "11"), ("killed", "TERM"), ("killed", "KILL"), ("dumped", "SEGV")]
)
def test_an_interrupted_machine_makes_place_for_another(machine: Machine, code: str, status: str) -> None:
    assert machine.ended(EXIT_CODE=code, EXIT_STATUS=status) == ["shutdown -h now"]


@pytest.mark.parametrize(("status", "state"), [("0", "finished"), ("78", "failed"), ("1", "failed")])
def test_what_is_over_empties_its_group_and_says_why(machine: Machine, status: str, state: str) -> None:
    tagged, emptied, off = machine.ended(EXIT_CODE="exited", EXIT_STATUS=status, SERVICE_RESULT="exit-code")
    assert f"Key=unbroken:state,Value={state}" in tagged
    assert (f"left with {status}" in tagged) == (state == "failed")
    assert emptied == "aws autoscaling set-desired-capacity --auto-scaling-group-name unbroken-gpt --desired-capacity 0"
    assert off == "shutdown -h now"


def test_a_machine_that_may_not_say_why_ends_all_the_same(machine: Machine) -> None:
    machine.stand_in("aws", 255)
    assert machine.ended(EXIT_CODE="exited", EXIT_STATUS="0")[-1] == "shutdown -h now"


def test_the_command_offers_what_is_rendered() -> None:
    from unbroken.cli.render import EC2_EXTRAS as OFFERED
    from unbroken.render import EC2_EXTRAS

    assert tuple(EC2_EXTRAS) == OFFERED
