"""The head that makes a language model of Qwen3: the last token's hidden state to a number for each token there is.

    states, place -> that row -> x embeddingᵀ -> logits

Reference: transformers models/qwen3/modeling_qwen3.py, Qwen3ForCausalLM.
"""

from __future__ import annotations

from max.dtype import DType
from max.experimental import functional as F
from max.experimental.nn import Linear, Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType

from max_zimage.graphs.dims import CAPTION_PADDED, PROMPTS
from max_zimage.graphs.model.text_encoder import TextEncoderSpec


class LanguageHead(Module[[Tensor, Tensor], Tensor]):
    """Hidden states behind the final norm to the logits of the token that follows one of them."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        self.spec = spec
        # Neither packed nor quantized: where it is tied, it is the embedding, a table of rows.
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size, bias=False)

    def forward(self, states: Tensor, place: Tensor) -> Tensor:
        """Look at one position of every prompt.

        Args:
            states: [prompts, caption_padded, hidden_size] in the model's dtype.
            place: int64 [1], the position.

        Returns:
            float32 [prompts, vocab_size]; computed in the model's dtype.
        """
        row = F.squeeze(F.gather(states, place, axis=1), 1)
        return self.lm_head(row).cast(DType.float32)

    def input_types(self, dtype: DType, device: DeviceRef) -> tuple[TensorType, ...]:
        """Types of `forward`'s arguments."""
        states = TensorType(dtype, [PROMPTS, CAPTION_PADDED, self.spec.hidden_size], device)
        return (states, TensorType(DType.int64, [1], device))
