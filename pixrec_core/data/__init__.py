"""From raw files to sequences: sources, items, interactions, images, sequences and their contract. No torch."""
