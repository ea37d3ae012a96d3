"""A web page that shows what a model sees in photographs: `demo/app.py` serves it.

Only `page`'s functions need Gradio.
"""

from mask2former.web.page import WebPageError, build_page, import_gradio, serve
from mask2former.web.photos import Limits, SamplesError, find_samples
from mask2former.web.workbench import Workbench

__all__ = [
    "Limits",
    "SamplesError",
    "WebPageError",
    "Workbench",
    "build_page",
    "find_samples",
    "import_gradio",
    "serve",
]
