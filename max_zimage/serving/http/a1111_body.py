"""What AUTOMATIC1111's `txt2img` and `img2img` take: its fields by its names.

Those that are rows of the table take their kinds from there. Those that mean nothing for this model are taken where
they change nothing, for clients send dozens, and are refused by name elsewhere.

Reference: reference/scale-and-ux.md section 11; stable-diffusion-webui modules/api/models.py, modules/processing.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from max_zimage.errors import Wording
from max_zimage.request.fields import IMAGES as WORDS
from max_zimage.request.fields import ROWS
from max_zimage.serving.http.api_names import ApiNames

NAMED: Mapping[str, str] = MappingProxyType(
    {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "width": "width",
        "height": "height",
        "steps": "num_inference_steps",
        "seed": "seed",
        "subseed": "variation_seed",
        "subseed_strength": "variation_strength",
        "denoising_strength": "strength",
    }
)
"""Field here -> argument of `GenerationRequest.create`; the others take more than a look-up."""

_ANY = object()
INERT: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "restore_faces": (False,),
        "tiling": (False,),
        "s_churn": (0,),
        "s_tmin": (0,),
        "s_tmax": (0,),
        "s_noise": (1,),
        "s_min_uncond": (0,),
        "seed_resize_from_h": (0, -1),
        "seed_resize_from_w": (0, -1),
        "firstphase_width": (0,),
        "firstphase_height": (0,),
        "firstpass_image": ("",),
        "refiner_checkpoint": ("", "None"),
        "refiner_switch_at": (0, 0.8, 1),
        "script_name": ("", "None"),
        "script_args": ([],),
        "hr_resize_x": (0,),
        "hr_resize_y": (0,),
        "hr_checkpoint_name": ("", "Use same checkpoint"),
        "hr_sampler_name": ("", "Use same sampler"),
        "hr_scheduler": ("", "Use same scheduler"),
        "hr_additional_modules": ([], ["Use same choices"]),
        "hr_prompt": ("",),
        "hr_negative_prompt": ("",),
        "image_cfg_scale": (0, 1.5),
        "initial_noise_multiplier": (0, 1),
        "latent_mask": ("",),
        "mask_round": (True,),
        "clip_skip": (0, 1),
        "comments": ({},),
        "infotext": ("",),
        "force_task_id": ("",),
        # Nothing is kept here, whatever is wished, nor is anything changed that had to be changed back.
        "do_not_save_samples": (False, True),
        "do_not_save_grid": (False, True),
        "save_images": (False, True),
        "override_settings_restore_afterwards": (False, True),
        # Where SillyTavern's own server finds this one; it passes them on.
        "url": (_ANY,),
        "auth": (_ANY,),
    }
)
"""Field -> the values at which it changes nothing; null is one of them."""

PNG_INFO = "enable_pnginfo"
"""The setting of whether pictures carry what they were drawn with; a request may have another one."""

SETTINGS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "sd_vae": ("Automatic", "None", "", None),
        "CLIP_stop_at_last_layers": (1, None),
        "samples_format": ("png",),
        PNG_INFO: (True, None),
        "forge_additional_modules": ([], None),
    }
)
"""Setting -> the values that it may have; the first one is what it is."""


class A1111Request(BaseModel):
    """What both routes take."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sampler_name: Annotated[str | None, Field(description="As /sdapi/v1/samplers lists them.")] = None
    sampler_index: Annotated[str | None, Field(description="The same by its older name; sampler_name comes first.")] = (
        None
    )
    scheduler: Annotated[str | None, Field(description="As /sdapi/v1/schedulers lists them.")] = None
    cfg_scale: Annotated[float | None, Field(description="guidance_scale + 1; 1 is no guidance.")] = None
    batch_size: Annotated[int | None, Field(ge=1, le=1000, description="Pictures; picture k has seed + k.")] = None
    n_iter: Annotated[int | None, Field(ge=1, le=1000, description="Times batch_size.")] = None
    styles: Annotated[list[str] | None, Field(description="The name of a template, or nothing.")] = None
    eta: Annotated[float | None, Field(description="1; 0 where the sampler draws no noise.")] = None
    disable_extra_networks: Annotated[bool | None, Field(description="Leave out what <lora:...> names.")] = None
    send_images: Annotated[bool | None, Field(description="False: answer without pictures.")] = None
    override_settings: Annotated[dict[str, Any] | None, Field(description="sd_model_checkpoint and so on.")] = None
    alwayson_scripts: Annotated[dict[str, Any] | None, Field(description="Scripts without arguments alone.")] = None


class Txt2ImgRequest(A1111Request):
    """What `txt2img` takes."""

    enable_hr: Annotated[bool | None, Field(description="Draw in two passes; without it no hr_ field counts.")] = None
    hr_scale: Annotated[float | None, Field(description="How often the sides of the first pass; 2 if not given.")] = (
        None
    )
    hr_upscaler: Annotated[str | None, Field(description="Lanczos, or Latent (bicubic).")] = None
    hr_second_pass_steps: Annotated[int | None, Field(ge=0, description="0: as many as steps.")] = None


class Img2ImgRequest(A1111Request):
    """What `img2img` takes."""

    init_images: Annotated[list[str] | None, Field(description="One image, base64 or a data URL.")] = None
    mask: Annotated[str | None, Field(description="The same: what is white is drawn anew.")] = None
    resize_mode: Annotated[int | None, Field(description="0: resize the image to the size asked for.")] = None
    mask_blur: Annotated[float | None, Field(ge=0, le=64, description="Pixels; 4 if not given.")] = None
    mask_blur_x: Annotated[float | None, Field(ge=0, le=64, description="The same across.")] = None
    mask_blur_y: Annotated[float | None, Field(ge=0, le=64, description="The same down.")] = None
    inpainting_fill: Annotated[int | None, Field(description="0: begin with colours from around it; 1: as it is.")] = (
        None
    )
    inpainting_mask_invert: Annotated[int | bool | None, Field(description="1: what is black is drawn anew.")] = None
    inpaint_full_res: Annotated[bool | int | None, Field(description="False: draw all of the picture, not a part.")] = (
        None
    )
    inpaint_full_res_padding: Annotated[
        int | None, Field(ge=0, le=1 << 20, description="Pixels around the part; 0 if not given.")
    ] = None
    include_init_images: Annotated[bool | None, Field(description="Repeat the images in the answer.")] = None


def _with_rows(base: type[BaseModel]) -> Any:
    """A body with the fields that the table has, and those that change nothing."""
    fields: dict[str, Any] = {
        name: (Annotated[Any, Field(description=f"Changes nothing at {_shown(values)}; nothing else is taken.")], None)
        for name, values in INERT.items()
    }
    for name, argument in NAMED.items():
        kind: Any = ROWS[argument].kind.plain | None
        fields[name] = (Annotated[kind, Field(description=f"{argument} of the request.")], None)
    return create_model(base.__name__, __base__=base, __module__=__name__, __doc__=base.__doc__, **fields)


def _shown(values: tuple[Any, ...]) -> str:
    return "any value" if _ANY in values else " or ".join(map(repr, values))


TXT2IMG: type[Txt2ImgRequest] = _with_rows(Txt2ImgRequest)
IMG2IMG: type[Img2ImgRequest] = _with_rows(Img2ImgRequest)
"""The bodies as the routes take them."""

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "guidance_scale": "is no field of this route; cfg_scale is guidance_scale + 1",
        "n": "is no field of this route; batch_size times n_iter is the number of pictures",
        "controlnet_units": "is guidance by another picture, which this route has not; leave it out",
        "distilled_cfg_scale": "is of another model; cfg_scale is what counts here, leave it out",
        "hr_cfg": "is no field of this route; cfg_scale counts for both passes, leave it out",
    }
)
"""Fields that clients may know from elsewhere, and what to do instead."""

NAMES = ApiNames(
    wording=Wording(
        {
            **WORDS.names,
            **{argument: name for name, argument in NAMED.items()},
            # What it holds is cfg_scale - 1, and messages say so.
            "guidance_scale": "cfg_scale - 1",
            "num_images_per_prompt": "batch_size",
            "sampler": "sampler_name",
            "sigma_shape": "scheduler",
            "image": "init_images",
            "mask_image": "mask",
            "template": "styles",
            "loras": "prompt <lora>",
        },
        {"asks": "width and height ask", "own size": "leave both out"},
    ),
    blamed={
        "guidance_scale": "cfg_scale",
        "num_images_per_prompt": "batch_size",
        "loras": "prompt",
        "passes": "enable_hr",
        "upscale": "hr_upscaler",
    },
    known=frozenset({*TXT2IMG.model_fields, *IMG2IMG.model_fields}),
    guides="set cfg_scale above 1",
)
"""How these routes speak."""


def inert_problems(body: A1111Request) -> list[tuple[str, str]]:
    """What a body says in fields that mean nothing here, at values at which they would mean something elsewhere."""
    found = []
    for name, values in INERT.items():
        value = getattr(body, name, None)
        if value is not None and _ANY not in values and not any(_is(value, each) for each in values):
            found.append((name, f"{name}: not done here, got {_short(value)}; leave it out, or send {_shown(values)}"))
    for name, script in (body.alwayson_scripts or {}).items():
        given = script.get("args") if isinstance(script, dict) else script
        if given not in (None, [], [False]):
            message = f"alwayson_scripts: there is no script {name[:40]!r} here, got arguments for it; leave them out"
            found.append(("alwayson_scripts", message))
    return found


def setting_problems(settings: Mapping[str, Any], model: str, field: str) -> list[tuple[str, str]]:
    """Settings that are none of this server's, or that it cannot have.

    Args:
        settings: As `/sdapi/v1/options` and `override_settings` have them.
        model: The served model.
        field: What messages call them.
    """
    known = {"sd_model_checkpoint": (model, None), "sd_checkpoint_hash": ("", None), **SETTINGS}
    found = []
    for name, value in settings.items():
        if name not in known:
            has = ", ".join(known)
            found.append((field, f"{field}: no setting is called {name[:40]!r} here; there are {has}"))
        elif name == PNG_INFO and field != "options" and isinstance(value, bool):
            continue  # of this request's pictures alone
        elif not any(_is(value, each) for each in known[name]):
            may = " or ".join(repr(each) for each in known[name] if each is not None)
            found.append((field, f"{field}: {name} is {may} here, got {_short(value)}; leave it out"))
    return found


def _is(value: object, other: object) -> bool:
    """Whether two JSON values are the same; true is no number."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
