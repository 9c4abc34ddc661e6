"""The project's ops. What each computes is said by its twin in `graphs/ops.py`, `graphs/text_ops.py` or
`graphs/gpu_ops.py`; the README here has the table."""

from .adapted import AdaptedLinear
from .attention import Attention
from .behind import CachedAttention
from .convolution import Convolution
from .experts import Experts
from .gpu_gated import SwiGLU
from .gpu_group_moments import GroupMoments
from .gpu_group_norm import GroupNormApplied
from .gpu_heads import RotaryHeads
from .gpu_norms import GatedNorms, ScaledNorm
from .gpu_wide_attention import WideAttention
from .gpu_widened import Widened
from .group_norm import GroupNorm
from .likeliest import Likeliest
from .linear import GatedLinear, GeluLinear, Linear
from .quantized import QuantizedLinear
from .sandwich import AddedNorms, JoinedNorms
from .table import TableLogits, TableMeans
from .tile_linear import TileGatedLinear, TileLinear
