"""The node: an HTTP client in what ComfyUI's Python has, which is the standard library, numpy, Pillow and PyTorch.

Pictures travel as PNG in JSON. ComfyUI's images are float tensors [batch, height, width, 3] from 0 to 1.
"""

import base64
import io
import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
from PIL import Image

TIMEOUT = 600
"""Seconds for a request, in which others may be drawn before it."""


class MaxZImage:
    """Draws pictures with a `max-zimage serve` that runs somewhere."""

    CATEGORY = "max_zimage"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows of the node."""
        return {
            "required": {
                "prompt": ("STRING", {"multiline": True, "default": "a red star on a blue background"}),
                "negative_prompt": ("STRING", {"multiline": True, "default": ""}),
                "width": ("INT", {"default": 1024, "min": 16, "max": 8192, "step": 16}),
                "height": ("INT", {"default": 1024, "min": 16, "max": 8192, "step": 16}),
                "steps": ("INT", {"default": 8, "min": 1, "max": 1000}),
                "cfg": ("FLOAT", {"default": 1.0, "min": 1.0, "max": 31.0, "step": 0.1}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**53 - 1}),
                "count": ("INT", {"default": 1, "min": 1, "max": 8}),
                "server": ("STRING", {"default": "http://127.0.0.1:8000"}),
            },
            "optional": {
                "image": ("IMAGE",),
                "strength": ("FLOAT", {"default": 0.6, "min": 0.01, "max": 1.0, "step": 0.01}),
                "api_key": ("STRING", {"default": ""}),
            },
        }

    def draw(
        self,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        seed: int,
        count: int,
        server: str,
        image: Any = None,
        strength: float = 0.6,
        api_key: str = "",
    ) -> tuple[Any]:
        """Draw.

        Args:
            prompt: What to show.
            negative_prompt: What to keep away from; sent where `cfg` is above 1, for it has no effect otherwise.
            width: Pixels.
            height: Pixels.
            steps: Denoising steps.
            cfg: ComfyUI's scale, which is 1 more than the server's `guidance_scale`.
            seed: Of the first picture.
            count: Pictures.
            server: Its address.
            image: float [1, height, width, 3] to begin with; None for none.
            strength: How far to go from it.
            api_key: The server's key; empty for none.

        Returns:
            One float tensor [count, height, width, 3].

        Raises:
            RuntimeError: If the server refuses or cannot be reached; says why.
        """
        import torch

        body = {
            "prompt": prompt,
            "size": f"{width}x{height}",
            "steps": steps,
            "guidance_scale": round(cfg - 1, 6),
            "seed": seed,
            "n": count,
            "response_format": "b64_json",
            "output_format": "png",
        }
        if cfg > 1 and negative_prompt:
            body["negative_prompt"] = negative_prompt
        route = "generations"
        if image is not None:
            if len(image) != 1:
                raise RuntimeError(f"the image to begin with must be one picture, got a batch of {len(image)}")
            route = "edits"
            body |= {"image": data_url(image[0]), "strength": strength, "resize": True}
        answer = post(f"{server.rstrip('/')}/v1/images/{route}", body, api_key)
        pictures = [pixels(each["b64_json"]) for each in answer["data"]]
        return (torch.from_numpy(np.stack(pictures)),)


def post(address: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    """Send JSON and read JSON.

    Raises:
        RuntimeError: If the server refuses or cannot be reached; says why.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        said = error.read().decode("utf-8", "replace")
        try:
            said = json.loads(said)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = said[:200]
        raise RuntimeError(f"{address} answered {error.code}: {said}") from error
    except OSError as error:
        raise RuntimeError(f"{address} cannot be reached ({error}); is `max-zimage serve` running there?") from error


def data_url(image: Any) -> str:
    """A float picture [height, width, 3] as a PNG in a data URL."""
    levels = np.clip(np.asarray(image) * 255, 0, 255).round().astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(levels).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def pixels(content: str) -> Any:
    """A picture in base64 as float32 [height, width, 3] from 0 to 1."""
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        return np.asarray(picture.convert("RGB"), np.float32) / 255
