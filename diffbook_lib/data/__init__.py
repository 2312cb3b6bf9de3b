"""Data sets by name: `load("cifar10", "train")`, or `training(spec)` for those of a run.

The folder that DIFFBOOK_DATA names (else the user's cache) holds one subfolder a data set with
the files its authors publish. What is there is used after a checksum comparison; what is missing
is downloaded, or the error says how to obtain it. One's own data are the data set "folder".
"""

from diffbook_lib.data.archives import (
    ArchiveError,
    ChecksumError,
    DataError,
    MissingDataError,
    PartialDataWarning,
)
from diffbook_lib.data.batches import Batch, Dataset
from diffbook_lib.data.catalogue import CATALOGUE, describe, load
from diffbook_lib.data.choice import check, fingerprint, held_out, training
from diffbook_lib.data.classes import balanced, class_rows, of_classes, thinned
from diffbook_lib.data.datasets import ArrayDataset, SampledDataset, from_tensor
from diffbook_lib.data.description import Description
from diffbook_lib.data.grouped import Grouped
from diffbook_lib.data.kept import Kept
from diffbook_lib.data.levels import dequantise, to_levels, to_unit
from diffbook_lib.data.own import NAME as OWN

__all__ = [
    "CATALOGUE",
    "OWN",
    "ArchiveError",
    "ArrayDataset",
    "Batch",
    "ChecksumError",
    "DataError",
    "Dataset",
    "Description",
    "Grouped",
    "Kept",
    "MissingDataError",
    "PartialDataWarning",
    "SampledDataset",
    "balanced",
    "check",
    "class_rows",
    "dequantise",
    "describe",
    "fingerprint",
    "from_tensor",
    "held_out",
    "load",
    "of_classes",
    "thinned",
    "to_levels",
    "to_unit",
    "training",
]
