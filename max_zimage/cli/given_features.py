"""Features that the command line draws from, and those that a picture to be repeated was drawn from."""

from __future__ import annotations

import argparse
from pathlib import Path

from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.prompt_features import PromptFeatures


def given_features(arguments: argparse.Namespace) -> PromptFeatures | None:
    """Those of --embeddings, if it is given.

    Raises:
        ImageFileError: If it is no file of features.
    """
    return None if arguments.embeddings is None else PromptFeatures.load(Path(arguments.embeddings))


def doubts_of_features(
    arguments: argparse.Namespace, saved: GenerationParameters | None, given: PromptFeatures | None
) -> tuple[str, ...]:
    """What may make a picture another one than that of --from, because that one was drawn from features."""
    if saved is None or saved.features_digest is None or arguments.prompt is not None:
        return ()
    if given is None:
        return (
            f"{arguments.source} was drawn from features that were made before it; its prompt is encoded again, which "
            "draws the same where text encoder, dtype and device are the same. --embeddings draws from their file",
        )
    if given.digest == saved.features_digest:
        return ()
    return (
        f"{arguments.source} was drawn from other features ({saved.features_digest[:19]}...) than those of "
        f"{arguments.embeddings} ({given.digest[:19]}...)",
    )
