"""For the bucket's owner: a rule that clears away abandoned uploads, and the least that a training may do."""

from __future__ import annotations

import re
from typing import Any

from unbroken.job import Job
from unbroken.render.checks import refused
from unbroken.render.document import Document
from unbroken.store.uri import StoreURI, parse_uri


def bucket_lifecycle(job: Job) -> list[Document]:
    """A lifecycle configuration for ``aws s3api put-bucket-lifecycle-configuration``.

    Raises:
        ConfigError: the run is not on S3, or has no prefix of its own.
    """
    uri = _on_s3(job, "bucket-lifecycle")
    rule = {
        "ID": f"unbroken-{job.name}",
        "Status": "Enabled",
        "Filter": {"Prefix": f"{uri.path}/"},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
    }
    return [Document("bucket-lifecycle.json", {"Rules": [rule]})]


def iam_policy(job: Job) -> list[Document]:
    """An IAM policy for the role of the pods. Deleting is allowed only where the job says what to keep.

    Raises:
        ConfigError: as :func:`bucket_lifecycle`.
    """
    uri = _on_s3(job, "iam-policy")
    bucket = f"arn:{_partition(job)}:s3:::{uri.bucket}"
    actions = ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"]
    statements: list[dict[str, Any]] = [
        {"Sid": "Run", "Effect": "Allow", "Action": actions, "Resource": f"{bucket}/{uri.path}/*"},
        {
            "Sid": "List",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": bucket,
            "Condition": {"StringLike": {"s3:prefix": [uri.path, f"{uri.path}/*"]}},
        },
    ]
    if job.keep is not None:
        retention = {"Sid": "Retention", "Effect": "Allow", "Action": "s3:DeleteObject"}
        statements.append({**retention, "Resource": f"{bucket}/{uri.path}/*"})
    return [Document("iam-policy.json", {"Version": "2012-10-17", "Statement": statements})]


def _on_s3(job: Job, part: str) -> StoreURI:
    uri = parse_uri(job.run)
    if uri.scheme != "s3":
        raise refused(f"--with {part} is for S3, and run is {job.run!r}", "Leave it out")
    path = uri.path.strip("/")
    if not path or re.search(r"[*?$]", path):
        raise refused(
            f"--with {part} needs a prefix of the run's own, and run is {job.run!r}",
            "Write s3://bucket/path, without '*', '?' and '$'",
        )
    return StoreURI(uri.scheme, uri.bucket, path)


def _partition(job: Job) -> str:
    """``aws``, or that of China or GovCloud, as the role says."""
    found = re.match(r"arn:(aws[a-z-]*):", job.kubernetes.role_arn or "")
    return found[1] if found else "aws"
