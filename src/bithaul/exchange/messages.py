"""The JSON messages between worker and coordinator, and the names both sides must agree on.

Pure data: pydantic models with bounds, shared by `coordinator.api` and `worker.client`. Field names are
the public REST contract. Times are seconds, sizes bytes unless the name says otherwise.
"""

from __future__ import annotations

import operator
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

WORKER_SCOPE = "bithaul.worker"
ADMIN_SCOPE = "bithaul.admin"
AUDIENCE = "bithaul"
INSTANCE_HEADER = "Bithaul-Instance"  # at GET /work and POST /heartbeat, as registered

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fence = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Instance = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]  # sums of many stay finite
Count = Annotated[int, Field(ge=0, le=2**53)]  # what JSON carries exactly, and every database keeps
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunState(StrEnum):
    READY = "ready"  # created, nothing leased yet
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"


class Capabilities(Message):
    """What a machine is and can do, measured by the worker itself."""

    device: Annotated[str, Field(max_length=200)]
    threads: Annotated[int, Field(ge=1, le=4096)]
    memory_bytes: Count
    tokens_per_second: NonNegative  # calibration: a real training step of the run's model
    tokens_per_second_spread: NonNegative = 0.0
    path: Annotated[str, Field(max_length=300)] = ""  # compute path and the reason it was chosen
    software: Annotated[str, Field(max_length=64)]  # bithaul version


class RegisterRequest(Message):
    """POST /register. Sent twice: first without capabilities to learn the model, then with them."""

    codecs: Annotated[list[Name], Field(min_length=1, max_length=16)]
    weight_formats: Annotated[list[Name], Field(min_length=1, max_length=16)]
    layout_hash: Sha256 | None = None
    capabilities: Capabilities | None = None
    audits: bool = False  # knows tasks with `audit`; others are never sent one
    instance: Instance | None = None  # of the state folder; None: its software has none


class ShardRef(Message):
    """One corpus shard: bytes at GET /corpus/{id}, boundary index at GET /corpus/{id}/index."""

    id: Name
    examples: int
    tokens: int
    size: int
    sha256: Sha256
    index_size: int
    index_sha256: Sha256


class RunDescription(Message):
    """Everything a worker needs to know about a run before its first task."""

    run: str
    state: RunState
    model: dict[str, Any]  # ModelConfig as JSON
    recipe: dict[str, Any]  # TrainingRecipe as JSON
    layout_hash: Sha256
    tokenizer_sha256: Sha256
    label_token: int | None  # id of [INTENT]; None for plain text
    codec: Name
    weight_format: Name
    shards: list[ShardRef]
    probe: ShardRef | None  # fixed held-out sample on which workers measure a version
    heartbeat_seconds: float


class RegisterResponse(Message):
    worker: str
    run: RunDescription


class Range(Message):
    """`count` examples of one shard, from example number `first`."""

    shard: Name
    first: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]


class DeltaRef(Message):
    """The way to one version from the one before, at GET /weights/{version}/delta."""

    version: int
    base_sha256: Sha256  # of the weights that it starts from
    sha256: Sha256
    size: int


class TaskMessage(Message):
    """GET /work: one leased task. `ranges` are used in order, whole inner batches only."""

    task: int
    fence: Fence
    lineage: Annotated[int, Field(ge=1)] = 1  # of the base; counts up at each rollback
    base_version: int
    weights_sha256: Sha256
    weights_size: int
    weights_deltas: list[DeltaRef] = []  # to the base, in order: what is still fewer bytes than all of it
    ranges: list[Range]
    examples: int
    progress_start: NonNegative  # share of the run's budget when the task was leased, 0..1
    progress_end: NonNegative  # expected share at its end; the schedule is interpolated between them
    seed: int
    soft_stop_seconds: NonNegative  # stop after the inner step in which these run out
    probe: bool  # measure base_version on the probe shard before training
    audit: Annotated[bool, Field(exclude_if=operator.not_)] = False  # fresh moments, and no residual added
    deadline_seconds: NonNegative  # the lease ends so many seconds from now unless renewed by progress


class HeldoutLoss(Message):
    version: int
    loss: Finite  # mean cross-entropy in nats per label-weighted token, see training.loss
    tokens: Annotated[int, Field(ge=1, le=2**53)]


class ReportHeader(Message):
    """First part of an update frame (see exchange.frame); the payload follows."""

    codec: Name
    run: str
    layout_hash: Sha256
    lineage: Annotated[int, Field(ge=1)] = 1  # of the base
    base_version: int
    task: int
    fence: Fence
    examples: Annotated[int, Field(ge=0)]  # used the first n of the slice
    tokens: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    seconds: NonNegative
    loss_first: Finite
    loss_last: Finite
    loss_mean: Finite
    heldout: HeldoutLoss | None = None
    payload_size: Annotated[int, Field(ge=0)]
    payload_sha256: Sha256


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    COMPARED = "compared"  # well-formed, credited, not merged: a repetition, or its worker is set aside
    TOO_LATE = "too_late"  # another report of this task was accepted first
    STALE = "stale"  # the base is too many versions behind, or of a lineage that was given up
    REJECTED = "rejected"  # a gate refused it; see `code`


class Receipt(Message):
    """The stored, final answer to a report; asking again gives the same one."""

    task: int
    fence: Fence
    verdict: Verdict
    code: str = ""
    reason: str = ""
    tokens: int = 0
    staleness: int = 0
    clip: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor on the update; what was cut off is dropped


class LeaseOutcome(StrEnum):
    RELEASED = "released"
    FAILED = "failed"


class HeartbeatRequest(Message):
    """POST /heartbeat. With a task: progress renews the lease. With `outcome`: the lease ends."""

    task: Count | None = None
    fence: Fence | None = None
    tokens: Count = 0
    loss: Finite | None = None
    tokens_per_second: NonNegative = 0.0
    outcome: LeaseOutcome | None = None
    code: Annotated[str, Field(max_length=64)] = ""
    activity: Literal["idle", "calibrating", "downloading", "training", "uploading"] = "idle"


class HeartbeatResponse(Message):
    drain: bool  # finish the current step, report, take no more work
    paused: bool  # the run is paused: no new lease
    lease_open: bool  # False: stop working on this task, it is someone else's now
    state: RunState


class LogEntry(Message):
    time: NonNegative  # seconds since the epoch, worker's clock
    level: Literal["debug", "info", "warning", "error"]
    event: Annotated[str, Field(max_length=200)]
    fields: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class LogBatch(Message):
    entries: Annotated[list[LogEntry], Field(max_length=500)]
    dropped: Count = 0  # entries lost on the worker since the last batch


class Problem(BaseModel):
    """RFC 9457 problem+json; `code` is stable."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
