"""The verb ``watch``, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from unbroken.testing import AzureMetadataService, EC2MetadataService, GCPMetadataService, KubernetesNodeService

PATIENCE = 90.0


class Watching:
    """A running ``unbroken watch --json``; a deadline ends it, so that no line is waited for in vain."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The next line with these fields."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            fields: dict[str, Any] = json.loads(line)
            if wanted.items() <= fields.items():
                return fields
        pytest.fail(f"it ended with {self.process.wait()} without a line of {wanted}")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=PATIENCE)


@contextmanager
def watching(*arguments: str, **environment: str) -> Iterator[Watching]:
    process = subprocess.Popen(
        [sys.executable, "-m", "unbroken", "watch", "--json", *arguments],
        env={**os.environ, "UNBROKEN_NOTICE_POLL": "0.05", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        with process:
            yield Watching(process)
            process.kill()
    finally:
        timer.cancel()
        timer.join()


def test_it_says_who_answers_and_prints_what_comes() -> None:
    with EC2MetadataService() as ec2, GCPMetadataService() as gcp:
        variables = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": ec2.endpoint, "GCE_METADATA_HOST": gcp.host}
        with watching("--notices", "ec2,gcp", AWS_EC2_METADATA_DISABLED="", **variables) as watch:
            assert "left out" in watch.until(event="source", source="azure", state="off")["why"]
            watch.until(event="source", state="answers")
            watch.until(event="source", state="answers")
            ec2.recommend_rebalance()
            assert "rebalancing" in watch.until(event="advisory", source="ec2")["reason"]
            deadline = ec2.interrupt(seconds=100)
            assert watch.until(event="notice", source="ec2")["deadline"] == deadline
            gcp.preempt()
            assert watch.until(event="notice", source="gcp")["deadline"] < deadline
            ec2.clear()
            watch.until(event="cancelled", source="ec2")
            gcp.misbehave("error500")
            watch.until(event="problem", source="gcp")
            assert watch.end(signal.SIGTERM) == 0


def test_azure_and_kubernetes_are_heard_by_their_variables() -> None:
    with AzureMetadataService() as azure, KubernetesNodeService() as kubernetes:
        azure.schedule("Preempt", 60)
        kubernetes.taint("karpenter.sh/disrupted")
        with watching(
            "--notices", "azure,kubernetes", UNBROKEN_AZURE_METADATA=azure.endpoint, NODE_NAME="node-0",
            UNBROKEN_KUBERNETES_API=kubernetes.endpoint,
        ) as watch:  # fmt: skip
            watch.until(event="notice", source="azure")
            assert watch.end(signal.SIGINT) == 130
        assert kubernetes.requests


def test_slurms_warning_is_a_notice(tmp_path: Any) -> None:
    variables = {"UNBROKEN_NOTICE_FILE": str(tmp_path / "notice"), "UNBROKEN_WARNING": "90s"}
    with watching("--notices", "file", **variables) as watch:
        watch.until(event="source", source="file", state="answers")
        watch.process.send_signal(signal.SIGUSR1)
        notice = watch.until(event="notice", source="sigusr1")
        assert 80 < notice["deadline"] - notice["at"] <= 90
        assert watch.end(signal.SIGTERM) == 0


def test_a_reader_that_has_gone_ends_it(tmp_path: Any) -> None:
    notice = tmp_path / "notice"
    with watching("--notices", "file", UNBROKEN_NOTICE_FILE=str(notice)) as watch:
        watch.until(event="source", source="file", state="answers")
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        notice.write_text("advise")
        assert watch.process.wait(timeout=PATIENCE) == 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unbroken", "watch", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def test_where_nobody_can_announce_anything_it_says_so_and_ends_with_10() -> None:
    result = run("--notices", "none")
    assert result.returncode == 10
    assert "nobody can announce an interruption here" in result.stderr
    assert "ec2 is not watched: left out" in result.stdout


def test_a_misspelt_source_ends_with_78() -> None:
    result = run("--notices", "azur")
    assert result.returncode == 78
    assert "Did you mean 'azure'?" in result.stderr
