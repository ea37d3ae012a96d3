"""Your own data: read in four formats, checked, drawn, split, and made ready for training. tools/dataset.py runs it."""
