"""What a feature is: the text it takes, its form in TensorFlow and in NumPy."""
