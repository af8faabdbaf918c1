"""The loop and what it stands on: batches, checkpoints, logs, device and precision."""

from training.batches import Batches
from training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_hashed,
    need_optimizers,
    restore,
    save_checkpoint,
)
from training.device import (
    choose_device,
    choose_precision,
    hardware,
    is_out_of_memory,
    need_compiler,
)
from training.folder import (
    RunFolder,
    RunFolderError,
    provenance,
    read_record,
    refuse_another,
)
from training.logs import Log, need_tensorboard, speeds
from training.loop import CompileError, Interrupt, NonFiniteError, redraw_s, train, uncompiled
from training.parallel import PeerError, process_group, rank_label, synchronise, wait_for_all

__all__ = [
    "Batches",
    "CheckpointError",
    "CompileError",
    "Interrupt",
    "Log",
    "NonFiniteError",
    "PeerError",
    "RunFolder",
    "RunFolderError",
    "choose_device",
    "choose_precision",
    "hardware",
    "is_out_of_memory",
    "load_checkpoint",
    "load_hashed",
    "need_compiler",
    "need_optimizers",
    "need_tensorboard",
    "process_group",
    "provenance",
    "rank_label",
    "read_record",
    "redraw_s",
    "refuse_another",
    "restore",
    "save_checkpoint",
    "speeds",
    "synchronise",
    "train",
    "uncompiled",
    "wait_for_all",
]
