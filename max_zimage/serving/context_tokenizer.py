"""The adapter to `max serve`: an HTTP request, validated, becomes the ZImageContext that the worker runs.

Everything is checked here, because only errors raised here reach the client as a 400 with their message; what the
worker raises becomes a 500 without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from max.pipelines.context.exceptions import InputError
from max.pipelines.lib.config import PipelineConfig
from max.pipelines.lib.request_text import retrieve_input_text
from max.pipelines.modeling.types import PipelineTokenizer, RequestID, TokenIds
from max.pipelines.request import OpenResponsesRequest
from max.pipelines.request.provider_options import ImageProviderOptions

from max_zimage.checkpoint.description import describe
from max_zimage.checkpoint.locate import resolve_model
from max_zimage.errors import RequestError
from max_zimage.images.read import MAX_PIXELS
from max_zimage.pipeline.context import ZImageContext
from max_zimage.pipeline.request_contexts import context_of_request, context_of_tokens
from max_zimage.pipeline.worker_plan import groups_for_worker
from max_zimage.request.cache_checks import check_shared
from max_zimage.request.fields import ROWS
from max_zimage.request.limits import DEFAULT_MAX_SEQUENCE_LENGTH
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.drawn_by import asked_metadata, source_of, written_parameters
from max_zimage.serving.input_images import image_urls, mask, start_image
from max_zimage.text.tokenizer import PromptTokenizer, TokenizerError

OUTPUT_FORMATS = ("jpeg", "png", "webp")

IdArray = npt.NDArray[np.int64]


class ZImageTokenizer(PipelineTokenizer[ZImageContext, IdArray, OpenResponsesRequest]):
    """Turns requests of the OpenResponses API into contexts for ZImagePipeline.

    Attributes:
        specs: Shapes of the checkpoint.
        limits: What it can do at most.
        defaults: What a request gets where it says nothing.
        max_input_pixels: Height times width of an image that a request brings.
    """

    max_input_pixels = MAX_PIXELS

    def __init__(
        self,
        model_path: str,
        pipeline_config: PipelineConfig,
        subfolder: str,
        *,
        max_length: int,
        default_num_inference_steps: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        groups: int | None = None,
    ) -> None:
        """Load the tokenizer and the checkpoint's limits; the arguments are those the registry passes.

        Args:
            model_path: Folder or hub id of the checkpoint.
            pipeline_config: MAX's configuration, with one entry a component.
            subfolder: Folder of the tokenizer inside the checkpoint.
            max_length: Tokens that a request's max_sequence_length may ask for, chat template included. MAX passes 512
                for every model of this name, which is what a prompt has whose request says nothing: it bounds nothing.
            default_num_inference_steps: Steps of checkpoints that are not distilled.
            revision: Revision of a hub id.
            trust_remote_code: Refused if true: no code of a checkpoint is ever run.
            groups: In which the transformer's devices share branch rows, 0 for one device; what a server of MAX's is
                told if not given.

        Raises:
            ValueError: If the tokenizer or a configuration cannot be read, the two do not fit together, or several
                devices cannot do what is configured.
        """
        if trust_remote_code:
            raise ValueError("trust_remote_code has no use here: no code of a checkpoint is run; leave it out")
        described = describe(pipeline_config, default_num_inference_steps)
        self._drawn_by = source_of(model_path, pipeline_config.models)
        self.specs = described.specs
        most = described.limits.max_tokens
        bound = most if max_length == DEFAULT_MAX_SEQUENCE_LENGTH else min(max_length, most)
        # Whoever sends a request may not name any file of this machine.
        if groups is None:
            groups = groups_for_worker(len(pipeline_config.models["transformer"].device_specs))
        check_shared(described.defaults.step_cache, groups)
        self.limits = replace(described.limits, max_tokens=bound, groups=groups).with_lora_folder(None)
        self.defaults = described.defaults
        self._tokenizer = PromptTokenizer(
            resolve_model(model_path, revision) / subfolder,
            embeddings=described.specs.text_encoder.vocab_size,
            positions=self.limits.max_tokens,
        )

    @property
    def prompts(self) -> PromptTokenizer:
        """The checkpoint's own, of texts alone."""
        return self._tokenizer

    @property
    def digests(self) -> list[str]:
        """Of the chat template, and of the tokenizer."""
        return [self._tokenizer.template_digest, self._tokenizer.digest]

    @property
    def eos_token_ids(self) -> set[int]:
        """None: pictures do not end with a token."""
        return set()

    @property
    def expects_content_wrapping(self) -> bool:
        """Prompts are plain text."""
        return False

    async def encode(self, prompt: str, add_special_tokens: bool = True) -> IdArray:
        """Turn a prompt into ids, int64 [tokens]; the chat template decides about special tokens."""
        return self._tokenizer.encode(prompt)

    async def decode(self, encoded: TokenIds, **kwargs: Any) -> str:
        """Raise: nothing here produces text."""
        raise NotImplementedError("Z-Image makes pictures, there is no text to decode")

    async def new_context(self, request: OpenResponsesRequest) -> ZImageContext:
        """Validate a request and prepare all that the worker needs.

        Args:
            request: The request as the server parsed it.

        Returns:
            Its context: token ids unpadded, float32 sigmas [N + 1] and timesteps [N], and the seed of its noise.

        Raises:
            InputError: With the message for the client.
        """
        # Decoding an image takes long enough to hold up the server's other requests: not on its event loop.
        return await asyncio.to_thread(self._context, request)

    def _context(self, request: OpenResponsesRequest) -> ZImageContext:
        try:
            asked = self.parse(request)
            metadata = asked_metadata(request.body.metadata) is not False
            return self.make_context(
                asked,
                request_id=request.request_id,
                model_name=request.body.model,
                output_format=image_options(request).output_format,
                metadata=metadata,
                parameters=written_parameters(asked, self._drawn_by) if metadata else [],
            )
        except (RequestError, TokenizerError) as error:
            raise InputError(str(error)) from error

    def make_context(
        self, asked: GenerationRequest, *, request_id: RequestID, model_name: str, output_format: str, **more: Any
    ) -> ZImageContext:
        """Tokenize a request of one prompt, and make its schedule.

        Args:
            asked: The request.
            request_id: Its id.
            model_name: What the client calls the model.
            output_format: One of `OUTPUT_FORMATS`.
            **more: Other fields of `ZImageContext`.

        Raises:
            RequestError: If a text has too many tokens, or a step would have no length.
            TokenizerError: If the chat template refuses it.
        """
        named = {"request_id": request_id, "model_name": model_name, "output_format": output_format}
        return context_of_request(asked, self._tokenizer, self.limits, self.specs.schedule, **named, **more)

    def context_of(self, asked: GenerationRequest, texts: Sequence[IdArray], **fields: Any) -> ZImageContext:
        """Make the schedule of a request whose texts are token ids already.

        Args:
            asked: The request.
            texts: int64 [tokens] each: its prompt, where it has no features, and its negative prompt.
            **fields: Other fields of `ZImageContext`.

        Raises:
            RequestError: If a step would have no length.
        """
        return context_of_tokens(asked, texts, self.specs.schedule, **fields)

    def parse(self, request: OpenResponsesRequest) -> GenerationRequest:
        """Read and check a request of the OpenResponses API.

        Raises:
            RequestError: With all that is wrong.
        """
        values = _fields(request, image_options(request))
        return GenerationRequest.create(
            limits=self.limits,
            defaults=self.defaults,
            prompt=_prompt(request),
            image=start_image(request, self.max_input_pixels),
            mask_image=mask(request, self.max_input_pixels),
            **values,
        )


def _fields(request: OpenResponsesRequest, options: ImageProviderOptions) -> dict[str, Any]:
    """What a request says in the places that the table names, by argument of `GenerationRequest.create`."""
    places: dict[str, Mapping[str, Any]] = {
        # What is set, and no more: the schema fills an unset guidance scale with 3.5, which would switch guidance on
        # for distilled checkpoints.
        "options": {name: getattr(options, name) for name in options.model_fields_set},
        "body": {"seed": request.body.seed},
        "metadata": request.body.metadata or {},
        "": {},
    }
    values: dict[str, Any] = {}
    for name, row in ROWS.items():
        if row.responses is not None:
            value = places[row.responses.place].get(row.responses.name)
            values[name] = row.kind.read(value) if row.responses.place == "metadata" and value is not None else value
    return {name: value for name, value in values.items() if value is not None}


def _prompt(request: OpenResponsesRequest) -> str:
    try:
        return retrieve_input_text(request)
    except ValueError as error:
        raise RequestError.of("input", "{field}: {reason}", reason=error) from error


def image_options(request: OpenResponsesRequest) -> ImageProviderOptions:
    """The request's image options; what the schema knows and Z-Image does not is refused, not ignored.

    Raises:
        RequestError: With the names of all that has no use.
    """
    options = request.body.provider_options.image or ImageProviderOptions.model_validate({})
    given = options.model_fields_set
    refused = {
        "provider_options.video": request.body.provider_options.video is not None,
        "n (use provider_options.image.num_images)": request.body.n not in (None, 1),
        "strength (without an input_image)": "strength" in given and not image_urls(request),
        "secondary_prompt": options.secondary_prompt is not None,
        "secondary_negative_prompt": options.secondary_negative_prompt is not None,
        "true_cfg_scale (use guidance_scale)": options.true_cfg_scale != 1.0,
    }
    unused = [name for name, is_given in refused.items() if is_given]
    if unused:
        message = "this model makes pictures and has no use for {unused}; leave it out"
        raise RequestError.of(unused[0].partition(" ")[0], message, unused=", ".join(unused))
    if options.output_format not in OUTPUT_FORMATS:
        message, known = "{field} must be one of {known}, got {given!r}", ", ".join(OUTPUT_FORMATS)
        raise RequestError.of("output_format", message, known=known, given=options.output_format)
    return options
