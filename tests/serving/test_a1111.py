"""AUTOMATIC1111's routes by `webuiapi`, and as Open WebUI and SillyTavern call them: pictures, names, refusals."""

from __future__ import annotations

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from max_zimage import ZImagePipeline
from max_zimage.images.a1111_masks import blurred, filled
from max_zimage.request.a1111_names import sampler_of, shape_of
from max_zimage.sampling.names import SAMPLERS, SIGMA_SHAPES
from tests.references.servers import KEY, SLOW, Server

PROMPT = "a red star on a blue background"
SMALL: dict[str, Any] = {"width": 128, "height": 128, "steps": 3, "seed": 5}
CALL: dict[str, Any] = {"width": 128, "height": 128, "num_inference_steps": 3, "seed": 5, "output_type": "np"}


@pytest.fixture(scope="module")
def client(server: Server) -> webuiapi.WebUIApi:
    """With a name and the key as its password, and the sampler that it sends where it is told none."""
    return webuiapi.WebUIApi(port=server.port, sampler="Euler", steps=3, username="anybody", password=KEY)


def start() -> Image.Image:
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[:] = (30, 60, 220)
    picture[32:96, 32:96] = (220, 30, 30)
    return Image.fromarray(picture)


def mask() -> Image.Image:
    """White on the left."""
    greys = np.zeros((128, 128), np.uint8)
    greys[:, :64] = 255
    return Image.fromarray(greys)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


def drawn(pipeline: ZImagePipeline, **given: Any) -> np.ndarray:
    return np.asarray(pipeline(PROMPT, **CALL | given))


def post(server: Server, route: str = "txt2img", **body: Any) -> httpx.Response:
    return server.post(f"/sdapi/v1/{route}", **{"prompt": PROMPT, **SMALL, **body})


def encoded(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_webuiapi_draws_what_the_pipeline_draws(client: webuiapi.WebUIApi, pipeline: ZImagePipeline) -> None:
    made = client.txt2img(prompt=PROMPT, negative_prompt="dark", cfg_scale=3.0, batch_size=2, n_iter=1, **SMALL)
    expected = drawn(pipeline, negative_prompt="dark", guidance_scale=2.0, num_images_per_prompt=2)
    for picture, each in zip(made.images, expected, strict=True):
        np.testing.assert_array_equal(pixels(picture), each)
    assert (made.info["all_seeds"], made.info["cfg_scale"], made.info["sampler_name"]) == ([5, 6], 3.0, "Euler")
    assert made.info["infotexts"][1].startswith(
        f"{PROMPT}\nNegative prompt: dark\nSteps: 3, Sampler: Euler, Schedule type: Simple, CFG scale: 3, Seed: 6, "
        "Size: 128x128, Model: tiny-zimage, Version: max_zimage "
    )
    assert (made.parameters["prompt"], made.parameters["batch_size"]) == (PROMPT, 2)


LARGER: dict[str, Any] = {"enable_hr": True, "hr_upscaler": "Lanczos", "denoising_strength": 0.5}
SECOND: list[dict[str, Any]] = [{"scale": 0.5, "steps": 3}, {"scale": 1.0, "steps": 3, "strength": 0.5}]
LATENT: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 4}
LATENT_PASSES: list[dict[str, Any]] = [{"scale": 0.67, "steps": 3}, {"scale": 1.0, "steps": 4, "strength": 0.75}]
MEANT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"cfg_scale": 1.0}, {"guidance_scale": 0.0}),
    ({"sampler_name": "DPM++ 2M Karras"}, {"sampler": "comfy_dpmpp_2m", "sigma_shape": "comfy_karras"}),
    ({"sampler_name": "euler a", "scheduler": "Normal"}, {"sampler": "euler_ancestral", "sigma_shape": "normal"}),
    (
        {"sampler_name": "DPM++ 2M (diffusers)", "scheduler": "karras_diffusers"},
        {"sampler": "dpmpp_2m", "sigma_shape": "karras"},
    ),
    ({"sampler_index": "Heun"}, {"sampler": "heun"}),
    ({"subseed": 9, "subseed_strength": 0.4}, {"variation_seed": 9, "variation_strength": 0.4}),
    ({"styles": ["portrait"]}, {"template": "portrait"}),
    ({"width": 64, "height": 64, **LARGER}, {"passes": SECOND, "num_inference_steps": None}),
    (
        {"width": 96, "height": 96, "hr_upscaler": "Latent (bicubic)", **LATENT},
        {"width": 144, "height": 144, "num_inference_steps": None, "upscale": "bicubic", "passes": LATENT_PASSES},
    ),
]


@pytest.mark.parametrize(("given", "expected"), MEANT, ids=lambda value: "")
def test_every_field_means_what_it_says(
    given: dict[str, Any], expected: dict[str, Any], server: Server, pipeline: ZImagePipeline
) -> None:
    if "styles" in given:
        name = server.client.get("/sdapi/v1/prompt-styles").json()[0]["name"]
        given, expected = {"styles": [name]}, {"template": name}
    answer = post(server, **given)
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    served = pixels(Image.open(io.BytesIO(base64.b64decode(image))))
    np.testing.assert_array_equal(served, drawn(pipeline, **expected)[0])


def test_img2img_and_a_mask_with_a_soft_border(client: webuiapi.WebUIApi, pipeline: ZImagePipeline) -> None:
    asked: dict[str, Any] = {
        "prompt": PROMPT,
        "images": [start()],
        "denoising_strength": 0.6,
        "cfg_scale": 3.0,
        **SMALL,
    }
    same: dict[str, Any] = {"image": start(), "strength": 0.6, "guidance_scale": 2.0}
    np.testing.assert_array_equal(pixels(client.img2img(**asked).image), drawn(pipeline, **same)[0])
    masked = asked | {"mask_image": mask(), "inpaint_full_res": False}
    plain = client.img2img(**masked, inpainting_fill=1, mask_blur=0)
    np.testing.assert_array_equal(pixels(plain.image), drawn(pipeline, **same, mask_image=mask(), composite=True)[0])
    np.testing.assert_array_equal(pixels(plain.image)[:, 64:], pixels(start())[:, 64:])
    other = client.img2img(**masked, inpainting_fill=1, mask_blur=0, inpainting_mask_invert=1)
    np.testing.assert_array_equal(pixels(other.image)[:, :64], pixels(start())[:, :64])
    usual = client.img2img(**masked)
    greys = np.asarray(mask())
    expected = drawn(
        pipeline,
        **same | {"image": Image.fromarray(filled(pixels(start()), greys))},
        mask_image=Image.fromarray(blurred(greys, 4, 4)),
        composite=True,
    )
    np.testing.assert_array_equal(pixels(usual.image), expected[0])


def test_an_image_is_resized_to_what_is_asked_for(server: Server, pipeline: ZImagePipeline) -> None:
    answer = post(server, "img2img", init_images=[f"data:image/png;base64,{encoded(start())}"], width=96, height=112)
    served = pixels(Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))))
    expected = drawn(pipeline, image=start(), strength=0.75, width=96, height=112, resize=True)
    np.testing.assert_array_equal(served, expected[0])
    assert "init_images" not in answer.json()["parameters"]


def test_a_filled_mask_has_the_colours_around_it() -> None:
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48], image[:, 48:] = (200, 0, 0), (0, 0, 200)
    hole = np.zeros((64, 96), np.uint8)
    hole[24:40, 8:24] = 255
    image[24:40, 8:24] = 255  # what is masked must not show through
    found = filled(image, hole)
    np.testing.assert_array_equal(found[hole == 0], image[hole == 0])
    assert found[hole == 255][:, 0].min() > 150
    assert found[hole == 255][:, 1:].max() < 40
    assert filled(image, np.full((64, 96), 255, np.uint8)).std() == 0


def test_what_open_webui_and_sillytavern_send(server: Server, pipeline: ZImagePipeline) -> None:
    options = server.client.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == "tiny-zimage"
    assert "forge_preset" not in options
    assert server.post("/sdapi/v1/options", **options).status_code == 200
    wrong = server.post("/sdapi/v1/options", **options | {"sd_model_checkpoint": "sdxl"})
    assert wrong.status_code == 400
    assert "sd_model_checkpoint is 'tiny-zimage' here, got 'sdxl'" in wrong.json()["detail"]
    sampler, shape = (server.client.get(f"/sdapi/v1/{each}").json()[0]["name"] for each in ("samplers", "schedulers"))
    body: dict[str, Any] = {
        "url": "http://127.0.0.1:7860", "auth": "", "negative_prompt": "", "sampler_name": sampler, "scheduler": shape,
        "cfg_scale": 1, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1,
        "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0,
        "override_settings": {"CLIP_stop_at_last_layers": 1}, "override_settings_restore_afterwards": True,
        "clip_skip": 1, "save_images": True, "send_images": True, "do_not_save_grid": False,
        "do_not_save_samples": False,
    }  # fmt: skip
    answer = post(server, **body)
    assert answer.status_code == 200, answer.text
    served = pixels(Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))))
    np.testing.assert_array_equal(served, drawn(pipeline, guidance_scale=0.0, sampler=sampler_of(sampler)[0])[0])
    assert "auth" not in answer.json()["parameters"]


def test_progress_interrupt_and_skip(client: webuiapi.WebUIApi, server: Server) -> None:
    idle = client.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    assert client.interrupt() == {}
    slow = {"prompt": PROMPT, "width": 512, "height": 512, "steps": SLOW["steps"]}
    for end in (client.interrupt, client.skip):
        with ThreadPoolExecutor(1) as pool:
            drawing = pool.submit(server.post, "/sdapi/v1/txt2img", **slow)
            deadline = time.monotonic() + 60
            while (told := client.get_progress())["state"]["sampling_step"] < 1 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert 0 < told["progress"] < 1
            assert (told["state"]["job_count"], told["state"]["sampling_steps"]) == (1, 100)
            end()
            answer = drawing.result(timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")
        assert client.get_progress()["state"]["job_count"] == 0


def test_requests_of_other_routes_are_not_its_to_end(client: webuiapi.WebUIApi, server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        named = {"X-Request-ID": "kept"}
        drawing = pool.submit(server.draw, PROMPT, named, size="256x256", steps=20)
        server.wait_for_status("kept", "running")
        assert client.get_progress()["state"]["job_count"] == 0
        client.interrupt()
        assert drawing.result(timeout=60).status_code == 200


def test_what_there_is(client: webuiapi.WebUIApi, server: Server) -> None:
    assert {name for name, _ in (sampler_of(each) for each in client.util_get_sampler_names())} == set(SAMPLERS)
    shapes = [shape_of(each) for each in client.util_get_scheduler_names()]
    assert shapes[0] is None
    assert set(shapes[1:]) == set(SIGMA_SHAPES)
    assert client.util_get_model_names() == ["tiny-zimage"]
    assert client.util_get_current_model() == "tiny-zimage"
    client.util_set_model("tiny-zimage")
    client.util_wait_for_ready(check_interval=0.01)
    assert client.refresh_checkpoints() is None
    assert [each["name"] for each in client.get_upscalers()] == ["None", "Lanczos"]
    assert [each["name"] for each in client.get_latent_upscale_modes()] == ["Latent (bicubic)"]
    assert client.get_memory()["ram"]["total"] >= client.get_memory()["ram"]["free"] > 0
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_cmd_flags() == {"api": True}
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    empty = (client.get_sd_vae, client.get_hypernetworks, client.get_face_restorers, client.get_realesrgan_models)
    assert [each() for each in (*empty, client.get_loras)] == [[]] * 5
    listed = {each["name"]: each for each in client.get_prompt_styles()}
    assert len(listed) >= 44


def test_png_info_reads_its_pictures(client: webuiapi.WebUIApi, server: Server) -> None:
    image = post(server, cfg_scale=3.0, negative_prompt="dark").json()["images"][0]
    said = server.post("/sdapi/v1/png-info", image=image).json()
    assert said["info"].splitlines()[:2] == [PROMPT, "Negative prompt: dark"]
    assert (said["parameters"]["Seed"], said["parameters"]["Prompt"]) == ("5", PROMPT)
    assert server.post("/sdapi/v1/png-info", image=encoded(start())).json()["info"] == ""
    bare = post(server, override_settings={"enable_pnginfo": False}).json()["images"][0]
    assert server.post("/sdapi/v1/png-info", image=bare).json()["info"] == ""
    larger = post(server, width=64, height=64, **LARGER).json()
    told = server.post("/sdapi/v1/png-info", image=larger["images"][0]).json()["parameters"]
    assert (told["Size"], told["Hires upscale"], told["Hires steps"]) == ("64x64", "2", "3")
    assert json.loads(larger["info"])["denoising_strength"] == 0.5
    picture = Image.open(io.BytesIO(base64.b64decode(image)))
    assert client.png_info(picture).info.startswith(PROMPT)
    assert isinstance(said["parameters"], dict)
    chunks = PngInfo()
    chunks.add_text("parameters", "a hat\nNegative prompt: rain\nSteps: 20, Sampler: DDIM, Seed: 7, Model: other")
    content = io.BytesIO()
    start().save(content, format="PNG", pnginfo=chunks)
    others = server.post("/sdapi/v1/png-info", image=base64.b64encode(content.getvalue()).decode()).json()
    assert (others["parameters"]["Prompt"], others["parameters"]["Sampler"]) == ("a hat", "DDIM")


def test_a_random_seed_is_told_and_repeats(client: webuiapi.WebUIApi) -> None:
    small = {name: value for name, value in SMALL.items() if name != "seed"}
    first = client.txt2img(prompt=PROMPT, cfg_scale=1.0, **small)
    again = client.txt2img(prompt=PROMPT, cfg_scale=1.0, seed=first.info["seed"], **small)
    assert first.info["seed"] >= 0
    np.testing.assert_array_equal(pixels(first.image), pixels(again.image))
    varied = client.txt2img(prompt=PROMPT, cfg_scale=1.0, seed=3, subseed_strength=0.5, **small)
    assert varied.info["subseed"] >= 0
    assert client.txt2img(prompt=PROMPT, cfg_scale=1.0, send_images=False, **small).images == []
