"""What a trained model has learned: the parts of its input that its predictions depend on, and its picture vectors."""
