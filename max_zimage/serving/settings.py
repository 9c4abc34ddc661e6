"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one request may ask for, and how much may wait; beyond it, a request is refused and told the limit.

    Attributes:
        pixels: Height times width of a picture.
        steps: Denoising steps.
        images: Pictures of one request.
        prompt_characters: Of a prompt, and of a negative one.
        prompt_tokens: Which `max_sequence_length` may ask for; None for as many as the checkpoint has positions for.
        body_bytes: Of a request's body, uploads included.
        queue: Requests that wait; those being drawn do not count.
        seconds: From when a request is queued to its last picture.
        input_pixels: Of an image that is sent in.
    """

    pixels: int = 2048 * 2048
    steps: int = 100
    images: int = 8
    prompt_characters: int = 10_000
    prompt_tokens: int | None = None
    body_bytes: int = 32 * 2**20
    queue: int = 64
    seconds: float = 600.0
    input_pixels: int = 4096 * 4096


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """How much clients may take up before they have asked for anything.

    Attributes:
        connections: At a time.
        read_seconds: For a request to arrive, besides one second for each 64 KiB of it that has.
        write_seconds: For an answer to be taken, likewise.
    """

    connections: int = 512
    read_seconds: float = 30.0
    write_seconds: float = 30.0


def usual_pictures(*, on_host: bool) -> int:
    """Pictures that share a batch unless told otherwise: one on a CPU, which it keeps as busy as four."""
    return 1 if on_host else 4


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """A server.

    Attributes:
        model: Folder or hub id; None for the embedded model.
        name: What requests call the model.
        host: Address to listen on.
        port: Port to listen on.
        device: As in `ZImagePipeline.from_pretrained`.
        dtype: As in `ZImagePipeline.from_pretrained`.
        weight_paths: Weight files in place of the checkpoint's own.
        api_key: What clients must send; None lets everybody in.
        allow_remote_images: Whether images may be given as http(s) URLs, which the server then fetches.
        restart: Whether a worker that dies is started again.
        step_cache: Of requests that name none, as `max_zimage.sampling.step_cache.parse_step_cache` reads it; None for
            none.
        lora_folder: Whose adapters requests may name; None for no adapters.
        batch_pictures: Pictures of several requests that may share their denoising steps; None for
            `usual_pictures`.
        mix_loras: Whether requests under different adapters may share steps, each with its own beside the weights.
        shutdown_seconds: How long work in flight may go on after SIGTERM.
        embedding_cache_bytes: Of text features that the worker keeps for prompts that come again; 0 for none.
        state_store: Where requests and pictures by URL are kept, from `addresses.store_address`.
        state_seconds: How long they are.
        media_bytes: Of pictures kept for answers by URL, and of what became of requests; the oldest go first.
        trusted_proxies: Addresses and networks whose X-Forwarded headers are believed, from
            `addresses.proxy_network`.
        allow_hosts: Names by which the server answers besides its own, from `callers.host_name`.
        metadata: Whether pictures say how they came to be, and carry the parameters they were drawn with.
        cors_origins: Origins whose pages may use the server, from `callers.origin_of`.
        connections: How many there may be, and how long clients may take over them.
        limits: Of requests.
    """

    model: str | None = None
    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    dtype: str = "auto"
    weight_paths: tuple[str, ...] = ()
    api_key: str | None = None
    allow_remote_images: bool = False
    restart: bool = False
    step_cache: str | None = None
    lora_folder: str | None = None
    batch_pictures: int | None = None
    mix_loras: bool = False
    shutdown_seconds: float = 30.0
    embedding_cache_bytes: int = 256 * 2**20
    state_store: str = "memory"
    state_seconds: float = 3600.0
    media_bytes: int = 256 * 2**20
    trusted_proxies: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    metadata: bool = True
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    limits: ServerLimits = field(default_factory=ServerLimits)

    def pictures_together(self, *, on_host: bool) -> int:
        """How many pictures may share a batch, on a CPU or on an accelerator."""
        return self.batch_pictures or usual_pictures(on_host=on_host)
