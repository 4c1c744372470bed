"""A synthetic shop: products, drawn photos, shoppers and purchases, as Amazon Reviews 2023 files."""
