"""Endpoints in the environment."""

from __future__ import annotations

import pytest

from unbroken.errors import ConfigError
from unbroken.store import open_store
from unbroken.store.endpoints import endpoint_of

SECRET = "not-a-real-secret"
URIS = {"s3": "s3://bucket/run", "gs": "gs://bucket/run", "az": "az://account/container/run"}
VARIABLES = [
    ("s3", "AWS_ENDPOINT_URL_S3"),
    ("s3", "AWS_ENDPOINT_URL"),
    ("s3", "AWS_ENDPOINT"),
    ("gs", "GOOGLE_BASE_URL"),
    ("az", "AZURE_ENDPOINT"),
    ("az", "AZURE_STORAGE_ENDPOINT"),
]


@pytest.fixture(autouse=True)
def nothing_else_set(clean_aws: pytest.MonkeyPatch) -> None:
    for _, name in VARIABLES:
        clean_aws.delenv(name, raising=False)
    clean_aws.setenv("AWS_ACCESS_KEY_ID", "x")
    clean_aws.setenv("AWS_SECRET_ACCESS_KEY", "x")


def refused(scheme: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        open_store(URIS[scheme])
    assert (caught.value.kind, caught.value.exit_code) == ("store-config", 78)
    return caught.value


@pytest.mark.parametrize(("scheme", "variable"), VARIABLES)
def test_an_endpoint_without_scheme_is_refused_with_its_variable(
    clean_aws: pytest.MonkeyPatch, scheme: str, variable: str
) -> None:
    clean_aws.setenv(variable, "localhost:9000")
    error = refused(scheme)
    assert variable in error.message
    assert "'localhost:9000'" in error.message
    assert f"{variable}=http://localhost:9000" in error.hint


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "localhost", "http://", "http:///path", "https:localhost:9000", "ftp://localhost:9000", "http://:9000",
        "http://[::1:9000", "http://localhost:0", "http://localhost:99999", "http://localhost:port", "http://a b:9000",
        "http://localhost:9000\n", "http://caf\u00e9:9000", "//localhost:9000",
    ],
)  # fmt: skip
def test_what_is_no_endpoint_is_refused_with_what_was_found(clean_aws: pytest.MonkeyPatch, value: str) -> None:
    clean_aws.setenv("AWS_ENDPOINT_URL", value)
    assert (repr(value) if value else "holds nothing") in refused("s3").message


def test_a_password_in_an_endpoint_is_refused_and_not_repeated(clean_aws: pytest.MonkeyPatch) -> None:
    clean_aws.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@localhost:9000")
    error = refused("s3")
    assert SECRET not in error.message + error.hint


@pytest.mark.parametrize(
    "value", ["http://localhost:9000", "HTTPS://s3.example.org/", "http://[::1]:9000", "http://10.0.0.1"]
)
def test_a_url_is_the_endpoint(clean_aws: pytest.MonkeyPatch, value: str) -> None:
    clean_aws.setenv("AWS_ENDPOINT_URL", value)
    assert endpoint_of("s3") == value
    assert open_store(URIS["s3"]).uri == URIS["s3"]


def test_the_endpoint_for_s3_alone_goes_before_the_one_for_all_services(clean_aws: pytest.MonkeyPatch) -> None:
    assert endpoint_of("s3") == ""
    clean_aws.setenv("AWS_ENDPOINT_URL", "http://all")
    clean_aws.setenv("AWS_ENDPOINT_URL_S3", "http://s3")
    assert endpoint_of("s3") == "http://s3"
