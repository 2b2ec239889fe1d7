"""What a trainer is told about a slot that it announced."""

from __future__ import annotations

from unbroken.agent.triage import Upload
from unbroken.errors import UnbrokenError
from unbroken.journal.events import CheckpointCommitted
from unbroken.link.channel import ChannelError
from unbroken.link.messages import SlotCommitted, SlotFailed


def answer_committed(upload: Upload, event: CheckpointCommitted) -> bool:
    """Say that it is committed; False where the trainer is gone."""
    return _send(upload, SlotCommitted(upload.taken.slot.number, event))


def answer_failed(upload: Upload, error: UnbrokenError) -> bool:
    """Say that it was given up; False where the trainer is gone."""
    number, name = upload.taken.slot.number, type(error).__name__
    return _send(upload, SlotFailed(number, upload.step, name, error.message, error.kind, error.hint))


def _send(upload: Upload, answer: SlotCommitted | SlotFailed) -> bool:
    try:
        upload.trainer.send(answer)
    except ChannelError:
        return False
    return True
