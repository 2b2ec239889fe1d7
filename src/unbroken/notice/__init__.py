"""Hearing of interruptions: one module per source, one watcher over them."""

from __future__ import annotations

from unbroken.notice.azure import AzureSource
from unbroken.notice.choice import Choice, Offer, default_sources, offers, parse_choice
from unbroken.notice.ec2 import EC2Source
from unbroken.notice.events import InterruptionAdvisory, InterruptionNotice
from unbroken.notice.file import FileSource
from unbroken.notice.gcp import GCPSource
from unbroken.notice.kubernetes_node import KubernetesNodeSource
from unbroken.notice.local_socket import SocketSource
from unbroken.notice.source import NoticeSource, Reach, SourceError
from unbroken.notice.watcher import NoticeWatcher

__all__ = [
    "AzureSource",
    "Choice",
    "EC2Source",
    "FileSource",
    "GCPSource",
    "InterruptionAdvisory",
    "InterruptionNotice",
    "KubernetesNodeSource",
    "NoticeSource",
    "NoticeWatcher",
    "Offer",
    "Reach",
    "SocketSource",
    "SourceError",
    "default_sources",
    "offers",
    "parse_choice",
]
