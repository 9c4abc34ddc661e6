"""The files of a DiffusionGemma: found, checked by the one table of names, and loaded for its graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from max.driver import Buffer, Device, load_devices
from max.dtype import DType

from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import find_component_files
from max_zimage.checkpoint.plan import LoadPlan, plan
from max_zimage.compile.device_weights import OnDevice, shared
from max_zimage.device.devices import device_name, device_spec
from max_zimage.device.dtypes import ModelDtype, model_dtype
from max_zimage.device.memory import available_memory, check_device_memory, check_memory
from max_zimage.diffusion_gemma.config_file import read_file
from max_zimage.diffusion_gemma.names import names
from max_zimage.diffusion_gemma.tied import arranged
from max_zimage.errors import CheckpointError
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec
from max_zimage.graphs.kernel_library import uses_cpu_kernels

_GRAPHS = 2  # of an encoding and of a denoising step


def find_files(directory: Path) -> list[Path]:
    """The weight files of a checkpoint: `model.safetensors`, or the shards that its index names.

    Raises:
        CheckpointError: If there is no such folder, or none of these in it.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"no DiffusionGemma at {directory}: there is no such directory; fetch a checkpoint first, such as with "
            "`hf download google/diffusiongemma-26B-A4B-it --local-dir DIR`"
        )
    return find_component_files(directory, "text_encoder", flat=True)


def plan_weights(spec: DiffusionGemmaSpec, files: Sequence[Path]) -> LoadPlan:
    """Check files against what the graphs need; no numbers are read but those of tied copies.

    Args:
        spec: Shape of the model.
        files: One file, or all shards.

    Raises:
        CheckpointError: With all that is missing, unexpected, or of the wrong shape or dtype; if the files are those of
            another model; if copies of a tied tensor differ.
    """
    source = open_source(files)
    return plan(names(spec, source.tensors), source, [arranged(spec)])


def weights_of(directory: Path, device: str) -> dict[str, int]:
    """Where the weights of a checkpoint go, and how many bytes they take there, before they are loaded.

    Args:
        directory: The checkpoint.
        device: As `CompiledDiffusionGemma.from_pretrained` has it; the dtype is its "auto".

    Raises:
        CheckpointError: If the files are not those of a DiffusionGemma that this engine computes.
        RequestError: If there is no such device.
    """
    (there,) = load_devices([device_spec(device)])
    checked = plan_weights(read_file(directory).spec, find_files(directory))
    dtype = model_dtype("auto", there)
    return {device_name(there): _copies(there) * checked.nbytes(dtype) + _turned(checked, dtype, there)}


def load_weights(checked: LoadPlan, dtype: ModelDtype, device: Device) -> Mapping[str, Buffer]:
    """Load what was checked, rounded to the dtype: in host memory, or on the device where graphs share it.

    Raises:
        NotEnoughMemoryError: If it does not fit; before anything is loaded.
    """
    check_fit(checked.nbytes(dtype), device, _turned(checked, dtype, device))
    found = load(checked, dtype, to_pack=uses_cpu_kernels(DType[dtype], device))
    return OnDevice(found, device) if shared(device) else found


def check_fit(nbytes: int, device: Device, beside: int = 0) -> None:
    """Compare weights with the memory there is.

    Args:
        nbytes: Of all of them. They pass through host memory wherever they go.
        device: Where they go.
        beside: Bytes that graphs on an accelerator make of them.

    Raises:
        NotEnoughMemoryError: If they do not fit.
    """
    check_memory(nbytes, available_memory())
    if not device.is_host:
        check_device_memory(_copies(device) * nbytes + beside, device)


def _copies(device: Device) -> int:
    """Of the weights there: on an accelerator each of the two graphs has its own, unless they share one."""
    return 1 if device.is_host or shared(device) else _GRAPHS


def _turned(checked: LoadPlan, dtype: ModelDtype, device: Device) -> int:
    """Bytes of the experts' second products, which each graph on an accelerator turns when it is loaded, and keeps."""
    if device.is_host:
        return 0
    turned = (each for each in checked.recipes if each.engine.endswith(".experts.down_proj"))
    return _GRAPHS * sum(checked.nbytes_of(each, dtype) for each in turned)


__all__ = ["check_fit", "find_files", "load_weights", "model_dtype", "plan_weights", "weights_of"]
