"""The node for ComfyUI draws what the server draws for anybody, and says why where it does not."""

from __future__ import annotations

import base64
import importlib.util
import io
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from tests.paths import ROOT
from tests.references.servers import KEY, Server, free_port

ASKED = {"prompt": "a red star", "negative_prompt": "", "width": 96, "height": 64, "steps": 2, "cfg": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The folder as ComfyUI imports it: a package under any name."""
    folder = ROOT / "docs" / "examples" / "comfyui"
    spec = importlib.util.spec_from_file_location(
        "comfyui_max_zimage", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def drawn(server: Server, **body: object) -> np.ndarray:
    """The same from the server itself, uint8 [pictures, height, width, 3]."""
    asked = {"prompt": "a red star", "size": "96x64", "steps": 2, "seed": 3, "guidance_scale": 0, **body}
    route = "edits" if "image" in body else "generations"
    answer = server.client.post(f"/v1/images/{route}", json=asked)
    assert answer.status_code == 200, answer.text
    contents = [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]
    return np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])


def test_it_is_declared_as_comfyui_wants_it(package: ModuleType) -> None:
    (name,) = package.NODE_CLASS_MAPPINGS
    node = package.NODE_CLASS_MAPPINGS[name]
    assert set(package.NODE_DISPLAY_NAME_MAPPINGS) == {name}
    inputs = node.INPUT_TYPES()
    assert node.RETURN_TYPES == ("IMAGE",)
    assert callable(getattr(node(), node.FUNCTION))
    assert set(inputs["required"]) >= set(ASKED)
    assert inputs["optional"]["image"] == ("IMAGE",)


def test_it_draws_what_the_server_draws(package: ModuleType, server: Server) -> None:
    node = package.MaxZImage()
    (images,) = node.draw(**ASKED, count=2, server=server.url, api_key=KEY)
    assert isinstance(images, torch.Tensor)
    assert (images.dtype, tuple(images.shape)) == (torch.float32, (2, 64, 96, 3))
    levels = (images.numpy() * 255).round().astype(np.uint8)
    assert np.array_equal(levels, drawn(server, n=2))

    (guided,) = node.draw(
        **ASKED | {"cfg": 3.0, "negative_prompt": "blue"}, count=1, server=f"{server.url}/", api_key=KEY
    )
    wanted = drawn(server, guidance_scale=2, negative_prompt="blue")
    assert np.array_equal((guided.numpy() * 255).round().astype(np.uint8), wanted)

    (again,) = node.draw(**ASKED, count=1, server=server.url, api_key=KEY, image=images[:1], strength=0.5)
    url = package.node.data_url(images[0])
    wanted = drawn(server, image=url, strength=0.5, resize=True)
    assert np.array_equal((again.numpy() * 255).round().astype(np.uint8), wanted)


def test_what_goes_wrong_is_said(package: ModuleType, server: Server) -> None:
    node = package.MaxZImage()
    with pytest.raises(RuntimeError, match="answered 401"):
        node.draw(**ASKED, count=1, server=server.url)
    with pytest.raises(RuntimeError, match=r"answered 400: .*multiple of 16"):
        node.draw(**ASKED | {"width": 100}, count=1, server=server.url, api_key=KEY)
    with pytest.raises(RuntimeError, match=r"cannot be reached .*is `max-zimage serve` running there"):
        node.draw(**ASKED, count=1, server=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RuntimeError, match="must be one picture, got a batch of 2"):
        node.draw(**ASKED, count=1, server=server.url, api_key=KEY, image=torch.zeros(2, 64, 96, 3))
