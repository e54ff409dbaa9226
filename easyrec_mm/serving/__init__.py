"""Online serving of a rec model. Imports neither TensorFlow (unless it is the chosen runtime) nor training code."""
