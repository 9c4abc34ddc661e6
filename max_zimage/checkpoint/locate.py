"""Where a checkpoint's files are: a local directory or the Hugging Face cache, components, shards, single files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from max.graph.weights import SafetensorWeights, Weights

from max_zimage import progress
from max_zimage.checkpoint.config_reader import CONFIG_FILES
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.model_index import INDEX, read_index
from max_zimage.checkpoint.parts import parts_in
from max_zimage.errors import CheckpointError
from max_zimage.strict_json import is_there, read_object, shown

__all__ = [
    "COMPONENTS",
    "CONFIG_FILES",
    "find_component_files",
    "paths_of",
    "read_config",
    "resolve_model",
    "route_weight_files",
    "shards",
]

COMPONENTS = ("text_encoder", "transformer", "vae")
# The names that save_pretrained gives the full-precision weights. A folder may hold more, e.g. fp16 or EMA copies.
_WEIGHT_STEMS: Mapping[str, str] = {
    "text_encoder": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_GGUF_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve_model(
    model: str | Path, revision: str | None = None, *, without: Collection[str] = (), replaced: Collection[str] = ()
) -> Path:
    """Find the directory of a model.

    Args:
        model: A directory in the diffusers layout, or as a string also a hub id such as "Tongyi-MAI/Z-Image-Turbo",
            which is downloaded into the Hugging Face cache, or taken from it where HF_HUB_OFFLINE=1 is set.
        revision: Of a hub id.
        without: Parts that are not downloaded, of a hub id.
        replaced: Components whose configuration alone is: their weights are files from elsewhere.

    Returns:
        A directory that holds a `model_index.json` of a Z-Image pipeline.

    Raises:
        CheckpointError: If there is no such directory or repository, or it holds no Z-Image model.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        directory = path
    elif path.exists():
        raise CheckpointError(
            f"{path} is a file; give the directory that holds {INDEX}, and the file as its weights (--weight-path)"
        )
    elif isinstance(model, str) and _HUB_ID.fullmatch(model):
        directory = _download(model, revision, without, replaced)
    else:
        raise CheckpointError(
            f"no model at {model}: there is no such directory, and a hub id has the form owner/name, e.g. "
            "Tongyi-MAI/Z-Image-Turbo"
        )
    _check_pipeline(directory)
    return directory


def find_component_files(model_dir: Path, component: str, *, flat: bool = False) -> list[Path]:
    """Name the weight files of a component.

    Args:
        model_dir: Directory in the diffusers layout.
        component: One of `COMPONENTS`.
        flat: Whether `model_dir` is the component's own folder.

    Returns:
        The one file, or the shards that the index names, in order; where neither is there, the one GGUF file, or its
        shards. Other files of the folder play no part.

    Raises:
        CheckpointError: If there are none, a shard is absent, the index is damaged, or it could be one of several.
    """
    folder = model_dir if flat else model_dir / component
    if not folder.is_dir():
        raise CheckpointError(f"{model_dir} has no folder {component}; found {_listing(model_dir)}")
    single = folder / f"{_WEIGHT_STEMS[component]}.safetensors"
    index = folder / f"{single.name}.index.json"
    if is_there(single) and is_there(index):
        raise CheckpointError(f"{folder} holds both {single.name} and {index.name}; remove the one that is out of date")
    if is_there(single):
        return [single]
    if is_there(index):
        return shards(index)
    if files := _gguf_files(folder):
        return files
    fetched = "; GGUF files of a hub id are not fetched: download one, and name it by --weight-path"
    raise CheckpointError(
        f"{folder} holds neither {single.name} nor {index.name} nor a GGUF file; found {_listing(folder)}"
        + (fetched if _is_of_hub(model_dir) else "")
    )


def _is_of_hub(directory: Path) -> bool:
    """Whether a directory lies in the cache of the hub, of whose repositories only some files are fetched."""
    from huggingface_hub import constants

    return directory.absolute().is_relative_to(Path(constants.HF_HUB_CACHE).absolute())


def _gguf_files(folder: Path) -> list[Path]:
    """The one GGUF file of a folder, or all shards of one; none if there is none."""
    found = sorted(folder.glob("*.gguf"))
    sets: dict[str, list[Path]] = {}
    for file in found:
        part = _GGUF_SHARD.fullmatch(file.name)
        sets.setdefault(f"{part[1]} of {part[2]}" if part else file.name, []).append(file)
    if len(sets) > 1:
        raise CheckpointError(
            f"{folder} holds several GGUF files: {', '.join(file.name for file in found)}; leave one, or name it by "
            "--weight-path (weight_path= in Python)"
        )
    for files in sets.values():
        part = _GGUF_SHARD.fullmatch(files[0].name)
        if part and len(files) != int(part[2]):
            raise CheckpointError(f"{folder} holds {len(files)} of the {int(part[2])} shards of {files[0].name}")
    return found


def read_config(model_dir: Path, component: str, *, flat: bool = False) -> dict[str, object]:
    """Read a component's configuration file.

    Args:
        model_dir: Directory in the diffusers layout.
        component: A key of `CONFIG_FILES`.
        flat: Whether `model_dir` is the component's own folder.

    Raises:
        CheckpointError: If it is absent, no JSON object, or an empty one.
    """
    file = (model_dir if flat else model_dir / component) / CONFIG_FILES[component]
    config = read_object(file)
    if not config:
        raise CheckpointError(f"{file} holds an object without keys; fetch it again")
    return config


def route_weight_files(
    paths: Sequence[Path], components: Sequence[str], unprefixed_component: str, *, quiet: bool = False
) -> dict[str, list[Path]]:
    """Tell which component each weight file belongs to.

    Args:
        paths: Weight files, possibly from several repositories.
        components: Names of components.
        unprefixed_component: Takes the files of which nothing tells whose they are.
        quiet: Whether not to note which of two files is taken, for who asks before loading does.

    Returns:
        Component -> its files, in the order given. The folder that a file stands in decides first; a component's name
        further up the path, as in /data/vae/zimage/model.safetensors, says nothing. Otherwise the names of its tensors
        do, and a file that holds several components serves each that has no file of its own.

    Raises:
        CheckpointError: If two files hold the same component beside others.
    """
    routed: dict[str, list[Path]] = {}
    shared: dict[str, list[Path]] = {}
    for path in paths:
        folder = path.parent.name
        found = {folder} if folder in components else _components_in(path)
        held = [name for name in components if name in found] or [unprefixed_component]
        for component in held:
            (routed if len(held) == 1 else shared).setdefault(component, []).append(path)
    for component, files in shared.items():
        if len(files) > 1:
            raise CheckpointError(
                f"{' and '.join(map(str, files))} hold a {component} each, beside other components; give one of them, "
                f"or a file of the {component} alone besides"
            )
        if component in routed and not quiet:
            progress.note(f"{component}: taken from {routed[component][0]}, not from {files[0]}, which holds one, too")
        routed.setdefault(component, files)
    return routed


def _components_in(file: Path) -> set[str]:
    """Components that a file has tensors of; none if it cannot be read, which is said where it is loaded."""
    try:
        return parts_in(open_source([file]).tensors)
    except CheckpointError:
        return set()


def paths_of(weights: Weights) -> list[Path]:
    """The files behind what MAX hands to a component, so that they are read the same way in `max serve`.

    Raises:
        CheckpointError: If the weights are not safetensors.
    """
    if not isinstance(weights, SafetensorWeights):
        raise CheckpointError(f"weights must be safetensors files, got {type(weights).__name__}")
    return [Path(path) for path in weights._filepaths]


def _download(hub_id: str, revision: str | None, without: Collection[str], replaced: Collection[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    wanted = [INDEX, *([] if "tokenizer" in without else ["tokenizer/*"])]
    for component, config in CONFIG_FILES.items():
        if component in without:
            continue
        wanted.append(f"{component}/{config}")
        if (stem := _WEIGHT_STEMS.get(component)) and component not in replaced:
            wanted += [f"{component}/{stem}{end}" for end in (".safetensors", ".safetensors.index.json")]
            wanted.append(f"{component}/{stem}-?????-of-?????.safetensors")
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"no model at {hub_id}: there is no such directory here and no such repository on the hub "
            "(or it is private: log in with `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{hub_id} is not, or not completely, in the Hugging Face cache, and the hub cannot be reached "
            "(is HF_HUB_OFFLINE set?); connect once to download it, or give a local directory"
        ) from error
    except OSError as error:  # every other answer of the hub, and a full disk
        raise CheckpointError(f"{hub_id} could not be downloaded: {error}") from error


def _check_pipeline(directory: Path) -> None:
    if not any(directory.iterdir()):
        raise CheckpointError(f"{directory} is empty; it should hold a model with a {INDEX}")
    if not is_there(directory / INDEX):
        raise CheckpointError(f"{directory} is no model: it holds no {INDEX}; found {_listing(directory)}")
    read_index(directory)


def shards(index: Path) -> list[Path]:
    """The files that an index names, which stand beside it.

    Raises:
        CheckpointError: If it is damaged, or one of them is absent.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is damaged: it has no weight_map that names files; fetch it again")
    if other := [shown(name) for name in weight_map.values() if not isinstance(name, str) or not name]:
        raise CheckpointError(f"{index} is damaged: it names {other[0]} as a file; fetch it again")
    names = sorted(set(weight_map.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names files outside its folder: {', '.join(outside)}")
    if absent := [name for name in names if not is_there(index.parent / name)]:
        raise CheckpointError(
            f"{index.parent} lacks {len(absent)} of the {len(names)} shards that {index.name} names: "
            + ", ".join(absent)
        )
    return [index.parent / name for name in names]


def _listing(folder: Path) -> str:
    """The first few names in a folder, for a message."""
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
