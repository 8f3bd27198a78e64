"""For the site: docstrings as Markdown.

name    what it is, over      ->   - `name` what it is, over several lines
        several lines
>>> y = fc.ffn(x, w)          ->   a block of code
"""

import re

import griffe

_ROW = re.compile(r"([a-z_][\w, =.*]*?) {2,}(\S.*)")


def markdown(text):
    lines, code, row = [], False, False
    for line in text.splitlines():
        prompt = re.match(r"(>>>|\.\.\.) ?", line)
        if code and not prompt:
            lines.append("```")
        if prompt and not code:
            lines += ["", "```python"]
        code = bool(prompt)
        found = None if code else _ROW.fullmatch(line)
        if prompt:
            lines.append(line[prompt.end() :])
        elif found:
            lines += [*([] if row else [""]), f"- `{found[1]}` {found[2]}"]
        elif row and line.startswith("  "):
            lines.append("  " + line.strip())
        else:
            lines += [*([""] if row and line.strip() else []), line]
        row = bool(found) or (row and line.startswith("  "))
    return "\n".join([*lines, *(["```"] if code else [])])


class Docstrings(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
