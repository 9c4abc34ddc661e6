"""The flags of the commands that have a file for them; none of them imports MAX."""

from max_zimage.cli.convert_flags import add_convert
from max_zimage.cli.encode_flags import add_encode
from max_zimage.cli.placement_flags import add_placement
from max_zimage.cli.profile_flags import add_profile
from max_zimage.cli.serve_flags import add_serve

__all__ = ["add_convert", "add_encode", "add_placement", "add_profile", "add_serve"]
