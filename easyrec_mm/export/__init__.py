"""A trained network to an image, a rec and a total model, proven equal."""
