"""The page of weight files keeps to what is loaded and what is said: `python -m tests.checkpoint.test_files_page`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from safetensors.torch import save_file

from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.plan import plan
from max_zimage.checkpoint.transforms import transformed
from max_zimage.errors import CheckpointError
from tests.checkpoint.test_gguf import KINDS
from tests.checkpoint.test_quantized import names_of
from tests.checkpoint.test_refused_files import OTHERS, WRONG, L, layer_of
from tests.paths import ROOT
from tests.references import gguf_files
from tests.references.gguf_files import MADE, Kind
from tests.references.quantized import FORMATS

PAGE = ROOT / "docs" / "files.md"
_TABLE = re.compile(r"(<!-- files: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _loaded() -> list[str]:
    """What is loaded, the word for it, bits a number, and how far a matrix of normal numbers moves."""
    torch.manual_seed(0)
    values = 0.02 * torch.randn(768, 768)
    rows = ["| weights | `info` says | bits a number | error |", "|---|---|---|---|"]
    for name, form in FORMATS.items():
        made, decoded = form.write(values)
        bits = 8 * sum(t.nbytes for end, t in made.items() if t.numel() > 300 or "scale" in end) / values.numel()
        rows.append(f"| {name} | `{form.storage}` | {bits:.2f} | {_error(decoded, values)} |")
    for kind in MADE:
        data = quants.quantize(values.numpy(), kind)
        decoded = torch.from_numpy(np.float32(quants.dequantize(data, kind)))
        bits = 8 * data.nbytes / values.numel()
        rows.append(f"| GGUF {kind.name} | `{kind.name}` | {bits:.2f} | {_error(decoded, values)} |")
    read = sorted(kind.name for kind in Kind if kind in quants._type_traits and kind not in MADE)
    for name in read:
        per_block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        rows.append(f"| GGUF {name} | `{name}` | {8 * nbytes / per_block:.2f} | |")
    return rows


def _error(decoded: torch.Tensor, values: torch.Tensor) -> str:
    return f"{((decoded - values).norm() / values.norm()).item():.1e}"


def _message(file: Path, action: object) -> str:
    try:
        assert callable(action)
        action()
    except CheckpointError as error:
        text = str(error).replace(f"{file} ", "").replace(str(file), "FILE").replace(L, "LAYER")
        return re.sub(r"^\(.*\) cannot be loaded:\s*|^cannot be loaded: ", "", text)
    raise AssertionError(f"{file} is loaded")


def _refused() -> list[str]:
    rows = ["| file | what is said |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "w.safetensors"
        for case, (names, _) in OTHERS.items():
            save_file({name: torch.zeros(2304, 2) for name in names}, file)
            rows.append(f"| {case} | {_message(file, lambda: plan(names_of('transformer'), open_source([file])))} |")
        for case, (written, _) in KINDS.items():
            gguf = Path(folder) / "w.gguf"
            gguf_files.write(gguf, {"w.weight": torch.zeros(2, 32)}, Kind.Q8_0, **written)  # type: ignore[arg-type]
            rows.append(f"| GGUF: {case} | {_message(gguf, lambda: open_source([gguf]))} |")  # noqa: B023
    return rows


def _damaged() -> list[str]:
    rows = ["| layer | what is said |", "|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "w.safetensors"
        for case, (form, change, _) in WRONG.items():
            state = layer_of(form)
            change(state)
            save_file(state, file)
            said = _message(file, lambda: transformed(open_source([file]), ()))
            rows.append(f"| {case} | {said.splitlines()[0].strip()} |")
    return rows


_MAKERS = {"loaded": _loaded, "refused": _refused, "damaged": _damaged}


def _rendered(text: str) -> str:
    return _TABLE.sub(lambda found: f"{found[1]}\n{chr(10).join(_MAKERS[found[2]]())}\n\n{found[3]}", text)


def test_the_page_is_what_is_loaded_and_said() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert {name for _, name, _ in _TABLE.findall(text)} == _MAKERS.keys()
    assert _rendered(text) == text, "run: python -m tests.checkpoint.test_files_page"


if __name__ == "__main__":
    PAGE.write_text(_rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
