"""The flags of the commands that have a file for them; none of them imports MAX."""

from max_zimage.cli.completion import add_completion
from max_zimage.cli.convert_flags import add_convert
from max_zimage.cli.doctor_flags import add_doctor
from max_zimage.cli.encode_flags import add_encode
from max_zimage.cli.profile_flags import add_profile
from max_zimage.cli.serve_flags import add_serve
from max_zimage.cli.verify_flags import add_verify

__all__ = ["add_completion", "add_convert", "add_doctor", "add_encode", "add_profile", "add_serve", "add_verify"]
