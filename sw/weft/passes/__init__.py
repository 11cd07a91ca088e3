"""Graph passes: each takes a graph and gives an equivalent one; the verifier runs after each."""

from weft.passes.base import Pass, run_passes
from weft.passes.check_limits import CheckLimits
from weft.passes.fuse_padding import FusePadding
from weft.passes.fuse_tables import FuseTables
from weft.passes.images_only import ImagesOnly
from weft.passes.narrow_weights import NarrowWeights
from weft.passes.remove_dead import RemoveDead
from weft.passes.split_groups import SplitGroups

__all__ = [
    "CheckLimits",
    "FusePadding",
    "FuseTables",
    "ImagesOnly",
    "NarrowWeights",
    "Pass",
    "RemoveDead",
    "SplitGroups",
    "run_passes",
]
