"""What llm-dit has and this project has not: keys and flags that ask for it are refused with a sentence.

Reference: reference/generation.md section 11.
"""

from __future__ import annotations

from dataclasses import dataclass

FMTT = "guidance by a reward model (FMTT) wants gradients through the decoder, and is not built; leave it out"
VL = "conditioning on pictures through a vision model (VL) is not built; --image begins with a picture"
DRAWN = "an enhancer draws words by temperature, top_p and top_k alone; leave it out"
SEEN = "prompts are written out from text alone, not from pictures (VL); leave it out"
QWEN_IMAGE = "Qwen-Image is another model and not built; this draws with Z-Image and Z-Image-Turbo"
REMOTE = "a text encoder elsewhere is used by files: `max-zimage encode` there, `generate --embeddings` here"
ENCODER_PATH = "files of the text encoder are named by --weight-path FOLDER/text_encoder/FILE, or lie in the checkpoint"
ANISOTROPIC = "yarn takes the longer side for both here; dype method vision_yarn takes each side by itself"


@dataclass(frozen=True, kw_only=True)
class Absent:
    """One part of llm-dit.

    Attributes:
        sentence: What is said to whoever asks for it.
        section: Of the configuration file; "" for none.
        asking: Keys that ask for it -> the values that do not.
        others: Keys that only say how it would be done; None for any.
        flags: On the command line; each may have a value.
    """

    sentence: str
    section: str = ""
    asking: tuple[tuple[str, tuple[object, ...]], ...] = ()
    others: tuple[str, ...] | None = ()
    flags: tuple[str, ...] = ()


ABSENT = (
    Absent(
        sentence=FMTT,
        section="fmtt",
        asking=(("enabled", (False,)),),
        others=(
            "guidance_scale", "guidance_start", "guidance_stop", "normalize_mode", "decode_scale", "reward_model",
            "siglip_model", "siglip_device",
        ),
        flags=(
            "--fmtt-scale", "--fmtt-start", "--fmtt-stop", "--fmtt-normalize", "--fmtt-decode-scale",
            "--fmtt-siglip-model", "--fmtt-siglip-device",
        ),
    ),
    Absent(
        sentence=DRAWN,
        section="rewriter",
        others=("min_p", "presence_penalty"),
        flags=("--rewriter-min-p", "--rewriter-presence-penalty"),
    ),
    Absent(
        sentence=SEEN,
        section="rewriter",
        asking=(("preload_vl", (False,)),),
        others=("vl_enabled", "vl_api_model"),
        flags=("--rewriter-no-vl", "--rewriter-preload-vl", "--rewriter-vl-api-model"),
    ),
    Absent(
        sentence=VL,
        section="vl",
        asking=(("model_path", ("",)),),
        others=(
            "device", "default_alpha", "default_hidden_layer", "text_tokens_only", "auto_unload", "target_std",
        ),
        flags=(
            "--vl-model-path", "--vl-device", "--vl-alpha", "--vl-hidden-layer", "--vl-no-auto-unload",
            "--vl-blend-mode",
        ),
    ),
    Absent(
        sentence=QWEN_IMAGE,
        section="qwen_image",
        asking=(("model_path", ("",)), ("edit_model_path", ("",))),
        others=None,
        flags=(
            "--qwen-image-model-path", "--qwen-image-edit-model-path", "--qwen-image-cpu-offload",
            "--qwen-image-layers", "--qwen-image-steps", "--qwen-image-cfg-scale", "--qwen-image-resolution",
        ),
    ),
    Absent(sentence=REMOTE, flags=("--api-url", "--api-model", "--local-encoder", "--use-api-encoder")),
    Absent(sentence=ENCODER_PATH, flags=("--text-encoder-path",)),
    Absent(
        sentence=ANISOTROPIC, section="dype", asking=(("anisotropic", (False,)),), flags=("--dype-anisotropic",)
    ),
)  # fmt: skip
