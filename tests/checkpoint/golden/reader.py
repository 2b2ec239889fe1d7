"""A second reader of runs, from docs/spec alone: ``python reader.py FOLDER`` prints the newest checkpoint as JSON.

It shares no code with the package, so that a mistake made there in writing and in reading alike shows here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import struct
import sys
from pathlib import Path
from typing import Any

import xxhash

CHUNK = 16_777_216
SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2, "uint32": 4, "int32": 4,
    "float32": 4, "uint64": 8, "int64": 8, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "complex32": 4, "complex64": 8, "complex128": 16,
}  # fmt: skip
IN_HEADER = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "bfloat16": "BF16",
    "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
TAGS = {
    "$tensor", "$tuple", "$dict", "$ordered", "$set", "$frozenset", "$int", "$float", "$complex", "$bytes", "$size",
    "$dtype", "$device", "$ndarray", "$scalar",
}  # fmt: skip


class DamageError(Exception):
    """Something is not what was committed."""


def check(holds: bool, what: str) -> None:
    if not holds:
        raise DamageError(what)


def entries(run: Path) -> list[dict[str, Any]]:
    """The journal, in order."""
    assert json.loads((run / "run.json").read_bytes())["format"] == 1
    numbers = [int(path.stem) for path in (run / "journal").iterdir() if re.fullmatch(r"\d{11}\.json", path.name)]
    found = [json.loads((run / "journal" / f"{n:011d}.json").read_bytes()) for n in range(1, max(numbers) + 1)]
    assert all(entry["n"] == n and entry.get("format", 1) == 1 for n, entry in enumerate(found, start=1))
    return found


def replay(journal: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """(checkpoints to restore from, oldest first; all that were ever committed, by manifest)."""
    owner: tuple[int, str] = (0, "")
    kept: dict[str, dict[str, Any]] = {}
    committed: dict[str, dict[str, Any]] = {}
    for entry in journal:
        event, writer = entry["event"], (entry["attempt"], entry["claim"])
        if event["type"] == "attempt-claimed":
            owner = writer if writer[0] == owner[0] + 1 else owner
        elif writer == owner and event["type"] == "checkpoint" and event["manifest"] not in committed:
            committed[event["manifest"]] = kept[event["manifest"]] = event
        elif writer == owner and event["type"] == "checkpoint-retired":
            kept.pop(event["manifest"], None)
    return list(kept.values()), committed


def named(run: Path, key: str, sha256: str) -> Any:
    """A JSON object whose SHA-256 is known."""
    path = run / key
    check(path.is_file(), f"{key} is missing")
    check(hashlib.sha256(path.read_bytes()).hexdigest() == sha256, f"{key} is not what was committed")
    document = json.loads(path.read_bytes())
    assert document["format"] in (1, 2), "a newer format"
    return document


def read_tensor(run: Path, manifest: dict[str, Any], tensor: dict[str, Any]) -> bytes:
    """The elements of all slices, each at its place."""
    if manifest["format"] == 1:
        (piece,) = tensor["slices"]
        assert piece["offset"] == [0] * len(tensor["shape"])
        assert piece["shape"] == tensor["shape"]
    item, shape = SIZES[tensor["dtype"]], tensor["shape"]
    elements: list[bytes] = [b""] * math.prod(shape)
    for piece in tensor["slices"]:
        data = read_slice(run, manifest, tensor, piece)
        check(len(piece["offset"]) == len(piece["shape"]) == len(shape), f"a slice of {tensor['name']}")
        for number, index in enumerate(itertools.product(*map(range, piece["shape"]))):
            at = 0
            for start, i, length in zip(piece["offset"], index, shape, strict=True):
                check(0 <= start + i < length, f"a slice of {tensor['name']} is outside of it")
                at = at * length + start + i
            check(elements[at] == b"", f"slices of {tensor['name']} overlap")
            elements[at] = data[number * item : (number + 1) * item]
    check(all(elements) and bool(tensor["slices"]), f"elements of {tensor['name']} are missing")
    return b"".join(elements)


def read_slice(run: Path, manifest: dict[str, Any], tensor: dict[str, Any], piece: dict[str, Any]) -> bytes:
    length = math.prod(piece["shape"]) * SIZES[tensor["dtype"]]
    check(piece["length"] == length and 0 <= piece["pack"] < len(manifest["packs"]), tensor["name"])
    pack = manifest["packs"][piece["pack"]]
    check(pack["header_size"] <= piece["start"] and piece["start"] + length <= pack["size"], tensor["name"])
    check(piece["start"] % SIZES[tensor["dtype"]] == 0, f"{tensor['name']} is not aligned")
    data = (run / pack["key"]).read_bytes()[piece["start"] : piece["start"] + length]
    check(len(data) == length, f"{pack['key']} is too short")
    chunks = [data[at : at + CHUNK] for at in range(0, length, CHUNK)]
    check([xxhash.xxh3_128_hexdigest(chunk) for chunk in chunks] == piece["digests"], f"{tensor['name']} differs")
    check_header_entry(run, pack, tensor, piece)
    return data


def check_header_entry(run: Path, pack: dict[str, Any], tensor: dict[str, Any], piece: dict[str, Any]) -> None:
    """The pack's own header says the same of the tensor as the manifest."""
    data = (run / pack["key"]).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    check(pack["header_size"] == 8 + size and pack["header_size"] % 64 == 0 and len(data) == pack["size"], pack["key"])
    check(xxhash.xxh3_128_hexdigest(data[: 8 + size]) == pack["header_digest"], f"the header of {pack['key']}")
    entry = json.loads(data[8 : 8 + size])[tensor["name"]]
    begin = piece["start"] - pack["header_size"]
    dtype = IN_HEADER.get(tensor["dtype"])
    shape = piece["shape"] if dtype else [piece["length"]]
    expected = {"dtype": dtype or "U8", "shape": shape, "data_offsets": [begin, begin + piece["length"]]}
    check(entry == expected, f"{tensor['name']} in the header of {pack['key']}")


def check_tree(node: Any, tensors: dict[str, bytes]) -> None:
    if isinstance(node, list):
        for item in node:
            check_tree(item, tensors)
    elif isinstance(node, dict):
        tags = [key for key in node if key.startswith("$")]
        check(not tags or (len(node) == 1 and tags[0] in TAGS), f"the tag {tags}")
        if tags and tags[0] in ("$tensor", "$ndarray"):
            check(node[tags[0]] in tensors, f"the tensor {node[tags[0]]}")
        for item in node.values():
            check_tree(item, tensors)


def load(run: Path, event: dict[str, Any]) -> dict[str, Any]:
    """One checkpoint, every byte of it checked."""
    manifest = named(run, event["manifest"], event["sha256"])
    ranks = [named(run, rank["key"], rank["sha256"]) for rank in manifest["ranks"]]
    check([rank["rank"] for rank in ranks] == list(range(manifest["world_size"])), "the rank records")
    if manifest["format"] == 2:
        put_together(manifest, ranks)
    tensors = {tensor["name"]: read_tensor(run, manifest, tensor) for tensor in manifest["tensors"]}
    check(len(tensors) == len(manifest["tensors"]), "a name that is there twice")
    check_tree([manifest["state"], [rank.get("local", {}) for rank in ranks]], tensors)
    if manifest["format"] == 1:
        same = ("step", "attempt", "world_size", "tensors", "packs")
        check(all(ranks[0][name] == manifest[name] for name in same), "the rank record")
    kinds = {tensor["name"]: [tensor["dtype"], tensor["shape"]] for tensor in manifest["tensors"]}
    return {
        "step": manifest["step"],
        "state": manifest["state"],
        "locals": [rank.get("local", {}) for rank in ranks],
        "tensors": {name: [*kinds[name], data.hex()] for name, data in tensors.items()},
    }


def put_together(manifest: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    """Make a manifest of format 2 like one of format 1, but for its slices."""
    check(manifest["tensors"] == manifest["packs"] == [], "parts in the manifest")
    whole: dict[str, dict[str, Any]] = {}
    for rank in ranks:
        same = ("format", "step", "attempt", "world_size")
        check(all(rank[name] == manifest[name] for name in same), f"the record of rank {rank['rank']}")
        check(rank.get("shared") == ranks[0].get("shared"), f"what rank {rank['rank']} shares")
        for tensor in rank["tensors"]:
            for piece in tensor["slices"]:
                check(0 <= piece["pack"] < len(rank["packs"]), tensor["name"])
                piece["pack"] += len(manifest["packs"])
            held = whole.setdefault(tensor["name"], {**tensor, "slices": []})
            check((held["dtype"], held["shape"]) == (tensor["dtype"], tensor["shape"]), tensor["name"])
            held["slices"].extend(tensor["slices"])
        manifest["packs"].extend(rank["packs"])
    manifest["tensors"] = list(whole.values())


def curve(run: Path, event: dict[str, Any], committed: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """The logged values of the chain of parents, oldest first."""
    chain = [event]
    while parent := chain[-1].get("parent"):
        chain.append(committed[parent])
    values: dict[str, list[Any]] = {}
    for link in reversed(chain):
        if link.get("metrics"):
            for name, points in named(run, link["metrics"], link["metrics_sha256"])["values"].items():
                values.setdefault(name, []).extend(points)
    return values


def main(run: Path) -> None:
    checkpoints, committed = replay(entries(run))
    passed_over = []
    for event in reversed(checkpoints):
        try:
            found = {**load(run, event), "values": curve(run, event, committed), "passed_over": passed_over}
        except (DamageError, FileNotFoundError) as error:
            passed_over.append([event["step"], str(error)])
            continue
        print(json.dumps(found))  # noqa: T201
        return
    sys.exit(f"nothing sound: {passed_over}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
