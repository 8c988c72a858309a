"""Programs and the rooms they share: training, data, checkpoints, metrics."""
