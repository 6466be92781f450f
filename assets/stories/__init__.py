"""What the page of an asset tells its readers: a Markdown file each. What it is, from what, what it costs, what to do when it is red."""

from pathlib import Path


def story(asset: str) -> str:
    """The description of an asset, as the UI shows it."""
    return (Path(__file__).parent / f"{asset}.md").read_text(encoding="utf-8").strip()
