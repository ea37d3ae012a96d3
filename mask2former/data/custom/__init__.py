"""A user's own data: four formats are read, checked, drawn, split and prepared for training (tools/dataset.py)."""
