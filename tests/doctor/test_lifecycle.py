from __future__ import annotations

import contextlib
from typing import Any

import pytest

from unbroken.doctor import Place
from unbroken.doctor.lifecycle import check_lifecycle, days_until_aborted


def _rule(days: int = 2, status: str = "Enabled", **more: Any) -> dict[str, Any]:
    return {"Status": status, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": days}, **more}


@pytest.mark.parametrize(
    ("rules", "days"),
    [
        ([], None),
        ([_rule(Filter={})], 2),
        ([_rule(Prefix="")], 2),
        ([_rule(Filter={"Prefix": "team/"})], 2),
        ([_rule(Filter={"Prefix": "team/run/"})], 2),
        ([_rule(Filter={"Prefix": "other/"})], None),
        ([_rule(status="Disabled", Filter={})], None),
        ([_rule(Filter={"Tag": {"Key": "a", "Value": "b"}})], None),
        ([{"Status": "Enabled", "Filter": {}, "Expiration": {"Days": 1}}], None),
        ([_rule(7, Filter={}), _rule(3, Filter={"Prefix": "team/"})], 3),
    ],
)
def test_a_rule_counts_where_it_is_enabled_and_covers_the_run(rules: list[dict[str, Any]], days: int | None) -> None:
    assert days_until_aborted(rules, "team/run") == days


def test_a_bucket_without_rules_is_a_warning(s3_environment: Any) -> None:
    (found,) = check_lifecycle(Place(uri=f"s3://{s3_environment.bucket}/run"))
    assert found.severity == "warning"
    assert "AbortIncompleteMultipartUpload" in found.todo


def test_rules_that_may_not_be_read_are_a_note(s3_environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (found,) = check_lifecycle(Place(uri=f"s3://{s3_environment.bucket}/run"))
    assert found.severity == "note"
    assert "SignatureDoesNotMatch" in found.found


@pytest.mark.parametrize("uri", ["", "/a/folder", "gs://bucket/run"])
def test_only_s3_is_asked(uri: str) -> None:
    assert [one.severity for one in check_lifecycle(Place(uri=uri))] == ["note"]


def test_a_rule_of_the_bucket_is_read(s3_environment: Any) -> None:
    rules = {"Rules": [{"ID": "orphans", **_rule(Filter={"Prefix": "covered/"})}]}
    with contextlib.closing(s3_environment.client()) as client:
        client.put_bucket_lifecycle_configuration(Bucket=s3_environment.bucket, LifecycleConfiguration=rules)
        try:
            (covered,) = check_lifecycle(Place(uri=f"s3://{s3_environment.bucket}/covered/run"))
            (other,) = check_lifecycle(Place(uri=f"s3://{s3_environment.bucket}/other/run"))
        finally:
            client.delete_bucket_lifecycle(Bucket=s3_environment.bucket)
    assert (covered.severity, other.severity) == ("ok", "warning")
    assert "after 2 days" in covered.found
