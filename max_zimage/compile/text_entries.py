"""The graphs of the text encoder: whole, in parts for other hidden layers, and with the head of a language model."""

from __future__ import annotations

from max_zimage.compile import counting
from max_zimage.compile.entry import Entry
from max_zimage.graphs.model.encoder_layers import CachedLayer, EncoderLayer, EncoderNorm, EncoderStart
from max_zimage.graphs.model.language_head import LanguageHead
from max_zimage.graphs.model.text_encoder import HIDDEN_LAYER, TextEncoder

TEXT = (
    Entry(
        name="text_encoder",
        component="text_encoder",
        make=lambda spec: TextEncoder(spec, spec.layers_used(HIDDEN_LAYER)),
        label="text encoder",
        runs="once per request",
        count=counting.count_text_encoder,
        is_replayed=True,
    ),
    Entry(
        name="text_encoder_start",
        component="text_encoder",
        make=EncoderStart,
        label="text encoder, embedding",
        runs="with another hidden layer: once per request",
    ),
    Entry(
        name="text_encoder_layer",
        component="text_encoder",
        make=EncoderLayer,
        label="text encoder, layers",
        runs="with another hidden layer: once per request and layer",
        count=counting.count_encoder_layer,
    ),
    Entry(
        name="text_encoder_cached_layer",
        component="text_encoder",
        make=CachedLayer,
        label="language model, layers",
        runs="with the enhancer `encoder`: once per layer, for the conversation and then for each token",
    ),
    Entry(
        name="text_encoder_norm",
        component="text_encoder",
        make=EncoderNorm,
        label="text encoder, last norm",
        runs="with the last hidden layer: once per request",
    ),
    Entry(
        name="text_encoder_head",
        component="text_encoder",
        make=LanguageHead,
        label="language model, head",
        runs="with the enhancer `encoder`: once per token",
    ),
)
"""Graphs of `max_zimage.compile.registry`."""
