"""What follows from the fields of a request alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self, cast

from max_zimage.images.tiles import Tiling, TilingKind
from max_zimage.request.features_file import FloatArray
from max_zimage.request.fields import RequestFields
from max_zimage.request.passes import guidance_scales
from max_zimage.sampling import samplers
from max_zimage.sampling.noise import image_seed
from max_zimage.sampling.schedule import first_step
from max_zimage.sampling.starting_noise import NoiseSource


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestFacts(RequestFields):
    """Fields, and numbers of pictures, branches, steps and evaluations."""

    @property
    def num_prompts(self) -> int:
        """Prompts, given as text or as features."""
        return len(self.prompts if self.prompt_embeds is None else self.prompt_embeds)

    @property
    def read_prompts(self) -> tuple[str, ...]:
        """The prompts that the text encoder reads: none where their features are given."""
        return self.prompts if self.features is None else ()

    @property
    def read_negatives(self) -> tuple[str, ...]:
        """The negative prompts that it reads."""
        return () if self.features is not None and self.features[0].negative is not None else self.negative_prompts

    @property
    def given_positives(self) -> tuple[FloatArray, ...]:
        """The features that are given of prompts; none where those are texts."""
        return self.prompt_embeds or tuple(each.positive for each in self.features or ())

    @property
    def given_negatives(self) -> tuple[FloatArray, ...]:
        """The features that are given of negative prompts, where they are used."""
        if not self.uses_negative:
            return ()
        found = tuple(each.negative for each in self.features or () if each.negative is not None)
        return self.negative_prompt_embeds or found

    @property
    def is_repeatable(self) -> bool:
        """Whether texts and a seed say all of it."""
        known = all(each.made_by is not None for each in self.features or ())
        embeds = (self.prompt_embeds, self.negative_prompt_embeds if self.uses_negative else None)
        return known and self.latents is None and embeds == (None, None)

    def history(self, prompt: int) -> dict[str, str]:
        """What a picture says of how its prompt came to be, by field: nothing where it is what was given."""
        is_enhanced = bool(self.original_prompts) and self.original_prompts[prompt] != self.prompts[prompt]
        return {
            "original_prompt": self.original_prompts[prompt] if is_enhanced else "",
            "enhanced_by": self.enhanced_by if is_enhanced else "",
        }

    @property
    def num_images(self) -> int:
        """Pictures; picture p * num_images_per_prompt + j is copy j of prompt p."""
        return self.num_prompts * self.num_images_per_prompt

    @property
    def use_guidance(self) -> bool:
        """Whether any step may run the negative branch."""
        return self.max_guidance > 0

    @property
    def max_guidance(self) -> float:
        """The largest guidance scale of any step."""
        return max(guidance_scales(self.passes, self.guidance_scale))

    @property
    def uses_negative(self) -> bool:
        """Whether any step may show the negative prompt, in a branch of its own or inside attention."""
        return self.use_guidance or self.nag_scale > 0

    @property
    def num_branches(self) -> int:
        """Ways in which each picture is seen in the steps that have most of them."""
        return 1 + self.uses_negative + (self.slg_scale > 0)

    @property
    def is_masked(self) -> bool:
        """Whether a part of the image is kept."""
        return self.mask_image is not None or self.outpaint is not None

    @property
    def first_step(self) -> int:
        """The step that the schedule begins with: above 0 where the image's strength leaves some out."""
        return 0 if self.image is None else first_step(self.num_inference_steps, self.strength)

    @property
    def taken(self) -> tuple[tuple[int, int], ...]:
        """First step and number of steps of each schedule: of the passes, or of the one that there is."""
        if self.passes is None:
            return ((self.first_step, self.num_inference_steps),)
        return tuple((first_step(each.steps, each.strength), each.steps) for each in self.passes)

    @property
    def half_steps(self) -> int:
        """Steps that are taken with half of both sides."""
        count = self.num_inference_steps
        return sum(step / count < self.progressive for step in range(count))

    @property
    def steps_by_leg(self) -> tuple[int, ...]:
        """Steps that are taken in each part of the run, after which latents of another size go on."""
        if self.progressive:
            return self.half_steps, self.num_inference_steps - self.half_steps
        return tuple(steps - first for first, steps in self.taken)

    @property
    def num_steps(self) -> int:
        """Steps that are taken."""
        return sum(self.steps_by_leg)

    @property
    def num_evaluations(self) -> int:
        """How often the model is evaluated for each picture, without those steps and with every step in full."""
        return sum(samplers.cost(self.sampler, steps)[0] for steps in self.steps_by_leg)

    @property
    def tiling(self) -> Tiling:
        """How the autoencoder takes its pictures."""
        return Tiling(cast(TilingKind, self.vae_tiling), self.vae_tile_size, self.vae_tile_overlap)

    def picture(self, index: int) -> Self:
        """The request of one picture alone, by its seeds."""
        variation = None if self.variation_seed is None else image_seed(self.variation_seed, index)
        seed = None if self.seed is None else image_seed(self.seed, index)
        return replace(self, seed=seed, variation_seed=variation)

    def noise_source(self, seed: int | None) -> NoiseSource:
        """Where its starting noise comes from.

        Args:
            seed: Of the first picture.
        """
        return NoiseSource(
            kind="torch" if self.noise == "torch" else "philox",
            seed=seed or 0,
            variation_seed=self.variation_seed,
            variation_strength=self.variation_strength,
            from_image=self.image is not None,
        )
