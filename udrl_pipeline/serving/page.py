"""The page to try a student: one file, no script or style but its own, nothing from anywhere else."""

import base64
import hashlib
import re
from importlib.resources import files

TEXT = (files("udrl_pipeline.serving") / "page.html").read_text(encoding="utf-8")


def _source(tag: str) -> str:
    """What a Content-Security-Policy calls the page's own script or style."""
    (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_source('script')}; style-src {_source('style')}; connect-src 'self'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
