"""Does the picture pay? The same config with its pictures, without them, with those of other items, and more."""
