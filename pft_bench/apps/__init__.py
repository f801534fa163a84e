"""PFT for its users: pictures, quality, attention maps, training, and the systems it is compared with."""
