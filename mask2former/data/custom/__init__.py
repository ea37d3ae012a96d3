"""A user's own data: five formats are read, checked, drawn, split and prepared for training (tools/dataset.py)."""
