"""The loop and what it stands on: batches, checkpoints, logs, device and precision."""

from training.batches import Batches
from training.checkpoint import CheckpointError, load_checkpoint, restore, save_checkpoint
from training.device import choose_device, choose_precision, hardware
from training.folder import RunFolder, RunFolderError, provenance
from training.logs import Log
from training.loop import NonFiniteError, train

__all__ = [
    "Batches",
    "CheckpointError",
    "Log",
    "NonFiniteError",
    "RunFolder",
    "RunFolderError",
    "choose_device",
    "choose_precision",
    "hardware",
    "load_checkpoint",
    "provenance",
    "restore",
    "save_checkpoint",
    "train",
]
