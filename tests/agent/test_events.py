"""What reaches the agent from outside: signals, and the announcements of a cloud."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import pytest

from unbroken.agent.events import Mailbox, SignalHeard, signals_to, warnings_ignored
from unbroken.testing import AzureMetadataService

SAY = "import signal; print('usr1:', signal.getsignal(signal.SIGUSR1).name, flush=True)"


def test_slurms_warning_stops_the_trainers_with_its_own_time(launcher: Any) -> None:
    launcher.environment |= {"UNBROKEN_WARNING": "100s"}
    agent = launcher.agent(launcher.trainer(until=0), grace=25)
    agent.until("trainer: step 1")
    sent_at = time.time()
    agent.signal(signal.SIGUSR1)
    _, _, source, deadline = agent.until("trainer: stop").split()
    assert agent.wait() == 75, agent.output
    assert source == "sigusr1"
    assert sent_at + 100 <= float(deadline) <= time.time() + 100
    assert [notice.source for notice in launcher.journal().state.attempts[1].notices] == ["sigusr1"]


@pytest.mark.parametrize(("notices", "disposition"), [("all", "SIG_IGN"), ("-sigusr1", "SIG_DFL")])
def test_a_warning_that_is_sent_to_all_processes_kills_none(launcher: Any, notices: str, disposition: str) -> None:
    launcher.environment |= {"UNBROKEN_NOTICES": notices}
    agent = launcher.agent([sys.executable, "-c", SAY])
    assert agent.until("usr1:") == f"usr1: {disposition}"
    agent.wait()


def test_sigusr1_is_a_signal_for_the_agent_and_given_back_afterwards() -> None:
    mailbox = Mailbox()
    before = signal.getsignal(signal.SIGUSR1)
    with signals_to(mailbox):
        with warnings_ignored():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        signal.raise_signal(signal.SIGUSR1)
        assert mailbox.take(60) == SignalHeard(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_an_azure_eviction_is_acknowledged_once_the_last_step_is_durable(launcher: Any) -> None:
    with AzureMetadataService() as service:
        launcher.environment |= {
            "UNBROKEN_AZURE_METADATA": service.endpoint,
            "UNBROKEN_AZURE_ACKNOWLEDGE": "true",
            "UNBROKEN_NOTICE_POLL": "0.05",
        }
        agent = launcher.agent(launcher.trainer(until=0))
        agent.until("trainer: step 1")
        event = service.schedule("Preempt", 120)
        assert agent.until("trainer: stop").startswith("trainer: stop azure ")
        assert service.acknowledged == []
        assert agent.wait() == 75, agent.output
        assert service.acknowledged == [event]
    record = launcher.journal().state.attempts[1]
    assert record.ended is not None
    assert (record.ended.cause, record.ended.last_step) == ("interrupted", 2)


def test_a_far_event_that_is_cancelled_is_an_advisory_and_training_goes_on(launcher: Any) -> None:
    with AzureMetadataService() as service:
        launcher.environment |= {"UNBROKEN_AZURE_METADATA": service.endpoint, "UNBROKEN_NOTICE_POLL": "0.05"}
        agent = launcher.agent(launcher.trainer(until=0))
        agent.until("trainer: step 1")
        event = service.schedule("Reboot", 3600)
        agent.until("advisory from azure")
        service.cancel(event)
        agent.until("azure cancels its notice")
        agent.signal(signal.SIGTERM)
        assert agent.until("trainer: stop").startswith("trainer: stop sigterm ")
        assert agent.wait() == 75, agent.output
    assert [notice.source for notice in launcher.journal().state.attempts[1].notices] == ["sigterm"]
