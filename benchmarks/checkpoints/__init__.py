"""Random checkpoints of any size, for measuring where the published weights are not at hand."""
