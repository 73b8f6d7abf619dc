"""The T5 encoder-decoder with adapters; parameter names and shapes are T5X's."""
