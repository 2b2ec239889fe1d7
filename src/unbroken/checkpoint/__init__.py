"""Checkpoints as bytes: manifest, packs, commit, verified reading. Knows nothing of tensors' libraries."""

from unbroken.checkpoint.boxes import Box, Way
from unbroken.checkpoint.catalog import newest_first, restore_newest
from unbroken.checkpoint.committed import load_head, load_manifest, load_rank_part
from unbroken.checkpoint.gather import commit_ranks, find_rank_records, list_rank_records, missing
from unbroken.checkpoint.manifest import Manifest, PackRecord, RankRecord, RankRef, Slice, TensorRecord
from unbroken.checkpoint.manifest_part import Wanted, load_manifest_part
from unbroken.checkpoint.metrics import Metrics, read_metrics
from unbroken.checkpoint.packs import HostTensor
from unbroken.checkpoint.pieces import Piece, Sink
from unbroken.checkpoint.pruning import Pruned, PrunePlan, Pruner, plan_prune
from unbroken.checkpoint.rank_writer import RankDurable, RankWriter
from unbroken.checkpoint.reader import read_pieces, read_tensors
from unbroken.checkpoint.retention import KeepAny, KeepBest, KeepEvery, KeepLast, Policy, choose
from unbroken.checkpoint.retention_text import keep_policy, parse_keep
from unbroken.checkpoint.sameness import holds_state
from unbroken.checkpoint.staged import HostState
from unbroken.checkpoint.tree import Tagged, TensorRef, decode_tree, encode_tree
from unbroken.checkpoint.verify import Verification, verify_checkpoint
from unbroken.checkpoint.writer import CheckpointWriter

__all__ = [
    "Box",
    "CheckpointWriter",
    "HostState",
    "HostTensor",
    "KeepAny",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "Manifest",
    "Metrics",
    "PackRecord",
    "Piece",
    "Policy",
    "PrunePlan",
    "Pruned",
    "Pruner",
    "RankDurable",
    "RankRecord",
    "RankRef",
    "RankWriter",
    "Sink",
    "Slice",
    "Tagged",
    "TensorRecord",
    "TensorRef",
    "Verification",
    "Wanted",
    "Way",
    "choose",
    "commit_ranks",
    "decode_tree",
    "encode_tree",
    "find_rank_records",
    "holds_state",
    "keep_policy",
    "list_rank_records",
    "load_head",
    "load_manifest",
    "load_manifest_part",
    "load_rank_part",
    "missing",
    "newest_first",
    "parse_keep",
    "plan_prune",
    "read_metrics",
    "read_pieces",
    "read_tensors",
    "restore_newest",
    "verify_checkpoint",
]
