"""What a run leaves on disk and shows: its directory, checkpoints, rows of numbers, curves and progress. Knows no training."""
