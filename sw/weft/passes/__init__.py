"""Graph passes: each takes a graph and gives an equivalent one; the verifier runs after each."""

from weft.passes.base import Pass, run_passes
from weft.passes.check_limits import CheckLimits
from weft.passes.images_only import ImagesOnly
from weft.passes.remove_dead import RemoveDead

__all__ = ["CheckLimits", "ImagesOnly", "Pass", "RemoveDead", "run_passes"]
