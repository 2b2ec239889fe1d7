"""Whether the bucket takes away the parts of uploads that were never finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unbroken.doctor.finding import Finding, note, sound, warning
from unbroken.doctor.place import Place
from unbroken.store import parse_uri
from unbroken.store.endpoints import endpoint_of

_WHY = "A machine that is taken in the middle of an upload leaves parts that no listing shows, and that are paid for"
_TODO = "Add a lifecycle rule to the bucket with AbortIncompleteMultipartUpload: DaysAfterInitiation 2"
_SECONDS = 5.0


def check_lifecycle(place: Place) -> list[Finding]:
    """Ask S3 for the bucket's lifecycle rules."""
    where = parse_uri(place.uri) if place.uri else None
    if where is None or where.scheme == "file":
        return [note("no bucket, so there are no orphan uploads")]
    if where.scheme != "s3":
        return [note(f"the rules of {where} were not looked at: that is done for S3 alone", _WHY)]
    try:
        import boto3  # noqa: F401
    except ImportError:
        return [note("the bucket's rules were not looked at: boto3 is missing", _WHY, "pip install 'unbroken[aws]'")]
    return [_looked(where.bucket, where.path)]


def _looked(bucket: str, prefix: str) -> Finding:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        rules = _rules(bucket)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "no code"))
        if code == "NoSuchLifecycleConfiguration":
            return warning(f"the bucket {bucket} has no lifecycle rules", _WHY, _TODO)
        found = f"the rules of the bucket {bucket} could not be read ({code})"
        return note(found, _WHY, "Allow s3:GetLifecycleConfiguration here, or look by hand")
    except BotoCoreError as error:
        return note(
            f"the rules of the bucket {bucket} could not be read ({type(error).__name__})", _WHY, "Look by hand"
        )
    days = days_until_aborted(rules, prefix)
    if days is None:
        return warning(f"no rule of the bucket {bucket} ends unfinished uploads below {prefix}", _WHY, _TODO)
    return sound(f"the bucket {bucket} ends unfinished uploads after {days} days")


def days_until_aborted(rules: Sequence[Mapping[str, Any]], prefix: str) -> int | None:
    """Days after which an upload below ``prefix`` is ended by a bucket's lifecycle rules; None for never."""
    found = [
        int(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"])
        for rule in rules
        if rule.get("Status") == "Enabled" and "AbortIncompleteMultipartUpload" in rule and _covers(rule, prefix)
    ]
    return min(found, default=None)


def _covers(rule: Mapping[str, Any], prefix: str) -> bool:
    """Whether a rule holds for all below ``prefix``; one that asks for tags or sizes never holds for uploads."""
    filtered = rule.get("Filter", {})
    if set(filtered) - {"Prefix"}:
        return False
    return f"{prefix}/".startswith(str(filtered.get("Prefix", rule.get("Prefix", ""))))


def _rules(bucket: str) -> list[Mapping[str, Any]]:
    import boto3
    from botocore.config import Config

    patience = Config(connect_timeout=_SECONDS, read_timeout=_SECONDS, retries={"total_max_attempts": 1})
    # A session of its own: the default one keeps the credentials that it had first.
    client = boto3.session.Session().client("s3", endpoint_url=endpoint_of("s3") or None, config=patience)
    try:
        answer = client.get_bucket_lifecycle_configuration(Bucket=bucket)
    finally:
        client.close()
    return list(answer.get("Rules", []))
