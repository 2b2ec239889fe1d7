"""Which sources are watched: by the firmware, the environment, and what the user asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.errors import ConfigError
from unbroken.notice import choice, default_sources, offers, parse_choice, place
from unbroken.notice.choice import NAMES

FIRMWARE = {
    "ec2": {"sys_vendor": "Amazon EC2", "product_name": "p4d.24xlarge"},
    "gcp": {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
    "azure": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
    "other": {"sys_vendor": "Dell Inc.", "product_name": "PowerEdge"},
}
XEN = {"sys_vendor": "Xen", "bios_version": "4.11.amazon"}
HYPER_V = {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "1234-5678"}


@pytest.fixture
def firmware(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty firmware, and an environment in which nothing is set."""
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "GCE_METADATA_HOST", "NODE_NAME",
                 "UNBROKEN_AZURE_METADATA", "UNBROKEN_KUBERNETES_API", "KUBERNETES_SERVICE_HOST", "UNBROKEN_NOTICES",
                 "UNBROKEN_NOTICE_FILE", "UNBROKEN_NOTICE_SOCKET"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(place, "FIRMWARE", tmp_path)
    return tmp_path


def be(firmware: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (firmware / name).write_text(f"{text}\n")


def names() -> list[str]:
    return [source.name for source in default_sources()]


@pytest.mark.parametrize("cloud", ["ec2", "gcp", "azure"])
def test_on_a_machine_of_a_cloud_its_own_service_alone_is_asked(firmware: Path, cloud: str) -> None:
    be(firmware, FIRMWARE[cloud])
    assert names() == [cloud]


@pytest.mark.parametrize(("files", "expected"), [(FIRMWARE["other"], []), (HYPER_V, []), (XEN, ["ec2"])])
def test_other_machines_ask_nobody_and_old_ec2_is_known(
    firmware: Path, files: dict[str, str], expected: list[str]
) -> None:
    be(firmware, files)
    assert names() == expected


def test_where_the_firmware_cannot_be_seen_all_clouds_are_asked(firmware: Path) -> None:
    assert names() == ["ec2", "gcp", "azure"]


def test_an_address_in_the_environment_outranks_the_firmware(firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be(firmware, FIRMWARE["other"])
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    assert names() == ["gcp"]


@pytest.mark.parametrize(("value", "expected"), [("", ["ec2"]), ("false", ["ec2"]), ("true", []), ("TRUE", [])])
def test_the_variable_of_the_aws_sdks_turns_ec2_off(
    firmware: Path, monkeypatch: pytest.MonkeyPatch, value: str, expected: list[str]
) -> None:
    be(firmware, FIRMWARE["ec2"])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", value)
    assert names() == expected


def test_sources_that_are_set_up_by_variables_are_on_where_they_are(
    firmware: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(firmware, FIRMWARE["other"])
    monkeypatch.setenv("NODE_NAME", "node-0")
    assert names() == []
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("UNBROKEN_NOTICE_FILE", "/run/notice")
    monkeypatch.setenv("UNBROKEN_NOTICE_SOCKET", "/run/notice.sock")
    assert names() == ["kubernetes", "file", "socket"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sigusr1"])
def test_each_source_can_be_left_out(firmware: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in ("NODE_NAME", "KUBERNETES_SERVICE_HOST", "UNBROKEN_NOTICE_FILE", "UNBROKEN_NOTICE_SOCKET"):
        monkeypatch.setenv(variable, "x")
    monkeypatch.setenv("UNBROKEN_NOTICES", f"-{name}")
    expected = [other for other in ("ec2", "gcp", "azure", "kubernetes", "file", "socket") if other != name]
    assert names() == expected


def test_a_source_asked_for_by_name_is_on_whatever_the_firmware_says(firmware: Path) -> None:
    be(firmware, FIRMWARE["ec2"])
    assert [source.name for source in default_sources(parse_choice("gcp"))] == ["gcp"]


@pytest.mark.parametrize(
    ("name", "missing"),
    [("kubernetes", "NODE_NAME"), ("file", "UNBROKEN_NOTICE_FILE"), ("socket", "UNBROKEN_NOTICE_SOCKET")],
)
def test_a_source_asked_for_by_name_that_lacks_a_setting_is_an_error(firmware: Path, name: str, missing: str) -> None:
    with pytest.raises(ConfigError) as caught:
        default_sources(parse_choice(name))
    assert missing in str(caught.value)


def test_every_offer_says_why(firmware: Path) -> None:
    be(firmware, FIRMWARE["gcp"])
    why = {offer.name: offer.why for offer in offers(parse_choice("-file"))}
    assert why == {
        "ec2": "this is no EC2 instance, by its firmware",
        "gcp": "this is a GCP instance",
        "azure": "this is no Azure virtual machine, by its firmware",
        "kubernetes": "this is no pod",
        "file": "left out by UNBROKEN_NOTICES or --notices",
        "socket": "UNBROKEN_NOTICE_SOCKET is not set",
    }


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("", set(NAMES)), ("all", set(NAMES)), ("none", set()), ("ec2, GCP", {"ec2", "gcp"}),
        ("-azure,-sigusr1", set(NAMES) - {"azure", "sigusr1"}),
    ],
)  # fmt: skip
def test_a_choice_is_read(text: str, on: set[str]) -> None:
    assert parse_choice(text).on == on


def test_a_misspelt_name_is_an_error_with_the_nearest_and_all_names() -> None:
    with pytest.raises(ConfigError, match="--notices: 'azur' is no source") as caught:
        parse_choice("ec2,azur", "--notices")
    assert "Did you mean 'azure'?" in caught.value.hint
    assert all(name in caught.value.hint for name in NAMES)


def test_names_with_and_without_a_dash_are_not_mixed() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_choice("ec2,-gcp")
    assert caught.value.hint == "Write either ec2 or -gcp"


@given(st.text() | st.lists(st.sampled_from([*NAMES, *(f"-{name}" for name in NAMES), "all", "none"])).map(",".join))
def test_a_choice_is_read_or_refused(text: str) -> None:
    try:
        found = parse_choice(text)
    except ConfigError:
        return
    assert found.on <= set(NAMES)
    assert found.named <= found.on


def test_the_choice_takes_no_time_and_asks_nobody(firmware: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a start must not wait for a network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert len(choice.offers()) == 6
