"""A web page that shows what a model sees in photographs: `demo/app.py` serves it.

Only `page`'s functions need Gradio.
"""

from mask2former.web.address import AddressError
from mask2former.web.page import MissingGradioError, build_page, import_gradio, serve
from mask2former.web.photos import Limits, SamplesError, find_samples
from mask2former.web.workbench import Workbench

__all__ = [
    "AddressError",
    "Limits",
    "MissingGradioError",
    "SamplesError",
    "Workbench",
    "build_page",
    "find_samples",
    "import_gradio",
    "serve",
]
