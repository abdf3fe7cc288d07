"""The room for PyTorch: nothing outside it imports torch, and torch is optional."""
