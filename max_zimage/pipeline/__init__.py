"""Z-Image as a diffusion pipeline: loading, preparing a request, the denoising loop, decoding."""
