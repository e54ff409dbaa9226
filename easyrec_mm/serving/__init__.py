"""Online serving of a rec model. Imports neither TensorFlow (unless asked to run on it) nor anything of training."""
