"""For the site: links that lead out of docs/, to files of the source tree, become plain names."""

import re


def on_page_markdown(markdown, **_):
    return re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"`\1`", markdown)
