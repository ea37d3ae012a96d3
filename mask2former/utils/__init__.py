"""Files, journals, label images and parallel work: what every other part of the package may use."""
