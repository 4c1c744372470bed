"""The sample's vocabulary. No word may name a colour or a pattern, which only the photos show."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Words:
    """The words of one category."""

    main_category: str
    path: tuple[str, ...]
    nouns: tuple[str, ...]
    materials: tuple[str, ...]
    features: tuple[str, ...]
    descriptions: tuple[str, ...]


BRANDS: Final = (
    "Atelier Lund", "Brindlay", "Casa Verano", "Dovetail", "Ellery Goods", "Fjellvik", "Halden", "Kestrel Works",
    "Larkhill", "Marlow House", "Mirabo", "Morrow & Finch", "Northby", "Osmund", "Ostra", "Petit Bazar", "Quillon",
    "Ravello", "Stonecroft", "Sundry & Sons", "Tidewell", "Vantry",
)  # fmt: skip

SERIES: Final = (
    "Alma", "Anka", "Birk", "Dag", "Edda", "Elin", "Finn", "Frida", "Greta", "Gro", "Hanne", "Hedda", "Inga", "Ivar",
    "Juno", "Kaia", "Leif", "Maren", "Nils", "Petra", "Runa", "Signe", "Tove", "Ulla", "Viggo", "Ylva",
)  # fmt: skip

CATEGORIES: Final = {
    "mug": Words(
        "Amazon Home",
        ("Home & Kitchen", "Kitchen & Dining", "Dining & Entertaining", "Cups & Mugs"),
        ("Mug", "Coffee Mug", "Tea Cup"),
        ("Stoneware", "Porcelain", "Bone China", "Enamel", "Handmade"),
        ("Holds 350 ml", "Dishwasher safe", "Microwave safe", "Comfortable handle", "Lead free glaze"),
        ("Keeps coffee warm through a long morning.", "A favourite for the first cup of the day."),
    ),
    "lamp": Words(
        "Tools & Home Improvement",
        ("Tools & Home Improvement", "Lighting & Ceiling Fans", "Lamps & Shades", "Table Lamps"),
        ("Table Lamp", "Bedside Lamp", "Desk Lamp"),
        ("Ceramic", "Wooden", "Linen", "Turned", "Compact"),
        ("E27 bulb, not included", "1.8 m cord", "Dimmable", "Switch on the cord", "Shade comes off for cleaning"),
        ("Warms up a quiet corner.", "Made for reading late."),
    ),
    "backpack": Words(
        "AMAZON FASHION",
        ("Clothing, Shoes & Jewelry", "Luggage & Travel Gear", "Backpacks", "Casual Daypacks"),
        ("Backpack", "Daypack", "Rucksack"),
        ("Canvas", "Nylon", "Waxed Cotton", "Recycled", "Lightweight"),
        ("Fits a 15 inch laptop", "20 litres", "Padded straps", "Water repellent", "Two side pockets"),
        ("From the office to the trail.", "Room for a day out, and for what you find there."),
    ),
    "sneaker": Words(
        "AMAZON FASHION",
        ("Clothing, Shoes & Jewelry", "Shoes", "Fashion Sneakers"),
        ("Sneakers", "Trainers", "Low Top Sneakers"),
        ("Canvas", "Suede", "Knitted", "Leather", "Vegan"),
        ("Rubber sole", "Removable insole", "Cotton laces", "True to size", "Breathable lining"),
        ("All day comfort from the first step.", "Goes with everything you own."),
    ),
    "cushion": Words(
        "Amazon Home",
        ("Home & Kitchen", "Bedding", "Decorative Pillows, Inserts & Covers", "Throw Pillows"),
        ("Cushion", "Throw Pillow", "Sofa Cushion"),
        ("Linen", "Velvet", "Cotton", "Wool", "Quilted"),
        ("45 x 45 cm", "Hidden zip", "Machine washable", "Insert included", "Piped edge"),
        ("Makes any sofa a place to stay.", "Soft, and keeps its shape."),
    ),
    "t-shirt": Words(
        "AMAZON FASHION",
        ("Clothing, Shoes & Jewelry", "Clothing", "Shirts", "T-Shirts"),
        ("T-Shirt", "Crew Neck T-Shirt", "Tee"),
        ("Organic Cotton", "Jersey", "Heavyweight", "Slub Cotton", "Bamboo"),
        ("Regular fit", "Pre-shrunk", "Machine wash cold", "Tagless neck", "Taped shoulder seams"),
        ("The one you reach for first.", "Gets softer with every wash."),
    ),
}  # fmt: skip

#: By stars, from 1 to 5: titles and texts of reviews.
OPINIONS: Final = (
    ("Sent it back", "Broke within a week."),
    ("Disappointed", "Not what I had hoped for at this price."),
    ("It is okay", "Does what it should, no more."),
    ("Very nice", "Well made, delivery took a while."),
    ("Love it!", "Looks even better than on the photo."),
)
