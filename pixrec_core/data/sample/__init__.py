"""A synthetic shop: its products, their drawn photos, its shoppers and their purchases, as Amazon Reviews 2023 files."""
