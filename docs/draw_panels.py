"""Draws panels.svg, the picture of how-it-works.md: panels, tiles, blocks and chunks.

    python docs/draw_panels.py

Three parts, from the top: a product with tokens as rows (packed weights), one with tokens as panels
(raw weights), and how a sum and a layer are cut. Sizes are those of AVX-512 and float32. The file
is plain SVG text, so equal sources draw equal bytes, and tests/package/test_pages.py compares them.
Colours follow the reader's light or dark scheme.
"""

from pathlib import Path

FILE = Path(__file__).with_name("panels.svg")
WIDTH, HEIGHT = 760, 800
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2937; }
  .head { font-weight: 600; font-size: 15px; }
  .small { font-size: 11.5px; fill: #4b5563; }
  .middle { text-anchor: middle; }
  .frame { fill: none; stroke: #6b7280; }
  .plain { fill: #eef1f5; stroke: #6b7280; }
  .block { fill: #d5dbe5; stroke: none; }
  .x { fill: #5b9bd5; stroke: #1f2937; stroke-width: 0.6; }
  .gate { fill: #f0a04b; stroke: #1f2937; stroke-width: 0.6; }
  .up { fill: #6cc08b; stroke: #1f2937; stroke-width: 0.6; }
  .h { fill: #b48ad6; stroke: #1f2937; stroke-width: 0.6; }
  .line { stroke: #6b7280; fill: none; stroke-width: 1.4; }
  .thin { stroke: #6b7280; stroke-width: 0.7; }
  .tip { fill: #6b7280; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb; } .small { fill: #b6bdc9; } .plain { fill: #2b313c; }
    .block { fill: #465063; } .frame, .plain, .line, .thin { stroke: #9ca3af; }
    .tip { fill: #9ca3af; }
    .x { fill: #3b78b0; } .gate { fill: #b8702a; } .up { fill: #3f8f5d; } .h { fill: #8558ab; }
  }
"""


class Drawing:
    def __init__(self):
        self.lines = []

    def add(self, line):
        self.lines.append("  " + line)

    def box(self, kind, x, y, width, height):
        self.add(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>')

    def text(self, x, y, words, kind=""):
        words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        self.add(f'<text class="{kind}" x="{x}" y="{y}">{words}</text>')

    def thin(self, x0, y0, x1, y1):
        self.add(f'<line class="thin" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>')

    def arrow(self, *points):
        """Along the points, with a tip at the last one."""
        path = " ".join(f"{x},{y}" for x, y in points)
        (x0, y0), (x1, y1) = points[-2:]
        dx, dy = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        back, side = (x1 - 8 * dx, y1 - 8 * dy), (4 * dy, 4 * dx)
        tip = f"{x1},{y1} {back[0] + side[0]},{back[1] + side[1]} "
        tip += f"{back[0] - side[0]},{back[1] - side[1]}"
        self.add(f'<polyline class="line" points="{path}"/>')
        self.add(f'<polygon class="tip" points="{tip}"/>')

    def grid(self, x, y, rows, cols, size, kind):
        """Cells of a tile; kind(row, col) is their colour."""
        for r in range(rows):
            for c in range(cols):
                self.box(kind(r, c), x + c * size, y + r * size, size, size)

    def svg(self):
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        head += f'width="{WIDTH}" height="{HEIGHT}" role="img">'
        title = "<title>Panels, register tiles, blocks and chunks of a layer</title>"
        return "\n".join([head, f"  {title}", f"<style>{STYLE}</style>", *self.lines, "</svg>\n"])


def tokens_as_rows(d, top):
    """x rows * panels of gate and up -> a tile of 14 x 32 sums -> h rows."""
    d.text(10, top, "1. Packed weights: tokens are rows, weights are panels", "head")
    y = top + 56
    # x: 36 tokens of 4 blocks; one tile of 14 tokens, one block
    d.text(10, y - 26, "x, rows of tokens")
    d.text(10, y - 9, "d = 1024: two blocks of 512", "small")
    d.box("plain", 10, y, 150, 126)
    d.box("x", 10, y + 28, 75, 42)
    d.thin(85, y, 85, y + 126)
    d.text(47, y + 54, "14 x 512", "small middle")
    # the panels
    left = 196
    d.text(left, y - 26, "gate and up, packed in panels [d][32]")
    d.text(left, y - 9, "in groups of 8 columns: gate, up, gate, up", "small")
    for panel in range(4):
        x = left + panel * 60
        d.box("plain", x, y, 48, 126)
        if panel == 1:
            for group in range(4):
                d.box("gate" if group % 2 == 0 else "up", x + 12 * group, y, 12, 63)
        d.thin(x, y + 63, x + 48, y + 63)
    d.text(left + 250, y + 68, "...")
    # the tile
    left = 500
    d.text(left, y - 26, "a tile: 14 x 32 sums")
    d.text(left, y - 9, "28 vector registers", "small")
    d.grid(left, y, 14, 32, 4, lambda _, c: "gate" if c // 8 % 2 == 0 else "up")
    d.arrow((452, y + 28), (left - 8, y + 28))
    d.text(464, y + 20, "fma", "small")
    # the epilogue and h
    d.arrow((left + 64, y + 60), (left + 64, y + 96))
    d.text(left + 74, y + 76, "activation:", "small")
    d.text(left + 74, y + 91, "silu(gate) * up", "small")
    d.text(left + 136, y + 138, "h, rows of tokens")
    d.text(left + 136, y + 155, "the rows of the", "small")
    d.text(left + 136, y + 170, "next product", "small")
    d.box("plain", left, y + 100, 124, 84)
    d.box("h", left + 16, y + 119, 16, 28)
    d.text(left + 38, y + 137, "14 x 16", "small")
    d.arrow((left - 4, y + 142), (250, y + 142))
    d.text(256, y + 162, "h rows * panels of down [f][32]", "small")
    d.text(256, y + 178, "-> tiles of 14 x 32 sums -> y", "small")


def tokens_as_panels(d, top):
    """Rows of gate and up * token panels -> a tile -> a part of a panel of h."""
    d.text(10, top, "2. Raw weights: tokens are panels, weights are read in place", "head")
    y = top + 56
    d.text(10, y - 26, "gate and up, as they are")
    d.text(10, y - 9, "three rows of each", "small")
    for kind, x, at in (("gate", 10, 40), ("up", 92, 40)):
        d.box("plain", x, y, 72, 126)
        d.box(kind, x, y + at, 36, 9)
        d.thin(x + 36, y, x + 36, y + 126)
    left = 196
    d.text(left, y - 26, "x, packed in panels [d][64 tokens]")
    d.text(left, y - 9, "they stay in the L2 cache", "small")
    for panel in range(2):
        x = left + panel * 108
        d.box("plain", x, y, 96, 126)
        if panel == 0:
            d.box("x", x, y, 96, 63)
        d.thin(x, y + 63, x + 96, y + 63)
    d.text(left + 222, y + 68, "...")
    left = 500
    d.text(left, y - 26, "a tile: 6 x 64 sums")
    d.text(left, y - 9, "24 vector registers", "small")
    d.grid(left, y, 6, 32, 4, lambda r, _: "gate" if r < 3 else "up")
    d.arrow((452, y + 12), (left - 8, y + 12))
    d.text(464, y + 4, "fma", "small")
    d.arrow((left + 64, y + 28), (left + 64, y + 68))
    d.text(left + 74, y + 46, "activation:", "small")
    d.text(left + 74, y + 61, "silu(gate) * up", "small")
    d.text(left + 144, y + 104, "h, a panel")
    d.text(left + 144, y + 121, "[f][64 tokens]", "small")
    d.text(left + 144, y + 136, "of the next", "small")
    d.text(left + 144, y + 151, "product", "small")
    d.box("plain", left, y + 72, 128, 112)
    d.box("h", left, y + 106, 128, 9)
    d.text(left + 64, y + 130, "3 x 64, in place", "small middle")
    d.arrow((left - 4, y + 142), (250, y + 142))
    d.text(256, y + 162, "rows of down * panels of h", "small")
    d.text(256, y + 178, "-> tiles of 6 x 64 sums -> y", "small")


def cuts(d, top):
    """Blocks and partial sums of one output; chunks of a layer."""
    d.text(10, top, "3. How a sum and a layer are cut", "head")
    y = top + 50
    d.text(10, y - 26, "The sum behind one output")
    d.text(10, y - 9, "a block: one chain of 512 fma from +0", "small")
    for i in range(8):
        d.box("x" if i == 0 else "plain", 10 + 42 * i, y, 38, 24)
    d.text(29, y + 16, "512", "small middle")
    d.text(352, y + 17, "...")
    d.text(10, y + 44, "blocks are added in order; 64 blocks make a partial sum,", "small")
    d.text(10, y + 60, "and partial sums are added in order", "small")
    left = 440
    d.text(left, y - 26, "The work of a layer")
    d.text(left, y - 9, "hidden units across, tokens down", "small")
    d.box("plain", left, y, 300, 108)
    d.box("h", left, y, 120, 60)
    for x in (left + 120, left + 240):
        d.thin(x, y, x, y + 108)
    d.thin(left, y + 60, left + 300, y + 60)
    d.text(left + 60, y + 35, "a chunk", "small middle")
    d.text(left, y + 126, "a chunk's h is held at once, within 56 MiB; the bits", "small")
    d.text(left, y + 142, "do not depend on where the cuts are", "small")


def draw():
    d = Drawing()
    tokens_as_rows(d, 24)
    tokens_as_panels(d, 308)
    cuts(d, 592)
    return d.svg()


if __name__ == "__main__":
    FILE.write_text(draw(), "utf-8")
