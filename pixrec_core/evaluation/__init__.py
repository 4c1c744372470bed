"""What rankings are worth: metrics per user first, then their mean, with intervals."""
