"""Where a browser finds the reports and the ledger's answers, which `udrl pages` serves: the Dagster UI links to them.

A browser opens no file from a web page, so a link needs an address. UDRL_PAGES_URL names it (the Makefile sets it); without it nothing
is linked, and the path of a file is shown instead.
"""

import os

PAGES_ENV = "UDRL_PAGES_URL"


def page_of(path: str) -> str | None:
    """The address of a page such as `report` or `trace/student/udrl@0123`; None where nobody says that pages are served."""
    base = os.environ.get(PAGES_ENV, "").rstrip("/")
    return f"{base}/{path}" if base else None
