"""Natural images: from a first look at them to networks that know them."""
