"""From a checkpoint to rankings: item and user vectors, the index over items, and ranked lists per user."""
