"""Features: the texts that they accept, and the computation of their values in TensorFlow and in NumPy."""
