"""What depends on several fields of a request, each of them right by itself."""

from __future__ import annotations

from typing import Any

from max_zimage.errors import RequestError
from max_zimage.request import checks
from max_zimage.request import start_image as start_images
from max_zimage.request.dype_checks import check_dype
from max_zimage.request.enhance_checks import check_enhancing
from max_zimage.request.facts import RequestFacts
from max_zimage.request.guidance_checks import check_guidance
from max_zimage.request.layer_checks import check_layers
from max_zimage.request.limits import Limits
from max_zimage.request.mask_checks import check_mask
from max_zimage.request.nag_checks import check_nag
from max_zimage.request.noise_checks import check_noise
from max_zimage.request.passes_checks import check_passes
from max_zimage.request.schedule_checks import check_evaluations, check_shift, has_a_step
from max_zimage.request.tile_checks import check_tiles


def check_together(request: RequestFacts, limits: Limits, resize: Any) -> None:
    """What depends on several arguments, each of them right by itself."""
    if request.num_images > limits.max_images:
        message = "a request may make {most} pictures, got {prompts} prompts with {copies} each; make several requests"
        prompts, copies = request.num_prompts, request.num_images_per_prompt
        raise RequestError.of(None, message, most=limits.max_images, prompts=prompts, copies=copies)
    if request.image is not None:
        has_a_step(request.strength, request.num_inference_steps)
        start_images.check_size(request.image, request.outpaint, request.height, request.width, resize)
    check_mask(request)
    check_passes(request)
    check_shift(request)
    check_evaluations(request, request.steps_by_leg, limits.max_steps)
    check_guidance(request, limits.num_layers)
    check_nag(request, streams_blocks=limits.streams_blocks, groups=limits.groups)
    check_noise(request)
    check_layers(request)
    check_dype(request)
    check_tiles(request)
    check_enhancing(request)
    around = [name for name in ("system_prompt", "thinking_content", "assistant_content") if getattr(request, name)]
    if around and request.prompt_embeds is not None:
        message = "{field} stands around a prompt, and {name[prompt_embeds]} are given in its place; leave one out"
        raise RequestError.of(around[0], message)
    negatives = request.negative_prompt_embeds
    if request.uses_negative and negatives is None and request.prompt_embeds is not None:
        scale = "guidance_scale" if request.use_guidance else "nag_scale"
        message = "{field} with guidance need {name[negative_prompt_embeds]} too; give them, or set {name["
        raise RequestError.of("prompt_embeds", message + scale + "]} to 0")
    if negatives is not None and len(negatives) != request.num_prompts:
        message = "{field} must hold one array a prompt ({prompts}), got {given}"
        values = {"prompts": request.num_prompts, "given": len(negatives)}
        raise RequestError.of("negative_prompt_embeds", message, **values)
    if request.latents is not None:
        shape = (request.num_images, limits.latent_channels, request.height // 8, request.width // 8)
        checks.array("latents", request.latents, shape, f"[images, channels, height / 8, width / 8] = {list(shape)}")
