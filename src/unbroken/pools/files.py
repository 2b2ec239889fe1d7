"""Offers from files: answers of the AWS command line as JSON, the advisor's feed, or a table of prices as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec

from unbroken.errors import ConfigError
from unbroken.pools.answers import facts_of, price_of
from unbroken.pools.facts import Fact, OnDemandPrice, Reading, SpotPrice, region_of

_COLUMNS = ("InstanceType", "Price", "SpotPrice")


def read_file(path: Path) -> Reading:
    """What a file says; its age is that of the file.

    Raises:
        ConfigError: it cannot be read, or is of no known form.
    """
    try:
        data, at = path.read_bytes(), path.stat().st_mtime
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", kind="pools", hint="Is the path right?"
        ) from error
    try:
        return Reading(path.name, at, tuple(parse_file(data)))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", kind=error.kind, hint=error.hint) from error


def parse_file(data: bytes) -> list[Fact]:
    """The facts in a file's bytes.

    Raises:
        ConfigError: they are of no known form.
    """
    if data.lstrip()[:1] in (b"{", b"["):
        try:
            answer = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"this is no JSON: {error}", kind="pools", hint="Fetch it again") from error
        return facts_of(answer)
    try:
        return list(_table(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"this is neither JSON nor CSV: {error}", kind="pools", hint=_hint()) from error


def _table(rows: csv.DictReader[str]) -> Iterator[Fact]:
    columns = rows.fieldnames or []
    place = next((name for name in ("AvailabilityZone", "AvailabilityZoneId") if name in columns), None)
    if place is None or not set(_COLUMNS) <= set(columns):
        raise ConfigError("this is neither JSON nor a table of prices", kind="pools", hint=_hint())
    for row in rows:
        type_, zone = row["InstanceType"], row[place]
        region = row.get("Region") or region_of(zone or "")
        if not (type_ and zone and region):
            raise ConfigError(f"line {rows.line_num} lacks a type, a zone or a region", kind="pools", hint=_hint())
        try:
            spot = price_of(row["SpotPrice"]) if row["SpotPrice"] else None
            on_demand = price_of(row["Price"]) if row["Price"] else None
        except ValueError as error:
            raise ConfigError(f"line {rows.line_num}: {error}", kind="pools", hint=_hint()) from error
        yield SpotPrice(type_, region, zone, spot)
        if on_demand is not None:
            yield OnDemandPrice(type_, region, on_demand)


def _hint() -> str:
    return f"A table needs the columns {', '.join(_COLUMNS)}, and AvailabilityZone or Region and AvailabilityZoneId"
