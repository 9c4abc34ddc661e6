"""What a file is that was given for a LoRA of this model and is none, told by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

from max_zimage.checkpoint.adapters.modules import COMPONENTS, parameter_table, targets
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.checkpoint.recognition import recognized

_EXPECTED = "transformer.layers.0.attention.to_q.lora_A.weight"

_MODELS: tuple[tuple[str, str], ...] = (
    (r"double_blocks|single_(transformer_)?blocks", "a Flux model"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"lora_te[12]?_text_model|text_model\.encoder", "a CLIP text encoder, as of Stable Diffusion"),
    (r"(^|[._])(down|up|input|output)_blocks|(^|[._])(mid|middle)_block", "a UNet, as of Stable Diffusion"),
    (r"transformer_blocks", "Qwen-Image or another model of transformer_blocks"),
    (r"(^|[._])blocks[._]\d+[._](self|cross)_attn", "a Wan model"),
)
_PLACE = re.compile(r"(?:^|[._])(layers|noise_refiner|context_refiner)[._](\d+)[._]")


def what_else(names: Iterable[str], specs: ModelSpecs) -> str:
    """Say what the names are, or what was expected.

    Args:
        names: Of tensors that are no part of a LoRA of this model.
        specs: The model's.
    """
    known = list(names)
    for component in COMPONENTS:
        table = parameter_table(specs, component)
        own = {prefix + name for prefix in table.prefixes for name in targets(specs, component)}
        if own.intersection(known):
            word = component.replace("_", " ")
            return f"it holds the weights of a {word}; give a checkpoint as the model (--model, from_pretrained)"
    for pattern, model in _MODELS:
        if any(re.search(pattern, name) for name in known):
            return f"they are those of {model}, and only Z-Image's fit"
    counts = {
        "layers": specs.transformer.num_layers,
        "noise_refiner": specs.transformer.num_refiner_layers,
        "context_refiner": specs.transformer.num_refiner_layers,
    }
    found = [match for name in known if (match := _PLACE.search(name))]
    if any(int(match[2]) >= counts[match[1]] for match in found):
        return "its transformer has " + ", ".join(f"{word}.0 to {word}.{count - 1}" for word, count in counts.items())
    what = recognized(known)
    if what is not None and not what.startswith("a LoRA"):
        return f"it is {what}"
    return f"expected are names such as {_EXPECTED}, got {', '.join(known[:5])}"
