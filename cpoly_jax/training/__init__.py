"""The seams to t5x: model, features, optimizer, partitioning."""
