"""What is stepped: lists of tensors, and models to train."""
