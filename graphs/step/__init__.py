"""One denoising step: prediction, guidance and update in one graph, and the step caches' variants of it."""
