"""A web page that shows what a model finds in photographs; `demo/app.py` serves it.

Only the module `page` needs Gradio, so it has to be imported by its name.
"""

from mask2former.web.workbench import Limits, PhotoError, SamplesError, Workbench, find_samples

__all__ = ["Limits", "PhotoError", "SamplesError", "Workbench", "find_samples"]
