"""The flags of the commands that have a file for them; none of them imports MAX."""

from max_zimage.cli.batch_flags import add_batch
from max_zimage.cli.completion import add_completion
from max_zimage.cli.config_flags import add_config
from max_zimage.cli.convert_flags import add_convert
from max_zimage.cli.doctor_flags import add_doctor
from max_zimage.cli.encode_flags import add_encode, add_saving
from max_zimage.cli.enhance_flags import add_enhancing
from max_zimage.cli.model_flags import DTYPES, add_attention, add_cache, add_configuration, add_model
from max_zimage.cli.other_flags import add_others
from max_zimage.cli.profile_flags import add_profile
from max_zimage.cli.serve_flags import add_serve
from max_zimage.cli.verify_flags import add_verify
from max_zimage.cli.write_flags import add_write

__all__ = [
    "DTYPES",
    "add_attention",
    "add_batch",
    "add_cache",
    "add_completion",
    "add_config",
    "add_configuration",
    "add_convert",
    "add_doctor",
    "add_encode",
    "add_enhancing",
    "add_model",
    "add_others",
    "add_profile",
    "add_saving",
    "add_serve",
    "add_verify",
    "add_write",
]
