"""From a checkpoint to rankings: vectors, the index over them, nearest items of each user."""
